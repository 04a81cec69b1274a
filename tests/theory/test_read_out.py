"""Statement 4 of docs/theory.md: the flow and the best linear read-out of a layer from the one before it."""

from itertools import pairwise

import numpy as np
import pytest
import theory_claims as claims
import torch
from theory_oracles import lives, outputs, r2, standardised, with_correlations
from torch import nn
from torch.nn import functional

import incop
from incop.flow import InformationFlow
from incop.flow.moments import CoMoments


def correlations(a, b):
    """C (M, M) within a layer and ρ (M, K) with the next, by the product's moments."""
    found = CoMoments([("a", "a"), ("a", "b")])
    found.update({"a": torch.tensor(a), "b": torch.tensor(b)})
    return found.correlations(0)[0].numpy(), found.correlations(1)[0].numpy()


def read_outs(c, rho, ridge=0.0):
    """w (M, K), the weights of the best linear read-out of standardised units, and R² (K,) it is sure to explain."""
    w = np.linalg.solve(c + ridge * np.eye(len(c)), rho)
    return w, (w * rho).sum(0)


def both_states(one, other):
    """Outputs of two networks' layers, only units that live in both."""
    for a, b in pairwise(one.names):
        now, then = (outputs(net.model, net.x, (a, b)) for net in (one, other))
        keep = {name: lives(now[name]) & lives(then[name]) for name in (a, b)}
        yield [(out[a][:, keep[a]], out[b][:, keep[b]]) for out in (then, now)]


@pytest.fixture(params=["sparse", "after_a_cut", "untrained_twin"])
def two(request, trained):
    """The dense trained network, and another of its shape."""
    if request.param == "sparse":
        return request.getfixturevalue("sparse"), trained
    model = trained.copy()
    if request.param == "after_a_cut":
        incop.prune(model, amount=0.5).apply(model)
    else:
        for k in (0, 2, 4):
            torch.manual_seed(k)
            model[k].reset_parameters()
    return type(trained)(model, trained.x, trained.y, trained.names), trained


@pytest.mark.parametrize("ridge", [1e-6, 0.01, 1.0])
def test_the_change_of_what_a_read_out_explains_exactly(two, ridge):
    for then, now in both_states(*two):
        c, rho = correlations(*then)
        c_now, rho_now = correlations(*now)
        w, explained = read_outs(c, rho, ridge)
        w_now, explained_now = read_outs(c_now, rho_now, ridge)
        for j in range(rho.shape[1]):
            change = claims.read_out_change(w[:, j], w_now[:, j], (rho_now - rho)[:, j], c_now - c)
            assert explained_now[j] - explained[j] == pytest.approx(change, abs=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_the_change_is_bounded_by_the_change_of_the_correlations(two, ridge):
    checked = 0
    for then, now in both_states(*two):
        c, rho = correlations(*then)
        c_now, rho_now = correlations(*now)
        least = np.linalg.eigvalsh(c)[0] + ridge
        least_now = np.linalg.eigvalsh(c_now)[0] + ridge
        if ridge == 0.0 and min(least, least_now) < 1e-9:
            continue
        change = np.abs(read_outs(c_now, rho_now, ridge)[1] - read_outs(c, rho, ridge)[1]).mean()
        distance = np.sqrt(np.square(rho_now - rho).mean())
        bound = claims.read_out_bound(least, least_now, distance, len(c), np.linalg.norm(c_now - c, 2))
        assert 0 < change <= bound
        w, w_now = (read_outs(*state, ridge)[0] for state in ((c, rho), (c_now, rho_now)))
        within = np.linalg.norm(c_now - c, 2)
        own = [
            claims.read_out_bound_own(w[:, j], w_now[:, j], (rho_now - rho)[:, j], within) for j in range(rho.shape[1])
        ]
        assert change <= np.mean(own) <= bound
        checked += 1
    assert checked


def test_the_bound_is_nearly_reached():
    """One unit read from one: w = ρ, so the change ρ'² − ρ² against 2 |ρ' − ρ| tells how much is lost near ρ = 1."""
    x = with_correlations([[1.0, 0.99, 0.98], [0.99, 1.0, 0.98], [0.98, 0.98, 1.0]])
    own = claims.read_out_bound_own(np.array([0.98]), np.array([0.99]), np.array([0.01]), 0.0)
    assert own == pytest.approx(0.99**2 - 0.98**2)  # by the read-outs themselves it is reached
    changes = [r2(x[:, :1], x[:, 1:2])[0] - r2(x[:, :1], x[:, 2:])[0], claims.read_out_bound(1, 1, 0.01, 1, 0)]
    assert 0.98 * changes[1] < changes[0] <= changes[1]


def test_what_is_explained_is_the_r2_of_least_squares(trained, sparse):
    for network in (trained, sparse):
        for a, b in pairwise(network.names):
            out = outputs(network.model, network.x, (a, b))
            p, q = (out[name][:, lives(out[name])] for name in (a, b))
            c, rho = correlations(p, q)
            assert np.linalg.eigvalsh(c)[0] > 1e-6
            assert read_outs(c, rho)[1] == pytest.approx(r2(p, q), abs=1e-6)
            assert np.all(read_outs(c, rho, 0.1)[1] <= r2(p, q) + 1e-9)  # with a ridge it is a lower bound


def test_the_labels_are_a_layer_too(trained, sparse):
    """What a linear read-out of the last hidden layer knows of each class changes as 4.1 says, and by no more than 4.2."""
    target = functional.one_hot(trained.y, 10).double().numpy()
    then, now = (outputs(net.model, net.x, ("2",))["2"] for net in (trained, sparse))
    keep = lives(then) & lives(now)
    c, rho = correlations(then[:, keep], target)
    c_now, rho_now = correlations(now[:, keep], target)
    change = r2(now[:, keep], target) - r2(then[:, keep], target)
    w, w_now = read_outs(c, rho)[0], read_outs(c_now, rho_now)[0]
    exact = [claims.read_out_change(w[:, j], w_now[:, j], (rho_now - rho)[:, j], c_now - c) for j in range(10)]
    assert change == pytest.approx(exact, abs=1e-6)
    within = np.linalg.norm(c_now - c, 2)
    bounds = [claims.read_out_bound_own(w[:, j], w_now[:, j], (rho_now - rho)[:, j], within) for j in range(10)]
    assert np.abs(change).mean() > 0.001
    assert np.all(np.abs(change) <= bounds)


def test_a_lipschitz_loss_of_the_read_out(network):
    """The last layer replaced by its best linear read-out from the one before; the loss is Lipschitz in its outputs."""
    a, b = network.names[-2:]
    out = outputs(network.model, network.x, (a, b))
    p, logits = out[a], out[b]
    spread = logits.std(0)
    z = standardised(logits)
    design = np.column_stack([p, np.ones(len(p))])
    guess = design @ np.linalg.lstsq(design, z, rcond=None)[0]
    losses = [functional.cross_entropy(torch.tensor(o * spread + logits.mean(0)), network.y).item() for o in (z, guess)]
    lipschitz = np.sqrt(2) * spread.max()  # cross entropy is √2-Lipschitz in the logits
    gap = claims.lipschitz_gap(lipschitz, z.shape[1], r2(p, logits).mean())
    assert 0 < abs(losses[1] - losses[0]) <= gap


class Columns(nn.Module):
    """Two layers whose outputs are given: all columns of the probe but the last, and the last."""

    def __init__(self, columns):
        super().__init__()
        self.first, self.second = nn.Linear(columns - 1, columns - 1, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(columns - 1))
            self.second.weight.fill_(1.0)

    def forward(self, x):
        return self.first(x[:, :-1]), self.second(x[:, -1:])


def measured(x):
    meters = (InformationFlow(form, chain=["first", "second"]) for form in ("mean", "absolute", "square"))
    net = Columns(x.shape[1]).double()
    return [incop.measure(net, torch.tensor(x), meter).values["first->second"] for meter in meters]


def test_false_that_the_correlations_between_layers_decide_what_is_read():
    """The same ρ to the last bit that counts, other correlations within the layer: R² is 1/3 and 1."""
    one = with_correlations([[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]])
    other = with_correlations([[1, -0.5, 0.5], [-0.5, 1, 0.5], [0.5, 0.5, 1]])
    assert measured(one) == pytest.approx(measured(other), abs=1e-9)
    assert measured(one)[0] == pytest.approx(0.5, abs=1e-9)
    assert r2(one[:, :2], one[:, 2:])[0] == pytest.approx(1 / 3)
    assert r2(other[:, :2], other[:, 2:])[0] == pytest.approx(1.0)


@pytest.mark.parametrize("small", [0.1, 0.01])
def test_false_that_small_correlations_pass_little(small):
    """Two units that are nearly one, correlated ± small with the next: everything is read from their difference."""
    c = 1 - 2 * small**2
    x = with_correlations([[1, c, small], [c, 1, -small], [small, -small, 1]], n=200)
    assert measured(x)[1] == pytest.approx(small, rel=1e-5)
    assert r2(x[:, :2], x[:, 2:])[0] == pytest.approx(1.0, abs=1e-6)
    least = np.linalg.eigvalsh(np.corrcoef(x[:, :2].T))[0]
    assert least == pytest.approx(2 * small**2, rel=1e-3)  # where the constant of the bound is bad


def test_false_that_the_mean_bounds_what_is_read():
    """The signed mean is 0 of both; the next unit is read whole from one layer and not at all from the other."""
    half = 0.5**0.5
    whole = with_correlations([[1, 0, half], [0, 1, -half], [half, -half, 1]])
    nothing = with_correlations(np.eye(3))
    assert measured(whole)[0] == pytest.approx(measured(nothing)[0], abs=1e-9)
    assert r2(whole[:, :2], whole[:, 2:])[0] == pytest.approx(1.0)
    assert r2(nothing[:, :2], nothing[:, 2:])[0] == pytest.approx(0.0, abs=1e-9)


def test_a_unit_that_dies_moves_the_correlations_by_its_own(trained):
    """Its row goes to 0, a change that no training removes: the floor of the distance at high sparsity."""
    a, b = (out for out in outputs(trained.model, trained.x, ("0", "2")).values())
    _, rho = correlations(a, b)
    model = trained.copy()
    with torch.no_grad():
        model[0].weight[3] = 0.0
        model[0].bias[3] = -1.0
    found = outputs(model, trained.x, ("0",))["0"]
    _, after = correlations(found, b)
    assert np.all(after[3] == 0)
    floor = np.sqrt(np.square(after - rho).mean())
    assert floor == pytest.approx(np.sqrt(np.square(rho[3]).sum() / rho.size))
    assert np.linalg.eigvalsh(correlations(found, b)[0])[0] == pytest.approx(0, abs=1e-12)
