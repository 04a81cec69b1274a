"""Places: the units along the axes of tensors, and which of them can only go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Labels", "Places", "Units", "unknown"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Places:
    """Sets of places that can only go together (union–find); a set that is pinned stays.

    Example:
        >>> from incop.export.compaction.places import Places
        >>> places = Places()
        >>> a, b = places.fresh(2), places.fresh(2)
        >>> places.join(a, b)
        >>> places.pin(b[:1])
        >>> places.pinned(a).tolist()
        [True, False]
    """

    def __init__(self) -> None:
        self._above: list[int] = []
        self._pinned: list[bool] = []

    def __len__(self) -> int:
        return len(self._above)

    def fresh(self, count: int, *, pinned: bool = False) -> Ints:
        """Return so many new places, each a set of its own."""
        first = len(self._above)
        self._above.extend(range(first, first + count))
        self._pinned.extend([pinned] * count)
        return np.arange(first, first + count)

    def _root(self, place: int) -> int:
        above = self._above
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place

    def join(self, a: Ints, b: Ints) -> None:
        """Make one set of each pair of places."""
        for one, other in np.unique(np.stack([a, b]), axis=1).T.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            if low != high:
                self._above[high] = low
                self._pinned[low] = self._pinned[low] or self._pinned[high]

    def pin(self, places: Ints) -> None:
        """Say that these places, and all that go with them, stay."""
        for place in np.unique(places).tolist():
            self._pinned[self._root(place)] = True

    def roots(self, places: Ints) -> Ints:
        """Return the number of each place's set."""
        return np.array([self._root(place) for place in places.tolist()], dtype=np.int64)

    def pinned(self, places: Ints) -> npt.NDArray[np.bool_]:
        """Say of each place whether it stays."""
        return np.array([self._pinned[self._root(place)] for place in places.tolist()], dtype=bool)


@dataclass(frozen=True)
class Units:
    """The units along one axis of a tensor.

    Args:
        places: of every unit.
        constant: what a unit's values are, wherever else in the tensor one looks and whatever the input is; NaN where they
            are not all the same or not known.
    """

    places: Ints
    constant: Floats

    def with_constant(self, constant: Floats) -> Units:
        """Return the same places with other constants."""
        return Units(self.places, constant)

    def varying(self) -> Units:
        """Return the same places, of which no constant is known."""
        return Units(self.places, unknown(len(self.places)))


Labels = dict[int, Units]  # by axis; an axis that is absent holds no units that could go


def unknown(count: int) -> Floats:
    """Return constants of which none is known."""
    return np.full(count, np.nan)
