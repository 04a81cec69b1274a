import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incop.errors import InputError
from incop.experiments import methods
from incop.pruning import Competition, Fraction, PQIndex, Target


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
    | st.builds(
        lambda p, gap, e, g, b: PQIndex(p, p + gap, e, g, b), positive, positive, positive, positive, st.just(0.7)
    )
)
def test_what_an_amount_writes_is_read_back(rule):
    assert methods.amount(str(rule)) == rule


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Fraction(0.2), "0.2"),
        (Target(0.98, 10), "to 0.98 in 10"),
        (PQIndex(), "pq:1,2"),
        (PQIndex(0.5, 1), "pq:0.5,1"),
        (PQIndex(beta=0.5), "pq:1,2,0,1,0.5"),
    ],
)
def test_in_words(rule, text):
    assert str(rule) == text
