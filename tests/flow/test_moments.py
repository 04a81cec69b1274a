"""Moments against NumPy's corrcoef: in parts, in any order, merged, with units that do not vary."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incop.flow.moments import CoMoments, Rows, varies

PAIRS = [("a", "b"), ("b", "c")]
WIDTHS = {"a": 3, "b": 5, "c": 1}


def outputs(samples, seed=0, dtype=torch.float32):
    random = np.random.default_rng(seed)
    source = random.normal(size=(samples, 2))
    made = {
        name: source @ random.normal(size=(2, width)) + random.normal(size=(samples, width)) + 10 * random.normal()
        for name, width in WIDTHS.items()
    }
    made["b"][:, 1] = 0.3  # does not vary
    return {name: torch.tensor(rows, dtype=dtype) for name, rows in made.items()}


def oracle(rows, pair):
    a, b = (rows[name].double().numpy() for name in pair)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]
    return np.where(np.isnan(rho), 0, rho)


def parts(rows, sizes):
    cut = {name: torch.split(t, sizes) for name, t in rows.items()}
    return [{name: cut[name][i] for name in rows} for i in range(len(sizes))]


def collected(kind, rows):
    statistics = Rows([], PAIRS) if kind is Rows else CoMoments(PAIRS)
    for part in rows:
        statistics.update(part)
    return statistics


def found(statistics, alive_only=False):
    if isinstance(statistics, Rows):
        return statistics.mean_correlations(alive_only=alive_only)
    return [float(statistics.correlations(pair)[0].mean()) for pair in range(len(PAIRS))]


@pytest.mark.parametrize("kind", [Rows, CoMoments])
@pytest.mark.parametrize("sizes", [[40], [1, 39], [10, 10, 10, 10], [7, 13, 20], [1] * 40])
def test_mean_correlations_in_parts_and_any_order(kind, sizes):
    rows = outputs(40)
    expected = [oracle(rows, pair).mean() for pair in PAIRS]
    for order in (1, -1):
        statistics = collected(kind, parts(rows, sizes)[::order])
        assert statistics.samples == 40
        assert found(statistics) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", [Rows, CoMoments])
def test_merged(kind):
    rows = outputs(40)
    first, second, rest = parts(rows, [9, 21, 10])
    empty = collected(kind, [])
    merged = collected(kind, [first]).merge(collected(kind, [second, rest])).merge(empty)
    assert found(empty.merge(merged)) == pytest.approx([oracle(rows, pair).mean() for pair in PAIRS], abs=1e-9)
    assert merged.samples == 40


def test_single_correlations_and_which_units_vary():
    rows = outputs(40)
    rho, alive_a, alive_b = collected(CoMoments, parts(rows, [15, 25])).correlations(0)
    assert np.abs(rho.numpy() - oracle(rows, PAIRS[0])).max() < 1e-9
    assert alive_a.tolist() == [True] * 3
    assert alive_b.tolist() == [True, False, True, True, True]
    assert rho[:, 1].tolist() == [0, 0, 0]


def test_alive_only_divides_by_the_units_that_vary():
    rows = outputs(40)
    every, alive = (found(collected(Rows, [rows]), alive_only=flag) for flag in (False, True))
    assert alive == pytest.approx([every[0] * 5 / 4, every[1] * 5 / 4], abs=1e-12)


def test_the_same_answer_twice_and_rows_untouched():
    rows = outputs(40, dtype=torch.float64)
    before = {name: t.clone() for name, t in rows.items()}
    statistics = collected(Rows, [rows])
    assert found(statistics) == found(statistics)
    assert all(torch.equal(rows[name], before[name]) for name in rows)


def test_large_means_do_not_cancel():
    rows = {name: t + 1e6 for name, t in outputs(200, dtype=torch.float64).items()}
    expected = [oracle(rows, pair).mean() for pair in PAIRS]
    for kind in (Rows, CoMoments):
        assert found(collected(kind, parts(rows, [3, 100, 97]))) == pytest.approx(expected, abs=1e-7)


def test_everything_constant_is_zero_not_nan():
    rows = {name: torch.full((8, width), 0.1) for name, width in WIDTHS.items()}
    for kind in (Rows, CoMoments):
        assert found(collected(kind, [rows])) == [0, 0]
    assert found(collected(Rows, [rows]), alive_only=True) == [0, 0]


def test_varies():
    flags = varies(torch.tensor([0.0, 1.0, 1.0, 1e9, 1.0, 1e9]), torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, 1e5]))
    assert flags.tolist() == [False, False, True, False, True, True]
    assert varies(torch.tensor([1e-4, 1.0, 1.0]), torch.tensor([2e-7, 1.0, 1.0])).tolist() == [False, True, True]
    assert varies(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1e-5])).tolist() == [False, False, True]
    assert varies(torch.tensor([1e-4, 1e-3]), torch.tensor([2e-9, 1e-3])).tolist() == [True, True]


def test_not_a_number_stays_one():
    rows = outputs(8)
    rows["a"][3, 0] = float("nan")
    for kind in (Rows, CoMoments):
        assert np.isnan(found(collected(kind, [rows]))[0])


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    scale=st.floats(1e-3, 1e3),
    shuffled=st.randoms(use_true_random=False),
)
def test_partition_order_units_and_scale_do_not_matter(cuts, seed, scale, shuffled):
    rows = outputs(sum(cuts) + 2, seed, torch.float64)
    expected = [oracle(rows, pair).mean() for pair in PAIRS]
    changed = {}
    for name, t in rows.items():
        units = list(range(t.shape[1]))
        shuffled.shuffle(units)
        changed[name] = t[:, units] * scale
    batches = parts(changed, [*cuts, 2])
    shuffled.shuffle(batches)
    for kind in (Rows, CoMoments):
        assert found(collected(kind, batches)) == pytest.approx(expected, abs=1e-8)


def test_in_a_layer_of_nothing_but_zeros_no_unit_varies():
    assert not varies(torch.zeros(3), torch.zeros(3)).any()
