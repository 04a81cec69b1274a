"""Statement 7 of docs/theory.md: when equal damage is best, when it makes no difference, and when it is the worst."""

import itertools
import math

import numpy as np
import pytest
import theory_claims as claims
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from theory_oracles import lives, outputs

import incop
from incop import pruning, stopping
from incop.flow import Damage
from incop.records import Check, Flow, History

CONCAVE, LINEAR, CONVEX = (0.0, 0.3, 0.7), (1.0,), (1.5, 2.0, 3.0)


def test_a_correlation_over_two_cuts_is_nearly_the_product(trained):
    """Of every unit of every layer, after one cut and after another: off by the partial correlation, at most by the bound."""
    first, second = trained.copy(), trained.copy()
    incop.prune(first, amount=0.6).apply(first)
    second.load_state_dict(first.state_dict())
    incop.prune(second, masks=incop.Masks.of(second), amount=0.6).apply(second)
    states = [outputs(model, trained.x, trained.names) for model in (trained.model, first, second)]
    worst = 0.0
    for name in trained.names:
        units = zip(*(state[name].T for state in states), *(lives(state[name]) for state in states), strict=True)
        for f, g, h, *living in units:
            if not all(living):
                continue
            (_, r, direct), (_, _, s), _ = np.corrcoef([f, g, h])
            assert abs(direct - r * s) <= claims.triple_error(r, s) + 1e-12
            rest = [np.linalg.lstsq(np.column_stack([g, np.ones_like(g)]), y, rcond=None)[0] for y in (f, h)]
            left = [y - np.column_stack([g, np.ones_like(g)]) @ fit for y, fit in zip((f, h), rest, strict=True)]
            partial = np.corrcoef(left)[0, 1]
            assert direct - r * s == pytest.approx(partial * claims.triple_error(r, s), abs=1e-9)
            worst = max(worst, abs(direct - r * s))
    assert worst > 0.01  # so damages add only nearly


@pytest.mark.parametrize("power", CONCAVE + LINEAR + CONVEX)
def test_what_a_stretch_leaves_solves_its_equation(power):
    for damage in (0.05, 0.3, 1.0):
        for stretch in (0.05, 0.4):
            done = solve_ivp(
                lambda t, d, power=power: -np.maximum(d, 0.0) ** power if power else -(d > 0.0).astype(float),
                (0, stretch), [damage], rtol=1e-10, atol=1e-12, max_step=1e-3,
            )  # fmt: skip
            expected = max(done.y[0, -1], 0.0)
            assert float(claims.left_over(damage, stretch, power)) == pytest.approx(
                expected, abs=2e-3 if power == 0 else 1e-6
            )


@pytest.mark.parametrize("power", CONCAVE + LINEAR + CONVEX)
def test_convex_where_the_speed_of_repair_is_concave(power):
    damages = np.linspace(1e-3, 2, 400)
    bends = np.diff(claims.left_over(damages, 0.3, power), n=2)
    sign = {True: bends >= -1e-12, False: bends <= 1e-12}
    if power <= 1:
        assert np.all(sign[True])
    if power >= 1:
        assert np.all(sign[False])


def spread(total, shares):
    return total * np.asarray(shares) / np.sum(shares)


def least(objective, start):
    """The least of a function of shares ≥ 0 that sum to as much as the start's, by SciPy."""
    found = minimize(
        objective, start, method="SLSQP", bounds=[(0, None)] * len(start), options={"maxiter": 500, "ftol": 1e-12},
        constraints={"type": "eq", "fun": lambda d: np.sum(d) - np.sum(start)},
    )  # fmt: skip
    return found.x


@pytest.mark.parametrize("power", CONCAVE)
def test_equal_damage_is_best_of_all_schedules_of_the_same_total(power):
    rng = np.random.default_rng(0)
    for cuts in (2, 5, 12):
        total, stretch = rng.uniform(0.5, 2), rng.uniform(0.01, 0.05)
        best = claims.best_total(total, cuts, stretch, power)
        for _ in range(30):
            blind = claims.left_over(spread(total, rng.dirichlet(np.ones(cuts))), stretch, power).sum()
            assert best <= blind + 1e-12
        smooth = 0.7 if power == 0.0 else power  # a corner is no place for SciPy's derivatives
        found = least(
            lambda d, s=smooth, t=stretch: claims.left_over(np.abs(d), t, s).sum(),
            spread(total, rng.dirichlet(3 * np.ones(cuts))),
        )
        value = claims.left_over(np.abs(found), stretch, smooth).sum()
        assert value == pytest.approx(claims.best_total(total, cuts, stretch, smooth), rel=1e-4)
        assert value >= claims.best_total(total, cuts, stretch, smooth) - 1e-9


def test_of_two_schedules_the_more_even_one_is_better():
    """Majorisation: what is moved from a larger damage to a smaller one never makes it worse."""
    rng = np.random.default_rng(1)
    for power in CONCAVE:
        for _ in range(50):
            damages = rng.uniform(0, 1, 6)
            high, low = np.argmax(damages), np.argmin(damages)
            moved = damages.copy()
            part = rng.uniform(0, 1) * (damages[high] - damages[low])
            moved[[high, low]] += (-part, part)
            after, before = (claims.left_over(d, 0.2, power).sum() for d in (moved, damages))
            assert after <= before + 1e-12


def test_false_where_repair_is_in_proportion():
    """v(d) = c d, geometric recovery: every schedule of the same total leaves the same."""
    rng = np.random.default_rng(2)
    left = [claims.left_over(rng.dirichlet(np.ones(7)), 0.3, 1.0).sum() for _ in range(20)]
    assert left == pytest.approx([math.exp(-0.3)] * 20)


@pytest.mark.parametrize("power", CONVEX)
def test_false_where_large_damage_is_repaired_faster_than_in_proportion(power):
    """v convex, the slow tail of a power law: equal damage is the worst, one cut the best."""
    rng = np.random.default_rng(3)
    equal = claims.left_over(np.full(5, 0.2), 0.3, power).sum()
    one = claims.left_over(np.array([1.0, 0, 0, 0, 0]), 0.3, power).sum()
    for _ in range(30):
        some = claims.left_over(rng.dirichlet(np.ones(5)), 0.3, power).sum()
        assert one - 1e-12 <= some <= equal + 1e-12
    assert one < 0.97 * equal
    found = least(lambda d: claims.left_over(np.abs(d), 0.3, power).sum(), np.array([0.28, 0.2, 0.18, 0.17, 0.17]))
    assert claims.left_over(np.abs(found), 0.3, power).sum() < equal


def carried_on(damages, stretch, power):
    """The other model: what a stretch leaves is repaired further in the stretches after it."""
    left = 0.0
    for damage in damages:
        left = float(claims.left_over(left + damage, stretch, power))
    return left


@pytest.mark.parametrize("power", [0.3, 0.7, 1.0])
def test_false_where_what_is_left_goes_on_being_repaired(power):
    """Then early damage is repaired longest, and the best is to cut everything at first."""
    rng = np.random.default_rng(4)
    first = carried_on([1.0, 0, 0, 0], 0.1, power)
    assert first < carried_on([0.25] * 4, 0.1, power) * 0.99
    for _ in range(30):
        assert first <= carried_on(rng.dirichlet(np.ones(4)), 0.1, power) + 1e-12


def test_the_worst_moment_is_best_with_equal_damage_whatever_the_repair():
    rng = np.random.default_rng(5)
    for power in CONCAVE + LINEAR + CONVEX:
        equal = claims.left_over(np.full(6, 1 / 6), 0.2, power).max()
        for _ in range(20):
            assert equal <= claims.left_over(rng.dirichlet(np.ones(6)), 0.2, power).max() + 1e-12


def test_more_cuts_help_where_each_brings_a_stretch_of_its_own_and_not_where_all_share_one():
    for power in CONCAVE:
        each = [claims.best_total(1.0, n, 0.02, power) for n in (1, 2, 4, 8)]
        shared = [claims.best_total(1.0, n, 0.08 / n, power) for n in (1, 2, 4, 8)]
        assert all(a > b - 1e-12 for a, b in itertools.pairwise(each))
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(shared))
    assert claims.best_total(1.0, 8, 0.01, 0.7) > 1.01 * claims.best_total(1.0, 1, 0.08, 0.7)


def stretches_of_the_rule(damages, within, step=1e-4):
    """How long each damage is repaired (v(d) = d) until `FlowRestored` stops the level."""
    rule, reference, found = stopping.FlowRestored(within=within), Flow({"a": 0.0}), []
    for damage in damages:
        at = 0
        while True:
            left = float(claims.left_over(damage, at * step, 1.0))
            if rule(History((Check(1, 1, 1.0, flow=Flow({"a": left})),), reference)).stop:
                break
            at += 1
        found.append(at * step)
    return np.array(found)


def test_for_given_cuts_the_rule_that_waits_for_the_flow_spends_best():
    """Repair in proportion to the damage: the least that one total of training can leave is that of one height for all."""
    damages = np.array([0.05, 0.4, 0.1, 0.8, 0.2])
    spent = stretches_of_the_rule(damages, within=0.12)
    total = spent.sum()
    assert spent == pytest.approx(claims.best_stretches(damages, total), abs=1e-3)
    left = sum(claims.left_over(d, t, 1.0) for d, t in zip(damages, spent, strict=True))
    rng = np.random.default_rng(6)
    for _ in range(50):
        blind = rng.dirichlet(np.ones(5)) * total
        assert left <= sum(claims.left_over(d, t, 1.0) for d, t in zip(damages, blind, strict=True)) + 1e-3
    found = least(lambda t: float(np.sum(damages * np.exp(-t))), np.full(5, total / 5))
    assert found == pytest.approx(spent, abs=5e-3)
    evenly = (damages * math.exp(-total / 5)).sum()
    assert left < 0.85 * evenly


# ------------------------------------------------------------------ the product's path on measured curves


def path_damages(damage_at, path, total_weights):
    """The damages of a path's cuts, R(λ_k) − R(λ_(k−1)), of the damage measured at each of its sparsities."""
    counts = [total_weights - round((1 - s) * total_weights) for s in path]
    return np.diff([0.0, *(damage_at(count) for count in counts)])


def paths(sparsity, cuts, competition):
    even = pruning.EvenDamage(sparsity, levels=cuts).plan(competition).sparsities
    found = {"flow": even}
    for name in ("even", "cubic"):
        amount, left, made = pruning.Target(sparsity, cuts, name), competition.total, []
        for level in range(1, cuts + 1):
            left -= amount(pruning.Competition(torch.ones(left), competition.total, level))
            made.append(1 - left / competition.total)
        found[name] = tuple(made)
    return found


@pytest.mark.parametrize("which", ["trained", "trained_mnist", "trained_cnn"])
@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def test_the_planned_path_against_blind_ones_on_real_networks(request, which, sparsity):
    """The same total damage by three paths; in the model with concave repair the planned one leaves the least."""
    network = request.getfixturevalue(which)
    model, cuts = network.model, 10
    measure, whole = Damage(model, network.x[:128]), incop.Masks.full(model)

    def damage_at(count):
        return measure(incop.prune(model, masks=whole, amount=pruning.Fraction(count / whole.total)))

    weights = torch.cat([w.detach().flatten() for w in whole.weights(model).values()])
    found = paths(sparsity, cuts, pruning.Competition(weights, whole.total, damage=damage_at))
    damages = {name: path_damages(damage_at, path, whole.total) for name, path in found.items()}
    totals = {name: d.sum() for name, d in damages.items()}
    assert totals["flow"] == pytest.approx(totals["even"], abs=1e-9) == pytest.approx(totals["cubic"], abs=1e-9)
    assert damages["flow"].std() < min(damages["even"].std(), damages["cubic"].std())
    for power in (0.0, 0.3, 0.7):
        stretch = totals["flow"] / cuts / 4 if power == 0.0 else 0.05
        left = {name: claims.left_over(np.maximum(d, 0), stretch, power).sum() for name, d in damages.items()}
        assert claims.best_total(totals["flow"], cuts, stretch, power) <= left["flow"] + 1e-9
        assert left["flow"] < min(left["even"], left["cubic"])


def test_each_planned_cut_is_off_by_no_more_than_one_trial_tells():
    """Between two trials the curve is guessed: the damage reached is within that interval's rise of what was wanted."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        rises = rng.exponential(size=40) * rng.choice([0.05, 1.0], size=40)
        steps = np.concatenate([[0.0], np.cumsum(rises)])
        way = math.log(1 / (1 - 0.95))

        def damage_at(count, steps=steps, way=way):
            return float(np.interp(-math.log(1 - count / 1e5) / way * 40, np.arange(41), steps))

        plan = pruning.EvenDamage(0.95, levels=9, trials=8)
        path = plan.plan(pruning.Competition(torch.ones(100_000), 100_000, damage=damage_at)).sparsities
        trials = steps[::5]
        for k, sparsity in enumerate(path[:-1], 1):
            wanted = k / 9 * steps[-1]
            rise = np.diff(trials)[np.searchsorted(trials, wanted) - 1]
            assert abs(damage_at(sparsity * 1e5) - wanted) <= rise + 1e-3 * steps[-1]


def test_a_square_curve_is_planned_exactly():
    path = pruning.EvenDamage(0.98, levels=7, trials=3).plan(
        pruning.Competition(torch.ones(10**6), 10**6, damage=lambda count: math.log(1 - count / 10**6) ** 2)
    )
    reached = [math.log(1 - s) ** 2 for s in path.sparsities]
    assert np.diff([0.0, *reached]) == pytest.approx([math.log(0.02) ** 2 / 7] * 7, rel=1e-3)
