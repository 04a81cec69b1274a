"""What a level starts from: which weights, and where in the learning-rate schedule."""

import math

from drawing import Drawing

WIDE = 92  # pixels of a level
ROWS = (
    ("init", "weights before any training", 0.0, 0.0),
    ("early:2", "weights and rate after two epochs", 0.2, 0.2),
    ("dense", "weights at the end of level 0", 1.0, 0.0),
    ("rate", "weights as they are now", None, 0.0),
    ("none", "weights as they are now, the rate too", None, 1.0),
)


def rate(at: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * at)) * 0.99 + 0.01


def curve(x: float, y: float, start: float) -> list[tuple[float, float]]:
    """The schedule of a level that begins at `start` of it; at its end it stays there."""
    line = [(x + WIDE * k / 20, y - 34 * rate(start + (1 - start) * k / 20)) for k in range(21)]
    return line if start < 1 else [line[0], line[-1]]


def draw() -> str:
    out = Drawing(
        392, "Five rewind points: the dense level's schedule with the weights taken, and the schedule of the level"
    )
    out.text(14, 20, "dense level", "bold")
    out.text(128, 20, "the next level", "bold")
    for row, (name, words, taken, start) in enumerate(ROWS):
        y = 74 + row * 68
        out.line(curve(14, y, 0.0), "softline")
        out.line(curve(128, y, start), "firstline", width=2)
        if taken is not None:
            out.dot(14 + WIDE * taken, y - 34 * rate(taken), "second")
        else:
            out.dot(118, y - 10, "second")
        out.text(238, y - 24, name, "code bold")
        out.text(238, y - 6, words, "small")
    out.text(14, 382, "lines: the learning rate; orange: the weights a level starts from", "soft small")
    return out.svg()
