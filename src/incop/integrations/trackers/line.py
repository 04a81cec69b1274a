"""Lines: one thread and one list of what was told to each tracker, so that a slow, failing or hanging one holds nobody up."""

from __future__ import annotations

import contextlib
import contextvars
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from incop.errors import InputError
from incop.integrations.trackers.rows import Key, Row
from incop.records import Spent
from incop.rundir import inside, is_file

__all__ = ["About", "Backend", "End", "Line", "Told"]

PATIENCE = 120.0  # seconds without any answer after which a tracker is left alone at the end of a run
MOST_WAITING = 100_000  # rows that may wait for a tracker that does not keep up
MOST_BYTES = 2**26  # of a list of what was told: half a million rows
LONGEST = 300  # signs of a library's own message


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run when it begins.

    Args:
        name: of the run.
        group: what it belongs to, such as a comparison; empty for a run of its own.
        parameters: what it is made of, such as the keys of its plan.
        folder: where the tracker may keep files; it exists.
        store: a folder that runs of one group share, for trackers that show those of one store together.
    """

    name: str
    group: str
    parameters: Mapping[str, object]
    folder: Path
    store: Path


@dataclass(frozen=True)
class End:
    """What a tracker is told when a run ends.

    Args:
        status: finished, interrupted or failed.
        summary: numbers of the last level and of the whole run.
        files: the run's records, for trackers that keep files.
        page: its report page, or None.
    """

    status: str
    summary: Mapping[str, float]
    files: Sequence[Path] = ()
    page: Path | None = None


class Backend(Protocol):
    """A tracker's library. Whatever a method raises ends the tracking, never the run."""

    keeps_pages: bool
    survives_kill: bool  # a process that is killed leaves what was told before, up to what `kept` counts

    def begin(self, about: About, identity: str | None) -> str:
        """Go on with the run of this identity where it is still there, else begin one, and return its identity."""

    def kept(self) -> int | None:
        """Return how many rows the run that is gone on with has there; None where all that were told are."""

    def row(self, row: Row, number: int) -> None:
        """Take a row, the so-manieth of the run, counting from 0."""

    def end(self, end: End) -> None:
        """Close the run."""

    def drop(self) -> None:
        """Let go of everything after a failure."""


class Told:
    """The list of what a tracker has been told of a run: its identity there, then one line a row.

    Args:
        file: of the list.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[Key, Spent] = {}
        self.closed = False  # the run was ended there in good order

    @classmethod
    def of(cls, folder: Path, name: str) -> Told:
        """Return the list of one tracker in a folder."""
        return cls(folder / f"{name}.jsonl")

    def identity(self) -> str | None:
        """Read the list, and return the run's identity; None when there is none, or it was damaged or edited."""
        self.rows.clear()
        try:
            inside(self.file.parent, self.file)
            if not is_file(self.file) or self.file.stat().st_size > MOST_BYTES:
                return None
            first, *lines = self.file.read_text(encoding="ascii").split("\n")
            identity = json.loads(first)["id"]
            for line in lines[:-1]:  # a last one may be cut short
                one = json.loads(line)
                self.closed = "end" in one
                if not self.closed:
                    self.rows[one["level"], one["number"]] = Spent.from_json(one["spent"])
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            self.rows.clear()
            return None
        plain = isinstance(identity, str) and identity.isalnum() and identity.isascii() and len(identity) <= 64
        return identity if plain else None

    def start(self, identity: str) -> None:
        """Begin a new list."""
        self.rows.clear()
        self.file.unlink(missing_ok=True)  # it may be a link
        self.file.write_text(json.dumps({"id": identity}) + "\n", encoding="ascii")

    def add(self, row: Row) -> None:
        """Note a row."""
        level, number = row.key
        self._write({"level": level, "number": number, "spent": row.spent.to_json()})
        self.rows[row.key] = row.spent

    def close(self, status: str) -> None:
        """Note that the run was ended."""
        self._write({"end": status})

    def keep(self, count: int) -> None:
        """Forget the rows after the first so many: the tracker was killed before it had written them."""
        for key in list(self.rows)[count:]:
            del self.rows[key]

    def _write(self, entry: Mapping[str, object]) -> None:
        with self.file.open("a", encoding="ascii") as out:
            out.write(json.dumps(entry) + "\n")


class Line:
    """One tracker, served by a thread of its own; nothing here waits for it but `close`, and that not for long.

    Args:
        name: of the tracker.
        backend: its library.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self.backend = backend
        self.failed: str | None = None
        self._told: Told | None = None
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._answers = 0
        # a context of its own: what a library keeps there as the current run is not that of the user's thread
        self._thread = threading.Thread(
            target=contextvars.Context().run, args=(self._serve,), name=f"incop-{name}", daemon=True
        )

    def begin(self, about: About, *, resume: bool) -> None:
        """Start the thread, and go on with the run that the tracker knows, or begin one."""
        self._put(lambda: self._begin(about, resume))
        try:
            self._thread.start()
        except RuntimeError as error:  # as many threads as the system allows
            self.failed = str(error)

    def row(self, row: Row) -> None:
        """Hand a row on, unless the tracker has it already."""
        if self._queue.qsize() > MOST_WAITING:
            self.failed = self.failed or f"it does not keep up: {MOST_WAITING} rows wait for it"
        self._put(lambda: self._row(row))

    def end(self, end: End) -> None:
        """Let the tracker close its run."""
        self._put(lambda: self._end(end))

    def close(self) -> None:
        """Wait until everything is handed over, as long as there are signs of life."""
        self._queue.put(None)
        answers, last = self._answers, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.02)
            if self._answers != answers:
                answers, last = self._answers, time.monotonic()
            elif time.monotonic() - last > PATIENCE:
                self.failed = self.failed or f"it has not answered for {PATIENCE:g} s"
                return

    def _put(self, work: Callable[[], None]) -> None:
        if self.failed is None:
            self._queue.put(work)

    def _begin(self, about: About, resume: bool) -> None:
        about.folder.mkdir(parents=True, exist_ok=True)
        self._told = Told.of(about.folder, self.name)
        known = self._told.identity() if resume else None
        if not (self._told.closed or self.backend.survives_kill):
            known = None  # nobody knows what is there of the last seconds: all is told again, to a new run
        identity = self.backend.begin(about, known)
        if identity != known:
            self._told.start(identity)
        elif (kept := self.backend.kept()) is not None:
            self._told.keep(kept)

    def _row(self, row: Row) -> None:
        assert self._told is not None
        if row.key not in self._told.rows:
            self.backend.row(row, len(self._told.rows))
            self._told.add(row)

    def _end(self, end: End) -> None:
        assert self._told is not None
        self.backend.end(end)
        self._told.close(end.status)

    def _serve(self) -> None:
        try:
            while (work := self._queue.get()) is not None:
                if self.failed is not None:
                    break
                work()
                self._answers += 1
        except BaseException as error:  # a library may raise anything, SystemExit too
            self.failed = self.failed or _said(error)
        if self.failed is not None:
            with contextlib.suppress(BaseException):
                self.backend.drop()


def _said(error: BaseException) -> str:
    known = isinstance(error, InputError)
    text = " ".join(str(error).split()) or "no message"
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    return short if known else f"{type(error).__name__}: {short}"
