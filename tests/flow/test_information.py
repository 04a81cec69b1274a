"""Information flow against NumPy's corrcoef of outputs that the test captures itself."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from incop import inspection
from incop.errors import InputError, TrainingError
from incop.experiments import models
from incop.flow import InformationFlow, measure
from incop.flow.meter import placed_batches

REDUCTIONS = ["mean", "absolute", "square"]


def oracle(model, x, names, reduction="mean", alive_only=False):
    """Slow and obvious: one pass with hooks of its own, np.corrcoef, NaN → 0."""
    outputs, handles = {}, []
    was = copy.deepcopy(model).eval()
    for name in names:
        handles.append(
            was.get_submodule(name).register_forward_hook(
                lambda m, a, out, name=name: outputs.__setitem__(name, out.detach().double().numpy().copy())
            )
        )
    with torch.no_grad():
        was(x)
    flow = {}
    for a, b in pairwise(names):
        A, B = (o.reshape(*o.shape[:2], -1).mean(2) if o.ndim > 2 else o for o in (outputs[a], outputs[b]))
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = np.corrcoef(A.T, B.T)[: A.shape[1], A.shape[1] :]
        rho = np.where(np.isnan(rho), 0, rho)
        if alive_only:
            rho = rho[A.std(0) > 0][:, B.std(0) > 0]
        changed = {"mean": rho, "absolute": np.abs(rho), "square": rho**2}[reduction]
        flow[f"{a}->{b}"] = float(changed.mean()) if changed.size else 0.0
    return flow


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
        nn.Flatten(), nn.Linear(192, 20), nn.ReLU(inplace=True), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 1)
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


def resnet_20():
    net = models.build("resnet-20", channels=3, size=(8, 8), classes=5)
    kinds = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return net, [n for n, m in kinds if not (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))]


@pytest.fixture(params=[mlp, cnn, resnet, resnet_20], ids=lambda build: build.__name__)
def network(request):
    torch.manual_seed(3)
    net, names = request.param()
    x = torch.randn(60, 3, 8, 8) + torch.randn(60, 1, 1, 1)
    return lively(net, x), names, x


def close(found, expected, within=1e-5):
    assert list(found) == list(expected)
    assert np.abs(np.array(list(found.values())) - list(expected.values())).max() <= within


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_corrcoef_whatever_the_batches_and_their_order(network, reduction):
    net, names, x = network
    expected = oracle(net, x, names, reduction)
    assert max(map(abs, expected.values())) > 1e-3
    close(measure(net, x, InformationFlow(reduction)).values, expected)
    for probe in (x.split(6), x.split(6)[::-1], x[torch.randperm(60)].split([1, 7, 32, 20]), [x[:59], x[59:]]):
        flow = measure(net, list(probe), InformationFlow(reduction))
        close(flow.values, expected)
        assert flow.samples == 60


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alive_only", [False, True])
def test_merged_from_two_states(network, reduction, alive_only):
    net, names, x = network
    meter = InformationFlow(reduction, alive_only=alive_only)
    with inspection.undisturbed(net):
        chain = meter.chain(net, next(placed_batches(net, x)))
        halves = [meter.collect(net, placed_batches(net, list(part)), chain) for part in (x[:13].split(4), [x[13:]])]
    close(meter.flow(halves[0].merge(halves[1])), oracle(net, x, names, reduction, alive_only))
    close(meter.flow(halves[1].merge(halves[0])), oracle(net, x, names, reduction, alive_only))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alive_only", [False, True])
@pytest.mark.parametrize("size", [60, 10])
def test_dead_units(reduction, alive_only, size):
    torch.manual_seed(0)
    net, names = mlp()
    with torch.no_grad():
        net[1].weight[[2, 5]] = 0  # outputs are the bias alone
        net[1].bias[2] = 0
        net[3].weight[1] = 0
        alive = [i for i in range(20) if i % 3 and i not in (2, 5)]
        net[3].weight[4] = 0
        net[3].weight[4, [2, 5]] = 1  # lives on dead units only
        net[3].weight[:, alive] *= 2
    x = torch.randn(60, 3, 8, 8)
    found = measure(net, list(x.split(size)), InformationFlow(reduction, alive_only=alive_only)).values
    close(found, oracle(net, x, names, reduction, alive_only))


def test_units_dead_upstream_are_dead_whatever_the_batches():
    """Their outputs are constant but for rounding, which differs between batch sizes and places in a batch."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.after = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 1)
            self.alive = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.after(torch.relu(self.dead(x))).sum(), self.alive(x)

    torch.manual_seed(0)
    net = Model()
    with torch.no_grad():
        net.dead.weight.zero_()
        net.dead.bias.uniform_(0.5, 1.5)
    for probe in (torch.randn(64, 3, 16, 16), list(torch.randn(50, 3, 16, 16).split([37, 12, 1]))):
        for reduction in REDUCTIONS:
            for alive_only in (False, True):
                meter = InformationFlow(reduction, alive_only=alive_only, chain=["dead", "after", "alive"])
                assert set(measure(net, probe, meter).values.values()) == {0.0}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_constant_inputs_and_layers_of_one_unit(reduction):
    net = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1), nn.Linear(1, 5))
    assert set(measure(net, torch.ones(7, 4), InformationFlow(reduction)).values.values()) == {0.0}
    x = torch.randn(30, 4)
    with torch.no_grad():
        net[0].bias += 1
    close(measure(net, x, InformationFlow(reduction)).values, oracle(net, x, ["0", "2", "3"], reduction))


def test_chain_by_hand_may_hold_any_module():
    torch.manual_seed(0)
    net, _ = cnn()
    x = torch.randn(40, 3, 8, 8)
    names = ["9", "2", "1"]
    close(measure(net, list(x.split(9)), InformationFlow(chain=names)).values, oracle(net, x, names))


def test_tokens_are_averaged():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    x = torch.randn(50, 7, 4)
    a, b = net[0](x).detach(), net(x).detach()
    rho = np.corrcoef(a.mean(1).numpy().T, b.mean(1).numpy().T)[:6, 6:]
    assert measure(net, x, InformationFlow("square")).values["0->2"] == pytest.approx((rho**2).mean(), abs=1e-5)


def test_a_layer_that_runs_twice_is_paired_with_itself():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 2))
    x = torch.randn(30, 4)
    first = shared(x)
    second = shared(first.tanh())
    rho = np.corrcoef(first.detach().numpy().T, second.detach().numpy().T)[:4, 4:]
    found = measure(net, x, InformationFlow()).values
    assert list(found) == ["0->0#2", "0#2->3"]
    assert found["0->0#2"] == pytest.approx(rho.mean(), abs=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-6)])
def test_other_precisions_are_close_to_single(network, dtype, within, reduction):
    net, names, x = network
    expected = oracle(net, x, names, reduction)
    flow = measure(copy.deepcopy(net).to(dtype), list(x.to(dtype).split(25)), InformationFlow(reduction))
    close(flow.values, expected, within)
    wide = copy.deepcopy(net).to(dtype).float()  # the same rounded weights: then equal but for the inputs' rounding
    close(flow.values, oracle(wide, x.to(dtype).float(), names, reduction))


def test_activations_beyond_half_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for i in (0, 2, 4):
            net[i].weight *= 3000
    half = copy.deepcopy(net).half()
    x = torch.randn(40, 8)
    assert half(x.half()).isinf().any()
    close(measure(half, x, InformationFlow("square")).values, oracle(net, x, ["0", "2", "4"], "square"), 1e-3)


def test_what_is_not_finite_is_an_error():
    net, _ = mlp()
    for value in (float("nan"), float("inf")):
        for reduction in REDUCTIONS:
            x = torch.randn(8, 192)
            x[3, 5] = value
            with pytest.raises(TrainingError, match="outputs of layer '1' or '3' are not finite on the probe"):
                measure(net, x, InformationFlow(reduction))


def test_rows_that_are_no_samples_are_refused():
    class Folds(nn.Module):
        def __init__(self, axis_first):
            super().__init__()
            self.a, self.b, self.axis_first = nn.Linear(6, 6), nn.Linear(6, 2), axis_first

        def forward(self, x):
            y = self.a(x)
            return self.b(y.transpose(0, 1) if self.axis_first else y.flatten(0, 1))

    with pytest.raises(InputError, match=r"layer 'b' returned 10 rows for 2 samples .*pass chain=\[…\] without it"):
        measure(Folds(axis_first=False), torch.randn(8, 5, 6), InformationFlow())


def test_samples_along_the_second_dimension_are_found():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.turn = nn.Linear(6, 6), nn.Linear(6, 2), True

        def forward(self, x):
            y = self.a(x)
            return self.b(y.transpose(0, 1) if self.turn else y)

    torch.manual_seed(0)
    net, x = Turns(), torch.randn(8, 8, 6)  # as many tokens as samples
    for probe in (x, list(x.split(3)), torch.randn(8, 5, 6)):
        net.turn = True
        found = measure(net, probe, InformationFlow()).values
        net.turn = False
        assert found == pytest.approx(measure(net, probe, InformationFlow()).values, abs=1e-7)


def test_arguments():
    assert str(InformationFlow()) == "information flow (mean correlation)"
    assert (
        str(InformationFlow("square", alive_only=True)) == "information flow (mean square correlation of living units)"
    )
    assert InformationFlow(chain=["a", "b"]) == InformationFlow(chain=("a", "b"))
    assert len({InformationFlow(), InformationFlow("mean"), InformationFlow("square")}) == 2
    with pytest.raises(InputError, match="unknown reduction 'abs': "):
        InformationFlow("abs")
    with pytest.raises(InputError, match=r"chain='fc1' is one name: give the layers as a list"):
        InformationFlow(chain="fc1")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-2, 1e2), reduction=st.sampled_from(REDUCTIONS))
def test_permuting_units_and_rescaling_a_layer_change_nothing(seed, scale, reduction):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    other, order = copy.deepcopy(net), torch.randperm(6)
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order] * scale)
        other[0].bias.copy_(net[0].bias[order] * scale)
        other[2].weight.copy_(net[2].weight[:, order] / scale)
    x = torch.randn(40, 4)
    cuts = x[torch.randperm(40)].split([int(seed) % 38 + 1, 39 - int(seed) % 38])
    close(
        measure(other, list(cuts), InformationFlow(reduction)).values,
        measure(net, x, InformationFlow(reduction)).values,
    )
