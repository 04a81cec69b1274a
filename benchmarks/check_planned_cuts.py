"""Hold the planned cuts' tables against their data by other arithmetic, and count cells by Student's t too.

python benchmarks/check_planned_cuts.py [benchmarks/results/DATE-planned-cuts]        seconds; nothing is trained

Every row of summary.md is computed again from the json files beside it, with NumPy alone; every row must stand in docs/method.md.
Then the cells in which incop is above and below each other method are counted by the committed intervals and by Student's t,
whose intervals are wider over few seeds. What is found is written to student.md in the same folder; a row that disagrees: status 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
from scipy import stats

OWN, FULL, MARGIN = "incop", "lth-rate", 0.5
ROW = re.compile(r"\| (0\.\d+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (?:–|(\S+) \[(\S+), (\S+)\](?: (\S+))?) \|")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    newest = max(Path("benchmarks/results").glob("*-planned-cuts"))
    options.add_argument("folder", nargs="?", type=Path, default=newest)
    told = options.parse_args()
    summary, method = (told.folder / "summary.md").read_text(), Path("docs/method.md").read_text()
    wrong, gaps = [], []
    for section in re.split(r"^## ", summary.partition("## In how many")[0], flags=re.MULTILINE)[1:]:
        path = next((path for path in told.folder.glob("*.json") if is_of(path, section.splitlines()[0])), None)
        if path is None:
            wrong.append(section.splitlines()[0])
            continue
        data = cells(path)
        for line in section.splitlines():
            if found := ROW.fullmatch(line):
                wrong += [line] if line not in method or not agrees(data, found) else []
                if found[2] != OWN:
                    gaps.append((path.stem, found, data))
    text = report(gaps, wrong)
    (told.folder / "student.md").write_text(text)
    print(text)
    return 1 if wrong else 0


def tickets(path: Path) -> list[dict]:
    return json.loads(path.read_text())["tickets"]


def is_of(path: Path, title: str) -> bool:
    """Say whether the heading of a section is that of the file: its data, model, dense accuracy and number of seeds."""
    dense = {t["seed"]: 100 * t["dense_test_accuracy"] for t in tickets(path)}
    start = "{data}, {model}".format(**tickets(path)[0])
    return title.startswith(start) and title.endswith(
        f": dense {np.mean([*dense.values()]):.2f} %, n = {len(dense)} seeds"
    )


def cells(path: Path) -> dict:
    """Return test accuracy, search and all epochs, and the search's seconds, by sparsity, method and seed."""
    found: dict = {}
    for t in tickets(path):
        cost = [t[f"{part}_epochs"] + t[f"{part}_probe_epochs"] for part in ("search", "total")]
        seconds = t["search_seconds"] + t["search_probe_seconds"]
        found.setdefault((t["target"], t["label"]), {})[t["seed"]] = (100 * t["test_accuracy"], *cost, seconds)
    return found


def differences(data: dict, row: re.Match) -> np.ndarray:
    own, other = data[float(row[1]), OWN], data[float(row[1]), row[2]]
    assert own.keys() == other.keys()
    return np.array([own[seed][0] - other[seed][0] for seed in sorted(own)])


def agrees(data: dict, row: re.Match) -> bool:
    """Say whether accuracy, epochs and mean difference of a row are those of the data, and its verdict that of its interval."""
    target, label = float(row[1]), row[2]
    accuracy, search, total, _ = np.mean(list(data[target, label].values()), axis=0)
    same = (f"{accuracy:.2f}", f"{search:.1f}", f"{total:.1f}") == (row[3], row[4], row[5])
    if label == OWN:
        return same
    low, high = float(row[7]), float(row[8])
    same &= abs(differences(data, row).mean() - float(row[6])) < 0.0051
    return same and (label != FULL or row[9] == verdict(low, high))


def verdict(low: float, high: float) -> str:
    return "non-inferior" if low > -MARGIN else "inferior" if high < -MARGIN else "undecided"


def student(gap: np.ndarray) -> tuple[float, float]:
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5
    return gap.mean() - half, gap.mean() + half


def report(gaps: list, wrong: list[str]) -> str:
    lines = ["# The planned cuts' tables, computed again\n", "`python benchmarks/check_planned_cuts.py`\n"]
    lines.append(f"Rows that disagree with the data or are not in docs/method.md: {len(wrong)}.\n")
    lines += [f"- {line}" for line in wrong]
    lines += ["## In how many cells incop is above and below\n", *tally(gaps)]
    lines += [
        "\n## The same without the CIFAR-10 pair that is not trained out\n",
        *tally([g for g in gaps if g[0] != "cifar"]),
    ]
    full = [(found[9], verdict(*student(differences(data, found)))) for _, found, data in gaps if found[2] == FULL]
    same = sum(a == b for a, b in full)
    lines.append(
        f"\nVerdicts at {MARGIN} points against {FULL}: the same by Student's t in {same} of {len(full)} cells."
    )
    shares = sorted(shorter(data, float(found[1])) for _, found, data in gaps if found[2] == FULL)
    ends = f"1/{shares[0]:.0f} to 1/{shares[-1]:.0f} of {FULL}'s, median 1/{np.median(shares):.0f}"
    lines.append(f"\nThe search in seconds, the machine as busy as it was: {ends}.")
    return "\n".join(lines) + "\n"


def shorter(data: dict, target: float) -> float:
    """Return how many times the seconds of the search full retraining's search takes, median over seeds."""
    full, own = data[target, FULL], data[target, OWN]
    return float(np.median([full[seed][3] / own[seed][3] for seed in own]))


def tally(gaps: list) -> list[str]:
    lines = ["| against | cells | above, below by the bootstrap | above, below by Student's t |", "|---|---|---|---|"]
    for label in dict.fromkeys(found[2] for _, found, _ in gaps):
        own = [(found, *student(differences(data, found))) for _, found, data in gaps if found[2] == label]
        # a bound that is printed as 0.00 has the sign that it is printed with
        counts = np.sum([(f[7][0] == "+", f[8][0] == "-", low > 0, high < 0) for f, low, high in own], axis=0)
        lines.append(f"| {label} | {len(own)} | {counts[0]}, {counts[1]} | {counts[2]}, {counts[3]} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
