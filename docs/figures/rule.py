"""Where two rules stop on the same checks: the rules themselves are asked."""

import math

from drawing import Drawing

from incop.records import Check, Flow, History
from incop.stopping import FlowRestored, FlowSettled, Rule

DENSE = Flow({"fc1->fc2": 0.30}, meter="drawn")
X, Y, WIDTH, HEIGHT, EPOCHS, TOP = 44, 210, 420, 160, 12, 0.22
WITHIN = 0.05


def checks() -> tuple[Check, ...]:
    """A distance that falls for some epochs and then lies flat above zero, as measured ones do at high sparsity."""
    distances = [0.035 + 0.16 * math.exp(-0.55 * epoch) for epoch in range(1, EPOCHS + 1)]
    return tuple(
        Check(1, number, float(number), flow=Flow({"fc1->fc2": 0.30 - distance}, meter="drawn"), distance=distance)
        for number, distance in enumerate(distances, 1)
    )


def stop_of(rule: Rule, seen: tuple[Check, ...]) -> int:
    """Number of the check at which the rule ends the level."""
    return next(n for n in range(1, len(seen) + 1) if rule(History(seen[:n], DENSE)).stop)


def draw() -> str:
    out = Drawing(288, "A flow's distance to the dense network's over a level, and where two rules stop")
    seen = checks()
    out.axes(X, Y, WIDTH, HEIGHT, "epochs of the level, one check each", "‖Δ − Δ_ref‖")

    def at(epoch: float, distance: float) -> tuple[float, float]:
        return X + WIDTH * epoch / EPOCHS, Y - HEIGHT * distance / TOP

    out.line([at(0, WITHIN), at(EPOCHS, WITHIN)], "softline", dashed=True)
    out.text(X + WIDTH, at(0, WITHIN)[1] - 5, f"within {WITHIN}", "soft small", "end")
    out.line([at(check.epoch, check.distance or 0) for check in seen], "firstline")
    for check in seen:
        out.dot(*at(check.epoch, check.distance or 0))
    for rule, level in ((FlowRestored(within=WITHIN), 0.19), (FlowSettled(), 0.14)):
        x, y = at(stop_of(rule, seen), level)
        out.line([(x, y + 4), (x, Y)], "secondline", dashed=True)
        out.text(x + 4, y, f"“{rule}”", "small second")
        out.text(x + 4, y + 15, f"stops at check {stop_of(rule, seen)}", "small second")
    out.text(X, Y + 52, "The first needs an ε that fits the meter; the second waits until", "soft small")
    out.text(X, Y + 68, "the distance has stopped falling, wherever that is.", "soft small")
    return out.svg()
