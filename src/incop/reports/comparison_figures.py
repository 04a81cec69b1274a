"""The figures of a comparison: accuracy against sparsity and against what was spent, epochs and cost of each method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from incop.reports.drawing import Style
from incop.reports.page import Figure, Heat
from incop.reports.plots import Gap, Point, Series, bars, gaps, lines, points
from incop.reports.recorded import RecordedComparison, RecordedRun, TicketRow
from incop.reports.statistics import ComparisonAnalysis, Difference, Estimate, Summary
from incop.reports.tables import Table
from incop.reports.verdict import points as signed

Place = tuple[str, str]
MAX_TICKS = 8  # sparsities that find room under a picture


def styles(comparison: RecordedComparison) -> dict[str, Style]:
    """Return how each method and control looks, the same in every picture."""
    controls = comparison.controls
    return {name: Style.of(n, control=name in controls) for n, name in enumerate(comparison.labels)}


def figures_of_comparison(
    comparison: RecordedComparison, analysis: ComparisonAnalysis, place: Place, key: str
) -> list[Figure]:
    """Return the figures that compare the methods on one data set and model.

    Args:
        comparison: what was read.
        analysis: what is said of it.
        place: data set and model.
        key: what the names of the pictures start with, unique on the page.
    """
    look = styles(comparison)
    summaries = [s for s in analysis.summaries if (s.data, s.model) == place]
    rows = [r for r in comparison.rows if (r.data, r.model) == place]
    if not summaries:
        return []
    figures = [
        *_differences([d for d in analysis.differences if (d.data, d.model) == place], analysis, key),
        _against_sparsity(summaries, look, key),
    ]
    targets = sorted({s.target for s in summaries})
    for number, target in enumerate(targets):
        figures.append(_against_spent([s for s in summaries if s.target == target], look, f"{key}-spent{number}"))
    runs = [r for r in comparison.runs if (r.job.data, r.job.model) == place]
    figures.append(_split([r for r in rows if r.target == targets[-1]], look, key))
    figures.append(_epochs(runs, look))
    return figures


def _differences(given: Sequence[Difference], analysis: ComparisonAnalysis, key: str) -> list[Figure]:
    captions = {
        "reference": (
            f"Difference to {analysis.reference}",
            "Test accuracy, paired over seeds, with its 95 % bootstrap interval. "
            f"An interval right of the margin of {100 * analysis.margin:g} points is non-inferior.",
        ),
        "control": (
            "Difference to the controls",
            "Test accuracy of the method minus its control's, paired over seeds; right of 0 the method is better.",
        ),
    }
    figures = []
    for role, (title, caption) in captions.items():
        own = [d for d in given if d.role == role]
        if not own:
            continue
        targets = sorted({d.target for d in own})
        picture = gaps(
            f"{key}-{role}",
            f"Interval chart of {len(own)} paired differences of test accuracy; the numbers are in the table below.",
            [
                Gap(
                    d.label if role == "reference" else d.against,
                    targets.index(d.target),
                    100 * d.accuracy.mean,
                    None if d.accuracy.low is None else 100 * d.accuracy.low,
                    None if d.accuracy.high is None else 100 * d.accuracy.high,
                    d.outcome in ("better", "worse"),
                )
                for d in own
            ],
            groups=[f"sparsity {target:g}" for target in targets],
            margin=100 * analysis.margin if role == "reference" else None,
            x_label="difference of test accuracy, points",
        )
        figures.append(Figure(title, caption, picture=picture, table=_difference_table(title, own)))
    return figures


def _difference_table(title: str, own: Sequence[Difference]) -> Table:
    rows: list[Mapping[str, Any]] = [
        {
            "method": d.label,
            "against": d.against,
            "sparsity": d.target,
            "n": d.accuracy.n,
            "points": signed(d.accuracy.mean),
            "95 % interval": "–"
            if d.accuracy.low is None or d.accuracy.high is None
            else f"{signed(d.accuracy.low)} … {signed(d.accuracy.high)}",
            "p": d.p,
            "adjusted p": d.p_adjusted,
            "difference": d.outcome,
            "verdict": d.verdict,
        }
        for d in own
    ]
    note = "p: sign-flip permutation test; adjusted after Benjamini and Hochberg over all differences of the page."
    return Table(title, rows, note)


def _interval(value: Estimate) -> str:
    return "–" if value.low is None or value.high is None else f"{value.low:.4f} … {value.high:.4f}"


def _floor(summaries: Sequence[Summary]) -> float | None:
    """Return where the axis of accuracies begins when a control lies so low that it would press the others together."""
    core = [s.accuracy for s in summaries if not s.control_of]
    if not core:
        return None
    low = min(value.mean if value.low is None else value.low for value in core)
    high = max(value.mean if value.high is None else value.high for value in core)
    floor = low - max(0.5 * (high - low), 0.005)
    return floor if min(s.accuracy.mean for s in summaries) < floor else None


def _against_sparsity(summaries: Sequence[Summary], look: Mapping[str, Style], key: str) -> Figure:
    labels = [label for label in look if any(s.label == label for s in summaries)]
    targets = sorted({s.target for s in summaries})
    step = min((b - a for a, b in itertools.pairwise(targets)), default=0.1)
    series = []
    for n, label in enumerate(labels):
        own = sorted((s for s in summaries if s.label == label), key=lambda s: s.target)
        aside = 0.3 * step * (n / max(len(labels) - 1, 1) - 0.5)  # so that intervals lie beside one another
        series.append(
            Series(
                label,
                [s.target + aside for s in own],
                [s.accuracy.mean for s in own],
                look[label],
                [s.accuracy.low for s in own],
                [s.accuracy.high for s in own],
            )
        )
    dense = [s.dense.mean for s in summaries if s.dense is not None]
    rows: list[Mapping[str, Any]] = [
        {
            "method": s.label,
            "sparsity": s.target,
            "n": s.accuracy.n,
            "test accuracy": s.accuracy.mean,
            "95 % interval": _interval(s.accuracy),
            "dense network": s.dense.mean if s.dense else None,
        }
        for s in summaries
    ]
    return Figure(
        "Accuracy against sparsity",
        "Mean over seeds with its 95 % bootstrap interval; methods at one sparsity are drawn side by side. "
        "Controls are hollow.",
        picture=lines(
            f"{key}-accuracy",
            f"Line chart of accuracy against sparsity of {len(labels)} methods; the numbers are in the table below.",
            series,
            x_label="sparsity: fraction of prunable weights that are zero",
            y_label="test accuracy, fraction",
            floor=_floor(summaries),
            ticks=targets if len(targets) <= MAX_TICKS else (),
            level=("dense network", sum(dense) / len(dense)) if dense else None,
        ),
        table=Table("Accuracy against sparsity", rows),
    )


def _against_spent(summaries: Sequence[Summary], look: Mapping[str, Style], key: str) -> Figure:
    target = summaries[0].target
    rows: list[Mapping[str, Any]] = [
        {
            "method": s.label,
            "control of": ", ".join(s.control_of) or None,
            "epochs after level 0": s.total_epochs.mean,
            "of the search": s.search_epochs.mean,
            "seconds": s.total_seconds.mean,
            "test accuracy": s.accuracy.mean,
            "95 % interval": _interval(s.accuracy),
            "on the front": s.on_front,
        }
        for s in sorted(summaries, key=lambda s: s.total_epochs.mean)
    ]
    return Figure(
        f"Accuracy against spent, at sparsity {target:g}",
        "Everything after the dense network, probing included; up and to the left is better.",
        picture=points(
            key,
            f"Scatter chart of test accuracy against epochs spent for {len(summaries)} methods at sparsity {target:g}; "
            "the numbers are in the table below.",
            [
                Point(
                    s.label,
                    s.total_epochs.mean,
                    s.accuracy.mean,
                    look[s.label],
                    s.accuracy.low,
                    s.accuracy.high,
                    s.on_front,
                )
                for s in summaries
            ],
            x_label="epochs after the dense network, probing included",
            y_label="test accuracy, fraction",
            floor=_floor(summaries),
        ),
        table=Table(f"Accuracy and cost at sparsity {target:g}", rows),
    )


def _epochs(runs: Sequence[RecordedRun], look: Mapping[str, Style]) -> Figure:
    rows: dict[str, list[float | None]] = {}
    last = max((level.level for recorded in runs for level in recorded.levels), default=0)
    for label in look:
        own = [r for r in runs if r.job.label == label]
        highest = max((r.job.sparsity for r in own if r.job.sparsity is not None), default=None)
        own = [r for r in own if r.job.sparsity in (None, highest)]
        levels: dict[int, list[float]] = {}
        for recorded in own:
            for level in recorded.levels:
                levels.setdefault(level.level, []).append(level.searched.epochs)
        if levels:
            rows[label] = [
                sum(levels[number]) / len(levels[number]) if number in levels else None for number in range(1, last + 1)
            ]
    most = max((value for values in rows.values() for value in values if value is not None), default=1.0)
    return Figure(
        "Epochs of each level",
        "Mean over runs of what the search trained at each level, without what was trained on only to report a ticket; "
        "the last level is trained in full.",
        heat=Heat(range(1, last + 1), rows, span=most or 1.0),
    )


def _split(rows: Sequence[TicketRow], look: Mapping[str, Style], key: str) -> Figure:
    parts, table = [], []
    for label in look:
        own = [row for row in rows if row.label == label]
        if not own:
            continue
        n = len(own)
        search = sum(row.search.epochs for row in own) / n
        training = sum(row.total.epochs for row in own) / n
        probing = sum(row.total.probe_epochs for row in own) / n
        flops = [row.total.flops for row in own if row.total.flops is not None]
        dense = [row.total.dense_flops for row in own if row.total.dense_flops is not None]
        parts.append((label, (search, training - search, probing)))
        table.append(
            {
                "method": label,
                "training in the search, epochs": search,
                "training of the ticket, epochs": training - search,
                "probing, in epochs": probing,
                "training, s": sum(row.total.seconds for row in own) / n,
                "probing, s": sum(row.total.probe_seconds for row in own) / n,
                "samples": sum(row.total.samples for row in own) / n,
                "samples probed": sum(row.total.probe_samples for row in own) / n,
                "with the dense network, epochs": sum(row.in_all.charged_epochs for row in own) / n,
                "training FLOPs, masked": sum(flops) / n if len(flops) == n else None,
                "training FLOPs, dense": sum(dense) / n if len(dense) == n else None,
                "only for the record, s": sum(row.total.record_seconds for row in own) / n,
            }
        )
    target = rows[0].target
    return Figure(
        f"What was spent, to sparsity {target:g}",
        "Mean over seeds, after the dense network. What was measured only for the record is not charged.",
        picture=bars(
            f"{key}-split",
            f"Bar chart of epochs spent by {len(parts)} methods; the numbers are in the table below.",
            parts,
            parts=("training in the search", "training of the ticket", "probing"),
            x_label="epochs",
        ),
        table=Table(f"What was spent, to sparsity {target:g}", table),
    )
