"""The contract of every meter: one answer however the probe is cut, no trace on the model, errors in a sentence."""

import contextlib
import copy
import random
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop.errors import IncopError, InputError
from incop.flow import GradientFlow, InformationFlow, measure

METERS = [
    *(InformationFlow(r, alive_only=alive) for r in ("mean", "absolute", "square") for alive in (False, True)),
    *(GradientFlow(F.cross_entropy, statistic) for statistic in ("norm", "mean_abs")),
    InformationFlow(chain=["fc1", "norm", "fc2"]),
    GradientFlow(F.cross_entropy, chain=["fc1", "fc2"]),
]
every_meter = pytest.mark.parametrize("meter", METERS, ids=lambda m: f"{m}{' by hand' if m.layers else ''}")


class Busy(nn.Module):
    """A model with everything that looking could disturb."""

    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.relu, self.fc2, self.frozen = nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen.requires_grad_(False)
        self.words = nn.Embedding(3, 6, max_norm=0.5)
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("memory", torch.tensor([float("nan"), -0.0, 2.0]), persistent=False)
        self.throws, self.after = None, 0

    def forward(self, x):
        self.passes += 1
        self.memory[2:] = x.mean()
        self.memory[1] = 0.0
        self.last = x
        random.random(), np.random.rand(), torch.rand(2)
        x = self.drop(self.relu(self.norm(self.fc1(x))))
        if self.throws is not None and self.passes > self.after:
            raise self.throws
        return self.frozen(self.fc2(x) + self.words(torch.tensor([0, 1])).sum())


def busy(grad="some"):
    torch.manual_seed(0)
    model = Busy()
    model.train()
    model.norm.eval()
    model.fc2.eval()
    if grad == "some":
        model.fc1.weight.grad = torch.randn(6, 4)
        model.fc1.bias.grad = torch.full((6,), float("nan"))
    return model


def raw(t):
    return None if t is None else t.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def trace_of(model):
    """Everything that has to be as before, bit for bit."""
    return {
        "weights": {n: (id(p), p.data_ptr(), raw(p), p.requires_grad, id(p.grad), raw(p.grad))
                    for n, p in model.named_parameters()},
        "buffers": {n: (id(b), raw(b), b.grad_fn, b.requires_grad) for n, b in model.named_buffers()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "hooks": [sum(len(t) for name, t in vars(m).items() if name.endswith("_hooks")) for m in model.modules()],
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()[1:]] + [np.random.get_state()[1].tobytes()],
        "python": random.getstate(),
        "global hooks": len(nn.modules.module._global_forward_hooks),
        "grad mode": torch.is_grad_enabled(),
    }  # fmt: skip


X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
PROBE = [(X[:5], Y[:5]), (X[5:20], Y[5:20]), (X[20:], Y[20:])]


@every_meter
@pytest.mark.parametrize("grad", ["none", "some"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_no_trace(meter, grad, dtype):
    model = busy(grad).to(dtype)
    before = trace_of(model)
    measure(model, PROBE, meter)
    assert trace_of(model) == before


THROWS = [RuntimeError("midway"), KeyboardInterrupt(), SystemExit(), MemoryError()]
PAIRS = [  # every pair of a meter, an error, a pass and a precision occurs in one of them
    (meter, THROWS[(number + after) % 4], after, (torch.float32, torch.float16)[(after + number // 2) % 2])
    for number, meter in enumerate(METERS)
    for after in range(4)
]


def test_every_pair_occurs():
    for one, other in combinations(range(4), 2):
        occurring = {(id(case[one]), id(case[other])) for case in PAIRS}
        assert len(occurring) == len({id(case[one]) for case in PAIRS}) * len({id(case[other]) for case in PAIRS})


@pytest.mark.parametrize(
    ("meter", "throws", "after", "dtype"),
    PAIRS,
    ids=[f"{METERS.index(m)}-{type(throws).__name__}-{after}-{dtype}" for m, throws, after, dtype in PAIRS],
)
def test_no_trace_when_the_model_throws(meter, throws, after, dtype):
    model = busy().to(dtype)
    model.throws, model.after = throws, after
    before = trace_of(model)
    if after == 3 and meter.layers:  # no pass to find the chain: three passes in all
        measure(model, PROBE, meter)
    elif isinstance(throws, Exception):
        with pytest.raises(InputError, match=rf"Busy cannot be run on a batch .*{type(throws).__name__}.*give batches"):
            measure(model, PROBE, meter)
    else:
        with pytest.raises(type(throws)):
            measure(model, PROBE, meter)
    assert trace_of(model) == before


@every_meter
def test_no_trace_of_a_loader_that_shuffles(meter):
    model = busy()
    before = trace_of(model)
    loader = DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True)
    flow = measure(model, loader, meter)
    assert trace_of(model) == before
    assert flow.values == pytest.approx(measure(model, PROBE, meter).values, rel=1e-4, abs=1e-6)


@every_meter
def test_training_goes_on_as_if_nothing_had_been_measured(meter):
    def trained(looks):
        model = busy(grad="none").train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for x, y in PROBE * 2:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if looks:
                measure(model, PROBE, meter)
            optimizer.step()
        return [raw(t) for t in model.state_dict().values()]

    assert trained(looks=True) == trained(looks=False)


@every_meter
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 24), max_size=4), order=st.randoms(use_true_random=False))
def test_batches_and_their_order_do_not_matter(meter, cuts, order):
    model = busy()
    places = sorted({0, 24, *cuts})
    probe = [(X[a:b], Y[a:b]) for a, b in pairwise(places)]
    order.shuffle(probe)
    one, many = (measure(model, p, meter) for p in ((X, Y), probe))
    assert list(one.values) == list(many.values)
    assert many.values == pytest.approx(one.values, rel=1e-4, abs=1e-6)
    assert (many.samples, one.samples) == (24, 24)


@every_meter
def test_the_same_again(meter):
    model = busy()
    first = measure(model, PROBE, meter)
    assert measure(model, PROBE, meter).values == first.values
    assert measure(copy.deepcopy(model).eval(), PROBE, meter).values == first.values
    assert first.meter == str(meter)
    assert first.seconds > 0
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            assert measure(model, PROBE, meter).values == first.values


def test_public_face():
    assert incop.measure is measure


# ---- inputs and outputs of every form


@dataclass
class Answer:
    logits: torch.Tensor


class Forms(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.fc1, self.fc2, self.form = nn.Linear(4, 6), nn.Linear(6, 3), form

    def forward(self, a, b=None):
        return self.form(self.fc2(torch.tanh(self.fc1(a if b is None else a + b))))


@pytest.mark.parametrize("meter", [InformationFlow(), GradientFlow(F.cross_entropy)], ids=str)
@pytest.mark.parametrize("form", [lambda t: (t, 0), lambda t: {"x": 1, "logits": t}, lambda t: Answer(t), lambda t: t])
def test_inputs_and_outputs_of_every_form(meter, form):
    model = Forms(form)
    zero = torch.zeros_like(X)
    expected = measure(model, (X, Y), meter).values
    for probe in (
        {"a": X, "labels": Y},
        ({"a": X}, Y),
        ((X, zero), Y),
        [((X, zero), Y)],
        [{"a": X, "b": zero, "y": Y}],
        [X, Y],
        DataLoader(TensorDataset(X, Y), batch_size=24),
        (X.double(), Y),
    ):
        assert measure(model, probe, meter).values == pytest.approx(expected, abs=1e-7)


# ---- what is refused


@pytest.mark.parametrize("meter", [InformationFlow(), GradientFlow(F.cross_entropy)], ids=str)
@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ([], "the probe is empty"),
        (((x, y) for x, y in PROBE), "can be read only once"),
        (map(tuple, PROBE), "can be read only once"),
        (7, "the probe is a int: pass a data loader"),
        ([(X[:0], Y[:0])], "no sample at all"),
        ([(X[:1], Y[:1])], "at least 2 samples"),
        ([(X[:, :3], Y)], r"Busy cannot be run on a batch of the probe, input of shape \(24, 3\)"),
        ([(X, Y), (X[:, :3], Y)], r"Busy cannot be run on a batch of the probe, input of shape \(24, 3\)"),
        ([((X, X), Y)], r"Busy cannot be run .* inputs of shape \(24, 4\), \(24, 4\) \(TypeError: "),
        ([(X.long(), Y)], "Busy cannot be run"),
        ([("text", Y)], "holds no input tensor"),
        ([(X, Y, Y)], "a batch of 3 parts is ambiguous"),
        ([(X * float("nan"), Y)], "not finite|is nan"),
        (DataLoader([], batch_size=2), "the probe is empty"),
    ],
)
def test_bad_probes_are_refused_in_a_sentence(meter, probe, said):
    model = busy()
    before = trace_of(model)
    with pytest.raises(IncopError, match=said) as caught:
        measure(model, probe, meter)
    assert "\n" not in str(caught.value)
    assert trace_of(model) == before


def test_models_that_cannot_be_measured():
    with pytest.raises(InputError, match=r"the model is a function, not a torch.nn.Module"):
        measure(lambda x: x, X, InformationFlow())
    with pytest.raises(InputError, match="at least two Linear, Conv"):
        measure(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), X, InformationFlow())
    with pytest.raises(InputError, match="module '0' is lazy"):
        measure(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)), X, InformationFlow())
    with pytest.raises(InputError, match=r"unknown layer in the chain 'fc3': did you mean 'fc[12]'"):
        measure(busy(), X, InformationFlow(chain=["fc1", "fc3"]))
    with contextlib.suppress(DeprecationWarning), pytest.raises(InputError, match="is a ScriptModule"):
        measure(torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), X), X, InformationFlow())


class Chooses(nn.Module):
    """Which layers run depends on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x) if len(x) % 2 else x)


@pytest.mark.parametrize("meter", [InformationFlow(), GradientFlow(F.cross_entropy)], ids=str)
def test_paths_that_depend_on_the_data_are_refused(meter):
    odd, even = (X[:7], Y[:7]), (X[:8], Y[:8])
    for probe in ([odd], [even, odd], [odd, even]):
        model = Chooses()
        with pytest.raises(InputError, match=r"layer 'b' ran 1 times on one batch and 0 times on another"):
            measure(model, probe, meter)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert list(measure(Chooses(), [even, even], meter).values) in (["a->c"], ["a", "c"])
    by_hand = type(meter)(*([F.cross_entropy] if isinstance(meter, GradientFlow) else []), chain=["a", "c"])
    assert len(measure(Chooses(), [odd, even], by_hand).values) in (1, 2)


def test_a_chain_by_hand_whose_layer_does_not_run():
    with pytest.raises(InputError, match="layer 'b' of the chain did not run on this batch"):
        measure(Chooses(), X[:8], InformationFlow(chain=["a", "b"]))


def test_a_model_that_insists_on_its_batch_size():
    class Insists(nn.Sequential):
        def forward(self, x):
            assert len(x) == 8, "batches of 8, please"
            return super().forward(x)

    model = Insists(nn.Linear(4, 4), nn.Linear(4, 3))
    assert list(measure(model, list(X.split(8)), InformationFlow()).values) == ["0->1"]
    with pytest.raises(InputError, match="AssertionError: batches of 8, please"):
        measure(model, list(X.split(5)), InformationFlow())


def test_a_forward_pass_that_leaves_torch_needs_its_chain():
    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(torch.from_numpy(np.tanh(self.a(x).numpy())))

    with pytest.raises(InputError, match=r"runs alone but not under autograd \(RuntimeError: .*chain=\[…\]"):
        measure(Leaves(), X, InformationFlow())
    assert list(measure(Leaves(), X, InformationFlow(chain=["a", "b"])).values) == ["a->b"]


def test_the_first_two_samples_are_enough_to_find_the_chain():
    sizes = []

    class Counts(nn.Sequential):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    measure(Counts(nn.Linear(4, 4), nn.Linear(4, 3)), list(X.split(12)), InformationFlow())
    assert sizes == [2, 12, 12]
