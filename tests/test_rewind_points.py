import copy
import dataclasses
import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import incop
from incop.errors import InputError, TrainingError
from incop.masks import Masks
from incop.offload import Offload
from incop.records import Interval
from incop.rewind_points import RewindPoint, Snapshot, check_extra_states


class Everything(nn.Module):
    """One of each: biases, normalisation, buffers that are not saved, half precision, 0-dim, tied, channels last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        self.bn = nn.BatchNorm2d(4)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.low = nn.Linear(4, 4).bfloat16()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("secret", torch.randn(3, 4).t(), persistent=False)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", None)
        odd = struct.pack("<4I", 0x7FC01234, 0xFFC00001, 0x80000000, 0x00000001)  # NaNs with payloads, -0.0, subnormal
        self.register_buffer("odd", torch.frombuffer(bytearray(odd), dtype=torch.float32).clone())

    def forward(self, x):
        self.count += 1
        self.secret.mul_(1.5)
        h = self.bn(self.conv(x)).mean((2, 3))
        return (self.b(self.a(h).relu()) * self.scale + self.low(h.bfloat16()).float()).float()


def bits(tensor):
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).tolist())


def contents(model):
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {name: (bits(t), t.dtype, t.shape, t.stride(), t.data_ptr()) for name, t in state.items()}


def train(model, steps=2):
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()
    for _ in range(steps):
        sgd.zero_grad()
        functional.cross_entropy(model(torch.randn(8, 4, 5, 5)), torch.randint(4, (8,))).backward()
        sgd.step()


def scribble(model):
    """Other bits in every tensor."""
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.copy_(~t if t.dtype == torch.bool else t.nan_to_num() + 1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Everything()
    with torch.no_grad():
        made.conv.weight[0, 0, 0] = torch.tensor([float("nan"), -0.0, float("-inf")])
    return made


@pytest.mark.parametrize("spoil", [train, scribble])
def test_everything_comes_back_bit_for_bit(net, spoil):
    before = contents(net)
    point = Snapshot.of(net, epoch=1.5)
    spoil(net)
    changed = {n for n, c in contents(net).items() if c != before[n]}
    assert {"conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"} <= changed
    assert {"bn.num_batches_tracked", "a.weight", "b.weight", "low.weight", "scale", "count", "secret"} <= changed
    point.rewind(net)
    assert contents(net) == before
    assert net.b.weight is net.a.weight
    assert point.epoch == 1.5


def test_training_cannot_reach_the_copy(net):
    point = Snapshot.of(net)
    kept = {name: bits(t) for name, t in point.tensors.items()}
    for _ in range(2):
        train(net)
        scribble(net)
        assert {name: bits(t) for name, t in point.tensors.items()} == kept
        point.rewind(net)
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers()) if t.numel()}
    assert not own & {t.untyped_storage().data_ptr() for t in point.tensors.values() if t.numel()}
    assert not any(t.requires_grad for t in point.tensors.values())


def test_a_copied_model_is_rewound_too(net):
    before = contents(net)
    point = Snapshot.of(net)
    twin = copy.deepcopy(net)
    scribble(twin)
    point.rewind(twin)
    assert {n: c[:4] for n, c in contents(twin).items()} == {n: c[:4] for n, c in before.items()}
    assert contents(net) == before


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), st.sampled_from([torch.float32, torch.float16]))
@settings(max_examples=50)
def test_any_bits_come_back(words, dtype):
    raw = torch.frombuffer(bytearray(struct.pack(f"<{len(words)}I", *words)), dtype=dtype).clone()
    net = nn.Module()
    net.w = nn.Parameter(raw.clone())
    point = Snapshot.of(net)
    with torch.no_grad():
        net.w.zero_()
    point.rewind(net)
    assert bits(net.w) == bits(raw)


def test_masks_leave_plus_zero(net):
    point = Snapshot.of(net)
    with torch.no_grad():
        net.a.weight.fill_(-1)
    masks = Masks({"a.weight": torch.eye(4) > 0, "conv.weight": torch.zeros(4, 4, 3, 3) > 0})
    train(net)
    point.rewind(net, masks)
    for name, mask in masks.items():
        weight = net.get_parameter(name).detach()
        assert not weight.view(torch.int32)[~mask].any()
        assert torch.equal(weight[mask], point.tensors[name][mask])
    point.prove(net, masks)
    with pytest.raises(TrainingError, match=r"rewinding 'conv.weight' did not bring back its bits"):
        point.prove(net)
    with torch.no_grad():
        net.a.weight[0, 1] = -0.0
    with pytest.raises(TrainingError, match=r"rewinding 'a.weight'"):
        point.prove(net, masks)


@pytest.mark.parametrize(
    "name", ["conv.bias", "bn.running_var", "bn.num_batches_tracked", "secret", "low.weight", "scale"]
)
def test_one_tensor_that_does_not_come_back_is_named(net, name, monkeypatch):
    point = Snapshot.of(net)
    scribble(net)
    stubborn = dict([*net.named_parameters(), *net.named_buffers()])[name]
    real = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda self, *a, **k: self if self is stubborn else real(self, *a, **k))
    with pytest.raises(TrainingError, match=rf"rewinding '{name}' did not bring back its bits"):
        point.rewind(net)


@pytest.mark.parametrize("name", ["odd", "scale"])
def test_one_bit_is_enough(net, name):
    point = Snapshot.of(net)
    tensor = dict([*net.named_parameters(), *net.named_buffers()])[name]
    view = tensor.detach().view(torch.int32)
    view.bitwise_xor_(1)
    with pytest.raises(TrainingError, match=f"rewinding '{name}'"):
        point.prove(net)
    view.bitwise_xor_(1)
    point.prove(net)
    if name == "odd":
        view[2] = 0  # -0.0 and 0.0 are equal and not the same
        with pytest.raises(TrainingError, match="rewinding 'odd'"):
            point.prove(net)


def test_tensors_that_share_memory_only_now():
    """A model tied together after the snapshot cannot hold both tensors again."""
    net = nn.Module()
    net.a, net.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    point = Snapshot.of(net)
    net.b.data = net.a.data
    with pytest.raises(TrainingError, match=r"rewinding 'a' .* something else writes to it"):
        point.rewind(net)


def test_a_buffer_that_grew(net):
    point = Snapshot.of(net)
    before = contents(net)
    net.odd.resize_(9)
    with pytest.raises(InputError, match=r"'odd' is float32 of shape \(9,\) now and was float32 of shape \(4,\)"):
        point.prove(net)
    point.rewind(net)
    assert {n: c[:3] for n, c in contents(net).items()} == {n: c[:3] for n, c in before.items()}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: nn.Linear(4, 3), r"'weight' is float32 of shape \(3, 4\) now and was float32 of shape \(2, 4\)"),
        (lambda: nn.Linear(4, 2, bias=False), "they differ at 'bias'"),
        (lambda: nn.Sequential(nn.Linear(4, 2)), "they differ at '0.bias'"),
        (lambda: nn.Linear(4, 2).half(), r"'weight' is float16 of shape \(2, 4\) now and was float32"),
    ],
)
def test_another_model_is_refused_and_left_alone(other, what):
    point = Snapshot.of(nn.Linear(4, 2))
    model = other()
    before = contents(model)
    for call in (point.rewind, point.prove):
        with pytest.raises(InputError, match=f"the rewind point belongs to another model: {what}"):
            call(model)
    assert contents(model) == before


def test_masks_of_another_model_are_refused_before_anything_is_written():
    net = nn.Linear(4, 2)
    point = Snapshot.of(net)
    scribble(net)
    before = contents(net)
    with pytest.raises(InputError, match="these masks belong to another model"):
        point.rewind(net, Masks({"weight": torch.ones(3) > 0}))
    assert contents(net) == before


def test_rewinding_does_not_touch_gradients_or_optimizers(net):
    train(net)
    point = Snapshot.of(net)
    grads = {n: (p.grad, bits(p.grad)) for n, p in net.named_parameters() if p.grad is not None}
    point.rewind(net)
    assert all(net.get_parameter(n).grad is g and bits(g) == b for n, (g, b) in grads.items())
    assert all(p.requires_grad for p in net.parameters())


# --- rewind points


@pytest.mark.parametrize(
    "text", ["init", "dense", "rate", "none", "early:2", "early:0.5", "early:500steps", "early:1e-07"]
)
def test_a_rewind_point_reads_what_it_writes(text):
    point = RewindPoint.parse(text)
    assert str(point) == text
    assert RewindPoint.parse(point) is point
    assert RewindPoint.parse(str(point)) == point
    assert point.restores == (text not in ("rate", "none"))


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.integers(1, 10**12).map(str))
def test_any_early_point_reads_what_it_writes(amount):
    after = Interval(amount) if isinstance(amount, float) else Interval.parse(f"{amount}steps")
    assert RewindPoint.parse(str(RewindPoint("early", after))).after == after


@pytest.mark.parametrize(
    "text", ["", "early", "early:", "early:0", "early:-1", "early:x", "init:2", "late", "early:1.5steps", None, 3]
)
def test_unknown_rewind_points(text):
    with pytest.raises(InputError, match=r"unknown rewind point .*: (did you mean .*\? )?use init, early:N"):
        RewindPoint.parse(text)


@pytest.mark.parametrize("parts", [("late",), ("early",), ("early", 2.0), ("init", Interval(1))])
def test_a_rewind_point_checks_itself(parts):
    with pytest.raises(InputError, match="unknown rewind point"):
        RewindPoint(*parts)


def test_a_snapshot_says_how_far_it_was_trained_and_cannot_be_changed():
    net = torch.nn.Linear(2, 2)
    assert Snapshot.of(net).epoch == 0.0
    assert Snapshot({}).epoch == 0.0
    assert Snapshot.of(net, epoch=1.5).epoch == 1.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        Snapshot.of(net).epoch = 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        RewindPoint("init").kind = "dense"


class Extra(nn.Linear):
    """Holds a state beside its tensors, and hands out the very object."""

    def __init__(self, state):
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=50, deadline=None)
def test_any_extra_state_that_json_holds_comes_back(state):
    net = nn.Sequential(nn.Linear(2, 2), Extra(copy.deepcopy(state)))
    then = Snapshot.of(net)
    if isinstance(net[1].state, dict | list):
        net[1].state.clear()  # the copy is out of reach
    net[1].state = "another"
    then.rewind(net)
    assert repr(net[1].state) == repr(state)
    check_extra_states(net)


@pytest.mark.parametrize("to", [None, "cpu", "disk"])
def test_a_tensor_as_extra_state_comes_back_of_whatever_shape_it_was(to, tmp_path):
    net = Extra(torch.tensor([1.0, float("nan")], dtype=torch.float64))
    net.state = net.weight.detach()[0]  # shares its memory with a weight
    wanted = net.state.clone()
    then = Snapshot.of(net, offload=Offload(tmp_path if to == "disk" else to))
    net.state = None  # another kind, and another shape
    with torch.no_grad():
        net.weight.zero_()
    then.rewind(net)
    assert torch.equal(net.state, wanted)
    assert torch.equal(net.weight[0], wanted)
    net.state.zero_()
    then.rewind(net)
    assert torch.equal(net.state, wanted)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({1, 2}, "returns a set"),
        ((1, 2), "returns a tuple"),
        ({"shape": (1, 2)}, "returns a dict that holds more"),
        ({1: "a"}, "returns a dict that holds more"),
        ({"amax": torch.ones(2)}, "returns a dict that holds more"),
        ([np.float64(1.0)], "returns a list that holds more"),
        (io.BytesIO(b"bytes"), "returns a BytesIO"),
    ],
)
def test_other_extra_states_are_refused_before_any_training(state, said):
    net = nn.Sequential(nn.Linear(2, 2), Extra(state))
    for use in (check_extra_states, Snapshot.of):
        with pytest.raises(InputError, match=said):
            use(net)
    before = copy.deepcopy(net[0].state_dict())
    x, y = torch.randn(20, 2), torch.randint(2, (20,))
    trainer = incop.Trainer((x, y), (x, y), epochs=1, batch_size=10)
    with pytest.raises(InputError, match=said):
        next(incop.search(net, trainer, levels=1, rewind="rate"))
    assert all(torch.equal(before[name], tensor) for name, tensor in net[0].state_dict().items())


def test_an_extra_state_that_its_module_does_not_take_back_is_refused():
    net = Extra(1)
    net.set_extra_state = lambda state: setattr(net, "state", 2)
    with pytest.raises(InputError, match=r"set_extra_state of '_extra_state' \(Extra\) does not put in place"):
        check_extra_states(net)
    then = Snapshot.of(Extra(1))
    with pytest.raises(TrainingError, match="set_extra_state of Extra does not put in place"):
        then.rewind(net)


def test_an_extra_state_that_its_module_cannot_put_back_is_refused():
    class Giving(nn.Linear):
        def get_extra_state(self):
            return 1

    with pytest.raises(InputError, match=r"'0\._extra_state' \(Giving\) has get_extra_state and no set_extra_state"):
        check_extra_states(nn.Sequential(Giving(2, 2)))
    broken = Extra(1)
    broken.set_extra_state = lambda state: state["missing"]
    with pytest.raises(InputError, match="does not take back the extra state '_extra_state': TypeError"):
        check_extra_states(broken)


def test_extra_states_belong_to_the_model_and_not_to_what_processes_must_agree_on():
    one, other = Extra({"rank": 0}), Extra({"rank": 1})
    other.load_state_dict({**one.state_dict(), "_extra_state": {"rank": 1}})
    assert Snapshot.of(one).sums() == Snapshot.of(other).sums()
    with pytest.raises(InputError, match="they differ at '_extra_state"):
        Snapshot.of(one).rewind(nn.Linear(2, 2))
    with pytest.raises(InputError, match="they differ at '_extra_state"):
        Snapshot.of(nn.Linear(2, 2)).rewind(one)
    with pytest.raises(TrainingError, match="rewinding '_extra_state'"):
        Snapshot.of(one).prove(other)
