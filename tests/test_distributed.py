"""Several processes that train one network: what they find together is what one finds alone."""

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import incop
from incop import distributed, flow, hold, pruning, stopping
from incop.distillation import OutputError
from incop.errors import Diverged, InputError, TrainingError
from incop.experiments.engines.local import PROCESSES
from incop.masks import Masks
from incop.rewind_points import Snapshot

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(53, 6, generator=GENERATOR)
Y = X[:, :3].argmax(1)


def serve(rank, size, port, pipe):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, INCOP_RANK_TIMEOUT="60")
    torch.set_num_threads(1)
    with distributed.joined() as together:
        while (task := pipe.recv()) is not None:
            try:
                pipe.send((task[0](together, *task[1:]), None))
            except Exception as error:
                pipe.send((None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


class Company:
    """Processes that carry out one function after the other, all at once."""

    def __init__(self, size):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        pipes = [PROCESSES.Pipe() for _ in range(size)]
        self.ends = [mine for mine, _ in pipes]
        self.processes = [
            PROCESSES.Process(target=serve, args=(rank, size, port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, function, *args):
        for end in self.ends:
            end.send((function, *args))
        told = [end.recv() if end.poll(120) else (None, "it did not answer") for end in self.ends]
        assert [wrong for _, wrong in told] == [None] * len(told), "\n".join(str(wrong) for _, wrong in told)
        return [value for value, _ in told]

    def close(self):
        for end in self.ends:
            end.send(None)
        for process in self.processes:
            process.join(30)


@pytest.fixture(scope="module", params=[2, 3])
def company(request):
    PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo", "torch.distributed"])
    processes = Company(request.param)
    yield processes
    processes.close()


def net(*extra):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 12), *extra, nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


# --- what they tell each other


def words(together):
    told = {
        "same": together.same({"rank": together.rank}),
        "all": together.all(together.rank),
        "total": together.total(torch.tensor([1.0, together.rank])).tolist(),
        "mean": (together.mean(together.rank), together.mean(0.1)),
        "once": together.once(lambda: f"by {together.rank}"),
        "together": together.together(lambda: together.rank),
        "asked": together.asked(lambda x: x + together.rank)(10),
        "apart": (together.apart("a"), together.apart(together.rank)),
        "shares": together.all(together.share(10)),
    }
    return together.rank, together.size, told


def test_they_tell_each_other(company):
    for rank, (mine, size, told) in enumerate(company(words)):
        assert mine == rank
        assert told["same"] == {"rank": 0}
        assert told["all"] == list(range(size))
        assert told["total"] == [size, sum(range(size))]
        assert told["mean"] == (sum(range(size)) / size, 0.1)  # the same numbers stay to the bit
        assert told["once"] == "by 0"
        assert told["together"] == rank
        assert told["asked"] == 10
        assert told["apart"] == (None, 1)
        ends = [0, *(end for _, end in told["shares"])]
        assert [begin for begin, _ in told["shares"]] == ends[:-1]
        assert ends[-1] == 10


def failing(together, how, who):
    def fail():
        if together.rank in who:
            raise InputError("no such thing") if how != "other" else KeyError("strange")

    try:
        together.once(fail) if how == "once" else together.together(fail)
    except (InputError, TrainingError) as error:
        return type(error).__name__, str(error), error.shared
    except KeyError:
        return "KeyError"
    return None


def test_an_error_of_one_is_an_error_of_all(company):
    assert set(company(failing, "once", (0,))) == {("InputError", "no such thing", True)}
    assert set(company(failing, "once", (1,))) == {None}
    assert set(company(failing, "together", (0, 1))) == {("InputError", "no such thing", True)}
    for kind, said, shared in company(failing, "together", (1,)):
        assert (kind, shared) == ("InputError", True)
        assert said.startswith("in process 1 of ")
        assert said.endswith(": no such thing")
    for kind, said, _ in company(failing, "other", (1,)):
        assert kind == "TrainingError"
        assert "KeyError" in said


# --- flow

METERS = [
    flow.InformationFlow(),
    flow.InformationFlow(alive_only=True),
    flow.InformationFlow("absolute"),
    flow.InformationFlow("square", alive_only=True),
]


def gradients(statistic):
    return flow.GradientFlow(functional.cross_entropy, statistic)


class Counting:
    """A meter of the user's, whose statistics know only `merge`."""

    def __init__(self, samples=0, total=0.0):
        self.samples, self.total = samples, total

    def chain(self, model, batch):
        return ("0",)

    def collect(self, model, batches, chain, masks):
        found = Counting()
        for batch in batches:
            found = found.merge(Counting(batch.samples, float(batch.args[0].double().sum())))
        return found

    def merge(self, other):
        return Counting(self.samples + other.samples, self.total + other.total)

    def flow(self, statistics):
        return {"0": statistics.total / statistics.samples}

    def __str__(self):
        return "counting"


def probes():
    whole = [(X[:20], Y[:20]), (X[20:27], Y[20:27]), (X[27:], Y[27:])]
    tiny = [(X[n : n + 1], Y[n : n + 1]) for n in range(2)]  # less than there are processes, of three
    uncut = [{"x": X[:9], "scale": torch.tensor([2.0])}, {"x": X[9:30], "scale": torch.tensor([2.0])}]
    return {"whole": whole, "tiny": tiny, "uncut": uncut}


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, scale=None):
        return self.net(x if scale is None else x * scale)


def every_flow(together, model=None):
    """Measure everything on every probe; alone without a group."""
    found = {}
    for name, probe in probes().items():
        model = Scaled()
        with torch.no_grad():
            model.net[0].weight[3] = 0.0  # a unit that does not vary
            model.net[0].bias[3] = 1.0
        masks = incop.prune(model, amount=0.4)
        spread = model if together is None else DistributedDataParallel(model)
        meters = [*METERS, Counting()] if name != "tiny" else METERS
        if name != "uncut":
            meters = [*meters, gradients("norm"), gradients("mean_abs")]
        if name == "uncut":
            meters = meters[:-1]
        for meter in meters:
            one = incop.measure(spread, probe, meter, masks=masks, together=True)
            found[f"{name} {meter}"] = (one.samples, dict(one.values))
    return found


@functools.cache
def alone():
    return every_flow(None)


def test_a_probe_is_divided_and_its_flow_is_that_of_one_process(company):
    for found in company(every_flow):
        assert found.keys() == alone().keys()
        for name, (samples, values) in alone().items():
            assert found[name][0] == samples, name
            assert values.keys() == found[name][1].keys()
            for layer, value in values.items():
                assert found[name][1][layer] == pytest.approx(value, rel=1e-5, abs=1e-9), (name, layer)


def forwards(together):
    seen = []
    model = net()
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    spread = DistributedDataParallel(model)
    incop.measure(spread, [(X, Y)], flow.InformationFlow(chain=["0", "2", "4"]), together=True)
    divided, seen[:] = list(seen), []
    incop.measure(spread, [(X, Y)], flow.InformationFlow(chain=["0", "2", "4"]))
    return max(divided), max(seen)


def test_each_sees_its_share_of_a_probe_and_by_default_all_of_it(company):
    found = company(forwards)
    assert sum(share for share, _ in found) == len(X)
    assert {whole for _, whole in found} == {len(X)}


def moved(together):
    """Return the largest tensor that goes between processes for the mean, of a pair of wide layers, and for |ρ|."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 200)))
    found, total = [], distributed.Ranks.total

    def counted(self, tensor):
        found.append(tensor.numel())
        return total(self, tensor)

    distributed.Ranks.total = counted
    try:
        incop.measure(model, (X, Y), flow.InformationFlow(), together=True)
        mean, found[:] = list(found), []
        incop.measure(model, (X, Y), flow.InformationFlow("absolute"), together=True)
    finally:
        distributed.Ranks.total = total
    return max(mean), max(found)


def test_no_matrix_of_units_goes_between_them_where_the_reduction_needs_none(company):
    assert set(company(moved)) == {(300, 300 * 200)}


def bad_probe(together):
    probe = [(X[:20], Y[:20]), (X[20:40].clone(), Y[20:40])]
    begin, end = distributed.Ranks(1, together.size).share(20)
    probe[1][0][begin:end] = torch.nan  # only in the share of process 1
    found = []
    for meter in (flow.InformationFlow(), gradients("norm")):
        try:
            incop.measure(DistributedDataParallel(net()), probe, meter, together=True)
        except TrainingError as error:
            found.append(str(error).partition(" of layer ")[0])
    return found


def test_nan_in_one_share_is_an_error_of_all(company):
    found = company(bad_probe)
    assert [len(one) for one in found] == [2] * len(found)
    assert all(one == found[0] for one in found)


# --- training


def trainer(**more):
    usual = {"validation": (X[:31], Y[:31]), "epochs": 2, "batch_size": 9, "lr": 0.01}
    return incop.Trainer((X, Y), **usual | more)


def record(ticket):
    level = ticket.record
    return {
        "masks": ticket.masks.digest().hex(),
        "steps": level.steps,
        "samples": level.samples,
        "probed": level.probe_samples,
        "metric": level.metric_value,
        "reason": level.stop_reason,
        "flow": {} if level.flow is None else dict(level.flow.values),
        "weights": {name: tensor.clone() for name, tensor in ticket.weights.items()},
        "notices": level.notices,
    }


def third_or_less(competition):
    """An amount that asks what its cut would do."""
    third = len(competition.weights) // 3
    return third if competition.damage(third) < 0.5 else third // 2


SEARCHES = {
    "flow": {"meter": flow.InformationFlow(), "rule": stopping.FlowSettled(1) | stopping.AfterEpochs(2)},
    "gradient flow": {"meter": gradients("norm"), "rule": stopping.AfterEpochs(1), "rewind": "dense"},
    "accuracy": {"rule": stopping.AccuracyRestored() | stopping.AfterEpochs(2), "check_every": 0.5},
    "masks": {"rule": stopping.MaskSettled() | stopping.AfterEpochs(2), "check_every": "2steps"},
    "planned": {"amount": pruning.EvenDamage(0.7, 3), "levels": 3, "rule": stopping.AfterEpochs(0.5), "rewind": "rate"},
    "damage": {"amount": third_or_less, "rule": stopping.MaskSettled() | stopping.AfterEpochs(2), "rewind": "rate"},
    "on the way": {"ticket_at": (0.3,), "rule": stopping.AfterEpochs(0.5), "rewind": "rate", "levels": 3},
    "gradient score": {"score": pruning.GradientTimesWeight(functional.cross_entropy, [(X, Y)]), "levels": 2},
    "pq": {"rewind": "rate", "amount": pruning.PQIndex(1, 2), "selection": pruning.Layerwise(output=0.5)},
    "saliency": {"score": pruning.Saliency(memory=20), "rewind": "rate", "levels": 3},
    "dense objective": {"rewind": "rate"},
    "dense objective, every batch": {"rewind": "dense", "rule": stopping.AfterEpochs(2)},
}


def searched(together, name, how=None, **more):
    model = net()
    spread = model if together is None else DistributedDataParallel(model)
    options = {"probe": [(X[:40], Y[:40]), (X[40:], Y[40:])], "levels": 2, "rewind": "early:1", **SEARCHES[name]}
    return [record(ticket) for ticket in incop.search(spread, trainer(**(how or {})), **options, **more)]


def shifted(inputs, generator):
    return inputs + 0.1


HOW = {
    "accuracy": {"clip": 0.5, "optimizer": "sgd"},
    "masks": {"batch_size": 53},
    "pq": {"batch_size": 3, "epochs": 0.5},
    "dense objective": {"objective": "dense", "validation": X[:31]},
    "dense objective, every batch": {"objective": OutputError(), "augment": shifted, "validation": X[:31]},
}


IN_THREE = ("planned", "damage", "gradient score", "pq")
CASES = [*((2, name) for name in SEARCHES), *((3, name) for name in IN_THREE)]


@pytest.mark.parametrize(("company", "name"), CASES, indirect=["company"])
def test_a_search_is_that_of_one_process(company, name):
    wanted = searched(None, name, HOW.get(name))
    found = company(searched, name, HOW.get(name))
    for mine in found:
        assert len(mine) == len(wanted)
        for a, b in zip(mine, wanted, strict=True):
            for key in ("masks", "steps", "samples", "probed"):
                assert a[key] == b[key], key
            assert a["metric"] == pytest.approx(b["metric"], rel=1e-4)
            assert a["reason"].partition("(")[0] == b["reason"].partition("(")[0]
            assert a["flow"] == pytest.approx(b["flow"], rel=1e-4, abs=1e-6)
            for weight, tensor in b["weights"].items():
                assert torch.allclose(a["weights"][weight], tensor, rtol=1e-4, atol=1e-5), weight
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert all(torch.equal(a["weights"][weight], b["weights"][weight]) for weight in a["weights"])
            assert {k: v for k, v in a.items() if k != "weights"} == {k: v for k, v in b.items() if k != "weights"}
    size = len(found)
    digest = found[0][1]["masks"][:16]
    assert f"{size} processes hold the same masks ({digest}) and weights" in found[0][1]["notices"]


class Unequal:
    """An amount and a score whose answers are other in every process, as sums of other numbers of threads are."""

    def __call__(self, *asked):
        if len(asked) == 1:
            return len(asked[0].weights) // 3 + distributed.number()
        generator = torch.Generator().manual_seed(distributed.number())
        return {name: torch.rand(weight.shape, generator=generator) for name, weight in asked[1].items()}


def unequal(together):
    model = DistributedDataParallel(net())
    found = incop.search(model, trainer(), levels=2, amount=Unequal(), score=Unequal(), rewind="rate")
    return [(ticket.masks.digest(), ticket.masks.remaining) for ticket in found]


def test_answers_that_differ_are_the_first_ones(company):
    found = company(unequal)
    assert all(one == found[0] for one in found)
    total = found[0][0][1]
    assert found[0][1][1] == total - total // 3


def gathered(together, accumulate):
    """Train by hand, two batches a step, the first of them without talking to each other; return what saliency gathered."""
    model, score = net(), pruning.Saliency(memory=5)
    spread = model if together is None else DistributedDataParallel(model)
    begin, end = (0, 12) if together is None else together.share(12)
    masks, sgd = Masks.full(model), torch.optim.SGD(model.parameters(), lr=0.05)
    with score.gathering(spread, masks):
        for step in range(4):
            sgd.zero_grad()
            for part in range(2):
                rows = slice(12 * (2 * step + part) % 48 + begin, 12 * (2 * step + part) % 48 + end)
                quiet = together is not None and accumulate and part == 0
                with spread.no_sync() if quiet else contextlib.nullcontext():
                    functional.cross_entropy(spread(X[rows]), Y[rows]).backward()
            sgd.step()
    return score.state(), incop.prune(spread, masks=masks, amount=0.4, score=score).digest()


@pytest.mark.parametrize("accumulate", [False, True], ids=["", "no_sync"])
def test_every_process_gathers_the_squares_of_the_mean_gradient(company, accumulate):
    wanted, _ = gathered(None, accumulate)
    found = company(gathered, accumulate)
    assert len({digest for _, digest in found}) == 1
    for state, _ in found:
        assert state.keys() == wanted.keys()
        for name, one in wanted.items():
            assert torch.equal(state[name], found[0][0][name])
            assert torch.allclose(state[name], one, rtol=1e-3, atol=1e-9), name


def normalised(together):
    """With batch normalisation each normalises by its share; the running statistics are their mean, everywhere the same."""
    model = DistributedDataParallel(net(nn.BatchNorm1d(12), nn.Dropout(0.3)), broadcast_buffers=True)
    states = []

    def noted(take):  # after every step
        states.append(Snapshot.of(model).sums())

    *_, ticket = incop.search(
        model, trainer(), levels=1, rewind="early:1", probe=X, meter=flow.InformationFlow(), on_state=noted
    )
    shares = together.all(ticket.weights["1.running_mean"])
    return [torch.equal(shares[0], one) for one in shares], len(states), together.apart(states)


def test_running_statistics_are_one_after_every_step(company):
    for same, steps, apart in company(normalised):
        assert all(same)
        assert steps > 12
        assert apart is None


def diverging(together, answer):
    bad = X.clone()
    bad[7] = torch.inf  # in one process's share of some batch
    model = DistributedDataParallel(net())
    told = []
    try:
        list(
            incop.search(
                model,
                incop.Trainer((bad, Y), (X, Y), epochs=1, batch_size=20),
                levels=1,
                rewind="rate",
                on_divergence=answer,
                on_notice=told.append,
            )
        )
    except Diverged as error:
        return str(error), told
    return None


def test_a_loss_that_is_not_finite_in_one_ends_all_alike(company):
    found = company(diverging, "stop")
    assert len(set(map(str, found))) == 1
    assert found[0][0].startswith("the loss is ")
    found = company(diverging, "retry")
    assert len(set(map(str, found))) == 1
    assert len(found[0][1]) == 3


# --- a loop of the user's


class Mine:
    """Each process trains on its own samples and measures on its own; looks are at the same steps."""

    epochs = 3.0

    def __init__(self, together):
        self.together = together

    def fit(self, model, masks, watch):
        begin, end = self.together.share(len(X))
        end = begin + len(X) // self.together.size  # DistributedDataParallel waits for equally many steps
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with incop.hold(masks, model, optimizer):
            for epoch in range(3):
                for at in range(begin, end, 5):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(X[at : at + 5]), Y[at : at + 5]).backward()
                    optimizer.step()
                    watch.stepped(5 * self.together.size)
                if watch.look(accuracy=self.evaluate(model), loss=0.1 * self.together.rank, epoch=epoch + 1).stop:
                    return

    def evaluate(self, model):
        return 0.2 * (self.together.rank + 1)


class Uneven(stopping.Rule):
    """Asked in one process, it would stop at another look than in the next."""

    def judge(self, history):
        return history.now.number >= 2 + distributed.number(), f"by process {distributed.number()}"

    def __str__(self):
        return "uneven"


def own_loop(together):
    model = DistributedDataParallel(net(nn.BatchNorm1d(12)))
    options = {"meter": flow.InformationFlow(), "rule": Uneven(), "levels": 2, "last_level_full": False}
    told, states = [], []
    tickets = list(
        incop.search(
            model,
            Mine(together),
            probe=(X, Y),
            **options,
            on_check=lambda check: told.append((check.level, check.number, check.accuracy, check.loss)),
            on_state=lambda take: states.append(take()),
        )
    )
    again = DistributedDataParallel(net(nn.BatchNorm1d(12)))
    rest = list(incop.search(again, Mine(together), probe=(X, Y), **options, resume=states[1]))
    # DistributedDataParallel takes the sums of more than two processes in another order in its first step than afterwards
    equal = torch.equal if together.size == 2 else torch.allclose
    pairs = zip(tickets[1:], rest, strict=True)
    same = [all(equal(a.weights[k], b.weights[k]) for k in a.weights) for a, b in pairs]
    return [(t.record.epochs, t.record.stop_reason, t.masks.digest()) for t in tickets], told, same


def test_a_loop_of_ones_own(company):
    found = company(own_loop)
    assert all(one == found[0] for one in found)
    levels, told, same = found[0]
    assert [reason for _, reason, _ in levels[1:]] == ["by process 0"] * 2
    assert [epochs for epochs, _, _ in levels] == [3, 2, 2]
    size = len(found)
    assert told[0][2] == pytest.approx(0.2 * (size + 1) / 2)  # the mean of what each measured on its own
    assert told[0][3] == pytest.approx(0.1 * (size - 1) / 2)
    assert same == [True, True]


def loaders(together):
    model, data = DistributedDataParallel(net()), TensorDataset(X, Y)
    try:
        list(incop.search(model, incop.Trainer(DataLoader(data, 5), (X, Y), epochs=1), levels=1, rewind="rate"))
    except InputError as error:
        said = str(error)
    seen = []

    def noted(batch):
        seen.append(batch[0])
        return batch

    sampler = DistributedSampler(data)
    train = incop.Trainer(DataLoader(data, 5, sampler=sampler), DataLoader(data, 7), epochs=2, unpack=noted)
    ticket = next(incop.search(model, train, levels=1, rewind="rate"))
    samples = {tuple(row.tolist()) for part in together.all(torch.cat(seen)) for row in part}
    one = incop.Trainer((X, Y), (X, Y)).evaluate(distributed.within(model))
    return said, len(samples), ticket.record.val_accuracy == one, sampler.epoch


def test_a_loader_divides_itself_or_is_refused(company):
    for said, samples, accuracy, epoch in company(loaders):
        assert said.startswith("the model is trained by")
        assert "DistributedSampler" in said
        assert samples == len(X)
        assert accuracy
        assert epoch > 0


class Mean:
    """As torchmetrics: it gathers by itself."""

    higher_is_better, sync_on_compute = True, True

    def __call__(self, output, target):
        raise AssertionError("it is handed batches one by one")

    def reset(self):
        self.sum = self.count = 0

    def update(self, output, target):
        self.sum, self.count = self.sum + float((output.argmax(1) == target).sum()), self.count + len(target)

    def compute(self):
        return self.sum / self.count * (1 if not self.sync_on_compute else 2)


def agreement(output, target):
    return float((output.argmax(1) == target).float().mean()) + len(target)


def by_metrics(together):
    model = net() if together is None else DistributedDataParallel(net())
    made = [
        incop.Trainer((X, Y), (X, Y), metric=agreement, higher_is_better=True),
        incop.Trainer((X, Y), (X, Y), metric=Mean() if together else _alone(Mean())),
    ]
    return [one.evaluate(model) for one in made]


def _alone(metric):
    metric.sync_on_compute = False
    return metric


def test_metrics_are_of_the_whole_split(company):
    wanted = by_metrics(None)
    for found in company(by_metrics):
        assert found == pytest.approx(wanted, abs=1e-6)


def held(together):
    """Train held weights; say which promise of holding was broken, and return the weights' first layer."""
    masks = Masks({name: torch.rand(mask.shape, generator=fresh()) < 0.4 for name, mask in Masks.full(net()).items()})
    broken, model = [], net()
    for view in (False, True):
        spread = DistributedDataParallel(model, gradient_as_bucket_view=view)
        sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        with hold(masks, model, sgd):
            for step in range(3):
                sgd.zero_grad()
                spread(torch.randn(4, 6, generator=fresh(10 * step + together.rank))).square().sum().backward()
                for name, weight in masks.weights(model).items():
                    if weight.grad[~masks[name]].any() or not weight.grad[masks[name]].any():
                        broken.append(f"gradients of {name}")
                sgd.step()
                for name, weight in masks.weights(model).items():
                    if weight.detach().view(torch.int32)[~masks[name]].any():
                        broken.append(name)
    return broken, model[0].weight.detach().tolist()


def fresh(seed=1):
    return torch.Generator().manual_seed(seed)


def test_two_processes_side_by_side(company):
    """Gradients are zeroed before they are averaged: no process sees those of pruned weights."""
    (broken, weights), *others = company(held)
    assert broken == []
    assert all(other == (broken, weights) for other in others)


def on_the_page(script, place, out):
    os.environ.update(place)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
    exec(compile(script, "distributed.md", "exec"), {"__name__": "__main__"})


def test_the_loop_on_the_page_is_one_search_in_two_processes(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text()
    script = re.search(r"```python\n(.*?)```", page, re.S)[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    files = [tmp_path / str(rank) for rank in range(2)]
    both = [
        PROCESSES.Process(target=on_the_page, args=(script, {**place, "RANK": file.name}, str(file))) for file in files
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    said = [file.read_text() for file in files]
    assert said[0].count("2 processes hold the same masks") == 2
    assert said[1] == ""


# --- what is refused


def sharded(together):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    whole = net()
    told = []
    for make in (lambda: fully_shard(net()), lambda: FullyShardedDataParallel(net(), device_id=torch.device("cpu"))):
        model = make()
        for use in (
            lambda model=model: incop.search(model, trainer(), levels=1),
            lambda model=model: incop.measure(model, X, flow.InformationFlow()),
            lambda model=model: incop.prune(model, amount=0.5),
            lambda model=model: Masks.full(whole).weights(model) and incop.prune(model, amount=0.5),
        ):
            try:
                use()
            except InputError as error:
                told.append(str(error))
    return told


def test_weights_in_pieces_are_refused(company):
    for told in company(sharded):
        pieces = [said for said in told if "keeps each weight in pieces in several processes" in said]
        assert len(pieces) >= 6
        assert all("DistributedDataParallel" in said for said in pieces)
        assert {said.split(" ")[0] for said in pieces} == {"fully_shard", "FullyShardedDataParallel"}


def test_a_comparison_is_refused(tmp_path):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "incop", "compare", "--out", str(tmp_path / "C")],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("incop: a comparison is many searches")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["1", "2"])
def test_a_command_of_several_leaves_before_the_interpreter_ends(size):
    """Torch's threads abort a process that ends while they let go of a tensor; what is to be done at the end is done."""
    script = """
import atexit, sys
from incop.cli import main
atexit.register(print, "at the end", end=" ")
sys.argv[1:] = ["--version"]
status = main()
print("returned", end=" ")
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RANK": "0", "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = ["at the end "] if size == "2" else ["returned at the end "]
    assert (done.returncode, done.stdout.splitlines()[1:], done.stderr) == (0, ours, "")


@pytest.mark.parametrize("said", ["soon", "0", "nan", "1e9"])
def test_a_patience_that_is_none(said, monkeypatch):
    monkeypatch.setenv("INCOP_RANK_TIMEOUT", said)
    with pytest.raises(InputError, match="INCOP_RANK_TIMEOUT"):
        distributed._patience()


def test_one_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, {"RANK": "0", "WORLD_SIZE": "1"}[name])
    assert not distributed.launched()
    assert distributed.number() == 0
    with distributed.joined() as together:
        assert together is distributed.ALONE
    assert distributed.of(net()) is distributed.ALONE
