import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incop.errors import InputError
from incop.pruning import Competition, EvenDamage, Fraction, Planned, PQIndex, SparsityPath, Target, parse_amount


def competition(weights, total=None, level=1):
    weights = torch.as_tensor(weights)
    return Competition(weights, total if total is not None else weights.numel(), level)


# --- a fraction


@given(st.floats(0, 1), st.integers(0, 5000))
def test_fraction(fraction, d):
    assert Fraction(fraction)(competition(torch.ones(d), total=10_000)) == round(fraction * d)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf, True, "0.2", None])
def test_fraction_out_of_range(bad):
    with pytest.raises(InputError, match=r"the fraction to prune must be in \[0, 1\]"):
        Fraction(bad)


# --- a target


@given(st.floats(0, 0.999), st.integers(1, 12), st.integers(0, 20_000))
def test_target_is_reached_in_equal_fractions(sparsity, levels, total):
    left = total
    for level in range(1, levels + 3):
        left -= Target(sparsity, levels)(competition(torch.ones(left), total, level))
        assert left == round((1 - sparsity) ** (min(level, levels) / levels) * total)
    assert left == round((1 - sparsity) * total)


def test_target_never_asks_for_less_than_nothing():
    assert Target(0.5, 2)(competition(torch.ones(10), total=100)) == 0


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.1, math.nan, True, "0.9"])
def test_target_sparsity_out_of_range(bad):
    with pytest.raises(InputError, match=r"the sparsity to reach must be in \[0, 1\)"):
        Target(bad, 3)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "3"])
def test_target_levels_out_of_range(bad):
    with pytest.raises(InputError, match="the number of levels must be a whole number of at least 1"):
        Target(0.9, bad)


# --- a path given beforehand


@given(
    st.lists(st.floats(0, 0.999), min_size=1, max_size=8).map(sorted), st.integers(0, 20_000), st.integers(0, 20_000)
)
def test_a_path_leaves_what_it_says_and_never_gives_back(sparsities, total, cut):
    left = total - min(cut, total)
    for level in range(1, len(sparsities) + 3):
        wanted = min(left, round((1 - sparsities[min(level, len(sparsities)) - 1]) * total))
        left -= SparsityPath(tuple(sparsities))(competition(torch.ones(left), total, level))
        assert left == wanted


@pytest.mark.parametrize(
    "bad",
    [
        (),
        (0.5, 0.4),
        (0.5, 1.0),
        (-0.1, 0.5),
        (0.5, math.nan),
        (math.nan, 0.5),
        (True,),
        ("0.5",),
        ("a", 0.5),
        0.5,
        None,
    ],
)
def test_a_path_that_falls_or_leaves_the_range(bad):
    with pytest.raises(InputError, match=r"give at least one sparsity in \[0, 1\), none below the one before it"):
        SparsityPath(bad)


# --- cuts of even damage


def many(left, total=None, level=1, damage=None):
    """As many weights as one likes, of one number in memory, so that counts are as fine as the curve."""
    return Competition(torch.ones(1).expand(left), total or left, level, damage)


def way(path, left, total):
    """How far down the path goes, in logarithms of the density, from what is left."""
    return [math.log(left / total) - math.log1p(-s) for s in path.sparsities]


def power(p, left, scale=1.0):
    return lambda count: scale * (-math.log1p(-count / left)) ** p


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("trials", [2, 3, 10, 40])
@pytest.mark.parametrize(("left", "total"), [(10**10, 10**10), (3 * 10**9, 10**10)])
def test_damage_that_grows_like_a_power_is_cut_in_equal_parts(p, trials, left, total):
    sparsity, levels = 0.98, 17
    path = EvenDamage(sparsity, levels, trials).plan(many(left, total, damage=power(p, left, 0.3)))
    whole = math.log(left / (0.02 * total))
    wanted = [whole * (k / levels) ** (1 / p) for k in range(1, levels + 1)]
    within = 1e-7 if p == 2 else whole / trials  # between two trials the damage is taken to grow like a square
    assert way(path, left, total) == pytest.approx(wanted, abs=within)
    assert path.sparsities[-1] == pytest.approx(sparsity, abs=1e-12)


def test_more_trials_come_nearer():
    def off(trials):
        path = EvenDamage(0.98, 20, trials).plan(many(10**10, damage=power(4, 10**10)))
        wanted = [math.log(50) * (k / 20) ** (1 / 4) for k in range(1, 21)]
        return max(abs(a - b) for a, b in zip(way(path, 10**10, 10**10), wanted, strict=True))

    assert off(40) < off(10) / 3 < off(4) / 9


def test_trials_are_even_in_the_logarithm_of_the_density():
    asked = []
    EvenDamage(0.96, 7, trials=4).plan(many(10**8, damage=lambda count: asked.append(count) or 1.0))
    assert [1 - count / 10**8 for count in asked] == pytest.approx([0.04 ** (k / 4) for k in (1, 2, 3, 4)], abs=1e-8)


def test_what_does_no_damage_is_cut_evenly():
    for damage in (lambda count: 0.0, lambda count: -1.0):
        path = EvenDamage(0.9, 5).plan(many(10**9, damage=damage))
        assert path.sparsities == pytest.approx([1 - 0.1 ** (k / 5) for k in range(1, 6)])


curves = st.lists(st.floats(0, 50) | st.sampled_from([0.0, 1.0, 1e-300, 1e300]), min_size=2, max_size=12)


@given(curves, st.integers(1, 60), st.floats(0.01, 0.999), st.integers(1, 5000), st.floats(0, 1))
@settings(max_examples=300)
def test_any_curve_gives_a_path_that_never_falls_and_ends_exactly(curve, levels, sparsity, total, gone):
    left = max(round((1 - gone) * total), 1)
    amount = EvenDamage(sparsity, levels, len(curve))
    values = iter(curve)
    path = amount.plan(many(left, total, damage=lambda count: next(values)))
    assert len(path.sparsities) == levels
    assert all(a <= b for a, b in pairwise(path.sparsities))
    keep = round((1 - sparsity) * total)
    remaining = left
    for level in range(1, levels + 2):
        cut = path(many(remaining, total, level)) if remaining else 0
        assert 0 <= cut <= remaining
        remaining -= cut
    assert remaining == min(left, keep)


@given(curves, st.integers(1, 20))
def test_a_curve_that_falls_counts_as_the_highest_so_far(curve, levels):
    def planned(values):
        values = iter(values)
        return EvenDamage(0.95, levels, len(curve)).plan(many(10**6, damage=lambda count: next(values)))

    assert planned(curve) == planned(np.maximum.accumulate(curve).tolist())


@given(curves, st.integers(1, 20), st.floats(1e-3, 1e3))
def test_the_unit_of_damage_does_not_matter(curve, levels, scale):
    def planned(values):
        values = iter(values)
        return EvenDamage(0.95, levels, len(curve)).plan(many(10**9, damage=lambda count: next(values)))

    curve = [min(value, 50.0) if value > 1e-9 else 0.0 for value in curve]
    assert planned(curve).sparsities == pytest.approx(planned([scale * value for value in curve]).sparsities, abs=1e-6)


def test_a_jump_is_shared_out_and_a_plateau_is_passed_at_once():
    steps = {0.5: 0.0, 0.25: 0.0, 0.125: 4.0, 0.0625: 4.0}  # density → damage: nothing, nothing, a jump, a plateau

    def damage(count):
        return steps[round((2**20 - count) / 2**20, 6)]

    path = EvenDamage(1 - 1 / 16, 4, trials=4).plan(many(2**20, damage=damage))
    wanted = [math.log(4) + math.log(2) * math.sqrt(k / 4) for k in (1, 2, 3)] + [math.log(16)]
    assert way(path, 1, 1) == pytest.approx(wanted)


@pytest.mark.parametrize("left", [100, 99, 40, 1])
def test_what_is_sparse_enough_already_is_left_alone_and_not_tried(left):
    def damage(count):
        raise AssertionError("tried")

    amount = EvenDamage(0.9, 5)
    path = amount.plan(many(left, 1000, damage=damage))
    assert [path(many(left, 1000, level)) for level in (1, 5, 9)] == [0, 0, 0]
    assert amount(many(left, 1000, damage=damage)) == 0


def test_of_no_weights_none_are_cut():
    for total in (0, 10):
        assert EvenDamage(0.9, 3)(Competition(torch.ones(0), total, damage=lambda count: 1.0)) == 0


@given(st.integers(1, 9), st.floats(0.5, 4), st.integers(2, 6), st.floats(0, 0.9))
def test_a_call_is_the_first_cut_of_a_plan_for_the_levels_that_are_left(level, p, trials, gone):
    left = round((1 - gone) * 5000)
    now = many(left, 5000, level, power(p, left))
    ahead = EvenDamage(0.97, max(6 - level + 1, 1), trials).plan(now)
    assert EvenDamage(0.97, 6, trials)(now) == ahead(dataclasses.replace(now, level=1))
    if level >= 6:
        assert EvenDamage(0.97, 6, trials)(now) == left - 150


def test_without_damage_it_says_what_to_pass():
    for asked in (EvenDamage(0.9, 3), EvenDamage(0.9, 3).plan):
        with pytest.raises(InputError, match=r"prune with damage=flow\.Damage\(model, probe\), or search with a probe"):
            asked(many(100))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_damage_that_is_no_number_is_told(bad):
    with pytest.raises(
        InputError, match=r"the damage of cutting \d+ weights is -?(nan|inf): it must be a finite number"
    ):
        EvenDamage(0.9, 3).plan(many(100, damage=lambda count: bad if count > 80 else 1.0))


@pytest.mark.parametrize("bad", [0, 0.0, 1.0, 1, -0.1, 1.1, math.nan, math.inf, True, "0.9", None])
def test_even_damage_sparsity_out_of_range(bad):
    with pytest.raises(InputError, match=r"EvenDamage\(sparsity=.*must be in \(0, 1\)$"):
        EvenDamage(bad, 3)


@pytest.mark.parametrize("bad", [-1, 0, 2.0, True, "3", [], math.nan])
@pytest.mark.parametrize(("key", "least"), [("levels", 1), ("trials", 2)])
def test_even_damage_counts_out_of_range(bad, key, least):
    with pytest.raises(InputError, match=rf"EvenDamage\({key}=.*a whole number of at least {least}$"):
        EvenDamage(0.9, **{"levels": 3, key: bad})
    with pytest.raises(InputError, match="at least 2"):
        EvenDamage(0.9, 3, trials=1)


# --- the PQ index


def index(w, p, q):
    """The PQ index as it is written, in NumPy float64."""
    w = np.abs(np.asarray(w, dtype=np.float64))
    if len(w) == 0 or w.max() == 0:
        return 0.0
    w = w / w.max()
    norm = lambda order: np.sum(w**order) ** (1 / order)  # noqa: E731
    return 1 - len(w) ** (1 / q - 1 / p) * norm(p) / norm(q)


def amount(w, p, q, eta, gamma, beta):
    d = len(w)
    if d == 0:
        return 0
    m = math.ceil(d * (1 + eta) ** (-q / (q - p)) * (1 - index(w, p, q)) ** (p * q / (q - p)))
    return math.floor(d * min(gamma * (1 - m / d), beta))


PAIRS = [(1.0, 2.0), (0.5, 1.0)]


def vectors():
    """Layers of many kinds: normal, heavy-tailed, half zero, constant, one-hot, of huge and tiny scale."""
    rng = np.random.default_rng(0)
    for d in (1, 2, 3, 17, 1000, 40_000):
        yield rng.normal(size=d)
        yield rng.standard_t(1.5, size=d)
        yield rng.normal(size=d) * (rng.random(d) < 0.5)
        yield np.full(d, -0.3)
        yield np.eye(1, d)[0] * 5
        yield rng.normal(size=d) * 1e-30
        yield rng.normal(size=d) * 1e30
        yield np.exp(rng.normal(size=d) * 10)
        yield np.zeros(d)


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize(
    ("eta", "gamma", "beta"), [(0, 1, 0.9), (0.5, 1, 0.9), (0, 0.5, 0.9), (0, 2, 1), (0.1, 1.5, 0.3)]
)
def test_pq_is_the_direct_formula(p, q, eta, gamma, beta):
    rule = PQIndex(p, q, eta, gamma, beta)
    for w in vectors():
        w = torch.from_numpy(w).float()
        got = rule(competition(w))
        assert abs(got - amount(w.numpy(), p, q, eta, gamma, beta)) <= math.ceil(max(1, gamma))  # m to ±1, times γ
        assert 0 <= got <= beta * len(w) + 1e-9
        assert rule.index(w) == pytest.approx(index(w.numpy(), p, q), abs=1e-9)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), max_size=50),
    st.sampled_from([*PAIRS, (0.3, 2.5), (1.5, 3.0)]),
    st.floats(0, 2),
    st.floats(0.1, 2),
    st.floats(0.1, 1),
)
@settings(max_examples=200)
def test_pq_of_anything(w, pair, eta, gamma, beta):
    got = PQIndex(*pair, eta, gamma, beta)(competition(torch.tensor(w, dtype=torch.float32)))
    assert abs(got - amount(w, *pair, eta, gamma, beta)) <= math.ceil(max(1, gamma))  # m to ±1, times γ


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("d", [1, 2, 10, 12_345])
@pytest.mark.parametrize("scale", [1.0, 1e-38, 3e38])
def test_pq_of_equal_weights_cuts_nothing(p, q, d, scale):
    weights = torch.full((d,), scale)
    assert PQIndex(p, q).index(weights) == pytest.approx(0, abs=1e-12)
    assert PQIndex(p, q)(competition(weights)) == 0


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("d", [2, 10, 12_345])
def test_pq_of_one_weight_that_carries_all(p, q, d):
    weights = torch.zeros(d)
    weights[d // 2] = -2
    assert PQIndex(p, q).index(weights) == pytest.approx(1 - d ** (1 / q - 1 / p))
    assert PQIndex(p, q, beta=1.0)(competition(weights)) == d - 1
    assert PQIndex(p, q)(competition(weights)) == min(d - 1, math.floor(0.9 * d))


@given(st.integers(-60, 60))
def test_pq_does_not_depend_on_scale(exponent):
    w = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert PQIndex()(competition(w * 2.0**exponent)) == PQIndex()(competition(w))


def test_pq_of_small_orders_does_not_overflow():
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert 0 < PQIndex(0.01, 0.02).index(w) < 1
    assert 0 < PQIndex(0.01, 0.02)(competition(w)) < 100_000
    assert PQIndex(eta=1e300, beta=1.0)(competition(w)) == 99_999


def test_pq_of_half_precision():
    w = torch.randn(5000, generator=torch.Generator().manual_seed(0)).half()
    assert PQIndex()(competition(w)) == PQIndex()(competition(w.double()))


@pytest.mark.parametrize(
    "bad",
    [
        {"p": 0},
        {"p": 2},
        {"p": -1},
        {"q": math.inf},
        {"p": math.nan},
        {"eta": -1},
        {"gamma": 0},
        {"beta": 0},
        {"beta": 1.1},
    ],
)
def test_pq_out_of_range(bad):
    with pytest.raises(InputError, match="it needs"):
        PQIndex(**bad)


# --- in words

share = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-3, 1e3)


@given(
    st.builds(Fraction, share)
    | st.builds(Target, share, st.integers(1, 99))
    | st.builds(EvenDamage, st.floats(0, 1, exclude_min=True, exclude_max=True), st.none() | st.integers(1, 99))
    | st.builds(
        lambda p, gap, e, g, b: PQIndex(p, p + gap, e, g, b), positive, positive, positive, positive, st.just(0.7)
    )
)
def test_what_an_amount_writes_is_read_back(rule):
    assert parse_amount(str(rule)) == rule


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Fraction(0.2), "0.2"),
        (Target(0.98, 10), "to 0.98 in 10"),
        (EvenDamage(0.98, 40), "flow to 0.98 in 40"),
        (PQIndex(1, 2, 0, 1, 0.5), "pq:1,2,0,1,0.5"),
        (Target(0.9, 20, "cubic"), "cubic to 0.9 in 20"),
        (EvenDamage(0.98), "flow to 0.98"),
        (PQIndex(), "pq:1,2"),
        (PQIndex(0.5, 1), "pq:0.5,1"),
        (PQIndex(beta=0.5), "pq:1,2,0,1,0.5"),
    ],
)
def test_in_words(rule, text):
    assert str(rule) == text


@pytest.mark.parametrize("levels", [1, 4])
def test_even_damage_takes_the_levels_of_the_search_where_it_says_none(levels):
    now = many(1000, damage=lambda count: count / 1000)
    told = dataclasses.replace(now, levels=levels)
    assert EvenDamage(0.9).plan(told) == EvenDamage(0.9, levels).plan(now)
    assert EvenDamage(0.9)(told) == EvenDamage(0.9, levels)(now)
    assert EvenDamage(0.9, 3).plan(told) == EvenDamage(0.9, 3).plan(now)  # its own number goes first


def test_even_damage_of_no_number_of_levels_is_refused():
    for asked in (EvenDamage(0.9), EvenDamage(0.9).plan):
        with pytest.raises(InputError, match=r"EvenDamage\(0\.9\) does not know in how many levels: .*levels="):
            asked(many(100, damage=lambda count: 1.0))


def test_which_amounts_plan():
    assert isinstance(EvenDamage(0.9), Planned)
    assert not any(isinstance(amount, Planned) for amount in (Fraction(0.2), SparsityPath((0.5,)), PQIndex()))


def test_a_path_in_words():
    assert str(SparsityPath((0.5, 0.8, 0.9))) == "path of 3 to 0.9"


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("levels", [1, 2, 7])
def test_the_cubic_schedule_is_that_of_its_paper(sparsity, levels):
    """Zhu & Gupta 2018, Eq. (1) with s_i = 0: s_t = s_f + (0 − s_f)(1 − t / n)³; level by level, and no further."""
    total, left = 1000, 1000
    for level in range(1, levels + 3):
        cut = Target(sparsity, levels, "cubic")(Competition(torch.ones(left), total=total, level=level))
        left -= cut
        t = min(level, levels)
        assert (
            abs((total - left) / total - (sparsity + (0.0 - sparsity) * (1.0 - t / levels) ** 3)) <= 0.5 / total + 1e-9
        )
        assert cut >= 0
    assert left == total - round(sparsity * total)


def test_what_is_competed_for_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fraction(0.2).fraction = 0.3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Competition(torch.ones(1), total=1).total = 2
    assert Competition(torch.ones(1), total=1).level == 1
    for amount in (Target(0.5, 2), SparsityPath((0.5,)), EvenDamage(0.5, 2), PQIndex()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(amount, dataclasses.fields(amount)[0].name, 1)


def test_cuts_are_planned_also_where_a_single_weight_is_to_be_left():
    path = EvenDamage(0.9, 3, trials=20).plan(Competition(torch.ones(10), total=10, damage=lambda count: float(count)))
    assert path.sparsities[-1] == 0.9
    assert 0 < path.sparsities[0] < path.sparsities[1] < 0.9


def test_where_the_harm_stands_still_the_first_place_that_reaches_a_share_is_taken():
    """Of a harm of 16, a quarter is reached at the first of three trials that do 4."""
    seen = []

    def damage(count):
        seen.append(count)
        return (1.0, 4.0, 4.0, 4.0, 16.0)[len(seen) - 1]

    path = EvenDamage(0.9, 4, trials=5).plan(Competition(torch.ones(1000), total=1000, damage=damage))
    assert path.sparsities[0] == pytest.approx(1.0 - 0.1 ** (2 / 5))


def test_weights_of_one_size_have_an_index_of_nothing_and_never_less():
    for d in range(1, 200):
        assert 0.0 <= PQIndex(1, 2).index(torch.full((d,), 0.1)) < 1e-12
        assert 0.0 <= PQIndex(0.5, 1).index(torch.full((d,), 0.1)) < 1e-12


def test_even_damage_of_weights_that_are_already_sparser_stays_where_they_are():
    path = EvenDamage(0.9, 3).plan(many(5, 100, damage=lambda count: 0.5))
    assert path.sparsities == (0.95, 0.95, 0.95)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a lot",
        "pq:1",
        "pq:2,1",
        "pq:1,2,3,4,5,6",
        "1.2",
        "nan",
        "to 1.5 in 10",
        "to x in 10",
        "flow to 1 in 10",
        "flow to 0.9 in 0",
        "flow to x in 10",
        "flow to 0.9 in 2.5",
        "to 0.9 in 10001",
        f"flow to 0.9 in {'9' * 5000}",
    ],
)
def test_words_that_are_no_amount_are_refused_in_one_sentence(text):
    with pytest.raises(InputError) as error:
        parse_amount(text)
    assert "\n" not in str(error.value)


def test_an_amount_knows_the_sparsity_that_its_levels_lead_to():
    for amount, levels in (
        (Fraction(0.2), 5),
        (Target(0.9, 10), 4),
        (Target(0.9, 10), 12),
        (Target(0.9, 9, "cubic"), 3),
    ):
        left = 100_000
        for level in range(1, levels + 1):
            left -= amount(Competition(torch.ones(left), 100_000, level))
        assert amount.sparsity_after(levels) == pytest.approx(1 - left / 100_000, abs=1e-4)
    assert EvenDamage(0.9, 4).sparsity_after(4) == 0.9
