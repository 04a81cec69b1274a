"""The hook: what a search tells of itself, handed to every tracker that was named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from incop.errors import InputError, unknown
from incop.integrations.trackers.backends import BACKENDS
from incop.integrations.trackers.line import About, End, Line, Told
from incop.integrations.trackers.rows import Row, Rows
from incop.records import Check, Level, Spent
from incop.rundir import RunDir, write_atomically

__all__ = ["Tracker", "named", "track"]


def named(text: str | Sequence[str]) -> tuple[str, ...]:
    """Read the names of trackers, with commas.

    Raises:
        InputError: a name is unknown, or there is none.

    Example:
        >>> from incop.integrations import trackers
        >>> trackers.named("tensorboard, mlflow")
        ('tensorboard', 'mlflow')
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for name in names:
        if name not in BACKENDS:
            raise unknown("tracker", name, BACKENDS)
    if not names:
        raise InputError(f"no tracker is named: give one or more of {', '.join(BACKENDS)}, with commas")
    return names


class Tracker:
    """Told of every check and level, it tells the trackers. A tracker that fails is left alone; the search never notices.

    Making one imports the libraries, so that what is missing is known before any training.

    Args:
        names: of the trackers: tensorboard, mlflow, wandb, trackio.
        group: what the run belongs to, such as the name of a comparison.
        store: a folder that runs of one group share; by default each run's own.
        on_notice: told in a sentence when a tracker has failed, once; by default the logger "incop" is.

    Raises:
        InputError: a name is unknown.
        MissingExtra: a library is not installed.
    """

    def __init__(
        self,
        names: str | Sequence[str],
        *,
        group: str = "",
        store: Path | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self.lines = tuple(Line(name, BACKENDS[name]()) for name in named(names))
        self.group = group
        self.store = store
        self._notice = on_notice or logging.getLogger("incop").warning
        self._rows = Rows()
        self._last: dict[str, Row] = {}
        self._heard: set[str] = set()
        self._open = False

    def begin(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        parameters: Mapping[str, object] | None = None,
        resume: bool = False,
    ) -> None:
        """Begin a run.

        Args:
            folder: where trackers keep what they keep in files.
            name: of the run; by default the folder's.
            parameters: what it is made of.
            resume: go on with the run that this folder's trackers were told of; what they know already is not told again.
        """
        place = Path(folder).absolute()
        store = place if self.store is None else self.store.absolute()
        about = About(name or place.name, self.group, dict(parameters or {}), place, store)
        self._rows = Rows(self._spent(place) if resume else None)
        self._open = True
        for line in self.lines:
            line.begin(about, resume=resume)

    def _spent(self, folder: Path) -> dict[int, Spent]:
        """Return the ledgers of the levels that trackers were told of before: the x axis goes on from them."""
        found: dict[int, Spent] = {}
        for line in self.lines:
            told = Told.of(folder, line.name)
            told.identity()
            found |= {level: spent for (level, _), spent in told.rows.items()}
        return found

    def begin_run(self, run: RunDir) -> None:
        """Begin with a run folder, or go on with one: what its records hold and a tracker does not is told now."""
        try:
            levels, checks = run.levels(), run.checks()
            self.begin(run.trackers_dir, name=run.path.absolute().name, parameters=run.read_plan(), resume=True)
        except Exception as error:  # a damaged record is the run's to tell, and no reason to end it
            self._notice(f"the trackers were told nothing of this run: {error}")
            return
        for level in levels:
            for check in (check for check in checks if check.level == level.level):
                self.check(check)
            self.level(level)
        for check in (check for check in checks if check.level >= len(levels)):
            self.check(check)

    def check(self, check: Check) -> None:
        """Tell a check, as it is made; fits `on_check`."""
        self._tell("check", lambda: self._rows.check(check))

    def level(self, level: Level) -> None:
        """Tell a finished level."""
        self._tell("level", lambda: self._rows.level(level))

    def end(self, status: str = "finished", *, files: Sequence[Path] = (), page: Path | None = None) -> None:
        """End the run, and wait until the trackers have taken everything, or show no sign of life any more."""
        if not self._open:
            return
        self._open = False
        end = End(status, self._summary(), tuple(files), page)
        for line in self.lines:
            line.end(end)
        for line in self.lines:
            line.close()
        self._hear()

    def end_run(self, run: RunDir) -> None:
        """End with a run folder: with its records, and its report page for the trackers that keep pages."""
        if not self._open:
            return
        records = (run.plan_file, run.levels_file, run.checks_file, run.summary_file)
        try:
            status = run.read_summary().status
        except InputError:
            status = "failed"
        self.end(status, files=[file for file in records if file.is_file()], page=self._page(run))

    def _page(self, run: RunDir) -> Path | None:
        if not any(line.backend.keeps_pages and line.failed is None for line in self.lines):
            return None
        try:
            from incop import reports  # imports SciPy and matplotlib

            write_atomically(run.report_file, reports.html(reports.read([run.path])).encode("utf-8", "replace"))
        except Exception as error:
            self._notice(f"the trackers show no report page: {error}")
            return None
        return run.report_file

    def _tell(self, kind: str, make: Callable[[], Row]) -> None:
        if not self._open:
            return
        try:
            row = make()
            self._last[kind] = row
            for line in self.lines:
                line.row(row)
            self._hear()
        except Exception as error:  # whatever it is, the search goes on
            self._open = False
            self._notice(f"the trackers are told nothing more of this run: {type(error).__name__}: {error}")

    def _hear(self) -> None:
        for line in self.lines:
            if line.failed is not None and line.name not in self._heard:
                self._heard.add(line.name)
                self._notice(
                    f"the tracker {line.name!r} failed and is left alone for the rest of this run ({line.failed}); "
                    "the run and its records are not affected"
                )

    def _summary(self) -> dict[str, float]:
        spent = {
            name: value
            for row in self._last.values()
            for name, value in row.values.items()
            if name.startswith("spent/")
        }
        level = self._last.get("level")
        return spent | ({} if level is None else {k: v for k, v in level.values.items() if k.startswith("level/")})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = error is not None and isinstance(error, KeyboardInterrupt)
        self.end("finished" if error is None else "interrupted" if stopped else "failed")


def track(
    names: str | Sequence[str],
    folder: str | Path,
    *,
    name: str | None = None,
    group: str = "",
    parameters: Mapping[str, object] | None = None,
    resume: bool = False,
    on_notice: Callable[[str], None] | None = None,
) -> Tracker:
    """Show a search in trackers; use it in `with`, and hand its `check` to the search.

    Args:
        names: of the trackers, with commas: tensorboard, mlflow, wandb, trackio.
        folder: where they keep what they keep in files; it is made.
        name: of the run; by default the folder's.
        group: what it belongs to.
        parameters: what it is made of, to be shown with it.
        resume: go on with the run of this folder, for a search that is gone on with.
        on_notice: told in a sentence when a tracker has failed, once; by default the logger "incop" is.

    Returns:
        The hook: `check(check)` for `on_check`, `level(ticket.record)` for every ticket.

    Raises:
        InputError: a name is unknown.
        MissingExtra: a library is not installed.

    Example:
        >>> import torch
        >>> import incop
        >>> from incop.integrations import trackers
        >>> x, y = torch.randn(60, 8), torch.randint(2, (60,))
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> trainer = incop.Trainer((x, y), (x, y), epochs=2, batch_size=30)
        >>> with trackers.track("tensorboard", "tracked") as tracker:
        ...     for ticket in incop.search(net, trainer, levels=1, on_check=tracker.check):
        ...         tracker.level(ticket.record)
        >>> import os
        >>> sorted(os.listdir("tracked"))
        ['tensorboard', 'tensorboard.jsonl']
    """
    tracker = Tracker(names, group=group, on_notice=on_notice)
    tracker.begin(folder, name=name, parameters=parameters, resume=resume)
    return tracker
