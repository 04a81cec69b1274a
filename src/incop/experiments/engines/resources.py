"""What a run is given by an engine: `--resources "cpus=2 gpus=1 time=60 partition=gpu"`, read and checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from incop.errors import InputError, unknown
from incop.records import shortest

TAKES = {  # what each engine can give
    "local": (),
    "ray": ("cpus", "gpus", "mem"),
    "slurm": ("cpus", "gpus", "mem", "time", "partition", "account", "qos", "constraint"),
}
MAX = {"cpus": 1024.0, "gpus": 64.0, "mem": 65536.0, "time": 525_600.0}
MIN = {"cpus": 1.0, "gpus": 0.0, "mem": 0.1, "time": 1.0}
WHOLE = ("cpus", "gpus", "time")  # of Ray, a run may have a part of a GPU
WORD = re.compile(r"[\w.,:&|*()\[\]+@%/-]+")  # of a partition, an account, a constraint such as gpu&a100


@dataclass(frozen=True)
class Resources:
    """What one run is given.

    Args:
        cpus: cores, at least 1; also the threads of a run whose plan does not say.
        gpus: GPUs; of Ray also a part of one.
        mem: memory in GB; None leaves it to the engine.
        time: minutes after which Slurm ends a job; the run writes its checkpoint before and is handed in again.
        partition: of Slurm.
        account: of Slurm.
        qos: of Slurm.
        constraint: of Slurm: what a node must have.
    """

    cpus: int = 1
    gpus: float = 0.0
    mem: float | None = None
    time: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None

    @classmethod
    def parse(cls, text: str, *, engine: str) -> Resources:
        """Read "key=value key=value"."""
        known = TAKES[engine]
        if text.strip() and not known:
            raise InputError(
                f"--resources {text!r}: runs on this machine share its cores evenly; say how many at once with --jobs, or how "
                "many threads each may use with --threads"
            )
        problems, told = [], {}
        for part in text.split():
            key, equals, value = part.partition("=")
            if not equals or not value:
                problems.append(f"{part!r} is no key=value")
            elif key not in known:
                problems.append(str(unknown(f"resource of --on {engine}", key, known)))
            elif key in told:
                problems.append(f"{key} is said twice")
            else:
                try:
                    told[key] = _read(key, value, engine)
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            raise InputError(f"--resources {text!r}: {'; '.join(problems)}")
        return cls(**told)  # type: ignore[arg-type]  # of each key's own type, as `_read` makes it

    def told(self, *, engine: str) -> str:
        """Return in words what an engine is asked for."""
        pairs = ((name, getattr(self, name)) for name in TAKES[engine])
        return " ".join(
            f"{name}={shortest(value) if isinstance(value, float) else value}"
            for name, value in pairs
            if value is not None and not (name == "gpus" and not value)
        )


def _read(key: str, value: str, engine: str) -> int | float | str:
    if key not in MAX:
        if not WORD.fullmatch(value):
            raise ValueError(f"{key}={value!r} is no name")
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    whole = key in WHOLE and not (engine == "ray" and key == "gpus")
    if not MIN[key] <= number <= MAX[key] or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{key}={value} must be {kind} from {shortest(MIN[key])} to {shortest(MAX[key])}")
    return int(number) if key in ("cpus", "time") else number
