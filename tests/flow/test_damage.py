"""Damage against NumPy's corrcoef of outputs that the test captures itself, before and after weights are zeroed by hand."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_meter import PROBE, busy, trace_of
from torch import nn

from incop import Masks, batches, prune
from incop.errors import InputError, TrainingError
from incop.flow import Damage

WORST = 1.0


def outputs(model, x, names):
    found, handles = {}, []
    was = copy.deepcopy(model).eval()
    for name in names:
        handles.append(
            was.get_submodule(name).register_forward_hook(
                lambda m, a, out, name=name: found.__setitem__(name, out.detach().double().numpy().copy())
            )
        )
    with torch.no_grad():
        was(x)
    return {n: o.reshape(*o.shape[:2], -1).mean(2) if o.ndim > 2 else o for n, o in found.items()}


def oracle(model, x, names, masks):
    """Slow and obvious: zero the weights in a copy, np.corrcoef of one unit at a time, the mean over layers."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(name)[~mask] = 0
    before, after = outputs(model, x, names), outputs(pruned, x, names)
    harm = []
    for name in names:
        kept = []
        for a, b in zip(before[name].T, after[name].T, strict=True):
            if a.std() > 1e-6 * np.abs(before[name]).max():
                dead = b.std() <= 1e-6 * np.abs(after[name]).max()
                kept.append(0.0 if dead else np.corrcoef(a, b)[0, 1])
        harm.append(1.0 - min(max(np.mean(kept), 0.0), 1.0) if kept else 0.0)
    return np.mean(harm)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two, self.down = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(4, 6, 1, 2)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.enter(x)))
        out = self.two(self.relu(self.one(x)))
        out += self.down(x)
        return self.head(self.relu(out).mean((2, 3)))


def lively(model, x):
    """Give batch normalisation statistics, and gains and offsets, that a trained network would have."""
    model.train()
    for _ in range(5):
        model(x)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_()
    return model


def mlp():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 20), nn.ReLU(inplace=True), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 3)
    )
    return net, ["1", "3", "5"]


def cnn():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(5, 7, 2),
        nn.BatchNorm2d(7), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(28, 9),
        nn.ReLU(inplace=True), nn.Linear(9, 4),
    )  # fmt: skip
    return net, ["0", "4", "9", "11"]


def resnet():
    return Residual(), ["enter", "one", "two", "head"]


@pytest.fixture(params=[mlp, cnn, resnet], ids=lambda build: build.__name__)
def network(request):
    torch.manual_seed(3)
    net, names = request.param()
    x = torch.randn(60, 3, 8, 8) + torch.randn(60, 1, 1, 1)
    return lively(net, x), names, x


def cuts(net):
    yield from (prune(net, amount=share) for share in (0.0, 0.1, 0.5, 0.8, 0.97))
    yield Masks({n: torch.rand(m.shape) < 0.6 for n, m in Masks.full(net).items()})


def close(found, wanted):
    assert found == pytest.approx(wanted, abs=2e-5, rel=1e-4)


def test_equals_corrcoef_before_and_after_whatever_the_batches(network):
    net, names, x = network
    whole = Damage(net, x)
    cut_up = [Damage(net, list(part)) for part in (x.split(7), x.flip(0).split([1, 44, 15]), [x[:59], x[59:]])]
    harms = []
    for masks in cuts(net):
        wanted = oracle(net, x, names, masks)
        close(whole(masks), wanted)
        for damage in cut_up:
            close(damage(masks), wanted)
        harms.append(wanted)
    assert harms[0] == pytest.approx(0, abs=1e-9)
    assert 0 < harms[1] < harms[2] < harms[4]
    assert harms[5] > 0.01


def test_nothing_cut_does_no_damage(network):
    net, _, x = network
    assert Damage(net, x)(Masks.full(net)) == pytest.approx(0, abs=1e-12)
    assert Damage(net, x)({}) == pytest.approx(0, abs=1e-12)


def test_a_network_of_which_nothing_is_left_is_as_damaged_as_can_be(network):
    net, _, x = network
    assert Damage(net, x)(prune(net, amount=1.0)) == pytest.approx(WORST)


def test_only_the_layers_of_a_chain_given_by_hand_are_watched(network):
    net, names, x = network
    masks = prune(net, amount=0.6)
    assert Damage(net, x, chain=names)(masks) == Damage(net, x)(masks)
    for pair in pairwise(names):
        close(Damage(net, x, chain=pair)(masks), oracle(net, x, list(pair), masks))


def small(seed, sizes=(4, 6, 5, 2)):
    g = torch.Generator().manual_seed(seed)
    parts = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())][:-1]
    net = nn.Sequential(*parts)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return net, torch.randn(30, sizes[0], generator=g), ["0", "2", "4"]


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 29))
@settings(max_examples=60, deadline=None)
def test_equals_corrcoef_for_any_masks(seed, density, first):
    net, x, names = small(seed)
    g = torch.Generator().manual_seed(seed + 1)
    masks = Masks({n: torch.rand(m.shape, generator=g) < density for n, m in Masks.full(net).items()})
    found = Damage(net, [x[:first], x[first:]])(masks)
    assert 0 <= found <= WORST
    assert found == pytest.approx(oracle(net, x, names, masks), abs=1e-4, rel=1e-3)


def test_a_unit_that_dies_counts_nothing_and_one_that_was_dead_is_left_out():
    net, x, names = small(5)
    with torch.no_grad():
        net[0].weight[1:3] = 0.0  # two of six never varied
    masks = Masks.full(net)
    dying = Masks({**masks, "0.weight": masks["0.weight"] & (torch.arange(6) != 3)[:, None]})
    with torch.no_grad():
        net[2].weight[:] = 0.0  # neither layer after it varies
    assert Damage(net, x)(dying) == pytest.approx((1 - 3 / 4) / 3)
    assert Damage(net, x)(dying) == pytest.approx(oracle(net, x, names, dying), abs=1e-5)
    with torch.no_grad():
        net[0].weight[:] = 0.0
    assert Damage(net, x)(prune(net, amount=0.9)) == pytest.approx(0, abs=1e-12)  # nothing varied: nothing to lose


def test_a_sign_that_turns_is_not_rewarded():
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0]] * 3))
        net[1].weight.copy_(torch.tensor([[3.0, -1.0, -1.0]]))
    masks = Masks({"1.weight": torch.tensor([[False, True, True]])})
    assert Damage(net, torch.randn(20, 2))(masks) == pytest.approx(WORST / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_of_another_precision_is_that_of_its_rounded_weights(network, dtype):
    net, names, x = network
    other = copy.deepcopy(net).to(dtype)
    x = x.to(dtype).float()
    wide = copy.deepcopy(other).float() if dtype != torch.float64 else net
    for share in (0.3, 0.8):
        masks = prune(other, amount=share)
        close(Damage(other, x)(masks), oracle(wide, x, names, masks))
        assert {p.dtype for p in other.parameters()} == {dtype}


@pytest.mark.parametrize("grad", ["none", "some"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_no_trace(grad, dtype):
    model = busy(grad).to(dtype)
    masks = prune(model, amount=0.5)
    before = trace_of(model)
    damage = Damage(model, PROBE)
    assert trace_of(model) == before
    assert damage(masks) > 0
    assert trace_of(model) == before


@pytest.mark.parametrize("throws", [RuntimeError("midway"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_no_trace_when_the_model_throws(throws, after):
    model = busy()
    masks, damage = prune(model, amount=0.5), Damage(model, PROBE)
    kind, said = (
        (InputError, "Busy cannot be run on a batch") if isinstance(throws, Exception) else (type(throws), None)
    )
    model.throws, model.after = throws, after
    before = trace_of(model)
    if after < 3:  # Damage finds the chain in a pass of its own
        with pytest.raises(kind, match=said):
            damage(masks)
    else:
        damage(masks)
    assert trace_of(model) == before
    model.after = min(after, 2)
    before = trace_of(model)
    with pytest.raises(kind, match=said):
        Damage(model, PROBE)
    assert trace_of(model) == before


def test_works_under_inference_mode_and_on_a_probe_of_labelled_batches():
    net, x, _ = small(1)
    masks = prune(net, amount=0.5)
    wanted = Damage(net, x)(masks)
    labelled = [(x[:10], torch.zeros(10)), batches.unpack((x[10:], torch.zeros(20)))]
    assert Damage(net, labelled)(masks) == pytest.approx(wanted, abs=1e-6)
    with torch.inference_mode():
        assert Damage(net, x)(masks) == wanted


def test_its_own_cost_is_counted():
    net, x, _ = small(1)
    damage = Damage(net, x.split(8))
    assert damage.samples == 30
    seconds = [damage.seconds]
    for k in (2, 3):
        damage(Masks.full(net))
        assert damage.samples == 30 * k
        seconds.append(damage.seconds)
    assert 0 < seconds[0] < seconds[1] < seconds[2]


@pytest.mark.parametrize("probe", [torch.ones(1, 4), [torch.ones(1, 4)], iter([]), [], None])
def test_a_probe_of_less_than_two_samples_is_refused(probe):
    with pytest.raises(InputError, match=r"a probe of at least 2 samples|the probe is (empty|a NoneType|an iterator)"):
        Damage(small(0)[0], probe)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["probe", "network", "cut"])
def test_outputs_that_are_not_finite_are_told(bad, where):
    net, x, _ = small(0)
    if where == "probe":
        x[3, 1] = bad
    damage = Damage(net, x) if where == "cut" else None
    if where != "probe":
        with torch.no_grad():
            net[2].weight[0, 0] = bad
    with pytest.raises(TrainingError, match=r"outputs of layer '\d' are not finite on the probe"):
        (damage or Damage(net, x))(Masks.full(net))


def test_of_one_layer_it_is_that_layers():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), torch.randn(40, 6)
    damage, masks = Damage(net, x), prune(net, amount=0.5)
    whole = net(x).detach().double().numpy()
    left = (x @ (net[1].weight * masks["1.weight"]).T + net[1].bias).detach().double().numpy()
    kept = np.mean([np.corrcoef(whole[:, i], left[:, i])[0, 1] for i in range(4)])
    assert damage(masks) == pytest.approx(1 - kept, abs=1e-6)
    assert damage(Masks.full(net)) == pytest.approx(0, abs=1e-6)


def test_a_network_that_is_a_layer_itself_is_told_what_is_missing():
    with pytest.raises(InputError, match=r"at least one Linear.* within the model, and Linear runs 0"):
        Damage(nn.Linear(6, 4), torch.randn(40, 6))
