"""Gradient flow against autograd in double precision over the whole probe at once."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from incop import inspection
from incop.errors import InputError, TrainingError
from incop.experiments import models
from incop.flow import GradientFlow, measure
from incop.flow.meter import placed_batches

CROSS = nn.CrossEntropyLoss()


def oracle(model, x, y, weights, *, loss=CROSS, masks=None, statistic="norm"):
    """{layer: g} with weights {layer: parameter name}: a double copy, all samples at once, plain autograd."""
    was = copy.deepcopy(model).double().eval().requires_grad_(True)
    output = was(x.double())
    loss(output, y).backward()
    flow = {}
    for layer, name in weights.items():
        grad = was.get_parameter(name).grad
        grad = torch.zeros_like(was.get_parameter(name)) if grad is None else grad
        kept = grad[masks[name]] if masks and name in masks else grad.flatten()
        flow[layer] = float(kept.norm() if statistic == "norm" else kept.abs().mean()) if kept.numel() else 0.0
    return flow


def close(found, expected, within=1e-4):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=within, abs=1e-12), name


def mlp():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(inplace=True), nn.Linear(20, 5))
    return net, {"1": "1.weight", "3": "3.weight"}


def cnn():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(45, 9), nn.ReLU(inplace=True), nn.Linear(9, 5),
    )  # fmt: skip
    return net, {n: f"{n}.weight" for n in ("0", "6", "8")}


def resnet_20():
    net = models.build("resnet-20", channels=3, size=(8, 8), classes=5)
    kinds = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    chain = [n for n, m in kinds if not (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))]
    return net, {n: f"{n}.weight" for n in chain}


@pytest.fixture(params=[mlp, cnn, resnet_20], ids=lambda build: build.__name__)
def network(request):
    torch.manual_seed(1)
    net, weights = request.param()
    x, y = torch.randn(40, 3, 8, 8), torch.randint(5, (40,))
    net(x)  # statistics for batch normalisation
    masks = {name: torch.rand_like(net.get_parameter(name)) < 0.4 for name in weights.values()}
    masks[next(iter(masks))].zero_()  # one layer is pruned away
    return net, weights, x, y, masks


@pytest.mark.parametrize("statistic", ["norm", "mean_abs"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_autograd_whatever_the_batches(network, statistic, masked):
    net, weights, x, y, masks = network
    masks = masks if masked else None
    expected = oracle(net, x, y, weights, masks=masks, statistic=statistic)
    meter = GradientFlow(CROSS, statistic)
    for sizes in ([40], [8] * 5, [1, 30, 9]):
        probe = list(zip(x.split(sizes), y.split(sizes), strict=True))
        flow = measure(net, probe, meter, masks=masks)
        close(flow.values, expected)
        assert flow.samples == 40
        close(measure(net, probe[::-1], meter, masks=masks).values, expected)


@pytest.mark.parametrize("statistic", ["norm", "mean_abs"])
def test_merged_from_two_states(network, statistic):
    net, weights, x, y, masks = network
    meter = GradientFlow(CROSS, statistic)
    with inspection.undisturbed(net):
        chain = meter.chain(net, next(placed_batches(net, (x, y))))
        halves = [
            meter.collect(net, placed_batches(net, (x[part], y[part])), chain, masks)
            for part in (slice(0, 13), slice(13, 40))
        ]
    expected = oracle(net, x, y, weights, masks=masks, statistic=statistic)
    close(meter.flow(halves[0].merge(halves[1])), expected)
    close(meter.flow(halves[1].merge(halves[0])), expected)
    assert halves[0].merge(type(halves[0])()) is halves[0]


def test_frozen_layers_are_measured_too(network):
    net, weights, x, y, _ = network
    expected = oracle(net, x, y, weights)
    net.requires_grad_(False)
    close(measure(net, (x, y), GradientFlow(CROSS)).values, expected)
    assert not any(p.requires_grad for p in net.parameters())


def test_other_masks_and_names_are_let_be():
    net, _ = mlp()
    x, y = torch.randn(9, 192), torch.randint(5, (9,))
    masks = {"3.weight": torch.zeros(5, 20, dtype=torch.bool), "gone.weight": torch.zeros(1, dtype=torch.bool)}
    found = measure(net, (x, y), GradientFlow(CROSS), masks=masks).values
    assert found["3"] == 0
    assert found["1"] > 0
    with pytest.raises(InputError, match=r"mask of '3.weight' has shape \(20, 5\) and the weight \(5, 20\)"):
        measure(net, (x, y), GradientFlow(CROSS), masks={"3.weight": torch.ones(20, 5, dtype=torch.bool)})


def test_modules_that_run_twice_and_weights_that_are_shared():
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.same, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
            self.unused = nn.Linear(2, 2)
            self.same.weight = self.body.weight

        def forward(self, x):
            return self.head(self.same(self.body(self.body(x).tanh()).tanh()))

    net, x, y = Model(), torch.randn(30, 6), torch.randint(5, (30,))
    found = measure(net, [(x[:11], y[:11]), (x[11:], y[11:])], GradientFlow(CROSS)).values
    close(found, oracle(net, x, y, {"body": "body.weight", "head": "head.weight"}))


def test_detached_and_gradless_parts_have_no_gradient():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            with torch.no_grad():
                x = self.a(x)
            return self.c(self.b(x).detach() + x)

    torch.manual_seed(0)
    net, x, y = Model(), torch.randn(30, 6), torch.randint(5, (30,))
    found = measure(net, (x, y), GradientFlow(CROSS)).values
    assert (found["a"], found["b"]) == (0, 0)
    close(found, oracle(net, x, y, {n: f"{n}.weight" for n in "abc"}))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head, self.reentrant = nn.Linear(6, 5), reentrant

    def forward(self, x):
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing(dtype, frozen):
    torch.manual_seed(0)
    net = Checkpointed(reentrant=False).to(dtype).requires_grad_(not frozen)
    x, y = torch.randn(30, 6).to(dtype), torch.randint(5, (30,))
    weights = {"block.0": "block.0.weight", "block.2": "block.2.weight", "head": "head.weight"}
    close(measure(net, (x, y), GradientFlow(CROSS)).values, oracle(net, x, y, weights))


def test_reentrant_checkpointing_is_refused():
    x, y = torch.randn(30, 6), torch.randint(5, (30,))
    for meter in (GradientFlow(CROSS), GradientFlow(CROSS, chain=["block.0", "block.2"])):
        with pytest.raises(InputError, match="use_reentrant=True"):
            measure(Checkpointed(reentrant=True), (x.requires_grad_(), y), meter)


def test_recurrent_networks_train_on_after_being_measured():
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.lstm, self.head = nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.lstm(self.enter(x))[0][:, -1])

    net, x, y = Model(), torch.randn(20, 6, 3), torch.randint(5, (20,))
    found = measure(net, (x, y), GradientFlow(CROSS)).values
    lstm = {name: name for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0")}
    close(found, oracle(net, x, y, {"enter": "enter.weight", **lstm, "head": "head.weight"}))
    CROSS(net(x), y).backward()
    assert net.lstm.weight_ih_l0.grad.abs().sum() > 0


@pytest.mark.parametrize(("dtype", "within"), [(torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, 1e-4)])
def test_other_precisions(network, dtype, within):
    net, weights, x, y, _ = network
    other = copy.deepcopy(net).to(dtype)
    found = measure(other, (x.to(dtype), y), GradientFlow(CROSS)).values
    close(found, oracle(net, x, y, weights), within)
    close(found, oracle(copy.deepcopy(other).float(), x.to(dtype).float(), y, weights))


def test_gradients_beyond_half_precision():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[0].weight *= 3000
    x, y = torch.randn(20, 8), 3e4 * torch.randn(20, 1)
    loss = nn.MSELoss()
    found = measure(copy.deepcopy(net).half(), (x, y.half()), GradientFlow(loss)).values
    close(found, oracle(net, x, y.double(), {"0": "0.weight", "2": "2.weight"}, loss=loss), 0.01)


def test_inside_inference_mode():
    net, weights = mlp()
    x, y = torch.randn(9, 192), torch.randint(5, (9,))
    with torch.inference_mode():
        found = measure(net, [(x * 1, y * 1)], GradientFlow(CROSS)).values
    close(found, oracle(net, x, y, weights))


def test_loss_and_output_of_other_forms():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.weights = mlp()

        def forward(self, image, *, scale):
            return {"hidden": image, "logits": self.net(image * scale)}

    net, x, y = Model(), torch.randn(9, 192), torch.randint(5, (9,))
    found = measure(net, {"image": x, "scale": torch.ones(9, 1), "labels": y}, GradientFlow(F.cross_entropy)).values
    assert list(found) == ["net.1", "net.3"]
    expected = oracle(net.net, x, y, net.weights)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)


def test_regression_targets_in_double():
    net, weights = mlp()
    x, y = torch.randn(9, 192), torch.randn(9, 5, dtype=torch.float64)
    close(measure(net, (x, y), GradientFlow(F.mse_loss)).values, oracle(net, x, y, weights, loss=F.mse_loss))


X, Y = torch.randn(9, 192), torch.randint(5, (9,))


@pytest.mark.parametrize(
    ("loss", "probe", "kind", "said"),
    [
        (CROSS, X, InputError, "gradient flow needs targets and a batch of the probe has none"),
        (CROSS, [(X, Y), [X]], InputError, "gradient flow needs targets"),
        (CROSS, (X, Y[:4]), InputError, r"loss cannot be taken of an output \(9, 5\) and a target \(4,\)"),
        (CROSS, (X, Y + 9), InputError, "loss cannot be taken of an output"),
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), (X, Y), InputError, "must return one number"),
        (lambda out, y: 3.0, (X, Y), InputError, "must return one number"),
        (lambda out, y: CROSS(out.detach(), y), (X, Y), InputError, "does not depend on any of the weights 1.weight"),
        (lambda out, y: CROSS(out, y) * float("nan"), (X, Y), TrainingError, "the loss on the probe is nan"),
        (CROSS, (X * float("nan"), Y), TrainingError, "the loss on the probe is nan"),
        (lambda out, y: (out[:, 0] * 0).sqrt().mean(), (X, Y), TrainingError, "gradient of layer '1' is not finite"),
    ],
)
def test_what_cannot_be_used_is_refused(loss, probe, kind, said):
    net, _ = mlp()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(kind, match=said):
        measure(net, probe, GradientFlow(loss))
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GradientFlow(nn.CrossEntropyLoss(reduction="sum")), "loss has reduction='sum'"),
        (lambda: GradientFlow(nn.CrossEntropyLoss(reduction="none")), "loss has reduction='none'"),
        (lambda: GradientFlow(partial(F.cross_entropy, reduction="sum")), "loss has reduction='sum'"),
        (lambda: GradientFlow("cross entropy"), "the loss is a str: pass a function"),
        (lambda: GradientFlow(CROSS, "mean"), "unknown statistic 'mean': "),
        (lambda: GradientFlow(CROSS, chain="fc1"), "chain='fc1' is one name"),
    ],
)
def test_arguments_are_checked(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_layers_without_a_plain_weight_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    probe = torch.randn(8, 4), torch.randint(4, (8,))
    with pytest.raises(InputError, match="layer '1' has no weight of its own"):
        measure(net, probe, GradientFlow(CROSS))
    with pytest.raises(InputError, match="layer '2' has no weight of its own"):
        measure(net, probe, GradientFlow(CROSS, chain=["0", "2"]))


def test_names():
    assert str(GradientFlow(CROSS)) == "gradient flow (norm)"
    assert str(GradientFlow(partial(F.cross_entropy, label_smoothing=0.1), "mean_abs")) == (
        "gradient flow (mean absolute gradient)"
    )
    assert np.isfinite(list(measure(mlp()[0], (X, Y), GradientFlow(CROSS, chain=["3", "1"])).values.values())).all()
