"""What checkpoints cost: the seconds that a run spends on them, per second of the run.

A whole run of `lth-rate` for each network and each way of saying how often. Counted is all that saving takes: asking after every
step whether one is due, taking the state, writing it, bringing it to the disk and reading it back.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch
from side_by_side import arguments, write

from incop.experiments import runs
from incop.experiments.parts import resolve
from incop.experiments.plan import Plan
from incop.experiments.saving import Saving

NAME = "checkpoint-cost"
GOAL = 0.02
CASES = [
    {"model": "lenet-300-100", "data": "mnist", "max_epochs": 20.0, "levels": 2},
    {"model": "resnet-20", "data": "cifar10", "max_epochs": 10.0, "levels": 2, "limit": 2000},
]
WAYS = {"by default (60 s)": None, "every 10 s": "10s"}


class Costs:
    """Stands for `Saving.__call__` and notes what each call took, and which of them wrote."""

    def __init__(self) -> None:
        self.original, self.all, self.written = Saving.__call__, 0.0, []

    def __call__(self, saving: Saving, take) -> None:
        """Save as ever, if it is due."""
        last, started = saving._last, time.perf_counter()
        try:
            self.original(saving, take)
        finally:
            took = time.perf_counter() - started
            self.all += took
            if saving._last != last:
                self.written.append(took)


def measured(case: dict, every: str | None) -> dict[str, object]:
    plan = resolve(Plan(method="lth-rate", device="cpu", threads=1, checkpoint_every=every, **case))
    costs = Costs()
    Saving.__call__ = lambda saving, take: costs(saving, take)
    try:
        with tempfile.TemporaryDirectory() as home:
            started = time.perf_counter()
            runs.execute(plan, Path(home) / "R")
            whole = time.perf_counter() - started
    finally:
        Saving.__call__ = costs.original
    each = costs.written or [0.0]
    low, high = min(each), max(each)
    return {
        "n": len(costs.written),
        "median": costs.all / whole,
        "q1": low * len(costs.written) / whole,
        "q3": high * len(costs.written) / whole,
        "ms": 1000 * statistics.median(each),
        "plain_ms": 1000 * whole,
    }


def main() -> None:
    options = arguments(NAME, __doc__)
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        for what, every in WAYS.items():
            rows.append({"model": case["model"], "data": case["data"], "what": what, **measured(case, every)})
            print(rows[-1], flush=True)
    title = (
        "Seconds spent on checkpoints per second of the whole run. n: checkpoints written; ms: one of them (the median); "
        "plain ms: the whole run; quartiles: the ratio if each had taken as long as the shortest and the longest."
    )
    write(options, NAME, title, GOAL, rows)


if __name__ == "__main__":
    main()
