"""The committed result of the planned cuts: its tables are its data's, by other arithmetic too, and the method page shows them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import planned_cuts

ROOT = Path(__file__).parents[2]
RESULT = max((ROOT / "benchmarks" / "results").glob("*-planned-cuts"))


def files():
    return {name: RESULT / f"{name}.json" for name in planned_cuts.PAIRS if (RESULT / f"{name}.json").exists()}


def cells():
    """Return each ticket by sparsity, method and seed, of every pair."""
    found = {}
    for pair, file in files().items():
        for ticket in json.loads(file.read_text())["tickets"]:
            found.setdefault((pair, ticket["target"]), {}).setdefault(ticket["label"], {})[ticket["seed"]] = ticket
    return found


@pytest.fixture(scope="module")
def summary():
    return planned_cuts.summary(files())


def test_the_summary_is_made_from_the_data_beside_it(summary):
    assert (RESULT / "summary.md").read_text() == summary


def test_the_method_page_shows_the_overview_the_counts_and_the_ablation(summary):
    shown = (ROOT / "docs" / "method.md").read_text().splitlines()
    overview, converged = (summary.split("\n\n")[part] for part in (1, 3))
    ablation = max((ROOT / "benchmarks" / "results").glob("*-ablation.md")).read_text()
    rows = [line for text in (overview, converged, ablation) for line in text.splitlines() if line.startswith("|")]
    assert [line for line in rows if line not in shown] == []


def test_means_and_counts_by_other_arithmetic(summary):
    """Whole tables with NumPy alone, and Student's t as SciPy pairs it."""
    told = [line.strip("| ").split(" | ") for line in summary.splitlines() if line.startswith("| ")]
    above = {}
    for (pair, target), by_label in cells().items():
        row = next(line for line in told if line[:2] == [pair, f"{target:g}"])
        own = by_label["incop"]
        for label, column in (("lth-rate", 4), ("incop", 5)):
            assert row[column] == f"{100 * np.mean([one['test_accuracy'] for one in by_label[label].values()]):.2f}"
        full, search = (
            np.mean([one["search_epochs"] + one["search_probe_epochs"] for one in by_label[label].values()])
            for label in ("lth-rate", "incop")
        )
        assert row[11] == f"1/{full / search:.1f}"
        for label, column in (("lth-rate", 6), ("fixed:match=incop-magnitude", 8), ("gradual=incop", 10)):
            pairs = np.array(
                [[100 * one[seed]["test_accuracy"] for seed in sorted(own)] for one in (own, by_label[label])]
            )
            assert abs(float(row[column].partition(" ")[0]) - np.subtract(*pairs).mean()) < 0.0051
        for label, other in by_label.items():
            if label != "incop":
                first, second = ([100 * one[seed]["test_accuracy"] for seed in sorted(own)] for one in (own, other))
                found = stats.ttest_rel(first, second).confidence_interval()
                counts = above.setdefault(label, np.zeros(2, int))
                counts += (found.low > 0, found.high < 0)
    everything = summary.partition("of all pairs")[2].partition("\n## ")[0]
    for label, (higher, lower) in above.items():
        row = next(line for line in everything.splitlines() if line.startswith(f"| {label} |"))
        assert row.split(" | ")[4] == f"{higher}, {lower}"
