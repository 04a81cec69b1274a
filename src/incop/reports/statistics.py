"""Statistics over seeds: intervals, paired differences, verdicts at a margin, and the front; by SciPy.

With few seeds these are weak, and said to be: a sign-flip test over n seeds cannot give a p below 2 / 2ⁿ, so five seeds
never reach 0.05, and a bootstrap interval over five seeds is narrower than its name.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from incop.errors import InputError
from incop.reports.extras import load
from incop.reports.recorded import RecordedComparison, TicketRow

MARGIN = 0.005  # accuracy that may be lost and still be called no loss: half a point
CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 20250126
SAME = 1e-12  # accuracies are ratios of counts: what is nearer than this is the same count
FEWEST = 5  # seeds below which nothing is told apart


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its bootstrap interval.

    Args:
        n: number of seeds.
        mean: the mean.
        low: lower 95 % bound, or None with fewer than two seeds.
        high: upper 95 % bound, or None with fewer than two seeds.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods over the seeds that both have, first minus second.

    Args:
        data: name of the data set.
        model: name of the model.
        target: the sparsity, in [0, 1].
        label: the first method.
        against: the second method.
        role: what the second is to the first: "reference" or "control".
        seeds: the seeds that were paired.
        accuracy: the difference in test accuracy, as a fraction.
        identical: both have the same accuracy in every seed.
        p: of the sign-flip permutation test, two-sided; None with fewer than two seeds.
        p_adjusted: the same after Benjamini and Hochberg, over all differences of the comparison.
        verdict: "non-inferior", "inferior" or "undecided" at the margin.
    """

    data: str
    model: str
    target: float
    label: str
    against: str
    role: str
    seeds: tuple[int, ...]
    accuracy: Estimate
    identical: bool
    p: float | None
    p_adjusted: float | None = None
    verdict: str = "undecided"

    @property
    def outcome(self) -> str:
        """Say "better", "worse", "not told apart" or "identical in every seed"."""
        if self.identical:
            return "identical in every seed"
        if not told_apart(self.accuracy, self.p):
            return "not told apart"
        return "better" if self.accuracy.mean > 0 else "worse"


@dataclass(frozen=True)
class Summary:
    """One method at one sparsity, over seeds.

    Args:
        data: name of the data set.
        model: name of the model.
        target: the sparsity, in [0, 1].
        label: the method.
        control_of: the methods that it is a control of; none for a method.
        accuracy: test accuracy.
        dense: test accuracy of the dense networks of the same seeds, or None.
        search_epochs: charged epochs of the search.
        total_epochs: charged epochs of all after level 0.
        total_seconds: charged seconds of all after level 0.
        on_front: no method that is at least as cheap is significantly better.
    """

    data: str
    model: str
    target: float
    label: str
    control_of: tuple[str, ...]
    accuracy: Estimate
    dense: Estimate | None
    search_epochs: Estimate
    total_epochs: Estimate
    total_seconds: Estimate
    on_front: bool = True


@dataclass(frozen=True)
class ComparisonAnalysis:
    """Everything that is said of a comparison.

    Args:
        margin: the margin of the verdicts, as a fraction of accuracy.
        reference: the method with full retraining that all are held against, or None.
        summaries: one for each method and sparsity.
        differences: every method against the reference and against its controls.
    """

    margin: float
    reference: str | None
    summaries: tuple[Summary, ...]
    differences: tuple[Difference, ...]


def _stats() -> tuple[Any, Any]:
    purpose = "a report with statistics"
    return load("numpy", extra="stats", purpose=purpose), load("scipy.stats", extra="stats", purpose=purpose)


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean and its 95 % bootstrap interval: BCa, or by percentiles where BCa has no answer.

    The same values give the same interval. With fewer than two values there is none.
    """
    np, stats = _stats()
    sample = np.asarray(list(values), dtype=float)
    if len(sample) < 2:
        return Estimate(len(sample), float(sample.mean()) if len(sample) else math.nan)
    mean = float(sample.mean())
    if np.ptp(sample) <= SAME:
        return Estimate(len(sample), mean, mean, mean)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate sample: seen by its NaN
            interval = stats.bootstrap(
                (sample,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=CONFIDENCE,
                method=method,
                vectorized=True,
                random_state=np.random.default_rng(SEED),
            ).confidence_interval
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            break
    return Estimate(len(sample), mean, float(interval.low), float(interval.high))


def sign_flip(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the paired sign-flip permutation test of a mean of 0; None with fewer than two."""
    np, stats = _stats()
    sample = np.asarray(differences, dtype=float)
    if len(sample) < 2:
        return None
    if np.abs(sample).max() <= SAME:
        return 1.0
    test = stats.permutation_test(
        (sample,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        random_state=np.random.default_rng(SEED),
    )
    return float(min(test.pvalue, 1.0))


def level_of_test(n: int) -> float:
    """Return the p up to which two methods are told apart over n seeds; 0: never.

    It is 0.05, and 1/16 for five seeds, the smallest that they can give: all five agree on the sign.
    """
    return 0.0 if n < FEWEST else max(0.05, 2.0 / 2.0**n)


def told_apart(difference: Estimate, p: float | None) -> bool:
    """Say whether a difference is told from 0: its interval leaves 0 out, and the test agrees."""
    if p is None or difference.low is None or difference.high is None:
        return False
    return not difference.low <= 0.0 <= difference.high and p <= level_of_test(difference.n) + 1e-9


def verdict(difference: Estimate, margin: float) -> str:
    """Judge an interval at a margin."""
    if difference.low is None or difference.high is None:
        return "undecided"
    if difference.low > -margin:
        return "non-inferior"
    return "inferior" if difference.high < -margin else "undecided"


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[tuple[int, ...], list[float]]:
    """Return the seeds that both have, and the differences first − second in those."""
    seeds = tuple(sorted(set(first) & set(second)))
    gaps = [first[seed] - second[seed] for seed in seeds]
    return seeds, [0.0 if abs(gap) <= SAME else gap for gap in gaps]


Setting = tuple[str, str, float]
Cells = dict[Setting, dict[str, list[TicketRow]]]


def analyse(comparison: RecordedComparison, *, margin: float = MARGIN) -> ComparisonAnalysis:
    """Say of a comparison everything that its rows support.

    Args:
        comparison: what was read.
        margin: accuracy that may be lost and still be called no loss, a fraction in (0, 1).

    Raises:
        InputError: the margin is out of range.
        MissingExtra: SciPy is not installed.
    """
    if not math.isfinite(margin) or not 0 < margin < 1:
        raise InputError(f"the margin {margin!r} is no fraction of accuracy: half a point is 0.005")
    cells: Cells = {}
    for row in comparison.rows:
        cells.setdefault((row.data, row.model, row.target), {}).setdefault(row.label, []).append(row)
    order = {label: place for place, label in enumerate(comparison.labels)}
    cells = {
        setting: dict(sorted(cells[setting].items(), key=lambda item: order.get(item[0], len(order))))
        for setting in sorted(cells)
    }
    reference = full_method(comparison)
    summaries = [s for setting, methods in cells.items() for s in _summaries(setting, methods)]
    differences = [d for setting, methods in cells.items() for d in _against(setting, methods, reference, margin)]
    return ComparisonAnalysis(margin, reference, tuple(summaries), tuple(_adjusted(differences)))


def full_method(comparison: RecordedComparison) -> str | None:
    """Return the method that all are held against: lth, else the first whose levels all took their full budget."""
    methods = [label for label in comparison.labels if label not in comparison.controls]
    if "lth" in methods:
        return "lth"
    for label in methods:
        runs = [recorded for recorded in comparison.runs if recorded.job.label == label]
        levels = [[level for level in recorded.levels if level.level > 0] for recorded in runs]
        if levels and all(
            len(own) > 1
            and all(
                level.search is None and level.max_epochs is not None and level.trained >= level.max_epochs - 1e-6
                for level in own
            )
            for own in levels
        ):
            return label
    return None


def _accuracy(rows: Iterable[TicketRow]) -> dict[int, float]:
    return {row.seed: row.test_accuracy for row in rows}


def _summaries(setting: Setting, methods: Mapping[str, Sequence[TicketRow]]) -> list[Summary]:
    found = []
    for label, rows in methods.items():
        dense = [row.dense_test_accuracy for row in rows if row.dense_test_accuracy is not None]
        found.append(
            Summary(
                *setting,
                label=label,
                control_of=rows[0].control_of,
                accuracy=estimate(row.test_accuracy for row in rows),
                dense=estimate(dense) if dense else None,
                search_epochs=estimate(row.search.charged_epochs for row in rows),
                total_epochs=estimate(row.total.charged_epochs for row in rows),
                total_seconds=estimate(row.total.charged_seconds for row in rows),
            )
        )
    accuracies = {label: _accuracy(rows) for label, rows in methods.items()}
    beaten = {
        worse.label
        for worse, other in itertools.permutations(found, 2)
        if other.total_epochs.mean <= worse.total_epochs.mean + SAME
        and _significantly_better(accuracies[other.label], accuracies[worse.label])
    }
    return [replace(summary, on_front=summary.label not in beaten) for summary in found]


def _significantly_better(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    _, gaps = paired(first, second)
    if len(gaps) < FEWEST or sum(gaps) <= 0:
        return False
    p = sign_flip(gaps)
    return p is not None and p <= level_of_test(len(gaps)) + 1e-9 and told_apart(estimate(gaps), p)


def _against(
    setting: Setting, methods: Mapping[str, Sequence[TicketRow]], reference: str | None, margin: float
) -> list[Difference]:
    pairs: list[tuple[str, str, str]] = []
    if reference is not None and reference in methods:
        pairs += [(label, reference, "reference") for label in methods if label != reference]
    pairs += [
        (name, label, "control") for label, own in methods.items() for name in own[0].control_of if name in methods
    ]
    found = []
    for label, against, role in pairs:
        seeds, gaps = paired(_accuracy(methods[label]), _accuracy(methods[against]))
        if not seeds:
            continue
        gap = estimate(gaps)
        found.append(
            Difference(
                *setting,
                label=label,
                against=against,
                role=role,
                seeds=seeds,
                accuracy=gap,
                identical=not any(gaps),
                p=sign_flip(gaps),
                verdict=verdict(gap, margin),
            )
        )
    return found


def _adjusted(differences: Sequence[Difference]) -> list[Difference]:
    _, stats = _stats()
    tested = [d for d in differences if d.p is not None]
    if not tested:
        return list(differences)
    adjusted = iter(stats.false_discovery_control([d.p for d in tested], method="bh"))
    return [d if d.p is None else replace(d, p_adjusted=float(next(adjusted))) for d in differences]
