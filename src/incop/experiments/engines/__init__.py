"""Engines: what carries out the runs of a comparison, on this machine or on many; no torch.

An engine is handed tasks and says how each ended. It decides nothing: whether a run is done is read from its folder, and what
is to be done about a lost worker is said by `experiments.dispatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from incop.errors import InputError, unknown
from incop.experiments.engines.resources import Resources
from incop.experiments.plan import Plan

__all__ = ["NAMES", "Ended", "Engine", "Task", "named"]

NAMES = ("local", "ray", "slurm")


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
        """Make ready to carry out tasks of the comparison in a folder.

        Raises:
            IncopError: the engine cannot be used.
        """

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Hand over tasks and return a handle for each.

        Raises:
            IncopError: the engine refuses them.
        """

    def wait(self, handles: Collection[Any], seconds: float) -> Mapping[Any, Ended]:
        """Return how tasks ended, as soon as one has; after so many seconds at most."""

    def cancel(self, handles: Collection[Any], *, at_once: bool) -> None:
        """Withdraw tasks that were not begun, and end the others: after a checkpoint, or at once."""

    def close(self) -> None:
        """Let go of everything; nothing is under way any more."""


def named(on: str = "local", *, jobs: int | None = None, resources: str = "") -> Engine:
    """Return the engine of that name, with its library imported and its resources understood; nothing is started yet.

    Args:
        on: local, ray, ray:ADDRESS or slurm.
        jobs: runs at once at most. Default: one on this machine, elsewhere as many as there is room for.
        resources: what each run is given, as in "cpus=2 gpus=1 time=60 partition=gpu".

    Raises:
        InputError: the engine is unknown, or cannot give such resources.
        MissingExtra: its library is not installed.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs} must be at least 1")
    name, colon, address = on.partition(":")
    if name not in NAMES:
        raise unknown("engine", on, ("local", "ray", "ray:ADDRESS", "slurm"))
    if colon and (name != "ray" or not address):
        raise InputError(f"--on {on!r} cannot be read: only ray takes an address, as in ray:10.0.0.5:6379")
    given = Resources.parse(resources, engine=name)
    # each imports what it needs, and only it
    if name == "ray":
        from incop.experiments.engines.ray_ import Ray

        return Ray(address or None, given, jobs)
    if name == "slurm":
        from incop.experiments.engines.slurm import Slurm

        return Slurm(given, jobs)
    from incop.experiments.engines.local import Local

    return Local(jobs or 1)
