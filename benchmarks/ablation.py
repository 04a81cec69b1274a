"""What method incop owes to which of its parts: each taken away alone, at one cost.

python benchmarks/ablation.py --runs FOLDER [--pair NAME …] [--seeds 5] [--jobs 2] [--out benchmarks/results/DATE-ablation]

FOLDER may be that of planned_cuts.py, whose dense levels are then used; it keeps the runs made here too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import stats

from incop import methods
from incop.experiments import preparation, runs
from incop.experiments.plan import Plan
from incop.rundir import RunDir

PAIRS = {  # as in planned_cuts.py, at the sparsity near the edge
    "mnist": Plan(data="mnist", model="lenet-300-100", sparsity=0.993, limit=12000, max_epochs=10.0),
    "fashion5": Plan(data="fashion-mnist", model="lenet-5", sparsity=0.97, limit=6000, max_epochs=10.0),
    "digits": Plan(data="digits", model="lenet-300-100", sparsity=0.985, max_epochs=20.0),
    "fashion300": Plan(data="fashion-mnist", model="lenet-300-100", sparsity=0.995, limit=12000, max_epochs=10.0),
    "cifar-converged": Plan(data="cifar10", model="lenet-5", sparsity=0.97, limit=3000, max_epochs=16.0, augment=False),
}


def variants(sparsity: float, batch_size: int, epochs: float) -> dict[str, Plan]:
    """Return the parts taken away, by what is left."""
    cuts = methods.cuts(sparsity)
    fifths = int(np.ceil(methods.fifths(sparsity)))
    stretch = methods.fifths(sparsity) * epochs * methods.SEARCH_SHARE / fifths
    even = Plan(amount=f"to {sparsity!r} in {cuts}")
    blind = {"levels": fifths, "amount": f"to {sparsity!r} in {fifths}", "rule": f"after {stretch:.4g} epochs"}
    plain = {"search_batch_size": batch_size, "search_lr": 1.0, "keep_optimizer": False}
    return {
        "incop": Plan(),
        "the smallest weights cut, whatever their gradients": Plan(score="magnitude"),
        "the saliency in full (power 1), not a third of the way": Plan(score="saliency:1"),
        "cuts even in the logarithm of the density, not by the flow": even,
        "levels of a fifth, not many small cuts": Plan(**blind, check_every=f"{stretch:.4g}"),
        "the recipe's batches in the search": Plan(search_batch_size=batch_size),
        "the recipe's learning rate in the search": Plan(search_lr=1.0),
        "a fresh optimizer at every cut": Plan(keep_optimizer=False),
        "the search trained as the recipe says (all three)": Plan(**plain),
        "blind levels of a fifth of the smallest weights, trained as the recipe says": Plan(
            **blind, **plain, check_every=f"{stretch:.4g}", score="magnitude"
        ),
        "every level of a fifth trained in full, by saliency": Plan(method="lth-rate", levels=fifths, score="saliency"),
    }


def one(folder: Path, pair: str, seed: int, name: str, own: Plan) -> tuple[str, str, int, float, float]:
    """Carry out one run, or read it, and return its accuracy and what it cost after the dense level."""
    frame = Plan(seed=seed, schedule="cosine", threads=1)
    full = preparation.resolve(own.over(frame).over(PAIRS[pair]).over(Plan(method="incop")))
    out = folder / pair / "ablation" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    if not (out / "summary.json").is_file() or RunDir.open(out).read_summary().status != "finished":
        dense = dense_of(folder, pair, seed)
        if out.exists():
            out.rename(out.with_name(f"{out.name}-cut-off-{time.time():.0f}"))
        runs.execute(full, out, dense=dense)
    levels = RunDir.open(out).read_summary().levels
    samples = levels[-1].samples / levels[-1].epochs
    cost = sum(level.epochs + level.probe_samples / samples for level in levels[1:-1])
    return pair, name, seed, 100 * float(levels[-1].test_accuracy or 0.0), cost


def dense_of(folder: Path, pair: str, seed: int) -> Path:
    """Return the folder of a seed's dense level; main() has trained it where planned_cuts.py has not."""
    out = folder / pair / "ablation" / f"dense-{seed}"
    return next((d for d in (folder / pair / "runs").glob(f"dense-{seed}-*")), out)


def train_dense(folder: Path, pair: str, seed: int) -> None:
    """Train a seed's dense level, if there is none yet."""
    out = dense_of(folder, pair, seed)
    if out.exists() and RunDir.open(out).read_summary().status == "finished":
        return
    if out.exists():
        out.rename(out.with_name(f"{out.name}-cut-off-{time.time():.0f}"))
    own = Plan(method="dense", sparsity=None, seed=seed, schedule="cosine", threads=1)
    runs.execute(preparation.resolve(own.over(replace(PAIRS[pair], sparsity=None))), out)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--pair", nargs="*", choices=PAIRS, default=list(PAIRS))
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{time.strftime('%Y-%m-%d')}-ablation"))
    told = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(told.jobs, mp_context=get_context("spawn")) as pool:
        for begun in [pool.submit(train_dense, told.runs, pair, n) for pair in told.pair for n in range(told.seeds)]:
            begun.result()
        waiting = [
            pool.submit(one, told.runs, pair, seed, name, own)
            for pair in told.pair
            for seed in range(told.seeds)
            for name, own in variants(PAIRS[pair].sparsity, 60, PAIRS[pair].max_epochs).items()
        ]
        found = [future.result() for future in waiting]
    told.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(("pair", "variant", "seed", "test", "search_epochs"), row, strict=True)) for row in found]
    told.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    text = "\n".join(table(pair, [row for row in found if row[0] == pair]) for pair in told.pair)
    told.out.with_suffix(".md").write_text(f"# What incop owes to its parts\n\n{text}")
    print(text)


def table(pair: str, rows: list[tuple[str, str, int, float, float]]) -> str:
    """Return the table of one pair, differences paired over seeds with 95 % bootstrap intervals."""
    plan = PAIRS[pair]
    names = list(dict.fromkeys(name for _, name, *_ in rows))
    by = {name: {seed: (test, cost) for _, n, seed, test, cost in rows if n == name} for name in names}
    lines = [
        f"## {plan.data}, {plan.model}, sparsity {plan.sparsity}, {plan.limit or 'all'} training images, "
        f"n = {len(by['incop'])} seeds\n",
        "| | test accuracy, % | against incop, points | search epochs, probing charged |",
        "|---|---|---|---|",
    ]
    for name in names:
        tests = np.array([by[name][seed][0] for seed in sorted(by[name])])
        gaps = tests - np.array([by["incop"][seed][0] for seed in sorted(by[name])])
        costs = np.mean([by[name][seed][1] for seed in sorted(by[name])])
        said = "–"
        if name != "incop":
            interval = stats.bootstrap((gaps,), np.mean, n_resamples=9999, rng=0).confidence_interval
            said = f"{gaps.mean():+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
        lines.append(
            f"| {'' if name == 'incop' else 'with '}{name} | {tests.mean():.2f} ± {tests.std(ddof=1):.2f} | {said} | {costs:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
