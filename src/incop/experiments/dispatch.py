"""The dispatcher: which run is handed to an engine when, what is believed of how it ended, and who gets another try; no torch.

Whether a run is finished is read from its folder and from nowhere else. An engine's or a worker's word is what one goes by only
where the folder does not say.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from incop.errors import IncopError
from incop.experiments.engines import Ended, Engine, Task
from incop.experiments.signals import Interrupted, Signals
from incop.locks import holder
from incop.rundir import RunDir

KEPT = "finished: kept"
PAUSE = 0.2  # seconds in which a signal is seen
LOOK = 1.0  # seconds between two looks at the runs that are under way
VISIBLE = 90.0  # seconds in which what a worker on another host has written is seen here


class ScheduledRun(Protocol):
    """A run of a whole, made when its turn has come."""

    @property
    def name(self) -> str:
        """What it is called, for people."""

    def ready(self) -> bool:
        """Say whether everything it needs is there."""

    def task(self) -> Task:
        """Return what is to be carried out."""

    def ended(self, error: str | None) -> None:
        """Be told that it is done, or why not."""


@dataclass(eq=False)
class Try:
    """A run in an engine's hands, or on its way there.

    Args:
        run: the run.
        task: as it is sent.
        lost: how often its worker was lost.
        last: how it was interrupted the last time; the same again is no progress.
        until: when a run that is said to be done must have been seen to be so.
    """

    run: ScheduledRun
    task: Task
    lost: int = 0
    last: str = ""
    until: float | None = None


class Dispatcher:
    """Carries out runs on an engine, each once.

    Args:
        runs: in the order in which they are to be handed out; one that waits for others is passed over.
        engine: opened already.
        notice: told in a sentence what people should know at once, such as that a worker was lost.
        look: called every second with the tasks that are under way.
    """

    def __init__(
        self,
        runs: Iterable[ScheduledRun],
        engine: Engine,
        *,
        notice: Callable[[str], None] | None = None,
        look: Callable[[Sequence[tuple[str, Task]]], None] | None = None,
    ) -> None:
        self.engine = engine
        self.notice = notice or (lambda sentence: None)
        self.look = look
        self._waiting = list(runs)
        self._next: list[Try] = []
        self._running: dict[Any, Try] = {}
        self._elsewhere: list[Try] = []
        self._looked = 0.0

    def carry_out(self, signals: Signals) -> None:
        """Go on until every run has ended; at a signal, or an error, end what is under way with a checkpoint."""
        try:
            while self._waiting or self._next or self._running or self._elsewhere:
                if signals.noted is not None:
                    raise Interrupted(signals.sentence, signals.noted)
                self._turns()
                self._hand_out()
                for handle, ended in self.engine.wait(self._running, PAUSE).items():
                    self._decide(self._running.pop(handle), ended)
                self._look()
        except BaseException:
            self._withdraw()
            raise

    def _turns(self) -> None:
        """Make tasks of the runs whose turn has come; those that are done need none."""
        for run in list(self._waiting):
            if self.engine.slots is not None and len(self._running) + len(self._next) >= self.engine.slots:
                return
            if not run.ready():
                continue
            self._waiting.remove(run)
            try:
                task = run.task()
            except IncopError as error:
                run.ended(str(error))
                continue
            self._place(Try(run, task))

    def _place(self, one: Try) -> None:
        folder = one.task.folder
        if finished(folder):
            one.run.ended(None)
        elif (who := holder(folder)) is not None:
            self.notice(f"{one.run.name} is under way already ({who}): waiting for it")
            self._elsewhere.append(one)
        else:
            if folder.exists() and not RunDir(folder).plan_file.is_file():
                shutil.rmtree(folder)  # a run of this comparison that was killed before it began
            self._next.append(one)

    def _hand_out(self) -> None:
        most = None if self.engine.slots is None else max(self.engine.slots - len(self._running), 0)
        now, self._next = self._next[:most], self._next[len(self._next[:most]) :]
        if now:
            handles = self.engine.submit([one.task for one in now])
            self._running.update(zip(handles, now, strict=True))

    def _decide(self, one: Try, ended: Ended) -> None:
        again = f"{one.run.name}: {ended.sentence}"
        if finished(one.task.folder):
            one.run.ended(None)
        elif ended.how == "done":  # on storage that shows it a little later
            one.until = time.monotonic() + VISIBLE
            self._elsewhere.append(one)
        elif ended.how == "busy":
            self._elsewhere.append(one)
        elif ended.how == "failed" or not self.engine.retries:
            one.run.ended(ended.sentence)
        elif ended.how == "interrupted" and ended.sentence != one.last:
            one.last = ended.sentence
            self.notice(f"{again}; handed out again")
            self._next.append(one)
        elif one.lost < self.engine.retries:
            one.lost += 1
            self.notice(f"{again}; it goes on from its checkpoint (try {one.lost + 1} of {self.engine.retries + 1})")
            self._next.append(one)
        else:
            one.run.ended(
                f"{ended.sentence}, at the last of {self.engine.retries + 1} tries: the same command goes on with it"
            )

    def _look(self) -> None:
        """Look after runs in others' hands, and show those in ours."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        for one in list(self._elsewhere):
            if finished(one.task.folder):
                self._elsewhere.remove(one)
                one.run.ended(None)
            elif holder(one.task.folder) is None and (one.until is None or now > one.until):
                self._elsewhere.remove(one)
                if one.until is None:
                    self._next.append(one)
                else:
                    one.run.ended(
                        f"its worker says that it is done, but {str(one.task.folder)!r} is not finished: the folder must lie on "
                        "storage that all hosts share"
                    )
        if self.look is not None:
            self.look([(one.run.name, one.task) for one in (*self._running.values(), *self._elsewhere)])

    def _withdraw(self) -> None:
        """End what is under way: after a checkpoint, or, at a second signal, at once."""
        try:
            self.engine.cancel(list(self._running), at_once=False)
            while self._running:
                for handle in self.engine.wait(self._running, PAUSE):
                    one = self._running.pop(handle)
                    if finished(one.task.folder):
                        one.run.ended(None)
        except KeyboardInterrupt:
            self.engine.cancel(list(self._running), at_once=True)
            raise
        except IncopError:
            self._running.clear()  # an engine that is gone cannot be told


def outlook(runs: Iterable[ScheduledRun]) -> list[tuple[ScheduledRun, str]]:
    """Say of every run what would become of it now: kept, waited for, gone on with, or new. Nothing is done or written."""
    found = []
    for run in runs:
        state = "new"
        if run.ready():
            try:
                folder = run.task().folder
            except IncopError as error:
                state = f"cannot be: {error}"
            else:
                if finished(folder):
                    state = KEPT
                    run.ended(None)
                elif (who := holder(folder)) is not None:
                    state = f"under way: {who}"
                elif RunDir(folder).plan_file.is_file():
                    state = "goes on"
        found.append((run, state))
    return found


def finished(folder: Any) -> bool:
    """Say whether a run's folder says that it is finished."""
    try:
        return RunDir.open(folder).read_summary().status == "finished"
    except IncopError:
        return False
