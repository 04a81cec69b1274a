"""The hook: what a search tells, handed to every tracker that was named."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from incop.errors import InputError, unknown
from incop.integrations.trackers.backends import BACKENDS, load
from incop.integrations.trackers.feed import Ending, Feed, TrackedRun
from incop.records import Check, Level
from incop.rundir import RunDir, write_atomically

PATIENCE = 120.0  # seconds that the end of a run waits for all its trackers together; training never waits


class Tracker:
    """Told of every check and level, it tells the trackers. A tracker that fails is left alone; the search goes on.

    The arguments are those of `track`; `store` is a folder that runs of one group share, by default each run's own.
    """

    def __init__(
        self,
        names: str | Sequence[str],
        *,
        group: str = "",
        store: Path | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._names = [one.strip() for one in (names.split(",") if isinstance(names, str) else names) if one.strip()]
        if not self._names:
            raise InputError(f"no tracker is named: give one or more of {', '.join(BACKENDS)}, with commas")
        for name in self._names:
            if name not in BACKENDS:
                raise unknown("tracker", name, BACKENDS)
            load(name)
        self._group, self._store = group, None if store is None else store.absolute()
        self._notice = on_notice or logging.getLogger("incop").warning
        self._feeds: list[Feed] = []

    def begin(self, run: TrackedRun, *, resume: bool) -> None:
        """Begin a run, or go on with the one that the trackers know."""
        self._feeds = [Feed(name, BACKENDS[name], run, resume=resume) for name in dict.fromkeys(self._names)]

    def begin_run(self, run: RunDir) -> None:
        """Begin with a run folder, or go on with one: what its records hold and a tracker does not is told now."""
        try:
            records: list[Check | Level] = [*run.checks(), *run.levels()]
            records.sort(key=lambda one: (one.level, isinstance(one, Level)))  # as they were written
            name, folder = run.path.absolute().name, run.trackers_dir.absolute()
            self.begin(TrackedRun(name, self._group, run.read_plan(), folder, self._store or folder), resume=True)
        except Exception as error:  # a damaged record is the run's to tell, and no reason to end it
            self._notice(f"the trackers were told nothing of this run: {error}")
            return
        for record in records:
            self._tell(record)

    def check(self, check: Check) -> None:
        """Tell a check, as it is made; fits `on_check`."""
        self._tell(check)

    def level(self, level: Level) -> None:
        """Tell a finished level."""
        self._tell(level)

    def end(self, ending: Ending) -> None:
        """End the run, and wait until the trackers have taken everything, 120 s at most."""
        self._tell(ending)
        until = time.monotonic() + PATIENCE
        for feed in self._feeds:
            feed.close(until)
        self._hear()
        self._feeds = []

    def end_run(self, run: RunDir) -> None:
        """End with a run folder: with its records, and its report page for the trackers that keep pages."""
        files, status, page = (run.plan_file, run.levels_file, run.checks_file, run.summary_file), "failed", None
        with contextlib.suppress(InputError):
            status = run.read_summary().status
        if any(BACKENDS[feed.name].keeps_pages for feed in self._feeds):
            try:
                from incop import reports  # imports SciPy and matplotlib

                write_atomically(run.report_file, reports.html(reports.read([run.path])).encode("utf-8", "replace"))
                page = run.report_file
            except Exception as error:
                self._notice(f"the trackers show no report page: {error}")
        self.end(Ending(status, tuple(file for file in files if file.is_file()), page))

    def _tell(self, record: Check | Level | Ending) -> None:
        for feed in self._feeds:
            feed.tell(record)
        self._hear()

    def _hear(self) -> None:
        for feed in [feed for feed in self._feeds if feed.failed is not None]:
            self._feeds.remove(feed)
            self._notice(
                f"the tracker {feed.name!r} failed and is left alone for the rest of this run ({feed.failed}); "
                "the run and its records are not affected"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.end(Ending("finished" if error is None else stopped))


def track(
    names: str | Sequence[str],
    folder: str | Path,
    *,
    name: str | None = None,
    group: str = "",
    parameters: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_notice: Callable[[str], None] | None = None,
) -> Tracker:
    """Show a search in trackers; use it in `with`.

    Args:
        names: of the trackers, with commas: tensorboard, mlflow, wandb, trackio.
        folder: where they keep what they keep in files; it is made.
        name: of the run; by default the folder's.
        group: what it belongs to.
        parameters: its hyperparameters, to be shown with it.
        resume: go on with the run of this folder, for a search that is resumed.
        on_notice: told in a sentence when a tracker has failed, once; by default the logger "incop" is.

    Returns:
        The hook: `check(check)` for `on_check`, `level(ticket.record)` for every ticket.

    Raises:
        InputError: a name is unknown.
        MissingExtra: a library is not installed.

    Example:
        >>> from incop.integrations import trackers
        >>> from incop.records import Check
        >>> with trackers.track("tensorboard", "tracked") as tracker:
        ...     tracker.check(Check(level=0, number=1, epoch=1.0))
        >>> import os
        >>> sorted(os.listdir("tracked"))
        ['tensorboard', 'tensorboard.jsonl']
    """
    tracker = Tracker(names, group=group, on_notice=on_notice)
    place = Path(folder).absolute()
    tracker.begin(TrackedRun(name or place.name, group, dict(parameters or {}), place, place), resume=resume)
    return tracker
