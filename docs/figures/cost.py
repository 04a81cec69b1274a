"""What each method of a comparison spent and reached: MNIST, LeNet-300-100, sparsity 0.98, from the result's own file."""

import json
from pathlib import Path

from drawing import Drawing

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-26-planned-cuts" / "mnist.json"
SPARSITY = 0.98
MOST, WIDTH = 180.0, 210.0


def shown(label: str) -> bool:
    """Whether a method is in the figure: controls with incop's score; of one-shot pruning there is only the one by magnitude."""
    return label == "oneshot=incop-magnitude" or not label.endswith("-magnitude")


def draw() -> str:
    rows = [
        one for one in json.loads(RESULTS.read_text())["summaries"] if one["target"] == SPARSITY and shown(one["label"])
    ]
    rows.sort(key=lambda one: -one["total_epochs"])
    out = Drawing(66 + 34 * len(rows) + 26, "Epochs after the dense network and test accuracy, by method")
    out.text(14, 20, "epochs after the dense network", "bold")
    out.text(466, 20, "test accuracy", "bold", "end")
    for row, one in enumerate(rows):
        y = 34 + row * 34
        name = one["label"].partition("=")[0]
        search = WIDTH * one["search_epochs"] / MOST
        last = WIDTH * (one["total_epochs"] - one["search_epochs"]) / MOST
        out.text(14, y + 18, name, "code bold" if name == "incop" else "code")
        out.box(150, y + 4, max(search, 0.1), 20, "second", round_by=0)
        out.box(150 + search, y + 4, last, 20, "first", round_by=0)
        out.text(156 + search + last, y + 18, f"{one['total_epochs']:.0f}", "small")
        out.text(466, y + 18, f"{100 * one['test_accuracy']:.1f} %", "small", "end")
    y = 34 + 34 * len(rows) + 20
    out.text(14, y, "orange: the search; blue: the last level, which all train in full.", "soft small")
    out.text(14, y + 18, "Means of 5 seeds; all but lth-rate cost what incop does, or ask a rule.", "soft small")
    return out.svg()
