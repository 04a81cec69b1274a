"""A ticket's mask: a small layer before and after `incop.prune` cut three quarters of its weights."""

import math

import torch
from drawing import Drawing

import incop

ROWS, COLUMNS, CELL = 8, 10, 20


def draw() -> str:
    layer = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS))
    values = [
        [math.sin(3.1 * i + 1.7 * j + 0.4) * (0.3 + ((5 * i + 3 * j) % 7) / 7) for j in range(COLUMNS)]
        for i in range(ROWS)
    ]
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor(values))
    kept = incop.prune(layer, amount=0.75)["0.weight"].tolist()
    top = max(abs(value) for row in values for value in row)

    out = Drawing(250, "A layer's weights, the mask, and the weights that are left")
    for left, title, masked in ((20, "weights", False), (260, "what the mask leaves", True)):
        out.text(left, 22, title, "bold")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                x, y = left + j * CELL, 34 + i * CELL
                out.box(x, y, CELL - 2, CELL - 2)
                if not masked or kept[i][j]:
                    out.box(
                        x,
                        y,
                        CELL - 2,
                        CELL - 2,
                        "first" if value > 0 else "second",
                        shade=0.15 + 0.85 * abs(value) / top,
                    )
    out.text(20, 218, "the deeper, the larger in magnitude; blue above zero, orange below", "soft small")
    count = sum(sum(row) for row in kept)
    out.text(
        20, 238, f"{count} of {ROWS * COLUMNS} weights are left: sparsity {1 - count / (ROWS * COLUMNS):.2f}", "small"
    )
    return out.svg()
