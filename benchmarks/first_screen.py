"""The README's measured line: digits, LeNet-300-100, 95 % sparsity in 8 levels; rules against full retraining.

python benchmarks/first_screen.py [--seeds 5] [--out benchmarks/results/DATE-first-screen]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import incop
from incop.experiments import runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve

BASE = Plan(data="digits", model="lenet-300-100", method="incop-if", sparsity=0.95, levels=8, threads=1)
ROWS = {
    "InCoP-IF as published, rewind to init": BASE,
    "InCoP-IF's rule, rewind rate": Plan(rewind="rate").over(BASE),
    "blind: 2 epochs per level, rewind rate": Plan(rewind="rate", rule="after 2 epochs", meter="none").over(BASE),
    "every level in full, rewind to init": Plan(rule="none", meter="none").over(BASE),
    "every level in full, rewind rate": Plan(rewind="rate", rule="none", meter="none").over(BASE),
}


def measured(plan: Plan, seed: int, folder: Path) -> dict[str, float]:
    summary = runs.execute(resolve(Plan(seed=seed).over(plan)), folder).read_summary()
    pruned = summary.levels[1:]
    return {
        "sparsity": pruned[-1].sparsity,
        "dense": summary.levels[0].test_accuracy,
        "ticket": pruned[-1].test_accuracy,
        "epochs": sum(level.epochs for level in pruned),
        "seconds": sum(level.seconds + level.probe_seconds for level in pruned),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", default=f"benchmarks/results/{time.strftime('%Y-%m-%d')}-first-screen")
    told = options.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in ROWS.items():
            rows[name] = [measured(plan, seed, Path(folder) / f"{len(rows)}-{seed}") for seed in range(told.seeds)]
    lines = [
        "| | epochs after the dense network | test accuracy, dense | ticket | difference, points |",
        "|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        gaps = [100 * (row["ticket"] - row["dense"]) for row in found]
        parts = [f"{mean(row[key] for row in found):.4f}" for key in ("dense", "ticket")]
        epochs = f"{mean(row['epochs'] for row in found):.1f}"
        lines.append(f"| {name} | {epochs} | {parts[0]} | {parts[1]} | {mean(gaps):+.2f} ± {stdev(gaps):.2f} |")
    environment = {
        "incop": incop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "command": f"python benchmarks/first_screen.py --seeds {told.seeds}",
    }
    note = f"digits, LeNet-300-100, 95 % of the weights pruned in 8 levels; n = {told.seeds} seeds, mean ± standard deviation; "
    text = "\n".join([*lines, "", note + ", ".join(f"{k} {v}" for k, v in environment.items()), ""])
    Path(f"{told.out}.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    Path(f"{told.out}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
