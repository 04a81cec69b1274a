"""What happened inside a run: flow over checks, flow and sparsity by layer, epochs and cost of each level."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from incop.records import Check, Level
from incop.reports.costs import level_cost, samples_per_epoch
from incop.reports.drawing import Style
from incop.reports.page import Figure, Heat
from incop.reports.plots import Series, Track, bars, distances, lines
from incop.reports.recorded import RecordedRun
from incop.reports.tables import Table

MAX_LINES = 8  # layers that one picture can tell apart; of more, the heat table says more
MAX_CHECKS = 300  # rows of the table of checks on a page


def threshold(recorded: RecordedRun) -> float | None:
    """Return the distance below which the rule of the run's plan calls the flow restored; None without such a rule.

    A relative one is turned into a distance by the norm of the dense network's flow.
    """
    match = re.search(r"flow within ([0-9.eE+-]+)( relative)?", str(recorded.plan.get("rule", "")))
    if not match:
        return None
    try:
        within = float(match[1])
    except ValueError:
        return None
    if match[2]:
        dense = next((level.flow for level in recorded.levels if level.level == 0), None)
        within = within * dense.norm() if dense is not None else math.nan
    return within if math.isfinite(within) else None


def tracks(checks: Sequence[Check]) -> list[Track]:
    """Return the distances of each pruned level's checks, laid end to end in epochs."""
    levels: dict[int, list[Check]] = {}
    for check in checks:
        if check.level > 0:
            levels.setdefault(check.level, []).append(check)
    found, before = [], 0.0
    for number, own in sorted(levels.items()):
        measured = [check for check in own if check.distance is not None]
        stopped = [i for i, check in enumerate(measured) if check.verdict is not None and check.verdict.stop]
        if measured:
            found.append(
                Track(
                    number,
                    [before + check.epoch for check in measured],
                    [math.nan if check.distance is None else check.distance for check in measured],
                    stopped[0] if stopped else len(measured) - 1,
                    bool(stopped) and not _is_budget(measured[stopped[0]]),
                )
            )
        before += max(check.epoch for check in own)
    return found


def _is_budget(check: Check) -> bool:
    return check.verdict is not None and check.verdict.rule.startswith("after ")


def figures_of_run(recorded: RecordedRun, key: str) -> list[Figure]:
    """Return the figures of what happened inside a run.

    Args:
        recorded: the run.
        key: what the names of its pictures start with, unique on the page.
    """
    figures = []
    checks = [check for check in recorded.checks() if check.level > 0]
    drawn = tracks(checks)
    if drawn:
        figures.append(_distances(recorded, checks, drawn, key))
    flows = [level for level in recorded.levels if level.flow is not None]
    if flows:
        figures.append(_flows(flows, key))
    if any(level.layers for level in recorded.levels):
        figures.append(
            Figure(
                "Sparsity of each layer",
                "Fraction of a layer's prunable weights that are zero, layers in their order in the network.",
                heat=Heat(
                    [level.level for level in recorded.levels],
                    _by_name([level.layers for level in recorded.levels]),
                    span=1.0,
                ),
            )
        )
    return figures


def _distances(recorded: RecordedRun, checks: Sequence[Check], drawn: Sequence[Track], key: str) -> Figure:
    within = threshold(recorded)
    lost = sum(not math.isfinite(y) for track in drawn for y in track.y)
    note = f" {lost} check{'s' if lost != 1 else ''} without a finite distance cannot be drawn." if lost else ""
    rule = recorded.plan.get("rule")
    shown = checks if len(checks) <= MAX_CHECKS else [*checks[: MAX_CHECKS - 1], checks[-1]]
    rows: list[Mapping[str, Any]] = [
        {
            "level": check.level,
            "check": check.number,
            "epoch": check.epoch,
            "distance": check.distance,
            "validation accuracy": check.accuracy,
            "stop": bool(check.verdict and check.verdict.stop),
            "why": check.verdict.reason if check.verdict else None,
        }
        for check in shown
    ]
    cut = f"The first {MAX_CHECKS - 1} of {len(checks)} checks and the last." if len(shown) < len(checks) else ""
    return Figure(
        "Distance of the flow from the dense network's",
        f"Every check of every level; the marks are where the levels stopped. Rule: {rule or 'none'}.{note}",
        picture=distances(
            f"{key}-distance",
            f"Line chart of the flow's distance to the dense network's over {len(checks)} checks of "
            f"{len(drawn)} levels; the numbers are in the table below.",
            drawn,
            within=within,
            x_label="epochs trained since the dense network",
        ),
        table=Table("Checks", rows, cut),
    )


def _flows(levels: Sequence[Level], key: str) -> Figure:
    flows = _by_name([level.flow.values if level.flow else {} for level in levels])
    meter = next(level.flow.meter for level in levels if level.flow is not None)
    numbers = [level.level for level in levels]
    series = [
        Series(name, [float(n) for n in numbers], values, Style.of(place))
        for place, (name, values) in enumerate(flows.items())
    ]
    finite = [abs(v) for values in flows.values() for v in values if v is not None and math.isfinite(v)]
    few = len(series) <= MAX_LINES
    rows = [{"layers": name} | dict(zip(map(_level, numbers), values, strict=True)) for name, values in flows.items()]
    return Figure(
        "Flow between the layers",
        f"At the end of each level; level 0 is the dense network. Meter: {meter or 'unknown'}.",
        picture=lines(
            f"{key}-flow",
            f"Line chart of the flow of {len(series)} pairs of layers over {len(numbers)} levels; "
            "the numbers are in the table below.",
            series,
            x_label="level",
            y_label="flow",
            whole=True,
        )
        if few
        else None,
        heat=None if few else Heat(numbers, flows, span=max(finite, default=1.0) or 1.0),
        table=Table("Flow at the end of each level", rows) if few else None,
    )


def _level(number: int) -> str:
    return f"level {number}"


def _by_name(given: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for values in given for name in values)
    return {name: [values.get(name) for values in given] for name in names}


def accuracies(recorded: RecordedRun) -> Figure:
    """Return the figure of accuracy against sparsity of one run."""
    levels = recorded.levels
    x = [level.sparsity for level in levels]
    series = [Series("validation", x, [level.val_accuracy for level in levels], Style.of(1, control=True))]
    if any(level.test_accuracy is not None for level in levels):
        series.insert(0, Series("test", x, [level.test_accuracy for level in levels], Style.of(0)))
    dense = recorded.run.dense.get("test_accuracy")
    rows = [
        {
            "level": level.level,
            "sparsity": level.sparsity,
            "sparsity of all parameters": level.model_sparsity,
            "weights left": level.remaining,
            "test accuracy": level.test_accuracy,
            "validation accuracy": level.val_accuracy,
        }
        for level in levels
    ]
    return Figure(
        "Accuracy against sparsity",
        "At the end of each level. Test accuracy decides nothing; it is read for the record.",
        picture=lines(
            "accuracy",
            f"Line chart of accuracy against sparsity at {len(levels)} levels; the numbers are in the table below.",
            series,
            x_label="sparsity: fraction of prunable weights that are zero",
            y_label="accuracy, fraction",
            level=("dense network, test", float(dense)) if isinstance(dense, int | float) else None,
        ),
        table=Table("Accuracy and sparsity", rows),
    )


def spending(recorded: RecordedRun) -> list[Figure]:
    """Return the figures of what each level of one run has cost."""
    levels = recorded.levels
    per_epoch = samples_per_epoch(levels)
    costs = [level_cost(level, level.spent, per_epoch) for level in levels]
    searched = [level_cost(level, level.searched, per_epoch) for level in levels]
    epochs = [
        (f"level {level.level}", (part.epochs, max(cost.epochs - part.epochs, 0.0), cost.probe_epochs))
        for level, part, cost in zip(levels, searched, costs, strict=True)
    ]
    rows = [
        {
            "level": level.level,
            "epochs": cost.epochs,
            "of at most": level.max_epochs,
            "epochs of the search": part.epochs,
            "probing, in epochs": cost.probe_epochs,
            "samples": level.samples,
            "samples probed": level.probe_samples,
            "training, s": level.seconds,
            "probing, s": level.probe_seconds,
            "only for the record, s": cost.record_seconds,
            "training FLOPs, masked": cost.flops,
            "training FLOPs, dense": cost.dense_flops,
            "why it ended": level.stop_reason,
        }
        for level, part, cost in zip(levels, searched, costs, strict=True)
    ]
    alt = f"Bar chart of what each of {len(levels)} levels has cost"
    return [
        Figure(
            "Epochs of each level",
            "Training, training on to report the ticket, and probing as passes over the training split.",
            picture=bars(
                "epochs",
                f"{alt}, in epochs; the numbers are in the table below.",
                epochs,
                parts=("training", "trained on to report", "probing"),
                x_label="epochs",
            ),
            table=Table("What each level has cost", rows),
        ),
        Figure(
            "Time of each level",
            "Training and probing. What was measured only for the record is in the table and not charged.",
            picture=bars(
                "seconds",
                f"{alt}, in seconds; the numbers are in the table below.",
                [(f"level {level.level}", (level.seconds, level.probe_seconds)) for level in levels],
                parts=("training", "probing"),
                x_label="seconds",
            ),
            table=Table(
                "Time of each level",
                [{"level": v.level, "training, s": v.seconds, "probing, s": v.probe_seconds} for v in levels],
            ),
        ),
    ]
