import itertools
import math

import numpy as np
import pytest
from scipy import stats

from incop.errors import InputError, MissingExtra
from incop.reports import extras
from incop.reports.recorded import read_comparison
from incop.reports.statistics import (
    Estimate,
    analyse,
    estimate,
    full_method,
    level_of_test,
    paired,
    sign_flip,
    told_apart,
    verdict,
)

from .conftest import BUDGET, write_comparison


def bca_by_hand(sample, resamples=40_000):
    """The BCa interval of a mean from its definition, with an independent resampling."""
    sample = np.asarray(sample)
    n = len(sample)
    means = np.random.default_rng(7).choice(sample, (resamples, n)).mean(axis=1)
    below = (np.mean(means < sample.mean()) + np.mean(means <= sample.mean())) / 2
    z0 = stats.norm.ppf(below)
    left_out = np.array([np.delete(sample, i).mean() for i in range(n)])
    gaps = left_out.mean() - left_out
    a = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    return np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))


@pytest.mark.parametrize("seed", range(4))
def test_interval_equals_the_definition_of_bca(seed):
    sample = np.random.default_rng(seed).exponential(0.01, 8)
    found = estimate(sample)
    low, high = bca_by_hand(sample)
    assert found.mean == pytest.approx(sample.mean())
    width = high - low
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.05 * width)
    assert estimate(sample) == found  # the same every time


def test_interval_of_few_and_of_equal_values():
    assert estimate([0.5]) == Estimate(1, 0.5)
    assert math.isnan(estimate([]).mean)
    assert estimate([0.5, 0.5, 0.5]) == Estimate(3, 0.5, 0.5, 0.5)
    two = estimate([0.4, 0.6])
    assert two.low == pytest.approx(0.4)
    assert two.high == pytest.approx(0.6)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_p_equals_all_sign_flips_counted_by_hand(n):
    sample = np.random.default_rng(n).normal(0.004, 0.01, n)
    flips = np.array(list(itertools.product((-1, 1), repeat=n)))
    means = (flips * sample).mean(axis=1)
    by_hand = np.mean(np.abs(means) >= abs(sample.mean()) - 1e-12)
    assert sign_flip(sample) == pytest.approx(by_hand)


def test_p_of_nothing_and_of_identical_values():
    assert sign_flip([0.1]) is None
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0


def test_five_seeds_are_told_apart_only_when_all_agree():
    assert level_of_test(4) == 0.0
    assert level_of_test(5) == 0.0625
    assert level_of_test(6) == 0.05
    agree, one_against = [0.01, 0.02, 0.015, 0.01, 0.03], [0.01, 0.02, 0.015, -0.001, 0.03]
    assert told_apart(estimate(agree), sign_flip(agree))
    assert not told_apart(estimate(one_against), sign_flip(one_against))


@pytest.mark.parametrize("n", [5, 10])
def test_a_planted_null_is_seldom_a_win(n):
    nulls = np.random.default_rng(n).normal(0.0, 0.01, (600, n))
    apart = np.array([told_apart(estimate(null), sign_flip(null)) for null in nulls])
    wins = apart & (nulls.mean(axis=1) > 0)
    nominal = level_of_test(n)
    assert wins[:200].mean() <= 0.08
    assert wins.mean() <= nominal / 2 + 3 * math.sqrt(nominal / 2 / len(nulls))
    assert apart.mean() <= nominal + 3 * math.sqrt(nominal / len(nulls))  # either way


def test_verdicts_at_the_margin():
    assert verdict(Estimate(5, 0.0, -0.004, 0.001), 0.005) == "non-inferior"
    assert verdict(Estimate(5, -0.01, -0.02, -0.006), 0.005) == "inferior"
    assert verdict(Estimate(5, -0.004, -0.006, 0.001), 0.005) == "undecided"
    assert verdict(Estimate(5, -0.005, -0.005, -0.001), 0.005) == "undecided"
    assert verdict(Estimate(1, 0.0), 0.005) == "undecided"


def test_pairs_are_the_seeds_of_both():
    assert paired({0: 0.5, 1: 0.6, 2: 0.7}, {1: 0.5, 2: 0.7, 3: 0.1}) == ((1, 2), [pytest.approx(0.1), 0.0])


def test_planted_differences_of_a_comparison_are_found(comparison_folder):
    comparison = read_comparison(comparison_folder)
    analysis = analyse(comparison)
    assert analysis.reference == "lth"
    found = {(d.label, d.against, d.target): d for d in analysis.differences}
    assert len([d for d in analysis.differences if d.role == "reference"]) == 8 * 3
    assert len([d for d in analysis.differences if d.role == "control"]) == 5 * 3
    against_random = found["incop-if", "random=incop-if", 0.9]
    assert against_random.outcome == "better"
    assert against_random.accuracy.mean == pytest.approx(0.078, abs=0.004)
    assert found["random=incop-if", "lth", 0.9].verdict == "inferior"
    assert found["incop-if", "lth", 0.5].verdict == "non-inferior"
    assert found["incop-if", "fixed:match=incop-if", 0.9].outcome == "not told apart"
    tested = [d.p for d in analysis.differences]
    ranked = np.sort(tested)
    by_hand = np.minimum.accumulate((ranked * len(ranked) / np.arange(1, len(ranked) + 1))[::-1])[::-1]
    for d in analysis.differences:
        assert d.p_adjusted == pytest.approx(by_hand[np.searchsorted(ranked, d.p, side="right") - 1])


def test_summaries_and_front(comparison_folder):
    analysis = analyse(read_comparison(comparison_folder))
    at_90 = {s.label: s for s in analysis.summaries if s.target == 0.9}
    assert at_90["lth"].total_epochs.mean == pytest.approx(60 + 3 * 2 * 500 / 1000)
    assert at_90["incop-if"].search_epochs.mean < at_90["lth"].search_epochs.mean / 5
    assert at_90["incop-if"].on_front
    assert not at_90["random=incop-if"].on_front  # incop-if is as cheap and significantly better
    assert not at_90["oneshot=incop-if"].on_front
    assert at_90["lth"].dense.n == 5


def test_identical_accuracies_are_said_to_be(tmp_path):
    methods = {"lth": (None, BUDGET, (0, 0, 0)), "incop-if": (None, 2.0, (0, 0, 0))}
    analysis = analyse(read_comparison(write_comparison(tmp_path / "c", methods=methods)))
    for d in analysis.differences:
        assert d.identical
        assert d.outcome == "identical in every seed"
        assert d.verdict == "non-inferior"
        assert (d.accuracy.mean, d.accuracy.low, d.accuracy.high, d.p) == (0.0, 0.0, 0.0, 1.0)
    assert all(s.on_front for s in analysis.summaries)


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    analysis = analyse(read_comparison(write_comparison(tmp_path / "c", seeds=1)))
    assert {d.verdict for d in analysis.differences} == {"undecided"}
    assert {d.outcome for d in analysis.differences} == {"not told apart"}
    assert all(d.p is None and d.p_adjusted is None for d in analysis.differences)
    assert all(s.accuracy.low is None for s in analysis.summaries)


def test_the_reference_is_the_first_full_method_without_lth(tmp_path):
    methods = {"incop-if": (None, 2.0, (0, 0, 0)), "sap": (None, BUDGET, (0, 0, 0))}
    assert full_method(read_comparison(write_comparison(tmp_path / "c", methods=methods))) == "sap"
    methods = {"incop-if": (None, 2.0, (0, 0, 0))}
    assert full_method(read_comparison(write_comparison(tmp_path / "d", methods=methods))) is None


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, math.nan])
def test_margin_out_of_range_is_refused(comparison_folder, margin):
    with pytest.raises(InputError, match="margin"):
        analyse(read_comparison(comparison_folder), margin=margin)


def test_an_absent_package_names_its_extra():
    with pytest.raises(MissingExtra, match=r"incop\[stats\]"):
        extras.load("no_such_package.stats", extra="stats", purpose="this")
