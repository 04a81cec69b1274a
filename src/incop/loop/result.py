"""The result of a search: its tickets, one after the other, and the one that was searched for."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from incop.errors import InputError, TrainingError
from incop.loop.edge import Edge
from incop.loop.edge_search import chosen_ticket
from incop.loop.progress import SearchProgress
from incop.loop.tickets import Ticket


class Search(Iterator[Ticket]):
    """The tickets of a search, one after the other.

    Args:
        tickets: made when they are asked for.
        progress: of the search.
    """

    def __init__(self, tickets: Generator[Ticket, None, None], progress: SearchProgress) -> None:
        self._tickets, self._progress = tickets, progress
        self._last: Ticket | None = None

    def __next__(self) -> Ticket:
        self._last = None  # as large as the network
        self._last = next(self._tickets)
        return self._last

    def close(self) -> None:
        """End the search where it stands."""
        self._tickets.close()

    @property
    def edge(self) -> Edge | None:
        """With `max_drop`, what is known of how far the network can be pruned."""
        return self._progress.edge

    @property
    def chosen(self) -> Ticket:
        """The ticket that was searched for, after the rest of the search: with `max_drop` the sparsest within it, else the last.

        Raises:
            TrainingError: no ticket is within `max_drop`.
        """
        last = self._last
        for ticket in self:
            last = ticket
        if self.edge is None:
            if last is None:
                raise InputError(
                    "the search is over and its last ticket was not kept: take .chosen before going through it"
                )
            return last
        if (found := chosen_ticket(self._progress)) is None:
            raise TrainingError(self.edge.verdict)
        return found
