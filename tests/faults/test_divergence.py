"""Training that leaves the finite numbers: never unseen, and gone back from with a smaller rate where that is asked for."""

import json
import math
import pickle
import random
import signal

import pytest
import torch
from folders import content, cut_off, planned, same, steps_of
from test_kills import in_a_process
from torch import nn
from torch.nn import functional

import incop
from incop import flow, stopping
from incop.checkpoint_files import Checkpoints
from incop.cli import main
from incop.errors import Diverged, InputError, TrainingError
from incop.experiments import comparison, comparison_runs, runs
from incop.flat_state import under
from incop.loop import search
from incop.masks import Masks
from incop.rundir import RunDir
from small import mlp

GENERATOR = torch.Generator().manual_seed(3)
X, Y = torch.randn(60, 6, generator=GENERATOR), torch.randint(3, (60,), generator=GENERATOR)
EARLY = {"method": "lth-early", "levels": 2, "optimizer": "sgd", "momentum": 0.0}
SEVERAL = {"method": "lth-rate", "levels": 2, "optimizer": "sgd"}


def net():
    return mlp(6, 12, 3)


class Careless(incop.Trainer):
    """The built-in trainer, of which one gradient is infinite after so many steps of a level, at too high a rate."""

    def wound(self, level, step, highest=1.0):
        """Say which step, and up to which share of the rate it happens; its loss is finite."""
        self.wounds, self.done = (level, step, highest), 0
        return self

    def _step(self, model, now, inputs, labels, watch):
        level, step, highest = self.wounds
        if (watch.level, watch.step + 1) == (level, step) and watch.lr_share >= highest:
            self.done += 1
            weight = next(p for group in now.optimizer.param_groups for p in group["params"])
            handle = weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
            try:
                return super()._step(model, now, inputs, labels, watch)
            finally:
                handle.remove()
        return super()._step(model, now, inputs, labels, watch)


def careless(level, step, highest=1.0, **more):
    said = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.1, **more}
    return Careless((X, Y), (X[:20], Y[:20]), **said).wound(level, step, highest)


def equal(ticket, other):
    return ticket.masks == other.masks and all(torch.equal(other.weights[n], w) for n, w in ticket.weights.items())


# --- never unseen


@pytest.mark.parametrize("step", [1, 5, 8])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_infinite_gradient_with_a_finite_loss_never_ends_a_level_unseen(step, optimizer):
    """8 steps a level: after the last no loss shows it any more."""
    tickets = search(net(), careless(1, step, optimizer=optimizer), levels=2, rewind="init", check_every=2)
    next(tickets)
    with pytest.raises(Diverged, match=r"level 1 \(after epoch .*training diverged; lower the learning rate") as caught:
        next(tickets)
    seen = "the loss is nan at step" if step < 8 else "is not finite after step 8 of level 1"
    assert seen in str(caught.value)
    assert "on_divergence='retry' begins the level again with half the learning rate" in str(caught.value)
    assert isinstance(caught.value, TrainingError)


def test_with_clipping_an_infinite_gradient_is_seen_before_its_step():
    model = net()
    made = careless(0, 3, clip=1.0)
    with pytest.raises(Diverged, match=r"the gradient is not finite at step 3 of level 0"):
        made.fit(model, Masks.full(model), incop.Watch(model))
    two = net()
    careless(9, 9, clip=1.0, epochs=0.5).fit(two, Masks.full(two), incop.Watch(two))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), two.parameters(), strict=True))


def test_a_norm_that_overflows_is_no_infinite_gradient():
    model = net()
    made = incop.Trainer((X, Y), (X, Y), epochs=1, batch_size=60, clip=1.0, loss=lambda o, t: o.mean() * 1e30)
    made.fit(model, Masks.full(model), incop.Watch(model))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


class Aside(nn.Module):
    """Has a row that no sample reaches, and a buffer of -inf, as masks of attention are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(5, 6)
        self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("never", torch.tensor([0.0, -math.inf]))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        return self.two(functional.relu(self.one(x + self.rows(torch.zeros(len(x), dtype=torch.int64)))))


class Own:
    """A trainer of the user's that knows nothing of all this, and looks once, before its last step."""

    def __init__(self, wound, counts=True):
        self.wound, self.counts = wound, counts

    def fit(self, model, masks, watch):
        sgd = torch.optim.SGD(model.parameters(), lr=0.05 * watch.lr_share)
        with incop.hold(masks, model, sgd):
            for step in range(4):
                sgd.zero_grad()
                functional.cross_entropy(model(X), Y).backward()
                sgd.step()
                if self.counts:
                    watch.stepped(len(X), epoch=(step + 1) / 4)
                if step == 2:
                    watch.look()
            if watch.level == 1 and watch.lr_share == 1.0:
                self.wound(model)

    def evaluate(self, model):
        return 0.5


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("name", ["rows.weight", "mean", "two.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_no_loss_shows_is_seen_at_the_end_of_the_level_also_with_a_trainer_that_does_not_look(name, value, counts):
    def wound(model):
        with torch.no_grad():
            dict((*model.named_parameters(), *model.named_buffers()))[name].view(-1)[-1] = value

    tickets = search(Aside(), Own(wound, counts), levels=2, rewind="rate")
    next(tickets)
    with pytest.raises(Diverged, match=f"'{name}' of the model is not finite after step"):
        next(tickets)
    said = []
    retried = list(
        search(Aside(), Own(wound, counts), levels=2, rewind="rate", on_divergence="retry", on_notice=said.append)
    )
    assert [ticket.record.lr_share for ticket in retried] == [1.0, 0.5, 0.5]
    assert len(said) == 1


class Halt(Exception):
    pass


def test_a_wounded_state_that_is_gone_on_from_is_seen_as_well():
    """Between the wound and the next look the search is cut off: what it goes on with does not pass for its beginning."""
    taken = []

    class Wounding(incop.Trainer):
        def _step(self, model, *more):
            value = super()._step(model, *more)
            if not taken and more[-1].level == 1:
                model.mean[0] = math.nan
            return value

    def on_state(take):
        state = take()
        if state["level"] == 1 and state["watch/step"] == 1:
            taken.append(state)
            raise Halt

    said = {"levels": 1, "rewind": "rate"}
    made = {"epochs": 1, "batch_size": 16}
    with pytest.raises(Halt):
        list(search(Aside(), Wounding((X, Y), (X, Y), **made), on_state=on_state, **said))
    with pytest.raises(Diverged, match="'mean' of the model is not finite after step 4 of level 1"):
        list(search(Aside(), Wounding((X, Y), (X, Y), **made), resume=taken[0], **said))


def test_what_was_infinite_before_training_may_be():
    assert len(list(search(Aside(), Own(lambda model: None), levels=2, rewind="init"))) == 3


def test_a_flow_that_is_not_finite_with_weights_that_are_is_a_divergence():
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    watch = incop.Watch(model, X, meter=flow.InformationFlow())
    with pytest.raises(Diverged, match=r"after step 0 of level 0, the outputs of layer '0' .*not finite on the probe"):
        watch.look()


def test_the_error_reaches_another_process_in_one_piece():
    for error in (Diverged("the loss is nan"), Diverged("a", "b")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.what, again.remedy) == (str(error), error.what, error.remedy)


# --- gone back from


@pytest.mark.parametrize("rewind", ["init", "early:0.5", "dense", "rate", "none"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_level_begun_again_is_one_begun_with_that_rate(rewind, optimizer):
    """Level 0 diverges at its sixth step: the search is then that of half the rate, to the bit; only its ledger knows."""
    arguments = {"levels": 2, "rewind": rewind, "amount": 0.4, "check_every": 0.5}
    retried = list(search(net(), careless(0, 6, optimizer=optimizer), on_divergence="retry", **arguments))
    slower = list(search(net(), careless(9, 9, optimizer=optimizer, lr=0.05), **arguments))
    assert all(equal(a, b) for a, b in zip(retried, slower, strict=True))
    for ticket, other in zip(retried, slower, strict=True):
        assert [(c.epoch, c.step, c.loss) for c in ticket.checks] == [(c.epoch, c.step, c.loss) for c in other.checks]
    assert [ticket.record.lr_share for ticket in retried] == [0.5] * 3
    record, plain = retried[0].record, slower[0].record
    assert (record.abandoned.epochs, record.abandoned.steps, record.abandoned.samples) == (1.5, 6, 92)
    assert (record.epochs, record.steps, record.samples) == (3.5, 14, plain.samples + 92)
    assert record.trained == plain.epochs == 2.0
    assert record.seconds > record.abandoned.seconds > 0
    assert "2 of 2 epochs (1.5 more abandoned)" in str(retried[0])
    assert record.notices == (
        "level 0 was begun again with 0.5 of the learning rate, after 1.5 epochs that diverged: '0.weight' of the model "
        "is not finite after step 6 of level 0 (after epoch 1.50)",
    )
    assert [ticket.record.abandoned for ticket in retried[1:]] == [None, None]


def test_only_the_levels_from_then_on_are_slower():
    arguments = {"levels": 3, "rewind": "rate", "amount": 0.4}
    tickets = list(search(net(), careless(2, 3), on_divergence="retry", **arguments))
    whole = list(search(net(), careless(9, 9), **arguments))
    assert [ticket.record.lr_share for ticket in tickets] == [1.0, 1.0, 0.5, 0.5]
    assert all(equal(a, b) for a, b in zip(tickets[:2], whole[:2], strict=True))
    assert not equal(tickets[2], whole[2])
    assert tickets[2].masks == whole[2].masks


@pytest.mark.parametrize("on_the_way", [(), (0.4,)])
def test_an_optimizer_that_is_kept_goes_back_with_its_level(on_the_way):
    """Level 2 goes on with level 1's Adam, and is begun again: not with what the infinite gradient left in it."""
    arguments = {"levels": 4, "rewind": "rate", "amount": 0.3, "rule": stopping.AfterEpochs(1), "ticket_at": on_the_way}
    kept = {"keep_optimizer": True, "search_batch_size": 10, "optimizer": "adam", "lr": 0.01}
    made = careless(2, 4, **kept)
    tickets = list(search(net(), made, on_divergence="retry", **arguments))
    assert made.done == 1

    class Slower(incop.Trainer):
        def fit(self, model, masks, watch):
            watch.lr_share = 0.5 if watch.level >= 2 else 1.0
            super().fit(model, masks, watch)

    plain = Slower((X, Y), (X[:20], Y[:20]), epochs=2, batch_size=16, **kept)
    slower = list(search(net(), plain, **arguments))
    assert all(equal(a, b) for a, b in zip(tickets, slower, strict=True))


def test_three_times_at_most_and_the_last_sentence_says_so():
    said = []
    tickets = search(
        net(), careless(1, 5, highest=0.0), levels=1, rewind="init", on_divergence="retry", on_notice=said.append
    )
    next(tickets)
    with pytest.raises(
        Diverged, match=r"the loss is nan at step 6 of level 1 .*, with 0.125 of the learning rate: training div"
    ):
        next(tickets)
    assert [sentence.split(" of ")[0] for sentence in said] == [
        f"level 1 was begun again with {share}" for share in (0.5, 0.25, 0.125)
    ]


def test_a_stop_that_came_before_the_divergence_is_forgotten():
    """A level that is reported goes on after the rule's stop; if that diverges, the stop is made again."""
    arguments = {"levels": 3, "rewind": "rate", "amount": 0.3, "rule": stopping.AfterEpochs(1), "ticket_at": (0.4,)}
    tickets = list(search(net(), careless(2, 7), on_divergence="retry", **arguments))
    record = tickets[2].record
    assert record.abandoned.epochs == 1.75
    assert (record.search.epochs, record.epochs, record.trained) == (1.75 + 1.0, 1.75 + 2.0, 2.0)
    assert [check.attempt for check in tickets[2].checks] == [1, 1]


def test_a_level_whose_beginning_was_not_kept_is_not_begun_again_and_says_why():
    """As when a run that diverged is resumed after its plan was edited."""
    states, said = [], {"levels": 1, "rewind": "init"}
    whole = search(net(), careless(9, 9), on_state=lambda take: states.append(take()), **said)
    list(whole)
    (state,) = [state for state in states if state["level"] == 1 and state["watch/step"] == 2]
    with pytest.raises(Diverged, match=r"taken before on_divergence was 'retry': start anew"):
        list(search(net(), careless(1, 4), resume=state, on_divergence="retry", **said))


def test_other_errors_are_not_tried_again():
    class Broken(Own):
        def fit(self, model, masks, watch):
            self.wound(model)
            raise TrainingError("the disk is full")

    calls = []
    with pytest.raises(TrainingError, match="the disk is full"):
        next(search(net(), Broken(calls.append), levels=1, rewind="init", on_divergence="retry"))
    assert len(calls) == 1
    with pytest.raises(InputError, match="unknown answer to a divergence 'again'"):
        search(net(), careless(0, 1), levels=1, on_divergence="again")


# --- in a run folder, with training that really diverges


def test_a_run_that_diverges_is_slower_and_says_so(tmp_path, capsys):
    words = ["--method", "lth-rate", "--levels", "2", "--limit", "200", "--max-epochs", "2", "--device", "cpu"]
    words += ["--optimizer", "sgd", "--lr", "300", "--momentum", "0"]
    assert main(["search", *words, "--out", str(tmp_path / "S")]) == 1
    assert "training diverged; lower the learning rate" in capsys.readouterr().err
    assert RunDir.open(tmp_path / "S").read_summary().status == "failed"
    assert main(["search", *words, "--on-divergence", "retry", "--out", str(tmp_path / "R")]) == 0
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line.partition(" of the learning rate")[0] for line in lines] == [
        f"incop: level 0 was begun again with {share}" for share in (0.5, 0.25, 0.125)
    ]
    assert "was begun again with 0.125" in " ".join(told.out.split())
    run = RunDir.open(tmp_path / "R")
    summary = run.read_summary()
    assert [level.lr_share for level in summary.levels] == [0.125] * 3
    assert len(summary.levels[0].notices) == 3
    assert summary.spent.samples == sum(level.samples for level in summary.levels)
    assert summary.levels[0].samples == 2 * 180 + summary.levels[0].abandoned.samples
    lines = [json.loads(line) for line in run.checks_file.read_text().splitlines()]
    assert [line["attempt"] for line in lines if line["level"] == 0][-2:] == [3, 3]
    assert [check.number for check in run.checks() if check.level == 0] == [1, 2]
    assert main(["replay", str(run.path), "--rule", "after 1 epochs"]) == 0
    assert main(["report", str(run.path)]) == 0
    assert main(["search", "--on-divergence", "retyr", "--out", str(tmp_path / "T")]) == 2
    assert "did you mean 'retry'" in capsys.readouterr().err


WAYS = {
    "the dense level, past its rewind point": {
        **EARLY,
        "rewind": "early:1steps",
        "lr": 100.0,
        "checkpoint_every": "3steps",  # none between the beginning of an attempt and the point
    },
    "the dense level, three times": {**SEVERAL, "momentum": 0.0, "lr": 300.0},
    "the last level": {**SEVERAL, "momentum": 0.9, "lr": 30.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_interrupted_at_any_step_it_ends_the_same(way, tmp_path):
    plan = planned(**{"checkpoint_every": "1steps", **WAYS[way]}, on_divergence="retry")
    steps = steps_of(plan, tmp_path / "whole")
    levels = RunDir.open(tmp_path / "whole").levels()
    assert levels[-1].lr_share < 1.0
    rng = random.Random(steps)
    for stops in ((1, 1, 2), (rng.randrange(2, steps - 2),), (steps // 3,) * 2, (steps // 5,) * 4):
        folder = tmp_path / "-".join(map(str, stops))
        assert cut_off(plan, folder, stops) >= 1
        same(folder, tmp_path / "whole")


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path):
    for every in ("1steps", "5steps", "60s"):
        runs.execute(planned(**WAYS["the last level"], on_divergence="retry", checkpoint_every=every), tmp_path / every)
    assert content(tmp_path / "1steps") == content(tmp_path / "5steps") == content(tmp_path / "60s")


def test_a_dense_level_that_was_slower_is_shared_as_one(tmp_path):
    key = {"optimizer": "sgd", "momentum": 0.0, "lr": 100.0, "on_divergence": "retry"}
    runs.execute(planned(method="dense", **key), tmp_path / "dense")
    runs.execute(planned(method="lth-rate", levels=2, **key), tmp_path / "own")
    runs.execute(planned(method="lth-rate", levels=2, **key), tmp_path / "shared", dense=tmp_path / "dense")
    own, shared = (RunDir.open(tmp_path / name).levels() for name in ("own", "shared"))
    assert [level.lr_share for level in shared] == [level.lr_share for level in own]
    ours, theirs = content(tmp_path / "own"), content(tmp_path / "shared")
    assert all(theirs[name] == ours[name] for name in ours if name.startswith("level_0"))


def test_a_comparison_says_which_runs_were_slower(tmp_path):
    said = {"optimizer": "sgd", "momentum": 0.0, "lr": 100.0, "on_divergence": "retry", "limit": 200, "max_epochs": 2.0}
    told = {
        "methods": ["lth-rate"],
        "seeds": 1,
        "sparsities": [0.3],
        "controls": False,
        "plan": {**said, "device": "cpu"},
    }
    comparison_runs.compare(comparison.Comparison.from_toml(told, source="here"), tmp_path / "C")
    from incop import reports

    (notice,) = [one for one in reports.read([tmp_path / "C"]).notices if "diverged" in one]
    assert "from level 0 on it was trained with 0.5 of the learning rate" in notice


def test_a_rewind_point_that_is_taken_anew_is_written_anew(tmp_path):
    files = Checkpoints(tmp_path)
    old, new = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    for number, (name, point) in enumerate(
        (("early:1", old), ("early:1", old), ("early:1 again 1", new), ("early:1 again 1", new))
    ):
        files.write({"number": number, **under(f"points/{name}", point)}, about={})
        kept = len(list(tmp_path.glob("point-*")))
        assert kept == (2 if number == 2 else 1)  # the checkpoint before still needs its own
    assert torch.equal(files.newest()[0].state["points/early:1 again 1/w"], new["w"])


@pytest.mark.parametrize("call", [6, 9, 12])
def test_killed_while_a_level_is_begun_again(call, tmp_path):
    plan = planned(**WAYS["the dense level, three times"], on_divergence="retry", checkpoint_every="2steps")
    runs.execute(plan, tmp_path / "whole")
    assert in_a_process(plan, tmp_path / "R", deadly=("replace", call)) == -signal.SIGKILL
    assert in_a_process(plan, tmp_path / "R") == 0
    same(tmp_path / "R", tmp_path / "whole")
