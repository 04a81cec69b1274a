"""How many weights are left after every level, for three amounts; the damage that places `EvenDamage` is a measured curve."""

import json
import math
from itertools import pairwise
from pathlib import Path

import torch
from drawing import Drawing

from incop import pruning

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-22-damage-curves.json"
TOTAL, LEVELS, SPARSITY = 100_000, 12, 0.95
X, Y, WIDTH, HEIGHT = 52, 222, 400, 170


def measured(count: int) -> float:
    """Damage of cutting so many weights of MNIST's LeNet-300-100, between two measured points in a straight line."""
    curve = [(0.0, 0.0)] + [
        (p["lambda"], p["unit with itself, share lost"]) for p in json.loads(RESULTS.read_text())["mnist"]
    ]
    at = -math.log(1 - count / TOTAL)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return curve[-1][1]


def densities(amount: pruning.Amount) -> list[float]:
    left = [TOTAL]
    for level in range(1, LEVELS + 1):
        left.append(left[-1] - amount(pruning.Competition(torch.ones(left[-1]), total=TOTAL, level=level)))
    return [count / TOTAL for count in left]


def draw() -> str:
    even = pruning.EvenDamage(SPARSITY, levels=LEVELS).plan(
        pruning.Competition(torch.ones(TOTAL), total=TOTAL, damage=measured)
    )
    out = Drawing(300, "Weights left after each level, for a fraction, a target and equal damage")
    out.axes(X, Y, WIDTH, HEIGHT, "level", "weights left")
    for share in (1.0, 0.5, 0.05):
        y = Y - HEIGHT * share
        out.line([(X - 4, y), (X, y)], "softline")
        out.text(X - 8, y + 4, f"{share:.0%}", "soft small", "end")
    for level in range(0, LEVELS + 1, 2):
        out.text(X + WIDTH * level / LEVELS, Y + 15, str(level), "soft small", "middle")
    curves = [
        (densities(pruning.Fraction(0.2)), "line", "", False),
        (densities(pruning.Target(SPARSITY, levels=LEVELS)), "firstline", "first", True),
        (densities(even), "secondline", "second", False),
    ]
    for values, kind, _, dashed in curves:
        out.line(
            [(X + WIDTH * k / LEVELS, Y - HEIGHT * v) for k, v in enumerate(values)], kind, width=2.2, dashed=dashed
        )
    out.text(150, 70, "0.2: a fifth of what is left", "small")
    out.text(150, 88, f"to {SPARSITY} in {LEVELS}: evenly (dashed)", "small first")
    out.text(150, 106, f"flow to {SPARSITY} in {LEVELS}: equal damage each", "small second")
    out.text(X, Y + 48, "Where a cut does little harm the first cut is large, and near the edge", "soft small")
    out.text(X, Y + 64, "the cuts are small: 0.2 takes the same share wherever it is.", "soft small")
    return out.svg()
