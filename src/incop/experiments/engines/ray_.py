"""Runs on a Ray cluster: each a task of Ray core, in a process that ends with it. Only this file knows Ray."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from incop.errors import IncopError, MissingExtra
from incop.experiments.engines.resources import Resources
from incop.experiments.engines.tasks import Ended, Task
from incop.experiments.engines.worker import perform

GIB = 2**30


class Ray:
    """A Ray cluster: the one at an address, else the one Ray finds (`RAY_ADDRESS`, or running on this machine), else a new one.

    Args:
        address: of the cluster's head, or None.
        resources: of each run.
        jobs: how many at once at most; None: as many as the cluster has room for.
    """

    name = "ray"
    retries = 2

    def __init__(self, address: str | None, resources: Resources, jobs: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here tells nobody of it
        # with no GPU asked for, a run sees none: what Ray does now, said so that it does not warn that this will change
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise MissingExtra("ray", "ray", "--on ray") from error
        self.address = address
        self.resources = resources
        self.slots = jobs
        self.threads = resources.cpus
        self._perform: Any = None

    def describe(self) -> str:
        """Return which cluster, and what each run is given."""
        most = "" if self.slots is None else f", at most {self.slots} at once"
        found = os.environ.get("RAY_ADDRESS") or "the one running on this machine, else a new one"
        return f"the Ray cluster at {self.address or found}{most}, each with {self.resources.told(engine='ray')}"

    def open(self, whole: Path) -> None:
        """Connect to the cluster."""
        try:
            self._ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except Exception as error:  # of many kinds; each says in its first line what is wrong
            raise IncopError(
                f"the Ray cluster at {self.address or 'this machine'} cannot be used ({_first(error)}): start it with "
                "`ray start --head`, or give the address that this prints as --on ray:ADDRESS"
            ) from error
        given = self.resources
        memory = None if given.mem is None else round(given.mem * GIB)
        # a process for each run, as everywhere; and Ray does not hand a lost one out again by itself: a run goes on from its
        # checkpoint only where nobody else is at it
        options = {"num_cpus": given.cpus, "num_gpus": given.gpus, "memory": memory, "max_retries": 0, "max_calls": 1}
        self._perform = self._ray.remote(**options)(perform)

    def submit(self, tasks: Sequence[Task]) -> list[Any]:
        """Hand each to the cluster, which waits for room."""
        with self._there():
            return [self._perform.remote(task) for task in tasks]

    def wait(self, handles: Collection[Any], seconds: float) -> dict[Any, Ended]:
        """Ask Ray which have ended."""
        if not handles:
            time.sleep(seconds)
            return {}
        with self._there():
            ready, _ = self._ray.wait(list(handles), num_returns=1, timeout=seconds, fetch_local=False)
            return {handle: self._ending(handle) for handle in ready}

    def cancel(self, handles: Collection[Any], *, at_once: bool) -> None:
        """Cancel; to a run that is under way this is a ctrl-C, at which it writes its checkpoint."""
        with self._there():
            for handle in handles:
                self._ray.cancel(handle, force=at_once)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds
            raise IncopError(
                f"the Ray cluster is gone ({_first(error)}): the same command goes on when it is there again"
            ) from error

    def _ending(self, handle: Any) -> Ended:
        errors = self._ray.exceptions
        try:
            ended: Ended = self._ray.get(handle)
        except errors.TaskCancelledError:
            return Ended("interrupted", "it was withdrawn")
        except errors.RayError as error:
            return Ended("lost", f"its worker is gone ({_first(error)})")
        return ended


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')}"
