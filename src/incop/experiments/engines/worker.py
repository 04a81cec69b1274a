"""Workers: one task carried out in a process of its own, on whatever host that is; torch comes with the run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import traceback
from pathlib import Path

import incop
from incop.errors import IncopError, InputError
from incop.experiments.engines.tasks import Ended, Task
from incop.experiments.signals import Interrupted, Signals
from incop.locks import STALE, holder
from incop.rundir import RunDir

PATIENCE = STALE + 30.0  # seconds for a run's last process to let go of it, or to be taken for dead


def perform(task: Task) -> Ended:
    """Carry out a task, or go on with it, and say how it ended; what another process is at is left to it.

    Sentences of tasks that were sent to another process by an engine of many machines name the host.
    """
    where = f"on {platform.node()}: " if task.incop else ""
    # until the run listens to signals itself; submitit, for one, passes over a SIGTERM
    until = Signals("interrupted before it began", at_once=True) if task.incop else contextlib.nullcontext()
    try:
        with until:
            if task.incop:
                _settle_in(task)
            _carry_out(task)
    except Interrupted as error:
        return Ended("interrupted", f"{where}{error}")
    except IncopError as error:
        other = holder(task.folder)
        return Ended("failed" if other is None else "busy", f"{where}{error}")
    except BaseException as error:
        traceback.print_exc()
        return Ended("failed", f"{where}unexpected {type(error).__name__}: {error}")
    return Ended("done")


@functools.cache
def fingerprint() -> str:
    """Return the version of incop with a digest of its source: what two hosts must have in common."""
    home = Path(incop.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(home.rglob("*.py")):
        digest.update(f"{file.relative_to(home).as_posix()}\n".encode() + file.read_bytes())
    return f"{incop.__version__}+{digest.hexdigest()[:12]}"


def _settle_in(task: Task) -> None:
    """Take the place of the process that the comparison was started from."""
    # Two OpenMP threads that spin while another job holds the cores slow training; it must be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    mine = fingerprint()
    if mine != task.incop:
        raise InputError(
            f"this host has another incop ({mine} in {str(Path(incop.__file__).parent)!r}) than the comparison was started with "
            f"({task.incop}): install the same one here"
        )
    if not (task.whole / "comparison.toml").is_file():
        raise InputError(
            f"the comparison's folder {str(task.whole)!r} is not to be seen here: it must lie on storage that all hosts share, "
            "under the same path"
        )
    if Path(task.home).is_dir():
        os.chdir(task.home)


def _carry_out(task: Task) -> None:
    from incop.experiments import runs  # imports torch
    from incop.experiments.preparation import resolve

    progress = runs.Progress() if task.follow is None else task.follow()
    if RunDir(task.folder).plan_file.is_file():
        runs.resume(
            task.folder,
            progress,
            data_dir=task.plan.data_dir,
            dense=task.dense,
            patience=PATIENCE,
            run_code=bool(task.plan.run_code),
        )
    else:
        runs.execute(resolve(task.plan), task.folder, progress, dense=task.dense)
