"""Statement 2 of docs/theory.md: what the flow does not see (symmetries), and what breaks them."""

import copy
import itertools

import numpy as np
import pytest
import theory_claims as claims
import torch
from theory_networks import Network, train
from theory_oracles import r2
from torch import nn
from torch.nn import functional

import incop
from incop.flow import Damage, GradientFlow, InformationFlow

FORMS = [InformationFlow(f, alive_only=a) for f in ("mean", "absolute", "square") for a in (False, True)]
GRADIENTS = [GradientFlow(functional.cross_entropy, s) for s in ("norm", "mean_abs")]


def values(net, model, meter):
    return np.array(list(incop.measure(model, (net.x, net.y), meter).values.values()))


def hidden(model):
    """Pairs (layer, next layer, how many inputs of the next come from each unit)."""
    found = [m for m in model if isinstance(m, nn.Linear | nn.Conv2d)]
    return [(a, b, b.weight.shape[1] // a.weight.shape[0]) for a, b in itertools.pairwise(found)]


@torch.no_grad()
def permuted(model, seed=0):
    """Permute the units of every hidden layer, and the next layer's inputs with them."""
    model, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for a, b, places in hidden(model):
        order = torch.randperm(len(a.weight), generator=rng)
        a.weight.copy_(a.weight[order])
        a.bias.copy_(a.bias[order])
        b.weight.copy_(b.weight.unflatten(1, (len(order), places))[:, order].flatten(1, 2))
    return model


@torch.no_grad()
def rescaled(model, factors):
    """Scale units of every hidden layer by positive factors, and the next layer's inputs by their inverse."""
    model = copy.deepcopy(model)
    for (a, b, places), factor in zip(hidden(model), factors(model), strict=True):
        a.weight.mul_(factor.reshape(-1, *[1] * (a.weight.dim() - 1)))
        a.bias.mul_(factor)
        b.weight.div_(factor.repeat_interleave(places).reshape(1, -1, *[1] * (b.weight.dim() - 2)))
    return model


def random_factors(model):
    rng = torch.Generator().manual_seed(3)
    return [torch.empty(len(a.weight)).double().uniform_(0.1, 10, generator=rng) for a, _, _ in hidden(model)]


def test_permuting_units_changes_nothing(network):
    other = permuted(network.model)
    assert not torch.equal(other[0].weight, network.model[0].weight)
    assert torch.allclose(other(network.x), network.model(network.x), atol=1e-10)
    for meter in FORMS + GRADIENTS:
        assert values(network, other, meter) == pytest.approx(
            values(network, network.model, meter), rel=1e-8, abs=1e-12
        )
    probe = network.x[:128]
    for amount in (0.5, 0.9):
        harm = [
            Damage(m, probe)(incop.prune(m, masks=incop.Masks.of(m), amount=amount)) for m in (network.model, other)
        ]
        assert harm[0] == pytest.approx(harm[1], abs=1e-10)
        assert harm[0] > 1e-3


def test_rescaling_units_changes_no_information_flow(network):
    other = rescaled(network.model, random_factors)
    assert torch.allclose(other(network.x), network.model(network.x), atol=1e-8)
    for meter in FORMS:
        assert values(network, other, meter) == pytest.approx(values(network, network.model, meter), abs=1e-9)
    masks = incop.prune(network.model, amount=0.5)
    harm = [Damage(m, network.x[:128])(masks) for m in (network.model, other)]
    assert harm[0] == pytest.approx(harm[1], abs=1e-9)


def test_rescaling_moves_weights_gradients_and_the_cut(dense):
    """What weight distances and the choice by magnitude do not have: both see another network where there is none."""
    other = rescaled(dense.model, random_factors)
    moved = torch.linalg.vector_norm(other[0].weight - dense.model[0].weight)
    assert moved > torch.linalg.vector_norm(dense.model[0].weight)
    assert incop.prune(other, amount=0.5).change(incop.prune(dense.model, amount=0.5)) > 0.2
    assert values(dense, other, GRADIENTS[0]) != pytest.approx(values(dense, dense.model, GRADIENTS[0]), rel=0.1)


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_gradient_norms_follow_the_scale(dense, factor):
    """A whole layer times c, the next divided by c: the norms go by 1/c and c, as far from the dense network's as one likes."""

    def first_only(model):
        return [
            torch.full((len(a.weight),), factor if k == 0 else 1.0, dtype=torch.float64)
            for k, (a, _, _) in enumerate(hidden(model))
        ]

    before = values(dense, dense.model, GRADIENTS[0])
    after = values(dense, rescaled(dense.model, first_only), GRADIENTS[0])
    assert after[:2] == pytest.approx(claims.rescaled_gradients(before[0], before[1], factor), rel=1e-8)
    assert after[2:] == pytest.approx(before[2:], rel=1e-8)


def test_false_for_activations_that_are_not_homogeneous(digits):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 12), nn.GELU(), nn.Linear(12, 6)).double()
    net = Network(model, *digits, ("0", "2"))
    other = rescaled(model, random_factors)
    assert not torch.allclose(model(net.x), other(net.x), atol=1e-3)
    assert values(net, model, FORMS[2]) != pytest.approx(values(net, other, FORMS[2]), abs=1e-3)


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.2, 1.5)])
def test_shift_and_scale_of_inputs_that_the_first_layer_undoes(dense, scale, shift):
    model = dense.copy()
    with torch.no_grad():
        model[0].bias -= model[0].weight.sum(1) * shift / scale
        model[0].weight /= scale
    moved = Network(model, dense.x * scale + shift, dense.y, dense.names)
    for meter in FORMS:
        assert values(moved, model, meter) == pytest.approx(values(dense, dense.model, meter), abs=1e-9)


def test_scale_of_inputs_alone_only_without_biases(trained):
    plain, biased = trained.copy(), trained.model
    with torch.no_grad():
        for layer in plain:
            if isinstance(layer, nn.Linear):
                layer.bias.zero_()
    larger = Network(plain, trained.x * 3, trained.y, trained.names)
    shifted = Network(plain, trained.x + 1, trained.y, trained.names)
    for meter in FORMS:
        assert values(larger, plain, meter) == pytest.approx(values(trained, plain, meter), abs=1e-9)
    assert values(shifted, plain, FORMS[2]) != pytest.approx(values(trained, plain, FORMS[2]), abs=1e-3)
    assert values(larger, biased, FORMS[2]) != pytest.approx(values(trained, biased, FORMS[2]), abs=1e-4)


def flipped(model, x):
    """Turn the sign of half of the first layer's maps and undo it in the next; the flow before and after."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
        other[0].weight.mul_(sign[:, None, None, None])
        other[0].bias.mul_(sign)
        other[3].weight.mul_(sign[None, :, None, None])
    return [
        {f: incop.measure(m, x, InformationFlow(f)).values["0->3"] for f in ("mean", "absolute", "square")}
        for m in (model, other)
    ], torch.allclose(model(x), other(x), atol=1e-9)


@pytest.mark.parametrize(("pool", "holds"), [(nn.AvgPool2d(2), True), (nn.MaxPool2d(2), False)])
def test_signs_behind_odd_activations_unless_pooled_by_the_maximum(digits, pool, holds):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), pool, nn.Conv2d(4, 3, 2)).double()
    (before, after), same = flipped(model, digits[0][:200].reshape(-1, 1, 8, 8))
    assert same == holds
    assert (abs(before["absolute"] - after["absolute"]) < 1e-9) == holds
    assert (abs(before["square"] - after["square"]) < 1e-9) == holds
    assert abs(before["mean"] - after["mean"]) > 1e-3  # it sees signs that no layer after it does


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 8)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


@pytest.fixture(scope="module")
def normed(digits):
    torch.manual_seed(4)
    model = WithNorm().double()
    model.second = nn.Linear(12, 10).double()
    return train(model, *digits, epochs=4).train()


def by_hand(model, x, cut):
    """Mean |ρ| of the two layers when batch normalisation takes its statistics from the batches."""
    model, rows = copy.deepcopy(model).train(), [[], []]
    for layer, kept in ((model.first, rows[0]), (model.second, rows[1])):
        layer.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out.detach().numpy().copy()))
    for batch in x.split(cut):
        model(batch)
    a, b = (np.concatenate(part) for part in rows)
    return np.abs(np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]).mean()


def test_batch_normalisation_in_training_mode_depends_on_the_batches(normed, digits):
    x = digits[0]
    assert abs(by_hand(normed, x, 10) - by_hand(normed, x, 300)) > 1e-3
    meter = InformationFlow("absolute")
    measured = [incop.measure(normed, list(x.split(cut)), meter).values["first->second"] for cut in (10, 300)]
    assert measured[0] == pytest.approx(measured[1], abs=1e-12)
    assert normed.training


def test_batch_normalisation_hides_a_scale_from_training_and_not_from_evaluation(normed, digits):
    """In training the scale of the layer before it is gone; in evaluation only if the running statistics go with it."""
    x, other = digits[0], copy.deepcopy(normed)
    with torch.no_grad():
        other.first.weight.mul_(5)
        other.first.bias.mul_(5)
    assert torch.allclose(copy.deepcopy(normed).train()(x), copy.deepcopy(other).train()(x), atol=1e-3)  # but for eps
    meter = InformationFlow("absolute")

    def flow(model):
        return incop.measure(model, x, meter).values["first->second"]

    assert abs(flow(normed) - flow(other)) > 1e-3
    with torch.no_grad():
        other.norm.running_mean.mul_(5)
        other.norm.running_var.add_(normed.norm.eps).mul_(25).sub_(normed.norm.eps)
    assert flow(other) == pytest.approx(flow(normed), abs=1e-9)


def test_false_that_the_average_over_space_shows_what_a_map_says():
    """A map whose places cancel is a unit that does not vary; the next layer reads it all the same."""
    net = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.copy_(torch.tensor([[1.0, 0.0]]))
    a = torch.randn(50, 1).double()
    x = torch.stack([a, -a], dim=2)
    for form in ("mean", "absolute", "square"):
        assert incop.measure(net, x, InformationFlow(form)).values["0->2"] == 0.0
    assert r2(x[:, 0].numpy(), net(x).detach().numpy()) == pytest.approx(1.0)
