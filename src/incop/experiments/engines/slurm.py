"""Runs on a Slurm cluster, handed in by submitit: each a job of its own. Only this file knows either.

A job's word is a file. Slurm says by `sacct` alone how a job ended, and not every cluster keeps that account; so a worker holds a
lock in the folder of its task while it lives and writes there how it ended, and `squeue` is asked only about jobs that have not
begun. A lock that no one holds any more, with no word beside it, is a worker that was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incop.errors import IncopError, InputError, MissingExtra
from incop.experiments.engines.resources import Resources
from incop.experiments.engines.tasks import Ended, Task
from incop.experiments.engines.worker import perform
from incop.locks import LOCK, Lock, holder
from incop.rundir import inside, read_json, write_atomically

ENGINE = "engine"  # folder in the comparison's folder
WORD = "ended.json"  # how a task ended
LOOK = 0.5  # seconds between two looks at the tasks' folders
MAX_LOOKS = 200  # folders a second that are looked at: they lie on storage that others use
MAX_ARRAY = 1000  # tasks of an array, of which Slurm takes as many where nothing else is set
QUEUE = 5.0  # seconds between two questions to Slurm, which others ask too
GRACE = 30.0  # seconds in which what a worker wrote on another host becomes visible
WARNING = 90  # seconds before its time is over that a run is told to write a checkpoint; less where the time is short
COMMANDS = ("sbatch", "srun", "squeue", "scancel")


@dataclass(frozen=True)
class _SlurmHandle:
    """A job and the folder of its task."""

    job: str
    desk: Path
    log: Path
    since: float


class Slurm:
    """The Slurm cluster whose commands this host has.

    Args:
        resources: of each run.
        jobs: how many at once at most; None: all at once, so that Slurm decides.
    """

    name = "slurm"
    retries = 2

    def __init__(self, resources: Resources, jobs: int | None) -> None:
        try:
            self._submitit: Any = importlib.import_module("submitit")
        except ModuleNotFoundError as error:
            raise MissingExtra("submitit", "slurm", "--on slurm") from error
        self.resources = resources
        self.slots = jobs
        self.threads = resources.cpus
        self._name = ""
        self._room: Path | None = None  # a folder of this start alone, and nothing before it is made
        self._trouble = False
        self._withdrawn = False
        self._looked = self._asked = 0.0
        self._queue: set[str] | None = None

    def describe(self) -> str:
        """Return what each job is given."""
        most = "" if self.slots is None else f", at most {self.slots} at once"
        return f"jobs of Slurm{most}, each with {self.resources.told(engine='slurm')}"

    def open(self, whole: Path) -> None:
        """Make a folder for what jobs need and say, and withdraw what a comparison that was killed left in the queue."""
        self._name = f"incop-{hashlib.sha256(str(whole).encode()).hexdigest()[:10]}"
        self._find()
        room = inside(whole, whole / ENGINE) / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        # submitit pickles what a job calls: nobody else may put anything there
        room.mkdir(mode=0o700, parents=True)
        self._room = room
        _scancel("--state=PENDING", f"--name={self._name}", f"--user={os.getuid()}")

    def submit(self, tasks: Sequence[Task]) -> list[_SlurmHandle]:
        """Hand them in, as an array where there are several."""
        self._queue = None
        return [handle for at in range(0, len(tasks), MAX_ARRAY) for handle in self._array(tasks[at : at + MAX_ARRAY])]

    def wait(self, handles: Collection[_SlurmHandle], seconds: float) -> dict[_SlurmHandle, Ended]:
        """Look at the tasks' folders until one has ended."""
        until = time.monotonic() + seconds
        between = max(LOOK, len(handles) / MAX_LOOKS)
        while (now := time.monotonic()) < self._looked + between:
            if now >= until:
                return {}
            time.sleep(min(until, self._looked + between) - now)
        self._looked = now
        found = {handle: ended for handle in handles if (ended := self._ending(handle)) is not None}
        self._trouble = self._trouble or any(ended.how in ("failed", "lost") for ended in found.values())
        return found

    def cancel(self, handles: Collection[_SlurmHandle], *, at_once: bool) -> None:
        """Withdraw the jobs that wait, and signal the others."""
        jobs = [handle.job for handle in handles]
        if not jobs:
            return
        self._withdrawn, self._queue = True, None
        _scancel("--state=PENDING", *jobs)
        _scancel(*(() if at_once else ("--signal=TERM",)), *jobs)

    def close(self) -> None:
        """Remove what jobs needed; what they printed is kept where one failed."""
        if self._room is None:  # it was never opened
            return
        if not self._trouble:
            shutil.rmtree(self._room, ignore_errors=True)
        for file in self._room.glob("jobs/*.pkl"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what an earlier start kept is there
            self._room.parent.rmdir()
        self._room = None

    def _find(self) -> None:
        missing = [name for name in COMMANDS if shutil.which(name) is None]
        if missing:
            raise InputError(f"--on slurm: this host has no {', '.join(missing)}: start it on a host of the cluster")

    def _executor(self, several: int) -> Any:
        assert self._room is not None, "it must be opened first"
        given = self.resources
        executor = self._submitit.SlurmExecutor(folder=self._room / "jobs")
        said = {
            "job_name": self._name,
            "time": given.time,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": given.cpus,
            "gpus_per_node": int(given.gpus) or None,
            "mem": None if given.mem is None else f"{round(given.mem * 1024)}MB",
            "partition": given.partition,
            "account": given.account,
            "qos": given.qos,
            "constraint": given.constraint,
            "signal_delay_s": min(WARNING, given.time * 15),
            "array_parallelism": several,  # the limit is kept by handing in no more: it holds over all arrays
            "additional_parameters": {"no-requeue": True},  # a run is handed in again only when nobody else is at it
        }
        executor.update_parameters(**{key: value for key, value in said.items() if value is not None})
        return executor

    def _array(self, tasks: Sequence[Task]) -> list[_SlurmHandle]:
        desks = [self._desk() for _ in tasks]
        executor = self._executor(len(tasks))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises as well
                if len(tasks) == 1:
                    jobs = [executor.submit(at_a_desk, tasks[0], desks[0])]
                else:
                    with executor.batch():
                        jobs = [executor.submit(at_a_desk, task, desk) for task, desk in zip(tasks, desks, strict=True)]
        except Exception as error:  # submitit raises several kinds, with all that sbatch said
            said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            why = next((line for line in reversed(said) if line.startswith("sbatch: error")), said[-1])
            raise IncopError(
                f"Slurm does not take the runs ({why.removeprefix('sbatch: error: ')}): see to --resources"
            ) from error
        now = time.monotonic()
        return [_SlurmHandle(job.job_id, desk, job.paths.stderr, now) for job, desk in zip(jobs, desks, strict=True)]

    def _desk(self) -> Path:
        assert self._room is not None, "it must be opened first"
        desk = self._room / f"task-{secrets.token_hex(4)}"
        desk.mkdir()
        return desk

    def _ending(self, handle: _SlurmHandle) -> Ended | None:
        if (word := _word(handle.desk)) is not None:
            return word
        if (handle.desk / LOCK).exists():
            if holder(handle.desk) is not None:
                return None
            return _word(handle.desk) or Ended("lost", f"its worker, job {handle.job}, is gone without a word")
        if self._queued(handle):
            return None
        os.listdir(handle.desk)  # a network file system may remember that there was nothing
        if (handle.desk / LOCK).exists() or _word(handle.desk) is not None:
            return None
        return Ended("lost", f"its job {handle.job} ended before it began{_last_line(handle.log)}")

    def _queued(self, handle: _SlurmHandle) -> bool:
        """Say whether a job that has not begun may still do so."""
        now = time.monotonic()
        if now - handle.since < GRACE and not self._withdrawn:
            return True
        if self._queue is None or now - self._asked > (LOOK if self._withdrawn else QUEUE):
            self._queue, self._asked = _squeue(), now
        return self._queue is None or handle.job in self._queue


def at_a_desk(task: Task, desk: Path) -> None:
    """Carry out a task in a job, and write down how it ended; when the job's time is nearly over, after a checkpoint."""
    signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    with Lock(desk):
        ended = perform(task)
        write_atomically(desk / WORD, json.dumps(dataclasses.asdict(ended)).encode())


def _word(desk: Path) -> Ended | None:
    if not (desk / WORD).exists():
        return None
    return Ended(**read_json(desk / WORD))


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 4096, 0))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return f", and there is no {log}: is its folder seen by every host?"
    return f": {lines[-1].strip()} ({log})" if lines else f" ({log})"


def _squeue() -> set[str] | None:
    """Return the jobs of this user that wait or run, or None when Slurm does not say."""
    words = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, start_new_session=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(said.stdout.split())


def _scancel(*words: str) -> None:
    """End jobs; of those that have ended already it may complain, which says nothing."""
    with_what = ["scancel", "--quiet", *words]
    try:
        subprocess.run(with_what, capture_output=True, timeout=60, check=False, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise IncopError(f"scancel does not answer ({error}): see with squeue what still runs") from error
