"""The loop: prune, rewind, retrain while watching the flow, and hand out a ticket; level after level.

It knows no files, no trainer class and no plots.
"""

from __future__ import annotations

from incop.loop.result import Search
from incop.loop.searching import search
from incop.loop.tickets import Dense, Ticket, Trains

__all__ = ["Dense", "Search", "Ticket", "Trains", "search"]
