"""What checkpoints cost: the seconds that a run spends on them, per second of the run.

A whole run of `lth-rate` for each network and each way of saying how often. Counted is all that saving takes: asking after every
step whether one is due, taking the state, writing it, bringing it to the disk and reading it back.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import numpy as np
import torch
from side_by_side import machine

import incop
from incop.experiments import runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.experiments.run_checkpoints import CheckpointWriter

NAME = "checkpoint-cost"
GOAL = 0.02
CASES = [
    {"model": "lenet-300-100", "data": "mnist", "max_epochs": 20.0, "levels": 2},
    {"model": "resnet-20", "data": "cifar10", "max_epochs": 10.0, "levels": 2, "limit": 2000},
]
WAYS = {"by default (60 s)": None, "every 10 s": "10s"}


class Costs:
    """Stands for `CheckpointWriter.__call__` and notes what each call took, and which of them wrote."""

    def __init__(self) -> None:
        self.original, self.all, self.written = CheckpointWriter.__call__, 0.0, []

    def __call__(self, saving: CheckpointWriter, take) -> None:
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
    CheckpointWriter.__call__ = lambda saving, take: costs(saving, take)
    try:
        with tempfile.TemporaryDirectory() as home:
            started = time.perf_counter()
            runs.execute(plan, Path(home) / "R")
            whole = time.perf_counter() - started
    finally:
        CheckpointWriter.__call__ = costs.original
    return {
        "checkpoints": len(costs.written),
        "seconds_each": statistics.median(costs.written) if costs.written else 0.0,
        "seconds_saving": costs.all,
        "seconds": whole,
        "share": costs.all / whole,
        "holds": costs.all / whole <= GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=float, default=1.0, help="of the epochs as written in the script")
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-{NAME}.json"
    parser.add_argument("--out", type=Path, default=dated, help="the .json to write; the .md is written beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for whole in CASES:
        case = {**whole, "max_epochs": whole["max_epochs"] * options.part}
        for what, every in WAYS.items():
            busy = os.getloadavg()[0]
            rows.append({**case, "what": what, **measured(case, every), "load": busy})
            print(rows[-1], flush=True)
    versions = {"incop": incop.__version__, "torch": torch.__version__, "numpy": np.__version__}
    result = {"benchmark": NAME, "date": str(datetime.date.today()), "goal": GOAL, "machine": machine()}
    result |= {"versions": versions, "rows": rows}
    result["command"] = "python benchmarks/checkpoint_cost.py" + (
        "" if options.part == 1 else f" --part {options.part:g}"
    )
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text := markdown(result), encoding="utf-8")
    print(text)


def markdown(result: dict) -> str:
    m, rows = result["machine"], result["rows"]
    lines = [
        f"# {NAME}, {result['date']}",
        "",
        f"Seconds spent on checkpoints per second of the whole run. Goal: at most {GOAL:.0%}; "
        f"{'it holds' if all(row['holds'] for row in rows) else 'MISSED'}.",
        "",
        f"- machine: {m['cpu']} ({m['instructions']}), {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; one thread used",
        "- versions: " + ", ".join(f"{what} {version}" for what, version in result["versions"].items()),
        f"- command: `{result['command']}`",
        "- one run a row, timed by the wall clock; the machine had other work, of which the load tells (processes that want a "
        "core, when the run began): both parts of the ratio wait for it",
        "- counted is all that saving takes: asking after every step, taking the state, writing, syncing, reading back",
        "",
        "| network | data | checkpoints | written | seconds each | saving, s | run, s | share | load | goal holds |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
        *(
            f"| {r['model']} | {r['data']} | {r['what']} | {r['checkpoints']} | {r['seconds_each']:.3f} | "
            f"{r['seconds_saving']:.2f} | {r['seconds']:.0f} | {r['share']:.2%} | {r['load']:.0f} | "
            f"{'yes' if r['holds'] else '**no**'} |"
            for r in rows
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
