"""Engines: what carries out the runs of a comparison, on this machine or on many; no torch.

An engine is handed tasks and says how each ended. It decides nothing: whether a run is done is read from its folder, and what
is to be done about a lost worker is said by `experiments.dispatch`.
"""

from __future__ import annotations

from incop.errors import InputError, unknown
from incop.experiments.engines.resources import Resources
from incop.experiments.engines.tasks import Ended, Engine, Task

__all__ = ["NAMES", "Ended", "Engine", "Task", "named"]

NAMES = ("local", "ray", "slurm")


def named(on: str = "local", *, jobs: int | None = None, resources: str = "") -> Engine:
    """Return the engine of that name, with its library imported and its resources understood; nothing is started yet.

    Args:
        on: local, ray, ray:ADDRESS or slurm.
        jobs: runs at once at most. Default: one on this machine, elsewhere as many as there is room for.
        resources: what each run is given, as in "cpus=2 gpus=1 time=60 partition=gpu".
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
