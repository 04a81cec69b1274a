"""The published rules against their controls: MNIST with LeNet-300-100 and Fashion-MNIST with LeNet-5, five seeds.

python benchmarks/published_rules.py --runs FOLDER [--jobs 2] [--out benchmarks/results/DATE-published-rules]

FOLDER keeps the runs: started again, the script does only what is missing there. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from planned_cuts import compact

METHODS = "lth,sap,incop-if,incop-gf"
PAIRS = {  # what a CPU carries in an hour: a part of the training images, and short budgets
    "mnist/lenet-300-100": ["--limit", "6000", "--max-epochs", "6"],
    "fashion-mnist/lenet-5": ["--limit", "3000", "--max-epochs", "6"],
}
SPARSITIES = "0.8,0.9,0.95"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--jobs", default="2")
    options.add_argument("--seeds", default="5")
    options.add_argument(
        "--out", type=Path, default=Path(f"benchmarks/results/{time.strftime('%Y-%m-%d')}-published-rules")
    )
    told = options.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    for pair, limits in PAIRS.items():
        name = pair.replace("/", "-")
        folder = told.runs / name
        words = ["--methods", METHODS, "--pairs", pair, "--sparsities", SPARSITIES, "--seeds", told.seeds, *limits]
        run("compare", *words, "--threads", "1", "--jobs", told.jobs, "--out", str(folder))
        for form in ("json", "md"):
            run("report", str(folder), "--format", form, "--out", str(told.out / f"{name}.{form}"))
        compact(told.out / f"{name}.json")


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "incop", *words], check=True)


if __name__ == "__main__":
    main()
