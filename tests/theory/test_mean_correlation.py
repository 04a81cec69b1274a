"""Statement 1 of docs/theory.md: the mean of the correlations is one covariance, and what it cannot see."""

import itertools
from itertools import pairwise

import numpy as np
import pytest
import theory_claims as claims
import torch
from theory_oracles import outputs, r2, rho, standardised, with_correlations
from torch import nn

import incop
from incop.flow import InformationFlow


def flows(model, x, **options):
    return {
        form: list(incop.measure(model, x, InformationFlow(form, **options)).values.values())
        for form in ("mean", "absolute", "square")
    }


def test_the_mean_is_the_covariance_of_two_numbers_a_sample(network):
    out = outputs(network.model, network.x, network.names)
    found = list(incop.measure(network.model, network.x, InformationFlow()).values.values())
    for value, (a, b) in zip(found, pairwise(network.names), strict=True):
        slow = rho(out[a], out[b]).mean()
        two = (standardised(out[a]).mean(1) * standardised(out[b]).mean(1)).mean()
        assert value == pytest.approx(slow, abs=1e-12)
        assert value == pytest.approx(two, abs=1e-12)
        assert abs(slow) > 1e-5


def test_the_mean_is_bounded_by_what_each_layer_has_in_common(network):
    out = outputs(network.model, network.x, network.names)
    found = list(incop.measure(network.model, network.x, InformationFlow()).values.values())
    for value, (a, b) in zip(found, pairwise(network.names), strict=True):
        assert abs(value) <= claims.mean_bound(rho(out[a], out[a]).mean(), rho(out[b], out[b]).mean()) + 1e-12


def test_the_bound_is_reached_by_copies():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight[1] = net[0].weight[0]
        net[1].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert flows(net, torch.randn(50, 3).double())["mean"] == pytest.approx([claims.mean_bound(1.0, 1.0)], abs=1e-12)


def test_the_three_forms_are_in_order(network):
    found = flows(network.model, network.x)
    for mean, absolute, square in zip(*found.values(), strict=True):
        assert abs(mean) <= absolute + 1e-12
        assert square <= absolute + 1e-12
        assert absolute <= square**0.5 + 1e-12


def test_over_all_signs_the_mean_is_zero_and_as_large_as_said():
    """Every sign of every unit, undone by the next layer: the network computes the same up to signs of its outputs."""
    torch.manual_seed(2)
    net, x = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4)).double(), torch.randn(60, 6).double()
    square = flows(net, x)["square"][0]
    first, bias, second, offset = (p.detach().clone() for p in net.parameters())
    seen = []
    for signs in itertools.product((1.0, -1.0), repeat=7):
        s, t = torch.tensor(signs[:3]).double(), torch.tensor(signs[3:]).double()
        with torch.no_grad():
            for p, value in zip(
                net.parameters(), (first * s[:, None], bias * s, second * s * t[:, None], offset * t), strict=True
            ):
                p.copy_(value)
        seen.append(incop.measure(net, x, InformationFlow()).values["0->2"])
    assert np.mean(seen) == pytest.approx(0, abs=1e-12)
    assert np.mean(np.square(seen)) == pytest.approx(claims.random_sign_square(square, 3, 4), rel=1e-9)
    assert flows(net, x)["square"][0] == pytest.approx(square, rel=1e-9)


def test_over_the_signs_of_the_next_layer_alone(trained):
    """As a fresh layer's weights are drawn: any sign as likely as the other, whatever the activation before it."""
    model = trained.copy()[:3]
    with torch.no_grad():
        model[2] = nn.Linear(24, 6).double()
    out = outputs(model, trained.x, ("0", "2"))
    columns = rho(out["0"], out["2"]).mean(0)
    weight, bias = (p.detach().clone() for p in model[2].parameters())
    seen = []
    for signs in itertools.product((1.0, -1.0), repeat=6):
        t = torch.tensor(signs).double()
        with torch.no_grad():
            model[2].weight.copy_(weight * t[:, None])
            model[2].bias.copy_(bias * t)
        seen.append(incop.measure(model, trained.x, InformationFlow()).values["0->2"])
    assert np.mean(seen) == pytest.approx(0, abs=1e-12)
    assert np.mean(np.square(seen)) == pytest.approx(claims.random_sign_square_next(columns), rel=1e-9)


def two_layers(first, second):
    net = nn.Sequential(
        nn.Linear(first.shape[1], len(first), bias=False), nn.Linear(len(first), len(second), bias=False)
    )
    with torch.no_grad():
        for layer, weight in zip(net, (first, second), strict=True):
            layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return net


def test_false_that_a_mean_of_zero_passes_nothing():
    """Everything passes, or nothing: the mean says 0 of both, the other forms tell them apart."""
    x = torch.tensor(with_correlations(np.eye(4)))
    everything = two_layers(np.eye(4), np.diag([1.0, 1.0, -1.0, -1.0]))
    nothing = two_layers(np.eye(4), np.zeros((4, 4)))
    assert r2(x.numpy(), everything(x).detach().numpy()) == pytest.approx(1.0)
    for net, absolute in ((everything, 0.25), (nothing, 0.0)):
        found = flows(net, x)
        assert found["mean"] == pytest.approx([0.0], abs=1e-12)
        assert found["absolute"] == pytest.approx([absolute], abs=1e-12)
        assert found["square"] == pytest.approx([absolute], abs=1e-12)


class Square(nn.Module):
    def forward(self, x):
        return x**2


def test_false_that_any_form_sees_all_that_passes():
    """The next unit is the square of this one, and its correlation with it is 0."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), Square(), nn.Linear(1, 1, bias=False)).double()
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    for value in flows(net, x).values():
        assert value == pytest.approx([0.0], abs=1e-12)
    assert net(x).std() > 0.01


def test_false_that_what_passes_decides_the_flow():
    """Units are turned and the next layer turns them back: the same function, other flows in all three forms."""
    x = torch.tensor(with_correlations([[1.0, 0.6], [0.6, 1.0]]))
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5
    plain, turned = two_layers(np.eye(2), np.eye(2)), two_layers(turn, turn.T)
    assert torch.allclose(plain(x), turned(x), atol=1e-12)
    one, other = flows(plain, x), flows(turned, x)
    high, low = 0.8**0.5, 0.2**0.5
    for form, before, after in (("mean", 0.8, high / 2), ("absolute", 0.8, (high + low) / 2), ("square", 0.68, 0.5)):
        assert one[form] == pytest.approx([before])
        assert other[form] == pytest.approx([after])
