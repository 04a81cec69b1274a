"""Who competes with whom: one threshold for the whole network, or one for each layer."""

from statistics import NormalDist

from drawing import Drawing

LAYERS = (("a wide layer, small weights", 0.6, 1.0), ("a narrow layer, large weights", 1.4, 0.55))
AMOUNT, SPAN = 0.6, 3.0
BINS = 40


def share_below(threshold: float, spread: float) -> float:
    """Of normal weights of that spread, how many are smaller in magnitude."""
    return 2 * NormalDist(0, spread).cdf(threshold) - 1


def global_threshold() -> float:
    """The magnitude below which `AMOUNT` of all weights of both layers lie."""
    low, high = 0.0, SPAN * 2
    total = sum(size for _, _, size in LAYERS)
    for _ in range(60):
        middle = (low + high) / 2
        cut = sum(size * share_below(middle, spread) for _, spread, size in LAYERS) / total
        low, high = (middle, high) if cut < AMOUNT else (low, middle)
    return low


def draw() -> str:
    out = Drawing(330, "The same two layers, cut by one threshold for all and by one for each")
    shared = global_threshold()
    for column, (title, one) in enumerate((("global", True), ("layer by layer", False))):
        left = 14 + column * 238
        out.text(left, 20, title, "bold")
        for row, (name, spread, size) in enumerate(LAYERS):
            bottom = 150 + row * 140
            threshold = shared if one else spread * NormalDist().inv_cdf((1 + AMOUNT) / 2)
            for k in range(BINS):
                at = SPAN * (k + 0.5) / BINS
                height = 100 * size * NormalDist(0, spread).pdf(at) / NormalDist(0, 0.6).pdf(0)
                out.box(
                    left + k * 5.3,
                    bottom - height,
                    4.3,
                    height,
                    "first" if at >= threshold else "softline box",
                    round_by=0,
                )
            out.line([(left, bottom), (left + 212, bottom)], "softline")
            x = left + 212 * threshold / SPAN
            out.line([(x, bottom - 106), (x, bottom)], "secondline", width=2)
            out.text(x + 6, bottom - 92, f"{share_below(threshold, spread):.0%} cut", "small second")
            out.text(left, bottom + 16, name, "soft small")
    out.text(14, 324, "magnitude, from 0 to the right; blue weights stay; 60 % of all go in both", "soft small")
    return out.svg()
