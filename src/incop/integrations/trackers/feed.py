"""Feeds: what each tracker is told, by a thread of its own, so that one that is slow, fails or hangs holds up nobody."""

from __future__ import annotations

import contextvars
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from incop.errors import InputError
from incop.integrations.trackers.rows import TrackedRow, row_of
from incop.records import Check, Level, Spent
from incop.rundir import inside, is_file

MAX_BYTES = 2**26  # of a journal: half a million rows


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers show it."""

    name: str
    group: str  # such as a comparison's name; may be empty
    parameters: Mapping[str, Any]
    folder: Path  # where a tracker may keep files
    store: Path  # a folder that runs of one group share


@dataclass(frozen=True)
class Ending:
    """How a run ended: finished, interrupted or failed, with its records and its report page."""

    status: str
    files: tuple[Path, ...] = ()
    page: Path | None = None


@dataclass(frozen=True)
class Backend:
    """A tracker's library: `show` is given the feed, and returns when the run has ended there."""

    show: Callable[[Feed], None]
    keeps_pages: bool
    survives_kill: bool  # whether a killed process leaves every row that was told before


class Feed:
    """One tracker's thread, and the journal of what it was told: its identity, a line for each row, a line at the end."""

    def __init__(self, name: str, backend: Backend, run: TrackedRun, *, resume: bool) -> None:
        self.name, self.run = name, run
        self.failed: str | None = None  # why nothing more is told
        self.known: str | None = None  # identity of the tracked run to continue
        self.ending = Ending("failed")
        self._backend, self._resume = backend, resume
        self._journal = run.folder / f"{name}.jsonl"
        self._told: dict[tuple[int, int | None], Spent] = {}  # by level and number of the check, None for the level
        self._queue: SimpleQueue[Check | Level | Ending] = SimpleQueue()
        serve = contextvars.Context().run  # what a library keeps as its current run is not the user's
        self._thread = Thread(target=serve, args=(self._serve,), name=f"incop-{name}", daemon=True)
        self._thread.start()

    def tell(self, record: Check | Level | Ending) -> None:
        """Hand a record on, without waiting."""
        if self.failed is None:
            self._queue.put(record)

    def close(self, until: float) -> None:
        """Wait for the tracker until this time of `time.monotonic`, after the ending was told."""
        self._thread.join(max(until - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self.failed = "it did not finish in time"

    def rows(self, identity: str) -> Iterator[tuple[int, TrackedRow]]:
        """Yield the rows that this tracked run has not, numbered from 0, until the run ends; a row is noted after its turn."""
        if identity != self.known:
            self._told.clear()
            self._journal.unlink(missing_ok=True)  # it may be a link
            self._note({"id": identity})
        spent: dict[int, Spent] = {level: spent for (level, _), spent in self._told.items()}
        while not isinstance(record := self._queue.get(), Ending):
            row = row_of(record, spent)
            if row.key not in self._told:
                yield len(self._told), row
                self._note({"level": row.key[0], "number": row.key[1], "spent": record.spent.to_json()})
                self._told[row.key] = record.spent
        self.ending = record

    def _serve(self) -> None:
        try:
            self.run.folder.mkdir(parents=True, exist_ok=True)
            self.known = self._read() if self._resume else None
            self._backend.show(self)
            self._note({"end": self.ending.status})
        except BaseException as error:  # a library may raise anything, SystemExit too
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            self.failed = kind + (" ".join(str(error).split())[:300] or "no message")

    def _read(self) -> str | None:
        """Read the journal; None where there is none, or it was damaged or edited, or a new run must be told everything."""
        try:
            inside(self.run.folder, self._journal)
            if not is_file(self._journal) or self._journal.stat().st_size > MAX_BYTES:
                return None
            first, *lines = map(json.loads, self._journal.read_text(encoding="ascii").split("\n")[:-1])
            told = {(one["level"], one["number"]): Spent.from_json(one["spent"]) for one in lines if "end" not in one}
            identity = first["id"]
            if not (isinstance(identity, str) and identity.isalnum() and len(identity) <= 64):
                return None
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None
        if not (self._backend.survives_kill or (lines and "end" in lines[-1])):
            return None  # nobody knows which of the last rows are there
        self._told = told
        return identity

    def _note(self, entry: Mapping[str, object]) -> None:
        with self._journal.open("a", encoding="ascii") as out:
            out.write(json.dumps(entry) + "\n")
