"""Replays: what another rule would have done on recorded checks; no training and no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from incop.errors import InputError
from incop.records import Check, History, Level
from incop.rundir import RunDir
from incop.stopping import FlowRestored, Rule


@dataclass(frozen=True)
class Replayed:
    """Where a rule would have ended one level.

    Args:
        level: its number.
        epochs: epochs trained until then.
        full_epochs: epochs that were recorded for the level.
        accuracy: validation accuracy at that check, or None when none was recorded.
        stopped: whether the rule stopped; otherwise the level ran as far as it was recorded.
        reason: why, in a sentence.
        estimate: True after the first level that would have ended elsewhere than it did: its weights, and so all
            that was recorded of it, would have been others.
    """

    level: int
    epochs: float
    full_epochs: float
    accuracy: float | None
    stopped: bool
    reason: str
    estimate: bool

    @property
    def saved(self) -> float:
        """Epochs that would have been saved."""
        return self.full_epochs - self.epochs


def replay(run: RunDir, rule: Rule) -> list[Replayed]:
    """Apply a rule to the checks of a run, level by level.

    The last level is replayed too, although a search gives it its full budget; it shows what a stop there costs.

    Args:
        run: a finished or unfinished run with recorded checks.
        rule: any stop rule; what it needs must have been recorded.
    """
    return _replay(_Recorded.of(run), rule)


@dataclass(frozen=True)
class _Recorded:
    """What a run recorded: its dense level, the levels after it, and the checks of each."""

    dense: Level
    levels: tuple[Level, ...]
    checks: Mapping[int, Sequence[Check]]

    @classmethod
    def of(cls, run: RunDir) -> _Recorded:
        levels = {level.level: level for level in run.levels()}
        if 0 not in levels:
            raise InputError(f"the run {str(run.path)!r} has no finished dense level to hold others against")
        if len(levels) < 2:
            raise InputError(f"the run {str(run.path)!r} has no pruned level to replay")
        checks: dict[int, list[Check]] = {}
        for check in run.checks():
            checks.setdefault(check.level, []).append(check)
        return cls(levels.pop(0), tuple(levels[number] for number in sorted(levels)), checks)


def _replay(recorded: _Recorded, rule: Rule) -> list[Replayed]:
    found: list[Replayed] = []
    differs = False
    for level in recorded.levels:
        one = _level(level, recorded.checks.get(level.level, ()), rule, recorded.dense)
        found.append(dataclasses.replace(one, estimate=differs))
        differs = differs or abs(one.epochs - _ended(level)) > 1e-6
    return found


def _ended(level: Level) -> float:
    return level.searched.epochs - (level.epochs - level.trained)


def _level(level: Level, checks: Sequence[Check], rule: Rule, dense: Level) -> Replayed:
    if not checks:
        raise InputError(f"level {level.level} has no recorded checks to replay")
    for end in range(1, len(checks) + 1):
        verdict = rule(_seen(checks[:end], dense, rule))
        if verdict.stop:
            now = checks[end - 1]
            return Replayed(level.level, now.epoch, level.trained, now.accuracy, True, verdict.reason, False)
    last = checks[-1]
    return Replayed(level.level, level.trained, level.trained, last.accuracy, False, "as far as it was recorded", False)


def _seen(checks: Sequence[Check], dense: Level, rule: Rule) -> History:
    history = History(tuple(checks), dense.flow, dense.metric_value, dense.metric)
    for need in rule.lacking(history):
        what = {"mask": "the masks' change", "reference": "the dense network's flow"}.get(need, f"the {need}")
        raise InputError(
            f"the rule {str(rule)!r} needs {what}, which this run did not record: run it with a meter or rule that does "
            "(--meter information:mean records the flow, whatever the rule)"
        )
    return history


@dataclass(frozen=True)
class Grid:
    """One point of the trade-off curve of a tolerance.

    Args:
        within: the tolerance.
        epochs: epochs of all search levels (all but the last).
        full_epochs: what was recorded for them.
        accuracy: mean validation accuracy at the stops, or None.
        levels: how many levels ended elsewhere than recorded.
    """

    within: float
    epochs: float
    full_epochs: float
    accuracy: float | None
    levels: int


def grid(run: RunDir, tolerances: Iterable[float], *, relative: bool = False) -> list[Grid]:
    """Replay `FlowRestored` over a range of tolerances: the whole trade-off curve from one run."""
    points, recorded = [], _Recorded.of(run)
    for within in tolerances:
        again = _replay(recorded, FlowRestored(within, relative))[:-1]
        known = [one.accuracy for one in again if one.accuracy is not None]
        points.append(
            Grid(
                within,
                sum(one.epochs for one in again),
                sum(one.full_epochs for one in again),
                sum(known) / len(known) if known else None,
                sum(one.stopped for one in again),
            )
        )
    return points


def tolerances(text: str) -> list[float]:
    """Read the tolerances of a grid: "0.01,0.1" as they stand, "0.001:0.5:20" evenly in the logarithm."""
    try:
        if text.count(":") == 2:
            least, most, count = (float(part) for part in text.split(":"))
            number = int(count)
            if not (0 < least <= most and 2 <= number <= 1000):
                raise ValueError
            return [float(f"{least * (most / least) ** (k / (number - 1)):.12g}") for k in range(number)]
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"the grid {text!r} cannot be read: give least:most:count such as 0.001:0.5:20, or 0.01,0.1"
        ) from None
