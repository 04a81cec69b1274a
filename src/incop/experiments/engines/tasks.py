"""Tasks: one run as it is sent to an engine, how it ended, and what every engine can do; no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from incop.experiments.plan import Plan


@dataclass(frozen=True)
class Task:
    """One run, as it is sent to whoever carries it out.

    Args:
        plan: its resolved plan.
        folder: its run folder; one that holds a run is gone on with.
        whole: the comparison's folder.
        dense: a run folder whose dense level it shares, or None.
        follow: makes its listeners, within its own process: a function of a module.
        incop: what `worker.fingerprint()` says where the comparison was started; empty on the same machine.
        home: the working directory there, in which relative paths are looked up.
    """

    plan: Plan
    folder: Path
    whole: Path
    dense: Path | None = None
    follow: Callable[[], Any] | None = None
    incop: str = ""
    home: str = ""


@dataclass(frozen=True)
class Ended:
    """How a task ended, by the word of its worker or of the engine.

    Args:
        how: done; failed, for a reason that another try would meet again; interrupted, with a checkpoint; busy, because another
            process is at the run; lost, without a word.
        sentence: what went wrong.
    """

    how: Literal["done", "failed", "interrupted", "busy", "lost"]
    sentence: str = ""


class Engine(Protocol):
    """What carries out tasks. A handle is the engine's own name for a task that was handed to it."""

    name: str
    """As in `--on`."""

    slots: int | None
    """Tasks at once at most; None: as many as there are."""

    threads: int
    """Threads of a run whose plan does not say."""

    retries: int
    """How often a run is handed out again whose worker was lost."""

    def describe(self) -> str:
        """Return in words where runs go and what each is given."""

    def open(self, whole: Path) -> None:
        """Make ready to carry out tasks of the comparison in a folder."""

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Hand over tasks and return a handle for each."""

    def wait(self, handles: Collection[Any], seconds: float) -> Mapping[Any, Ended]:
        """Return how tasks ended, as soon as one has; after so many seconds at most."""

    def cancel(self, handles: Collection[Any], *, at_once: bool) -> None:
        """Withdraw tasks that were not begun, and end the others: after a checkpoint, or at once."""

    def close(self) -> None:
        """Let go of everything; nothing is under way any more."""
