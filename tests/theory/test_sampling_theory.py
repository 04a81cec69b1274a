"""Statement 3 of docs/theory.md: how far a flow is off on n samples, and how many are enough.

Simulations draw from a population that is known whole (a network's outputs on all its training images, drawn with replacement),
so that the true flow is known exactly. Every bound on a count leaves room for chance with probability below 1e-6.
"""

import itertools
import math

import numpy as np
import pytest
import theory_claims as claims
import torch
from scipy import stats
from theory_oracles import outputs, rho, standardised
from torch.nn import functional

import incop
from incop.flow import GradientFlow, InformationFlow, sampling_error
from incop.flow.moments import CoMoments, Rows
from incop.records import Check, History
from incop.stopping import FlowRestored

FALSE_ALARM = 1e-6
FORMS = ("mean", "absolute", "square")


def flow_of(a, b, form="mean"):
    """The product's flow of two layers' outputs, without a model."""
    rows = {"a": torch.tensor(a), "b": torch.tensor(b)}
    statistics = Rows([], [("a", "b")]) if form == "mean" else CoMoments([("a", "b")])
    statistics.update(rows)
    return InformationFlow(form).flow(statistics)["a->b"]


def pairs_of(network):
    out = outputs(network.model, network.x, network.names)
    return [(out[a], out[b]) for a, b in itertools.pairwise(network.names)]


@pytest.mark.parametrize("form", FORMS)
def test_influence_is_the_slope_towards_one_sample(trained, form):
    """A weight ε more on one sample moves the flow by ε times its influence, to first order."""
    a, b = (out[:80] for out in pairs_of(trained)[0])
    a, b = a[:, a.std(0) > 1e-3], b[:, b.std(0) > 1e-3]
    psi = claims.influence(standardised(a), standardised(b), form)
    assert psi.mean() == pytest.approx(0, abs=1e-12)

    def weighted(w):
        w = w / w.sum()
        both = np.concatenate([a, b], 1)
        cov = (both - w @ both).T @ ((both - w @ both) * w[:, None])
        spread = np.sqrt(np.diag(cov))
        found = (cov / np.outer(spread, spread))[: a.shape[1], a.shape[1] :]
        return {"mean": found, "absolute": np.abs(found), "square": found**2}[form].mean()

    for sample in range(0, 80, 9):
        up, down = np.ones(80), np.ones(80)
        up[sample], down[sample] = 1 + 1e-4, 1 - 1e-4
        slope = (weighted(up) - weighted(down)) / 2e-4 * 80
        assert slope == pytest.approx(psi[sample], rel=1e-4, abs=1e-6)


def test_influence_of_the_mean_needs_no_matrix(network):
    for a, b in pairs_of(network):
        a, b = standardised(a), standardised(b)
        assert claims.mean_influence_linear(a, b) == pytest.approx(claims.influence(a, b), abs=1e-10)


def coverage(a, b, n, repetitions, form="mean", seed=0):
    """How often the true flow lies within 1.96 standard errors of that of a probe of n samples."""
    rng, truth, hits = np.random.default_rng(seed), flow_of(a, b, form), 0
    for _ in range(repetitions):
        index = rng.integers(len(a), size=n)
        found = flow_of(a[index], b[index], form)
        psi = claims.influence(standardised(a[index]), standardised(b[index]), form)
        hits += abs(found - truth) <= 1.96 * psi.std() / math.sqrt(n)
    return hits


def within(hits, repetitions, least, most):
    """Whether a true frequency in [least, most] could have given so many hits, but for a chance below FALSE_ALARM."""
    low = stats.binom.ppf(FALSE_ALARM / 2, repetitions, least)
    high = stats.binom.isf(FALSE_ALARM / 2, repetitions, most)
    return low <= hits <= high


@pytest.mark.parametrize("which", ["untrained", "trained", "sparse"])
def test_intervals_cover_the_true_mean_correlation(request, which):
    a, b = pairs_of(request.getfixturevalue(which))[0]
    assert within(coverage(a, b, 300, 1000), 1000, 0.93, 0.965)


def test_the_jackknife_finds_the_same_error(trained):
    """What `sampling_error` reports, over twenty probes, against the influence of all samples: the root mean square."""
    for form in FORMS:
        truth = []
        for a, b in pairs_of(trained):
            psi = claims.influence(standardised(a), standardised(b), form)
            truth.append(psi.std() / math.sqrt(300))
        rng, found = np.random.default_rng(1), []
        for _ in range(20):
            index = torch.tensor(rng.integers(len(trained.x), size=300))
            found.append(list(sampling_error(trained.model, trained.x[index], InformationFlow(form)).values.values()))
        ratio = np.sqrt(np.square(found).mean(0)) / truth
        assert np.all((ratio > 0.8) & (ratio < 1.3)), ratio  # 380 degrees of freedom: 4 % of noise


def test_independent_units_correlate_by_chance_as_much_as_said():
    """All orders of one unit's values against another's: the mean of ρ̂ is 0 and of ρ̂² is 1/(n−1), exactly, for any values."""
    for n, values in ((5, [0.0, 1.0, 1.5, 7.0, 100.0]), (6, [1.0, 1.0, 2.0, 3.0, 5.0, 8.0])):
        x = np.array(values[::-1] if n == 5 else [0.0, 0.1, 0.1, 5.0, 6.0, -40.0])[:, None]
        orders = np.array(list(itertools.permutations(values))).T
        assert orders.shape == (n, math.factorial(n))
        assert flow_of(x, orders) == pytest.approx(0, abs=1e-12)
        assert flow_of(x, orders, "square") == pytest.approx(claims.chance_square(n), rel=1e-9)
        assert flow_of(x, orders, "absolute") <= math.sqrt(claims.chance_square(n))


def test_false_that_flows_of_probes_of_other_sizes_compare(trained):
    """The mean square of the same network is larger on a smaller probe, by about the chance of 3.3; the mean is not."""
    a, b = pairs_of(trained)[0]
    rng = np.random.default_rng(0)
    found = {
        n: np.mean([flow_of(*(o[i] for o in (a, b)), "square") for i in rng.integers(len(a), size=(40, n))])
        for n in (25, 200)
    }
    assert found[25] - flow_of(a, b, "square") > 0.5 / 24
    assert abs(found[200] - flow_of(a, b, "square")) < 0.5 / 24


def signs(n, units, together, rng):
    """Units of values ±1, each a copy of one common sign with a chance of 1 − together of its own."""
    common = rng.choice([-1.0, 1.0], size=(n, 1))
    own = rng.choice([-1.0, 1.0], size=(n, units))
    return np.where(rng.random((n, units)) < together, common, own)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("units", [1, 3])
def test_concentration(form, units):
    """Bounded units whose true correlations are known: each follows one common sign half the time, so ρ = 1/4."""
    rng, misses, repetitions, n, failure = np.random.default_rng(4), 0, 300, 200, 0.2
    truth = 1 / 16 if form == "square" else 1 / 4
    pairs, times = (1, 1) if form == "mean" else (units**2, 2 if form == "square" else 1)
    limit = times * claims.concentration(n, 1.0, 2 * units, failure, pairs)
    for _ in range(repetitions):
        both = signs(n, 2 * units, 0.5, rng)
        misses += abs(flow_of(both[:, :units], both[:, units:], form) - truth) > limit
    assert misses <= stats.binom.isf(FALSE_ALARM, repetitions, failure)


def test_each_step_of_the_concentration_proof_on_every_draw(trained):
    """|Δ̂ − mean of the covariances| ≤ largest |σ̂² − 1|: with outputs in units of the population's spread."""
    a, b = (standardised(o) for o in pairs_of(trained)[0])
    a, b = a[:, a.std(0) > 0], b[:, b.std(0) > 0]
    rng = np.random.default_rng(0)
    for n in (20, 100, 500):
        for _ in range(20):
            index = rng.integers(len(a), size=n)
            p, q = a[index], b[index]
            for one, other in ((p, q), (p[:, :1], p[:, :1])):  # of one unit with itself the step is an equality
                covariances = (one - one.mean(0)).T @ (other - other.mean(0)) / n
                eta = max(np.abs(one.var(0) - 1).max(), np.abs(other.var(0) - 1).max())
                assert abs(flow_of(one, other) - covariances.mean()) <= eta + 1e-12
    bound = max(np.abs(a).max(), np.abs(b).max())
    wanted = claims.concentration_samples(0.1, bound, a.shape[1] + b.shape[1], 0.05)
    assert claims.concentration(wanted, bound, a.shape[1] + b.shape[1], 0.05) <= 0.1 + 1e-9
    assert claims.concentration(wanted - 1, bound, a.shape[1] + b.shape[1], 0.05) > 0.1 - 1e-9


def test_squared_gradient_norm_is_too_large_by_the_spread(trained):
    """All probes of two samples out of six, with replacement: the mean of ĝ² is g² + spread / 2, exactly."""
    x, y = trained.x[:6], trained.y[:6]
    meter = GradientFlow(functional.cross_entropy)
    seen = [
        list(incop.measure(trained.model, (x[list(two)], y[list(two)]), meter).values.values())
        for two in itertools.product(range(6), repeat=2)
    ]
    each = [
        torch.autograd.grad(functional.cross_entropy(trained.model(x[k : k + 1]), y[k : k + 1]), [
            trained.model[int(name)].weight for name in trained.names
        ])
        for k in range(6)
    ]  # fmt: skip
    for layer in range(3):
        samples = np.stack([gradients[layer].numpy().ravel() for gradients in each])
        expected = claims.gradient_square(samples.mean(0), samples, 2)
        assert np.mean(np.square(seen)[:, layer]) == pytest.approx(expected, rel=1e-9)
        assert expected > (samples.mean(0) ** 2).sum() * 1.05


def test_gradient_deviation(untrained):
    x, y = untrained.x[:200], untrained.y[:200]
    weight = untrained.model[4].weight
    samples = np.stack(
        [
            torch.autograd.grad(functional.cross_entropy(untrained.model(x[k : k + 1]), y[k : k + 1]), weight)[0]
            .numpy()
            .ravel()
            for k in range(200)
        ]
    )
    rng, n, failure, repetitions = np.random.default_rng(0), 20, 0.3, 400
    limit = claims.gradient_deviation(np.linalg.norm(samples, axis=1).max(), n, failure)
    off = [np.linalg.norm(samples[rng.integers(200, size=n)].mean(0) - samples.mean(0)) for _ in range(repetitions)]
    assert (np.array(off) > limit).sum() <= stats.binom.isf(FALSE_ALARM, repetitions, failure)
    index = rng.integers(200, size=n)
    measured = incop.measure(untrained.model, (x[index], y[index]), GradientFlow(functional.cross_entropy)).values["4"]
    assert (
        abs(measured - np.linalg.norm(samples.mean(0)))
        <= np.linalg.norm(samples[index].mean(0) - samples.mean(0)) + 1e-9
    )


def test_a_flow_that_is_back_is_seen_within_twice_the_sampling_error(trained):
    """With the tolerance at 2 · `total`, the rule overlooks at most a quarter; at half of it, most."""
    truth = incop.measure(trained.model, trained.x, InformationFlow())
    rng, far, near, repetitions = np.random.default_rng(2), 0, 0, 100
    for _ in range(repetitions):
        probe = trained.x[torch.tensor(rng.integers(len(trained.x), size=150))]
        flow = incop.measure(trained.model, probe, InformationFlow())
        total = sampling_error(trained.model, probe, InformationFlow(), groups=10).total
        history = History((Check(1, 1, 1.0, flow=flow),), truth)
        far += not FlowRestored(within=2 * total)(history).stop
        near += not FlowRestored(within=total / 2)(history).stop
    assert far <= stats.binom.isf(FALSE_ALARM, repetitions, claims.chebyshev(2))
    assert near >= repetitions / 2


def test_the_error_of_a_difference_on_one_probe(trained, sparse):
    """It is at most the sum of both (exactly, of the jackknife too), and here well below the error of two probes."""
    probe = trained.x[:300]
    for form in FORMS:
        meter = InformationFlow(form)
        now, dense = (sampling_error(net.model, probe, meter) for net in (sparse, trained))
        both = sampling_error(sparse.model, probe, meter, reference=trained.model)
        for name in both.values:
            assert both.values[name] <= now.values[name] + dense.values[name] + 1e-15
    same = sampling_error(trained.model, probe, InformationFlow(), reference=trained.model)
    assert same.total == pytest.approx(0, abs=1e-15)


def test_fisher_z_is_no_error_of_a_mean_of_many_correlations():
    """Of one pair of normal units both agree; of many that vary together, 1/√(n−3) per pair says nothing of their mean."""
    rng, n = np.random.default_rng(0), 400
    common = rng.standard_normal((20_000, 1))
    a, b = (0.8 * common + 0.6 * rng.standard_normal((20_000, k)) for k in (1, 1))
    z = standardised(a), standardised(b)
    r = flow_of(a, b)
    fisher = (1 - r**2) / math.sqrt(n - 3)
    assert claims.influence(*z).std() / math.sqrt(n) == pytest.approx(fisher, rel=0.05)
    many = [0.8 * common + 0.6 * rng.standard_normal((20_000, k)) for k in (30, 30)]
    found = claims.influence(*(standardised(o) for o in many)).std() / math.sqrt(n)
    assert found > 3 * fisher / 30  # as if the 900 pairs were independent
    assert found < fisher  # as if they were one
    assert rho(*many).mean() == pytest.approx(0.64, abs=0.02)


def test_errors_shrink_as_one_over_root_n(trained):
    torch.manual_seed(0)
    index = torch.randint(len(trained.x), (4000,))
    small, large = (
        sampling_error(trained.model, trained.x[index[:n]], InformationFlow(), groups=40) for n in (1000, 4000)
    )
    assert small.total / large.total == pytest.approx(2, rel=0.35)
    assert 2000 < small.samples_for(large.total) < 8000
