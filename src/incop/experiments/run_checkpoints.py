"""Checkpoints of runs: when one is due, what is written with it, and whether a run can be resumed exactly."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import incop
from incop.checkpoint_files import Checkpoint, Checkpoints
from incop.distributed import ALONE, Ranks
from incop.errors import InputError
from incop.experiments import models
from incop.experiments.plan import Plan
from incop.experiments.plan_words import ResolvedPlan
from incop.experiments.preparation import PreparedRun, resolve
from incop.experiments.run_levels import plan_of
from incop.experiments.signals import Interrupted, Signals
from incop.flat_state import State
from incop.rundir import RunDir

SECONDS = 60.0  # between two checkpoints, by default
MAX_THREADS = 1024  # as in a plan
ASK_EVERY = 0.2  # seconds between two times that processes ask each other whether a checkpoint is due
SHARE = 0.02  # of the time that writing them may take then: the larger the network, the further apart they are
EXACT = {  # kernels differ between these, and with them the last bits of every sum
    "torch": "torch {}",
    "device": "the device {!r}",
    "instructions": "the processor's instructions {}",
    "model_code": "the model's code {}",
}
REPORTED = ("incop", "numpy", "python", "platform", "model_library")  # no result depends on these, or is not known to


@dataclass(frozen=True)
class CheckpointInterval:
    """How often a checkpoint is written.

    Args:
        seconds: between two, or None.
        steps: optimizer steps between two, or None. With neither it is 60 seconds, more where writing takes 2 % of that.
    """

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str | None) -> CheckpointInterval:
        """Read "60s" (seconds), "500steps", or None."""
        if text is None:
            return cls()
        if (match := re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*s(?:ec(?:onds?)?)?\s*", text)) and float(match[1]) > 0:
            return cls(seconds=float(match[1]))
        if (match := re.fullmatch(r"\s*(\d{1,15})\s*steps?\s*", text)) and int(match[1]) > 0:
            return cls(steps=int(match[1]))
        raise InputError(f"--checkpoint-every {text!r} cannot be read: give seconds (60s) or steps (500steps)")

    def now(self, *, seconds: float, steps: int, took: float) -> bool:
        """Say whether one is due, so long after the last, whose writing took so many seconds."""
        if self.steps is not None:
            return steps >= self.steps
        return seconds >= (self.seconds if self.seconds is not None else max(SECONDS, took / SHARE))


class CheckpointWriter:
    """Called by a search wherever it could be resumed from, writes its checkpoint when one is due or a signal has come.

    Args:
        run: the run's folder.
        due: how often.
        files: its checkpoints.
        signals: the signals that have come.
        environment: in which the run's numbers are made.
        together: the processes of the run, of which the first writes.
    """

    def __init__(
        self,
        run: RunDir,
        due: CheckpointInterval,
        files: Checkpoints,
        signals: Signals,
        environment: Mapping[str, Any],
        together: Ranks = ALONE,
    ) -> None:
        self.run = run
        self.due = due
        self.files = files
        self.signals = signals
        self.environment = environment
        self.together = together
        self._unasked, self._pause, self._asked = 0, 1, time.monotonic()
        self.check: Callable[[], None] = lambda: None  # that the folder is still ours
        self._steps = 0
        self._took = 0.0
        self._last = time.monotonic()

    def __call__(self, take: Callable[[], State]) -> None:
        """Write a checkpoint if one is due."""
        if self.together.one:
            self.check()
        self._steps += 1
        started = time.monotonic()
        noted, due = self._now(started)
        if noted is None and not due:
            return
        state = take()

        def write() -> None:
            self.check()  # so that all processes are told when it fails
            self.files.write(state, about={"records": self.run.synced(), "environment": dict(self.environment)})

        self.together.once(write)
        self._last, self._steps = time.monotonic(), 0
        self._took = self._last - started
        if noted is not None:
            raise Interrupted(
                f"interrupted in level {state['level']} after {state['watch/epoch']:.4g} of its epochs: "
                f"{self.run.resume_command} goes on from there",
                noted,
            )

    def _now(self, at: float) -> tuple[int | None, bool]:
        """Return the signal that has come and whether a checkpoint is due.

        Several processes agree on both: their clocks differ, and a signal may reach one of them. They ask each other some times a
        second and not at every step, whose duration they know from the last time.
        """
        due = self.due.now(seconds=at - self._last, steps=self._steps, took=self._took)
        if self.together.one:
            return self.signals.noted, due
        self._unasked += 1
        if self._unasked < self._pause and not (due and self.due.steps is not None):
            return None, False
        found = self.together.all((self.signals.noted, due, (at - self._asked) / self._unasked))
        self._pause = max(1, min(1000, round(ASK_EVERY / max(found[0][2], 1e-9))))
        self._unasked, self._asked = 0, at
        return next((signal for signal, _, _ in found if signal is not None), None), found[0][1]


def environment(prepared: PreparedRun) -> dict[str, Any]:
    """Return the versions, machine, threads, time and data that a run's numbers were made with."""
    device = next(prepared.model.parameters()).device
    return {
        "incop": incop.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else (platform.processor() or platform.machine()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data_fingerprint": prepared.data.fingerprint,
        "model_code": prepared.origin if models.code_of(prepared.plan.model) else None,
        "model_library": None if models.code_of(prepared.plan.model) else prepared.origin,
        "arguments": shlex.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }


@dataclass(frozen=True)
class UnfinishedRun:
    """What a run that has not finished was left with: its plan, its environment and its newest checkpoint."""

    resolved: ResolvedPlan
    environment: Mapping[str, Any]
    checkpoint: Checkpoint | None
    damaged: tuple[str, ...]

    @classmethod
    def of(cls, run: RunDir, given: Plan) -> UnfinishedRun | None:
        """Return what a run was left with, None of one that is finished; given keys go before its own."""
        files = Checkpoints(run.checkpoint_dir)
        then: Any = {}
        if run.summary_file.exists():
            summary = run.read_summary()
            if summary.status == "finished":
                if summary.chosen is not None and run.levels() != list(summary.levels):
                    run.rewrite_levels(summary.levels)  # killed before it did so itself, as with what follows
                files.remove()
                run.sweep()
                return None
            then = summary.environment
        resolved = resolve(given.over(plan_of(run)))
        found, damaged = files.newest()
        if found is not None:
            # the weights it began with need not be there any more
            resolved = dataclasses.replace(resolved, plan=dataclasses.replace(resolved.plan, weights=None))
            then = found.about.get("environment")
        if not isinstance(then, Mapping):
            then = {"threads": None}
        check_unedited(run, found, then)
        return cls(resolved, then, found, damaged)

    @property
    def state(self) -> State | None:
        """Where the search goes on; None: at its beginning."""
        return None if self.checkpoint is None else self.checkpoint.state

    @property
    def at(self) -> str:
        """The same in words."""
        if self.state is None:
            return "the beginning"
        return f"level {self.state['level']}, epoch {self.state['watch/epoch']:.4g}"

    def cut_back(self, run: RunDir) -> None:
        """Take out what was recorded after the checkpoint."""
        run.cut_back({} if self.checkpoint is None else self.checkpoint.about["records"])
        run.sweep()


def check_unedited(run: RunDir, found: Checkpoint | None, then: Mapping[str, Any]) -> None:
    """Refuse what a checkpoint or a summary says of a run, where it was edited: its hash tells of damage only."""
    threads, dense, resumed = then.get("threads", 1), then.get("dense", ""), then.get("resumed", [])
    right = type(threads) is int and 1 <= threads <= MAX_THREADS and isinstance(dense, str) and dense.isprintable()
    right = right and isinstance(resumed, list)
    if found is not None:
        sizes = found.about.get("records")
        right = right and isinstance(sizes, dict) and all(type(n) is int and n >= 0 for n in sizes.values())
        right = right and type(found.state.get("level")) is int
        right = right and type(found.state.get("watch/epoch")) in (int, float)
    if not right:
        raise InputError(
            f"the run {str(run.path)!r} cannot be resumed: its checkpoint or summary.json was edited; start anew from its "
            "plan.toml"
        )


def check_same_data(run: RunDir, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run on other data."""
    before, after = then.get("data_fingerprint"), now["data_fingerprint"]
    if before is not None and before != after:
        raise InputError(
            f"the data of {str(run.path)!r} have changed since it began (fingerprint {str(before)[:16]}, now {str(after)[:16]}): "
            "put the old files back, or name their folder with --data-dir; on other data start a new run"
        )


def check_exact(run: RunDir, then: Mapping[str, Any], now: Mapping[str, Any], *, inexact: bool) -> list[str]:
    """Return a sentence on everything that is not as it was when the run began.

    Args:
        run: the run.
        then: its environment.
        now: this one.
        inexact: go on also where results cannot be those of a run that was never cut off.
    """
    other = {key: (then[key], now[key]) for key in (*EXACT, *REPORTED) if then.get(key, now[key]) != now[key]}
    matters = [f"{form.format(other[key][0])}, now {other[key][1]}" for key, form in EXACT.items() if key in other]
    if matters and not inexact:
        raise InputError(
            f"the run {str(run.path)!r} was begun with {' and '.join(matters)}: its results would not be exactly those of an "
            "uninterrupted run; resume it where it began, or give --inexact to go on all the same"
        )
    return [f"{key} was {before} when the run began and is {after} now" for key, (before, after) in other.items()]
