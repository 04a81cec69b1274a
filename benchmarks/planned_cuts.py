"""Method incop against full lottery tickets and equal-cost controls: two pairs it was tuned on, six it was not.

python benchmarks/planned_cuts.py --runs FOLDER [--pair NAME …] [--seeds 5] [--jobs 2] [--out benchmarks/results/DATE-planned-cuts]

FOLDER keeps the runs: started again, the script does only what is missing there. Some four hours on two cores. Without --runs
the summary is written anew from the data that lie in --out.
Lottery tickets keep their weights (lth-rate): of the rewinds the best in every cell of the result of 2026-11-22.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from scipy import stats

from incop.reports.statistics import estimate, paired

# Every control twice: with the score of incop, which leaves only where training is spent, and with the smallest weights cut,
# as the field cuts them. One cut from the dense network has no gradients to go by: of it there is one.
SAME = "fixed:match=incop,gradual=incop,mask-settled=incop,accuracy-restored=incop"
SLOW = ",mask-settled=incop-magnitude,accuracy-restored=incop-magnitude"  # left out on the slowest pair
BLIND = f"fixed:match=incop-magnitude,oneshot=incop-magnitude,gradual=incop-magnitude{SLOW}"
LABELS = f"lth-rate,incop,incop-magnitude,{SAME},{BLIND}"
OWN, FULL, MARGIN = "incop", "lth-rate", 0.5  # points
UNTRAINED = ("cifar",)  # pairs whose dense network had not converged
ADAM = "--optimizer adam --lr 0.001 --batch-size 60"
PAIRS = {  # name: pair, sparsities (moderate, near the edge), and what a CPU carries: images, epochs, further words
    "mnist": ("mnist/lenet-300-100", "0.98,0.993", "--limit 12000 --max-epochs 10"),  # tuned on
    "fashion5": ("fashion-mnist/lenet-5", "0.9,0.97", "--limit 6000 --max-epochs 10"),  # tuned on
    "digits": ("digits/lenet-300-100", "0.95,0.985", "--max-epochs 20"),
    "fashion300": ("fashion-mnist/lenet-300-100", "0.97,0.995", "--limit 12000 --max-epochs 10"),
    # far from trained after 8 epochs of cropped and mirrored images; without augmentation it has converged after 16
    # (test accuracy of two seeds after 8, 16, 32 epochs: 42.1, 43.7, 42.6)
    "cifar": ("cifar10/lenet-5", "0.9,0.97", "--limit 3000 --max-epochs 8"),
    "digits-resnet": ("digits/resnet-20", "0.98,0.995", "--max-epochs 20"),  # batch normalization and shortcuts
    "cifar-converged": ("cifar10/lenet-5", "0.9,0.97", "--limit 3000 --max-epochs 16 --no-augment"),
    # benchmarks/narrow.py; test accuracy of one seed after 8, 16, 32 epochs: 45.4, 46.5, 44.8
    "cifar-conv": ("cifar10/narrow:conv_2", "0.9,0.95", f"--limit 3000 --max-epochs 12 --no-augment {ADAM}"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=Path)
    options.add_argument("--pair", nargs="*", choices=PAIRS, default=list(PAIRS))
    options.add_argument("--jobs", default="2")
    # the kept result has 24 of the digits and 12 of digits-resnet, whose test split is 359 images, and 10 of cifar-converged
    options.add_argument("--seeds", default="5")
    options.add_argument(
        "--out", type=Path, default=Path(f"benchmarks/results/{time.strftime('%Y-%m-%d')}-planned-cuts")
    )
    told = options.parse_args()
    if told.runs is None and not told.out.is_dir():
        options.error(
            f"there is no result in {told.out}: name --runs, or by --out the result whose summary is to be written anew"
        )
    told.out.mkdir(parents=True, exist_ok=True)
    for name in told.pair if told.runs is not None else []:
        pair, sparsities, budget = PAIRS[name]
        labels = LABELS if name != "digits-resnet" else LABELS.partition(SLOW)[0]
        words = ["--methods", labels, "--no-controls", "--pairs", pair, "--sparsities", sparsities]
        words += ["--schedule", "cosine", *budget.split()]
        folder = str(told.runs / name)
        run("compare", *words, "--seeds", told.seeds, "--threads", "1", "--jobs", told.jobs, "--out", folder)
        data = told.out / f"{name}.json"
        run("report", folder, "--format", "json", "--out", str(data))
        compact(data)
    text = summary({name: told.out / f"{name}.json" for name in PAIRS if (told.out / f"{name}.json").exists()})
    (told.out / "summary.md").write_text(text)
    print(text)


def compact(file: Path) -> None:
    """Write a comparison's data anew without indentation, a fifth smaller."""
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Gap:
    """incop less another method at one sparsity, paired over seeds, in points of test accuracy."""

    pair: str
    target: float
    against: str
    mean: float
    low: float
    high: float
    student: tuple[float, float]  # the interval by Student's t, wider over few seeds

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Cell:
    """One pair at one sparsity: what every method reached and spent, from the tickets of a comparison's data."""

    def __init__(self, pair: str, target: float, tickets: Sequence[dict]) -> None:
        self.pair, self.target = pair, target
        self.tickets: dict[str, dict[int, dict]] = {}
        for ticket in tickets:
            if ticket["target"] == target:
                self.tickets.setdefault(ticket["label"], {})[ticket["seed"]] = ticket
        self.gaps = {label: self._gap(label) for label in self.tickets if label != OWN}

    def _gap(self, against: str) -> Gap:
        own, other = (
            {seed: 100 * one["test_accuracy"] for seed, one in self.tickets[label].items()} for label in (OWN, against)
        )
        found = paired(own, other)[1]
        gap, half = estimate(found), stats.t.ppf(0.975, len(found) - 1) * stdev(found) / len(found) ** 0.5
        assert gap.low is not None
        assert gap.high is not None
        return Gap(self.pair, self.target, against, gap.mean, gap.low, gap.high, (gap.mean - half, gap.mean + half))

    def mean(self, label: str, what: str) -> float:
        """Return a mean over seeds."""
        return fmean(one[what] for one in self.tickets[label].values())

    def cost(self) -> tuple[float, float, float, float]:
        """Return how many times less incop spends than full retraining, and its probing's share.

        In epochs of its search and of all, and in seconds of its search, on a machine as busy as it was.
        """
        search, whole = (
            self.mean(FULL, f"{part}_charged_epochs") / self.mean(OWN, f"{part}_charged_epochs")
            for part in ("search", "total")
        )
        share = fmean(one["search_probe_seconds"] / one["search_charged_seconds"] for one in self.tickets[OWN].values())
        full, own = self.tickets[FULL], self.tickets[OWN]
        seconds = median(full[seed]["search_charged_seconds"] / own[seed]["search_charged_seconds"] for seed in own)
        return search, whole, seconds, share


def summary(files: dict[str, Path]) -> str:
    """Return all tables of these pairs' data: an overview, every method, and counts of cells."""
    cells, parts = [], []
    for name, file in files.items():
        tickets = json.loads(file.read_text())["tickets"]
        own = [Cell(name, target, tickets) for target in sorted({ticket["target"] for ticket in tickets})]
        cells += own
        parts.append(table(own))
    gaps = [gap for cell in cells for gap in cell.gaps.values()]
    trained = [gap for gap in gaps if gap.pair not in UNTRAINED]
    first = "# Planned cuts against lottery tickets and equal-cost controls\n\n"
    said = [tally(trained, "whose dense network had converged"), tally(gaps, "of all pairs")]
    return first + "\n".join([overview(cells), *said, *parts])


def overview(cells: Sequence[Cell]) -> str:
    """Return one line a cell: incop beside full retraining, blind levels, one-shot and gradual pruning."""
    against = {
        FULL: "full retraining",
        "oneshot=incop-magnitude": "one-shot",
        "fixed:match=incop-magnitude": "blind, by magnitude",
        "fixed:match=incop": "blind, same score",
        "gradual=incop": "gradual, same score",
    }
    names = [
        "pair",
        "sparsity",
        "n",
        "dense",
        FULL,
        OWN,
        *(f"less {name}" for name in against.values()),
        "search",
        "all",
        "search, s",
        "probing",
    ]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for cell in cells:
        search, whole, seconds, share = cell.cost()
        reached = [cell.mean(OWN, "dense_test_accuracy"), *(cell.mean(label, "test_accuracy") for label in (FULL, OWN))]
        row = [cell.pair, f"{cell.target:g}", f"{len(cell.tickets[OWN])}", *(f"{100 * one:.2f}" for one in reached)]
        row += [str(cell.gaps[label]) for label in against]
        row += [f"1/{search:.1f}", f"1/{whole:.1f}", f"1/{seconds:.0f}", f"{100 * share:.1f} %"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def table(cells: Sequence[Cell]) -> str:
    """Return one pair's results: every method, and incop's paired difference to it."""
    pair = cells[0].pair
    one = next(iter(cells[0].tickets[OWN].values()))
    dense, count = 100 * cells[0].mean(OWN, "dense_test_accuracy"), len(cells[0].tickets[OWN])
    lines = [f"## {pair}: {one['data']}, {one['model']}, dense {dense:.2f} %, n = {count} seeds\n"]
    lines += [f"`{PAIRS[pair][2]}`\n"]
    lines.append("| sparsity | method | test accuracy, % | search epochs | all epochs | incop less it, points |")
    lines.append("|---|---|---|---|---|---|")
    for cell in cells:
        for label in cell.tickets:
            gap = cell.gaps.get(label)
            told = "–" if gap is None else f"{gap} {verdict(gap)}" if label == FULL else str(gap)
            epochs = " | ".join(f"{cell.mean(label, f'{part}_charged_epochs'):.1f}" for part in ("search", "total"))
            accuracy = 100 * cell.mean(label, "test_accuracy")
            lines.append(f"| {cell.target:g} | {label} | {accuracy:.2f} | {epochs} | {told} |")
    return "\n".join(lines) + "\n"


def verdict(gap: Gap) -> str:
    """Say whether half a point is lost against full retraining."""
    return "non-inferior" if gap.low > -MARGIN else "inferior" if gap.high < -MARGIN else "undecided"


def tally(gaps: Sequence[Gap], which: str) -> str:
    """Return in how many cells incop is above and below each other method, the interval without 0, by either interval."""
    lines = [f"## In how many cells {which} incop is above and below\n"]
    lines += ["| against | cells | above | below | by Student's t | least difference | largest |", "|---" * 7 + "|"]
    for label in dict.fromkeys(gap.against for gap in gaps):
        own = [gap for gap in gaps if gap.against == label]
        above, below = sum(gap.low > 0 for gap in own), sum(gap.high < 0 for gap in own)
        surely = f"{sum(gap.student[0] > 0 for gap in own)}, {sum(gap.student[1] < 0 for gap in own)}"
        worst, best = min(own, key=lambda gap: gap.mean), max(own, key=lambda gap: gap.mean)
        ends = f"{worst} ({worst.pair}, {worst.target:g}) | {best} ({best.pair}, {best.target:g})"
        lines.append(f"| {label} | {len(own)} | {above} | {below} | {surely} | {ends} |")
    return "\n".join(lines) + "\n"


def run(*words: str) -> None:
    found = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # narrow.py lies here
    subprocess.run(
        [sys.executable, "-m", "incop", *words], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    )


if __name__ == "__main__":
    main()
