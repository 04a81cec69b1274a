"""Looking at a model leaves it as it was found, bit for bit, whatever its forward pass does."""

import contextlib
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from incop.batches import unpack
from incop.errors import InputError
from incop.inspection import device_of, full_precision, half_precision, not_finite, undisturbed


def bits(t):
    return None if t is None else t.detach().clone().contiguous().reshape(-1).view(torch.uint8)


def remembered(model):
    """Everything of a model that looking must not change, with the tensors' own identities."""
    return {
        "modes": [m.training for m in model.modules()],
        "tensors": [(n, id(t), t.data_ptr(), tuple(t.shape)) for n, t in state(model)],
        "bits": [bits(t) for _, t in state(model)],
        "grads": [(id(p.grad), p.requires_grad) for p in model.parameters()],
        "grad bits": [bits(p.grad) for p in model.parameters()],
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), bytes(torch.get_rng_state().tolist())),
        "attributes": [
            {k: id(v) for k, v in vars(m).items() if k not in ("training",)} | {"modules": list(m._modules)}
            for m in model.modules()
        ],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def state(model):
    return [*model.named_parameters(), *model.named_buffers()]


def assert_same(before, after):
    for part in before:
        if part.endswith("bits"):
            assert all(
                (a is None and b is None) or torch.equal(a, b) for a, b in zip(before[part], after[part], strict=True)
            ), part
        else:
            assert before[part] == after[part], part


class Restless(nn.Module):
    """A forward pass that changes whatever it can get at."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("hidden", torch.tensor([float("nan"), -0.0]), persistent=False)
        self.register_buffer("growing", torch.zeros(2))
        self.register_buffer("nothing", None)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.calls = 0
        self.throws = None

    def forward(self, x):
        self.calls += 1
        self.seen = x
        self.count += 1
        self.hidden.copy_(torch.tensor([1.0, 0.0]))
        self.growing = torch.ones(5)
        self.nothing = torch.ones(1)
        self.flags.logical_not_()
        self.register_buffer("late", torch.ones(1), persistent=False)
        if self.calls == 1:
            self.extra = nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.mul_(0.5)
        self.frozen.weight.data = torch.ones(3, 3)
        self.frozen.requires_grad_(True)
        self.norm.train()
        self.fc.weight.grad = torch.ones(3, 3)
        if self.frozen.bias.grad is not None:
            self.frozen.bias.grad.fill_(5)
        x = self.norm(self.drop(self.fc(x)))
        random.random(), np.random.rand(), torch.rand(1)
        if self.throws:
            raise self.throws
        return self.frozen(x)


def restless():
    torch.manual_seed(0)
    model = Restless().train()
    model.norm.eval()
    model.drop.train()
    model.frozen.eval()
    model.frozen.bias.grad = torch.tensor([1.0, float("nan"), -0.0])
    return model


@pytest.mark.parametrize("throws", [None, RuntimeError("midway"), KeyboardInterrupt()])
def test_everything_comes_back(throws):
    model = restless()
    model.throws = throws
    before = remembered(model)
    with pytest.raises(type(throws)) if throws else contextlib.nullcontext(), undisturbed(model):
        assert not any(m.training for m in model.modules())
        model(torch.randn(4, 3))
        model(torch.randn(4, 3))
    assert_same(before, remembered(model))
    assert not hasattr(model, "seen")
    assert model.calls == 0


def test_random_states_come_back():
    model = nn.Dropout(0.5)
    before = remembered(model)
    with undisturbed(model):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert_same(before, remembered(model))


def test_signed_zeros_and_nans_come_back():
    model = nn.Module()
    model.register_buffer("a", torch.tensor([-0.0, float("nan")]))
    with undisturbed(model):
        model.a.zero_()
    assert str(model.a.tolist()) == "[-0.0, nan]"
    model.a = torch.tensor([-0.0])  # equal to 0.0, in other bits
    with undisturbed(model):
        model.a.zero_()
    assert str(model.a.tolist()) == "[-0.0]"


def test_an_unchanged_tensor_is_not_written_to():
    model = nn.Linear(2, 2)
    version = model.weight._version
    with undisturbed(model):
        model(torch.zeros(1, 2))
    assert model.weight._version == version


def test_a_mode_that_a_model_overrides_is_not_called():
    class Loud(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("called")

    model = Loud(2, 2)
    with undisturbed(model):
        assert not model.training
    assert model.training


def test_a_buffer_does_not_keep_the_graph_of_what_was_written_into_it():
    class Remembers(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            self.memory[:] = out.mean()
            return out

    model = Remembers(2, 2)
    model.register_buffer("memory", torch.ones(1))
    with undisturbed(model), torch.enable_grad():
        model(torch.ones(1, 2))
    assert model.memory.grad_fn is None
    assert not model.memory.requires_grad
    assert model.memory.item() == 1


def test_sparse_and_empty_buffers():
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("empty", torch.zeros(0))
    model.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
    with undisturbed(model):
        model.complex.zero_()
    assert torch.equal(model.sparse.to_dense(), torch.eye(3))
    assert model.complex.tolist() == [1, 1]


def test_lazy_modules_are_refused():
    with (
        pytest.raises(InputError, match="module '1' is lazy and has no weight yet: run one batch"),
        undisturbed(nn.Sequential(nn.ReLU(), nn.LazyLinear(3))),
    ):
        pass


def test_max_norm_embeddings_may_renormalise_themselves():
    model = nn.Embedding(5, 3, max_norm=0.1)
    before = model.weight.detach().clone()
    with undisturbed(model):
        model(torch.tensor([1, 2]))
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


def test_device_of():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")


def test_half_precision():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not half_precision(net)
    net[1].bfloat16()
    assert half_precision(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM, nn.GRU])
def test_full_precision(dtype, kind):
    torch.manual_seed(0)
    model = kind(3, 4).to(dtype)
    x = torch.randn(2, 5, 3)
    reference = kind(3, 4)
    reference.load_state_dict({n: t.float() for n, t in model.state_dict().items()})
    before = remembered(model)
    first, wanted = full_precision(model, unpack(x)), reference(x)
    if isinstance(first, tuple):
        first, wanted = first[0], wanted[0]
    assert first.dtype == torch.float32
    assert torch.equal(first, wanted)
    after = remembered(model)
    assert_same({**before, "attributes": 0}, {**after, "attributes": 0})
    if isinstance(model, nn.RNNBase):  # which keeps its weights in a list besides
        assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))


def test_full_precision_with_other_weights_and_then():
    model = nn.Linear(3, 2)
    weights = {"weight": torch.zeros(2, 3), "bias": torch.ones(2)}
    assert full_precision(model, unpack(torch.randn(4, 3)), weights).tolist() == [[1, 1]] * 4
    assert full_precision(model, unpack(torch.randn(4, 3)), weights, then=lambda out: float(out.sum())) == 8.0
    assert full_precision(nn.ReLU(), unpack(torch.tensor([[-1.0]]))).item() == 0


def test_weights_are_in_place_while_then_runs():
    model = nn.Linear(1, 1)
    weights = {"weight": torch.tensor([[7.0]])}
    assert full_precision(model, unpack(torch.ones(1, 1)), weights, then=lambda out: model.weight.item()) == 7
    assert model.weight.item() != 7


KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_wherever_it_stands(kind, bad):
    if kind == torch.float8_e4m3fn and not math.isnan(bad):
        pytest.skip("this kind knows no infinity")
    net = nn.Module()
    net.register_parameter("good", nn.Parameter(torch.ones(3)))
    net.register_parameter("weight", nn.Parameter(torch.ones(2, 3).to(kind)))
    net.register_buffer("running", torch.ones(5).to(kind))
    net.register_buffer("count", torch.tensor(2**40))
    net.register_buffer("flags", torch.tensor([True]))
    net.register_buffer("none", torch.empty(0))
    assert not_finite(net) == []
    net.running.data[3] = bad
    assert not_finite(net) == ["running"]
    net.weight.data[1, 2] = bad
    assert not_finite(net) == ["weight", "running"]


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_finite_numbers_whose_sum_is_not_are_finite(kind):
    net = nn.Module()
    net.register_buffer("large", torch.full((1000,), torch.finfo(kind).max, dtype=kind))
    net.register_buffer("both", torch.tensor([torch.finfo(kind).max, torch.finfo(kind).min] * 500, dtype=kind))
    assert not_finite(net) == []


def test_infinities_that_cancel_are_seen():
    net = nn.Module()
    net.register_buffer("both", torch.tensor([math.inf, 1.0, -math.inf]))
    assert not_finite(net) == ["both"]


def test_what_has_no_values_yet_is_passed_over():
    assert not_finite(nn.LazyLinear(3)) == []
    assert not_finite(nn.Linear(2, 2, device="meta")) == []
    assert not_finite(nn.ReLU()) == []
