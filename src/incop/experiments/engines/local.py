"""Runs on this machine: each a process of its own, so many at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from incop.experiments.engines.tasks import Ended, Task
from incop.experiments.engines.worker import perform

# A fork of a server that has imported torch once starts in milliseconds; importing it in every run takes seconds.
# Forking this process itself would carry over its threads' locks.
PROCESSES: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)


@dataclass(frozen=True, eq=False)
class _ProcessHandle:
    """A process, and the end of the pipe by which it says how its task ended."""

    process: BaseProcess
    word: Connection


class Local:
    """Processes of this machine; each has an equal share of the cores.

    Args:
        jobs: how many at once.
    """

    name = "local"
    retries = 2  # what killed a run, such as too little memory while others had much of it, need not do so again

    def __init__(self, jobs: int = 1) -> None:
        self.slots: int | None = jobs
        self.threads = max((os.cpu_count() or 1) // jobs, 1)

    def describe(self) -> str:
        """Return how many run at once."""
        several = f"{self.slots} at once" if self.slots != 1 else "one at a time"
        return f"processes of this machine, {several}, each with {self.threads} thread{'s' * (self.threads != 1)}"

    def open(self, whole: Path) -> None:
        """Say what the server of forks is to import."""
        if hasattr(PROCESSES, "set_forkserver_preload"):
            PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo"])

    def submit(self, tasks: Sequence[Task]) -> list[_ProcessHandle]:
        """Start a process for each."""
        handles = []
        for task in tasks:
            ours, theirs = PROCESSES.Pipe(duplex=False)
            process = PROCESSES.Process(target=_alone, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            handles.append(_ProcessHandle(process, ours))
        return handles

    def wait(self, handles: Collection[_ProcessHandle], seconds: float) -> dict[_ProcessHandle, Ended]:
        """Return how those ended whose process is gone."""
        if not handles:
            time.sleep(seconds)
            return {}
        gone = connection.wait([handle.process.sentinel for handle in handles], timeout=seconds)
        return {handle: _ending(handle, self.slots) for handle in handles if handle.process.sentinel in gone}

    def cancel(self, handles: Collection[_ProcessHandle], *, at_once: bool) -> None:
        """Send SIGTERM, at which a run writes its checkpoint, or SIGKILL."""
        for handle in handles:
            if at_once:
                handle.process.kill()
            else:
                handle.process.terminate()

    def close(self) -> None:
        """Nothing is left: every process was waited for."""


def _ending(handle: _ProcessHandle, slots: int | None) -> Ended:
    try:
        word = handle.word.recv() if handle.word.poll() else None
    except EOFError:
        word = None
    handle.process.join()
    status = handle.process.exitcode or 0
    handle.word.close()
    if status < 0:
        less = "" if slots == 1 else " (fewer --jobs need less)"
        why = f", as the system does when memory runs out{less}" if -status == signal.SIGKILL else ""
        return Ended("lost", f"its process was ended by {_name(-status)}{why}")
    return word or Ended("lost", f"its process ended with status {status}, without a word")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals between the first and the last, which alone have names
        return f"signal {number}"


def _alone(task: Task, tell: Connection) -> None:
    """Carry out a task in a process of its own, and tell how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle: it ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ended = perform(task)
    with contextlib.suppress(OSError):  # nobody is there any more to be told
        tell.send(ended)


def _end_with_parent() -> None:
    """Write a checkpoint and end when the comparison's own process is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
