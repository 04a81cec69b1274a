"""Statement 5 of docs/theory.md: what gradient norms say of the loss, and what they do not."""

import copy

import numpy as np
import pytest
import theory_claims as claims
import torch
from theory_networks import train
from torch import nn
from torch.nn import functional

import incop
from incop.flow import GradientFlow
from incop.records import Check, History
from incop.stopping import FlowRestored

CROSS = GradientFlow(functional.cross_entropy)
SQUARE = GradientFlow(functional.mse_loss)


def norms(model, probe, meter, masks=None):
    return list(incop.measure(model, probe, meter, masks=masks).values.values())


def weights_of(model):
    return [m.weight for m in model if isinstance(m, nn.Linear)]


@pytest.fixture(scope="module")
def smooth(digits):
    """A network that is smooth (tanh), trained on the digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    return train(model, *digits, epochs=4)


def loss_along(model, directions, x, y):
    """The loss at w + t d as a function of t, differentiable twice."""
    named = dict(model.named_parameters())
    names = [next(n for n, p in named.items() if p is w) for w in weights_of(model)]

    def at(t):
        moved = {n: named[n].detach() + t * d for n, d in zip(names, directions, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)

    return at


def second_derivative(f, t):
    t = t.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(t), t, create_graph=True)
    return float(torch.autograd.grad(first, t)[0])


@pytest.mark.parametrize("size", [1e-4, 0.05, 0.5])
def test_first_order_bound(smooth, digits, size):
    """With β the largest curvature along the way, found by derivatives on a fine grid."""
    x, y = digits[0][:200], digits[1][:200]
    g = norms(smooth, (x, y), CROSS)
    rng = torch.Generator().manual_seed(0)
    for trial in range(4):
        d = [torch.randn(w.shape, generator=rng, dtype=torch.float64) for w in weights_of(smooth)]
        if trial == 3:  # the steepest way, where the first term is all but reached
            loss = functional.cross_entropy(smooth(x), y)
            d = [gradient.detach() for gradient in torch.autograd.grad(loss, weights_of(smooth))]
        scale = size / sum(float(part.norm()) ** 2 for part in d) ** 0.5
        d = [part * scale for part in d]
        loss_at = loss_along(smooth, d, x, y)
        grid = torch.linspace(0, 1, 21, dtype=torch.float64)
        curvature = max(abs(second_derivative(loss_at, t)) for t in grid)
        beta = 1.05 * curvature / size**2  # between the points of the grid
        change = float((loss_at(grid[-1]) - loss_at(grid[0])).detach())
        bound = claims.first_order(g, [float(part.norm()) for part in d], beta)
        assert abs(change) <= bound
        if trial == 3 and size == 1e-4:
            assert change > 0.99 * bound


class Halves(nn.Module):
    """Two layers side by side, each on half of the inputs, added: linear in all its weights."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.left = nn.Linear(inputs // 2, outputs, bias=False)
        self.right = nn.Linear(inputs // 2, outputs, bias=False)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        return self.left(left) + self.right(right)

    @torch.no_grad()
    def put(self, weight):
        for layer, part in zip((self.left, self.right), weight.chunk(2, dim=1), strict=True):
            layer.weight.copy_(part)

    def whole(self):
        return torch.cat([self.left.weight, self.right.weight], dim=1).detach()


def quadratic(digits, rank=None):
    """A network linear in its weights on the digits, for squared loss to the one-hot classes; and its data."""
    x = digits[0][:400]
    if rank is not None:
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        x = u[:, :rank] * s[:rank] @ v[:rank]
    torch.manual_seed(0)
    return Halves(64, 10).double(), x, functional.one_hot(digits[1][:400], 10).double()


def whole_mask(masks):
    return torch.cat([masks["left.weight"], masks["right.weight"]], dim=1)


def best_weights(x, y):
    return torch.linalg.lstsq(x, y, driver="gelsd").solution.T


def least_loss(x, y, mask):
    """The least squared loss a masked linear layer can reach, and μ: its smallest curvature that is not 0, by NumPy."""
    x, y, mask = x.numpy(), y.numpy(), mask.numpy()
    rest, mu = np.zeros_like(y), np.inf
    for j, kept in enumerate(mask):
        part = x[:, kept]
        rest[:, j] = y[:, j] - part @ np.linalg.lstsq(part, y[:, j], rcond=1e-10)[0]
        spectrum = np.linalg.eigvalsh(2 * part.T @ part / y.size)
        mu = min(mu, spectrum[spectrum > 1e-9 * spectrum.max()].min())
    return float((rest**2).mean()), float(mu)


@pytest.mark.parametrize("rank", [None, 20])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_under_polyak_lojasiewicz_the_norms_bound_the_gap(digits, rank, keep):
    """A quadratic loss meets the condition, of less than full rank and under a mask too; at the start and while training."""
    model, x, y = quadratic(digits, rank)
    masks = incop.prune(model, amount=1 - keep)
    masks.apply(model)
    least, mu = least_loss(x, y, whole_mask(masks))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with incop.hold(masks, model, optimizer):
        for step in range(60):
            loss = functional.mse_loss(model(x), y)
            if step % 20 == 0:
                g = norms(model, (x, y), SQUARE, masks)
                assert 0 < float(loss.detach()) - least <= claims.polyak_gap(g, mu)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_the_gap_bound_is_reached_along_the_flattest_direction(digits):
    model, x, y = quadratic(digits, 20)
    full = incop.Masks.full(model)
    least, mu = least_loss(x, y, whole_mask(full))
    best = best_weights(x, y)
    values, vectors = torch.linalg.eigh(2 * x.T @ x / y.numel())
    flattest = vectors[:, (values > 1e-9 * values.max()).nonzero()[0, 0]]
    best[0] += flattest
    model.put(best)
    gap = functional.mse_loss(model(x), y).item() - least
    assert gap == pytest.approx(claims.polyak_gap(norms(model, (x, y), SQUARE), mu), rel=1e-6)


def test_the_last_layer_of_a_trained_network(trained):
    """What is left to gain in the last layer's weights alone, squared loss: a quadratic problem on trained features."""
    y = functional.one_hot(trained.y, 10).double()
    meter = GradientFlow(lambda out, target: functional.mse_loss(out, functional.one_hot(target, 10).double()))
    with torch.no_grad():
        features = trained.model[:4](trained.x)
        rest = y - trained.model[4].bias
        gap = functional.mse_loss(trained.model(trained.x), y).item()
    least, mu = least_loss(features, rest, torch.ones(10, features.shape[1], dtype=torch.bool))
    g = norms(trained.model, (trained.x, trained.y), meter)
    assert 0 < gap - least <= claims.polyak_gap(g[-1:], mu)


def test_a_flow_near_a_converged_one_bounds_the_gap(digits):
    """‖g − g_ref‖ < ε gives ‖g‖ < ‖g_ref‖ + ε, and that a gap: of the masked problem's own minimum, not of the dense one's."""
    model, x, y = quadratic(digits)
    dense = copy.deepcopy(model)
    dense.put(best_weights(x, y))
    reference = incop.measure(dense, (x, y), SQUARE)
    masks = incop.prune(dense, amount=0.9)
    pruned = copy.deepcopy(dense)
    masks.apply(pruned)
    least, mu = least_loss(x, y, whole_mask(masks))
    optimizer, rule = torch.optim.SGD(pruned.parameters(), lr=0.05), FlowRestored(within=0.01)
    with incop.hold(masks, pruned, optimizer):
        for step in range(4000):
            loss = functional.mse_loss(pruned(x), y)
            if step % 10 == 0:
                flow = incop.measure(pruned, (x, y), SQUARE, masks=masks)
                if rule(History((Check(1, 1, 1.0, flow=flow),), reference)).stop:
                    break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        else:
            pytest.fail("the flow never came back")
    assert step > 0
    assert float(loss.detach()) - least <= claims.polyak_gap([reference.norm() + 0.01], mu)
    assert least > functional.mse_loss(dense(x), y).item() * 1.2  # the mask's own floor, of which the norms say nothing


def test_false_that_a_small_gradient_is_a_small_loss(trained):
    """All units dead: no gradient reaches any weight but the last's, and the rule finds the flow restored."""
    reference = incop.measure(trained.model, (trained.x, trained.y), CROSS)
    dead = trained.copy()
    with torch.no_grad():
        dead[2].bias.fill_(-100.0)
        dead[4].bias.copy_(torch.bincount(trained.y, minlength=10).double().log())
    flow = incop.measure(dead, (trained.x, trained.y), CROSS)
    assert all(value == 0.0 for value in flow.values.values())
    verdict = FlowRestored(within=0.3)(History((Check(1, 1, 1.0, flow=flow),), reference))
    assert reference.norm() < 0.3
    assert verdict.stop
    accuracy = (dead(trained.x).argmax(1) == trained.y).double().mean()
    assert accuracy < 0.15
    assert functional.cross_entropy(dead(trained.x), trained.y) > 2.2


def test_false_that_equal_norms_are_equal_losses():
    """Two weights with the same gradient norm on either side of a wave's top and bottom: the losses are far apart."""
    model = Halves(2, 1).double()
    probe = torch.ones(4, 2).double(), torch.zeros(4, 1).double()
    wave = GradientFlow(lambda out, target: (1 + torch.sin(out)).mean())
    seen = []
    for at in (np.pi / 2, -np.pi / 2):
        model.put(torch.tensor([[at, 0.0]]))
        seen.append((norms(model, probe, wave)[0], 1 + np.sin(at)))
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-12)
    assert seen[0][1] - seen[1][1] == pytest.approx(2.0)


def test_norms_move_no_more_than_the_weights_times_the_curvature(digits):
    """|g_l(w') − g_l(w)| ≤ β ‖w' − w‖: near weights have near gradient flows; of a quadratic β is the largest eigenvalue."""
    model, x, y = quadratic(digits)
    curvatures, ways = torch.linalg.eigh(2 * x.T @ x / y.numel())
    beta = float(curvatures[-1])
    before = norms(model, (x, y), SQUARE)
    for seed in range(5):
        other = copy.deepcopy(model)
        torch.manual_seed(seed)
        other.put(model.whole() + 0.1 * torch.randn(10, 64).double())
        moved = float((other.whole() - model.whole()).norm())
        after = norms(other, (x, y), SQUARE)
        assert 0 < np.hypot(*np.subtract(after, before)) <= beta * moved
    best = best_weights(x, y)
    model.put(best)
    steepest = copy.deepcopy(model)
    best[0] += ways[:, -1]  # from the bottom along the largest curvature the bound is reached
    steepest.put(best)
    after, before = (norms(one, (x, y), SQUARE) for one in (steepest, model))
    assert np.hypot(*np.subtract(after, before)) == pytest.approx(beta, rel=1e-6)
