"""The edge: how far a network can be pruned before it no longer does its job, and where to look next; pure, no torch.

The path is walked once. Stops on it, a fifth of the density apart, are remembered. The flow at the output says where to look first:
the first stop at which the outputs no longer vary as the dense network's do. Stops are then tried by a short last level, further on
or further back, until one that does the job and one that does not are neighbours. The best of them gets a last level in full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from incop.errors import InputError

SPACING = 0.8  # of the density from one remembered stop to the next
FAMILIAR = 0.9  # mean correlation of the outputs with the dense network's, below which stops are tried
FURTHEST = 0.998  # sparsity at which the path ends
LEAST_LEFT = 50  # weights there, at least


@dataclass(frozen=True)
class Stop:
    """The end of a level on the path that is remembered.

    Args:
        level: its number.
        sparsity: fraction of the prunable weights that are zero, in [0, 1].
        likeness: mean correlation of the output units with the dense network's over the probe, in [−1, 1].
    """

    level: int
    sparsity: float
    likeness: float


@dataclass(frozen=True)
class Drop:
    """What a ticket has lost against the dense network on the validation split; below 0 it has gained.

    Args:
        level: the ticket's level.
        value: the difference, in units of the metric.
        low: least value of its 95 % interval over the validation samples; None where samples cannot be told.
        high: largest value of it.
    """

    level: int
    value: float
    low: float | None = None
    high: float | None = None


Move = tuple[Literal["walk", "try", "finish"], int]
"""What to do next: walk to the stop of this number, try it by a short last level, or finish it by a last level in full."""


@dataclass
class Edge:
    """What is known of the edge.

    Args:
        max_drop: how much of the metric may be lost, at least 0.
        stops: those on the path, from the dense network on.
        tried: what was lost at stops that were tried, by their number.
        finished: the same of stops that had a last level in full.
        path_ended: whether there is no further stop.
    """

    max_drop: float
    stops: list[Stop] = field(default_factory=list)
    tried: dict[int, Drop] = field(default_factory=dict)
    finished: dict[int, Drop] = field(default_factory=dict)
    path_ended: bool = False

    def remembers(self, sparsity: float) -> bool:
        """Say whether a level that ends at this sparsity is a stop to remember."""
        last = self.stops[-1].sparsity if self.stops else 0.0
        return math.log1p(-sparsity) <= math.log1p(-last) + math.log(SPACING) + 1e-9

    def passes(self, drop: Drop) -> bool:
        """Say whether a ticket does the job."""
        return drop.value <= self.max_drop + 1e-12

    def next(self) -> Move | None:
        """Return what to do next; None when the edge is known."""
        if not self.tried:
            return self._first()
        good, bad = self._bracket()
        if not good and min(bad) > 0:
            return "try", max(min(bad) - 2 ** (len(bad) - 1), 0)
        if not good:  # half a last level may be too short for the densest stop
            return None if self.finished else ("finish", 0)
        best, last = max(good), len(self.stops) - 1
        if bad and min(bad) - best > 1:
            return "try", (best + min(bad)) // 2
        if not bad and not (self.path_ended and best == last):
            ahead = best + 2 ** (len(good) - 1)
            return ("walk", last + 1) if ahead > last and not self.path_ended else ("try", min(ahead, last))
        return self._finish(good)

    def _first(self) -> Move | None:
        """Walk while the outputs vary as the dense network's do; the last stop at which they did is tried first."""
        last = len(self.stops) - 1
        if not self.path_ended and (last < 0 or self.stops[last].likeness >= FAMILIAR):
            return "walk", last + 1
        return "try", next((n for n in range(last, 0, -1) if self.stops[n].likeness >= FAMILIAR), 0)

    def _bracket(self) -> tuple[list[int], list[int]]:
        """Return the stops that do the job, and those beyond the best of them that do not."""
        good = [n for n, drop in self.tried.items() if self.passes(drop)]
        return good, [n for n in self.tried if n > max(good, default=-1)]

    def _finish(self, good: Sequence[int]) -> Move | None:
        """Finish the best stop; where it then does not do the job, the next best, once."""
        waiting = [n for n in sorted(good, reverse=True) if n not in self.finished]
        done = len(self.finished) > 1 or any(self.passes(drop) for drop in self.finished.values())
        return None if done or not waiting else ("finish", waiting[0])

    @property
    def chosen(self) -> Drop | None:
        """The sparsest ticket that does the job: with a last level in full where that one does, else as it was tried."""
        found = {n: drop for drops in (self.tried, self.finished) for n, drop in drops.items() if self.passes(drop)}
        return found[max(found)] if found else None

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        if not self.tried:
            return "nothing was tried yet"
        if (chosen := self.chosen) is None:
            least = self.stops[min(self.tried)]
            lost = self.finished.get(0, self.tried[min(self.tried)]).value
            return (
                f"no ticket is within {self.max_drop:g}: at the first stop, sparsity {least.sparsity:.4f}, {lost:.4f} is lost; "
                "allow a larger max_drop or a larger budget"
            )
        last = self.tried.get(len(self.stops) - 1)
        if self.path_ended and last is not None and self.passes(last):
            return (
                f"level {chosen.level} is within {self.max_drop:g}, and the path ends there: the edge was not reached"
            )
        return f"level {chosen.level} is the sparsest within {self.max_drop:g}"

    def state(self) -> dict[str, Any]:
        """Return it as JSON values."""
        tried, finished = (
            {str(n): [drop.level, drop.value, drop.low, drop.high] for n, drop in drops.items()}
            for drops in (self.tried, self.finished)
        )
        stops = [[stop.level, stop.sparsity, stop.likeness] for stop in self.stops]
        return {"stops": stops, "tried": tried, "finished": finished, "ended": self.path_ended}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.stops = [Stop(int(level), float(sparsity), float(like)) for level, sparsity, like in state["stops"]]
        self.tried, self.finished = (
            {int(n): Drop(int(drop[0]), *drop[1:]) for n, drop in state[name].items()} for name in ("tried", "finished")
        )
        self.path_ended = bool(state["ended"])


def paired_drop(level: int, value: float, differences: Sequence[float] | None) -> Drop:
    """Return a drop with its 95 % interval by the normal approximation, from each validation sample's difference.

    Args:
        level: the ticket's level.
        value: the drop.
        differences: the dense network's outcome less the ticket's, sample by sample; None where they are not known.
    """
    if differences is None or len(differences) < 2:
        return Drop(level, value)
    n = len(differences)
    mean = math.fsum(differences) / n
    half = 1.959964 * math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return Drop(level, value, value - half, value + half)


def check_max_drop(max_drop: Any) -> None:
    """Refuse what is no drop.

    Raises:
        InputError: it is no number of at least 0.
    """
    number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool) and math.isfinite(max_drop)
    if not number or max_drop < 0:
        raise InputError(
            f"max_drop={max_drop!r}: give how much of the metric may be lost, a number of at least 0 (0.005 of accuracy is half "
            "a point)"
        )
