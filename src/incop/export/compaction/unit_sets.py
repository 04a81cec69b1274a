"""Unit sets: the units along the axes of tensors, and which of them can only go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class UnitSets:
    """Sets of units that can only go together (union–find); a set that is pinned stays."""

    def __init__(self) -> None:
        self._above: list[int] = []
        self._pinned: list[bool] = []

    def __len__(self) -> int:
        return len(self._above)

    def fresh(self, count: int, *, pinned: bool = False) -> Ints:
        """Return the ids of so many new units, each a set of its own."""
        first = len(self._above)
        self._above.extend(range(first, first + count))
        self._pinned.extend([pinned] * count)
        return np.arange(first, first + count)

    def _root(self, unit: int) -> int:
        above = self._above
        while above[unit] != unit:
            above[unit] = above[above[unit]]
            unit = above[unit]
        return unit

    def join(self, a: Ints, b: Ints) -> None:
        """Make one set of each pair of units."""
        for one, other in np.unique(np.stack([a, b]), axis=1).T.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            if low != high:
                self._above[high] = low
                self._pinned[low] = self._pinned[low] or self._pinned[high]

    def pin(self, ids: Ints) -> None:
        """Say that these units, and all that go with them, stay."""
        for unit in np.unique(ids).tolist():
            self._pinned[self._root(unit)] = True

    def roots(self, ids: Ints) -> Ints:
        """Return the number of each unit's set."""
        return np.array([self._root(unit) for unit in ids.tolist()], dtype=np.int64)

    def pinned(self, ids: Ints) -> npt.NDArray[np.bool_]:
        """Say of each unit whether it stays."""
        return np.array([self._pinned[self._root(unit)] for unit in ids.tolist()], dtype=bool)


@dataclass(frozen=True)
class AxisUnits:
    """The units along one axis of a tensor.

    Args:
        ids: of every unit, as `UnitSets.fresh` gave them.
        constant: what a unit's values are, wherever else in the tensor one looks and whatever the input is; NaN where they
            are not all the same or not known.
    """

    ids: Ints
    constant: Floats

    def with_constant(self, constant: Floats) -> AxisUnits:
        """Return the same units with other constants."""
        return AxisUnits(self.ids, constant)

    def varying(self) -> AxisUnits:
        """Return the same units, of which no constant is known."""
        return AxisUnits(self.ids, unknown(len(self.ids)))


Labels = dict[int, AxisUnits]  # by axis; an axis that is absent holds no units that could go


def unknown(count: int) -> Floats:
    """Return constants of which none is known."""
    return np.full(count, np.nan)
