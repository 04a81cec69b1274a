import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import incop
from incop import flow, pruning
from incop.rewind_points import Snapshot
from incop.wrappers import unwrapped

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


@contextlib.contextmanager
def one_process(folder):
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


class Loop:
    """A loop of the user's; it trains what it is given, wrapped or not."""

    def __init__(self):
        self.called = []

    def fit(self, model, masks, watch):
        self.called.append(type(model).__name__)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model.train()
        with incop.hold(masks, model, optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                functional.cross_entropy(model(X), Y).backward()
                optimizer.step()
                watch.stepped(len(X))
                if watch.look(accuracy=lambda: self.evaluate(model)).stop:
                    return

    @torch.no_grad()
    def evaluate(self, model):
        model.eval()
        right = float((model(X).argmax(1) == Y).float().mean())
        model.train()
        return right


def searched(model, **more):
    loop = Loop()
    arguments = {"levels": 1, "rewind": "early:1", "probe": (X, Y), "meter": flow.InformationFlow("square"), **more}
    return list(incop.search(model, loop, **arguments)), loop


@functools.cache
def plainly():
    return searched(net())[0]


def same_search(model, **more):
    """The search of a wrapped model is that of the model within: masks, weights, flows and all names."""
    keys = list(model.state_dict())
    wanted = plainly() if not more else searched(net(), **more)[0]
    found, loop = searched(model, **more)
    assert set(loop.called) == {type(model).__name__}  # what is trained is what was given
    assert list(model.state_dict()) == keys
    for a, b in zip(wanted, found, strict=True):
        assert a.masks == b.masks
        assert a.record.flow == b.record.flow
        assert a.weights.keys() == b.weights.keys()
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    fresh = net()
    found[-1].load_into(fresh)
    assert incop.Masks.of(fresh) == found[-1].masks
    assert not any(name.startswith(("module", "_orig_mod")) for name in found[-1].weights)


def test_data_parallel():
    same_search(nn.DataParallel(net()))


def test_distributed(tmp_path):
    with one_process(tmp_path):
        same_search(DistributedDataParallel(net()))


class Counting:
    """A backend that runs what it is given and counts how often it was asked to compile."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def _afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize("meter", [flow.InformationFlow("square"), flow.GradientFlow(functional.cross_entropy)])
def test_compiled(meter):
    same_search(torch.compile(net(), backend="eager"), meter=meter)


@pytest.mark.usefixtures("_afresh")
def test_compiled_in_place_or_in_part():
    whole, part = net(), net()
    whole.compile(backend="eager")
    same_search(whole)
    part[0] = torch.compile(part[0], backend="eager")
    keys = list(part.state_dict())
    tickets, _ = searched(part)
    assert list(part.state_dict()) == keys  # `0._orig_mod.weight`: so the user's own model calls it
    assert list(tickets[-1].record.flow.values.values()) == list(plainly()[-1].record.flow.values.values())


@pytest.mark.usefixtures("_afresh")
def test_looking_does_not_compile_again():
    counts = []
    for check_every in (1, 2):
        torch._dynamo.reset()
        counting = Counting()
        searched(torch.compile(net(), backend=counting), check_every=check_every)
        counts.append(counting.graphs)
    assert counts[0] == counts[1] <= 3  # in training, in evaluation, and training again after the mode was set


@pytest.mark.usefixtures("_afresh")
def test_parts_of_a_search_take_a_wrapped_model(tmp_path):
    plain, inner = net(), net()
    model = torch.compile(nn.DataParallel(inner), backend="eager")
    assert unwrapped(model) is inner
    score = pruning.GradientTimesWeight(functional.cross_entropy, [(X, Y)])
    model(X)  # compiled before any hook is there
    masks = incop.prune(model, amount=0.5, score=score)
    plain(X)
    assert masks == incop.prune(plain, amount=0.5, score=score)
    damage = flow.Damage(model, X)
    assert damage(masks) == flow.Damage(plain, X)(masks) > 0
    before = Snapshot.of(model)
    masks.apply(model)
    assert incop.Masks.of(inner) == masks == incop.Masks.of(model)
    before.rewind(inner)
    before.prove(model)


def test_a_weight_averaging_copy_takes_the_models_masks():
    model = net()
    copy = torch.optim.swa_utils.AveragedModel(model)
    masks = incop.prune(model, amount=0.5)
    masks.apply(copy)
    assert incop.Masks.of(copy.module) == masks
    assert incop.Masks.of(model).sparsity == 0
