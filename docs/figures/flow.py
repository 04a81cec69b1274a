"""The flow: one number for each pair of neighbouring layers (information) or for each layer (gradient)."""

import math

from drawing import Drawing

SAMPLES, FIRST, SECOND = 60, 6, 8


def outputs() -> tuple[list[list[float]], list[list[float]]]:
    """What the units of two neighbouring layers say about sixty samples, before their activation."""
    x = [[math.sin(1.3 * n * (k + 1) + k) for k in range(4)] for n in range(SAMPLES)]
    first = [[sum(math.cos(2.1 * i + 1.1 * k) * row[k] for k in range(4)) for i in range(FIRST)] for row in x]
    second = [
        [sum(math.sin(1.9 * j + 2.3 * i) * max(row[i], 0.0) for i in range(FIRST)) for j in range(SECOND)]
        for row in first
    ]
    return first, second


def correlation(a: list[float], b: list[float]) -> float:
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))


def draw() -> str:
    first, second = outputs()
    rho = [[correlation([r[i] for r in first], [r[j] for r in second]) for j in range(SECOND)] for i in range(FIRST)]
    mean = sum(map(sum, rho)) / (FIRST * SECOND)
    absolute = sum(abs(value) for row in rho for value in row) / (FIRST * SECOND)
    out = Drawing(
        316, "Correlations of two neighbouring layers' units and their mean, and the layers a flow has numbers for"
    )

    out.text(14, 20, "information flow: a number a pair", "bold")
    for k, (name, y) in enumerate((("fc1", 52), ("fc2", 112), ("fc3", 172))):
        out.box(14, y, 76, 30)
        out.text(52, y + 20, name, "code", "middle")
        if k < 2:
            out.arrow(52, y + 32, 52, y + 58)
            out.text(62, y + 50, f"Δ{'₁₂'[k]}", "first")
    out.text(150, 46, "ρ[i, j]: unit i of fc1 with unit j of fc2", "soft small")
    for i, row in enumerate(rho):
        for j, value in enumerate(row):
            out.box(150 + 24 * j, 56 + 24 * i, 22, 22)
            out.box(150 + 24 * j, 56 + 24 * i, 22, 22, "first" if value > 0 else "second", shade=abs(value))
    out.text(354, 84, "blue: +", "small first")
    out.text(354, 102, "orange: −", "small second")
    out.text(354, 132, f"mean ρ: {mean:+.2f}", "small")
    out.text(354, 150, f"mean |ρ|: {absolute:.2f}", "small")
    out.text(354, 170, "Δ₁ is the mean:", "soft small")
    out.text(354, 184, "signs cancel in it", "soft small")

    out.text(14, 236, "gradient flow: a number a layer", "bold")
    for k, name in enumerate(("fc1", "fc2", "fc3")):
        out.box(14 + 152 * k, 250, 62, 30)
        out.text(45 + 152 * k, 270, name, "code", "middle")
        out.text(82 + 152 * k, 270, f"g{'₁₂₃'[k]} = ‖∂L/∂W‖", "first small")
    out.text(14, 306, "of the loss on the probe, over the weights that are left; needs labels", "soft small")
    return out.svg()
