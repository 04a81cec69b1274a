"""How seconds and memory grow: a cost model of few constants, fitted to half of small measurements and held against the other half.

Every part of a search that is incop's own is timed on networks of linear layers over a grid of widths, depths and probe sizes. Its
model is a sum of terms (see MODELS), each a count times a constant; the constants come from non-negative least squares of relative
errors on half of the grid, and the table says how far the predictions of the other points are from what was measured.
With the constants two networks that cannot be run here are planned on paper.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import numpy as np
import torch
from scipy.optimize import nnls
from side_by_side import arguments, machine
from torch import nn
from torch.nn import functional

import incop
from incop import flow
from incop.checkpoint_files import Checkpoints
from incop.rewind_points import Snapshot

NAME = "scaling"
WIDTHS, DEPTHS, PROBES = (128, 256, 512, 1024), (3, 6, 12), (128, 512)
TIMES = 5


@dataclass(frozen=True)
class Size:
    """What the cost of a search depends on.

    Args:
        weights: prunable weights W.
        units: ΣM, outputs of all layers of the chain.
        pairs: Σ M·K over neighbouring layers.
        layers: L.
        samples: probe samples n.
    """

    weights: int
    units: int
    pairs: int
    layers: int
    samples: int


# part of a search → the counts its seconds are a sum of, each times a constant
MODELS: dict[str, tuple[tuple[str, Callable[[Size], float]], ...]] = {
    "a check, information flow (mean)": (
        ("n·W", lambda s: s.samples * s.weights),
        ("n·ΣM", lambda s: s.samples * s.units),
        ("W", lambda s: s.weights),
        ("L", lambda s: s.layers),
    ),
    "a check, information flow (absolute)": (
        ("n·W", lambda s: s.samples * s.weights),
        ("n·ΣMK", lambda s: s.samples * s.pairs),
        ("ΣMK + W", lambda s: s.pairs + s.weights),
        ("L", lambda s: s.layers),
    ),
    "a check, gradient flow": (
        ("n·W", lambda s: s.samples * s.weights),
        ("n·ΣM", lambda s: s.samples * s.units),
        ("W", lambda s: s.weights),
        ("L", lambda s: s.layers),
    ),
    "a trial cut (damage)": (
        ("n·W", lambda s: s.samples * s.weights),
        ("n·ΣM", lambda s: s.samples * s.units),
        ("W", lambda s: s.weights),
        ("L", lambda s: s.layers),
    ),
    "a global cut": (("W", lambda s: s.weights), ("L", lambda s: s.layers)),
    "a rewind, proven": (("W", lambda s: s.weights), ("L", lambda s: s.layers)),
    "holding, a step": (("W", lambda s: s.weights), ("L", lambda s: s.layers)),
    "a checkpoint": (("W", lambda s: s.weights), ("L", lambda s: s.layers)),
}


def network(width: int, depth: int) -> nn.Module:
    """Return a chain of linear layers."""
    torch.manual_seed(0)
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def size(width: int, depth: int, samples: int) -> Size:
    """Return its size."""
    units = [width] * depth + [10]
    return Size(
        depth * width**2 + 10 * width, sum(units), sum(a * b for a, b in itertools.pairwise(units)), depth + 1, samples
    )


def seconds(run: Callable[[], object]) -> float:
    """Return the processor seconds of a call, the median of some; the first does not count."""
    run()
    found = []
    for _ in range(TIMES):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return statistics.median(found)


def measured(width: int, depth: int, samples: int) -> dict[str, float]:
    """Return the seconds of every part on one network."""
    net = network(width, depth)
    x, y = torch.randn(samples, width), torch.randint(10, (samples,))
    masks = incop.prune(net, amount=0.9)
    damage = flow.Damage(net, x)
    point = Snapshot.of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with incop.hold(masks, net, optimizer, gradients=False):
        held = seconds(optimizer.step)  # no gradients: nothing moves, and what is held is zeroed all the same
    with tempfile.TemporaryDirectory() as folder:
        files = Checkpoints(Path(folder) / "checkpoint")
        state = {"model/" + name: tensor for name, tensor in point.tensors.items()}
        checkpoint = seconds(lambda: files.write(state, about={}))
    return {
        "a check, information flow (mean)": seconds(lambda: incop.measure(net, x, flow.InformationFlow())),
        "a check, information flow (absolute)": seconds(
            lambda: incop.measure(net, x, flow.InformationFlow("absolute"))
        ),
        "a check, gradient flow": seconds(
            lambda: incop.measure(net, [(x, y)], flow.GradientFlow(functional.cross_entropy))
        ),
        "a trial cut (damage)": seconds(lambda: damage(masks)),
        "a global cut": seconds(lambda: incop.prune(net, masks=masks, amount=0.2)),
        "a rewind, proven": seconds(lambda: point.rewind(net, masks)),
        "holding, a step": held,
        "a checkpoint": checkpoint,
    }


def fitted(part: str, sizes: list[Size], found: list[float]) -> list[float]:
    """Return the constants of a part's terms, by non-negative least squares of relative errors."""
    rows = np.array([[term(one) / took for _, term in MODELS[part]] for one, took in zip(sizes, found, strict=True)])
    scale = rows.max(0)
    constants, _ = nnls(rows / scale, np.ones(len(found)))
    return list(constants / scale)


def predicted(part: str, constants: list[float], one: Size) -> float:
    """Return the seconds that the model says."""
    return sum(constant * term(one) for constant, (_, term) in zip(constants, MODELS[part], strict=True))


def resnet50() -> Size:
    """ResNet-50 for ImageNet: 53 convolutions and a linear layer; projections of shortcuts are no steps of the chain."""
    blocks = [64]
    for inner, outer, count in ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3)):
        blocks += [inner, inner, outer] * count
    units = [*blocks, 1000]
    return Size(25_502_912, sum(units), sum(a * b for a, b in itertools.pairwise(units)), len(units), 1000)


def transformer() -> Size:
    """A decoder of 24 blocks of width 2,048: query, key and value as steps of their own, output, two of the hidden layer."""
    d, blocks = 2048, 24
    block = [d, d, d, d, 4 * d, d]
    units = block * blocks
    return Size(12 * d * d * blocks, sum(units), sum(a * b for a, b in itertools.pairwise(units)), len(units), 1000)


def on_paper(one: Size) -> dict[str, float]:
    """Return bytes: of what a search keeps, and of what a check moves between ranks."""
    return {
        "weights, float32": 4 * one.weights,
        "plain training, SGD with momentum (weights, gradients, momentum)": 12 * one.weights,
        "plain training, Adam": 16 * one.weights,
        "masks, held (a bit a weight)": one.weights / 8,
        "rewind point": 4 * one.weights,
        "probing: the copy that puts everything back": 4 * one.weights,
        "mean information flow: rows of the probe, n·ΣM": 4 * one.samples * one.units,
        "absolute information flow: Σ M·K in float64": 8 * one.pairs,
        "checkpoint while it is written (state, file in memory)": 3 * 4 * one.weights,
        "between ranks, a check of the mean information flow: 2·ΣM + L − 1 sums, float64": 8
        * (2 * one.units + one.layers - 1),
        "between ranks, a check of the absolute information flow: Σ M·K sums, float64": 8 * one.pairs,
        "between ranks, a check of the gradient flow: the sums of gradients": 4 * one.weights,
        "between ranks, a step of training (its gradients)": 4 * one.weights,
        "masks' agreement between ranks, a level": 32,
    }


def human(value: float) -> str:
    """Return bytes in a unit that reads well."""
    power = min(int(math.log(max(value, 1), 1000)), 4)
    return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def main() -> None:
    """Measure, fit, hold against the other half, plan on paper, write."""
    said = arguments(NAME, __doc__ or "")
    torch.set_num_threads(1)
    grid = list(itertools.product(WIDTHS, DEPTHS, PROBES))
    sizes = [size(*point) for point in grid]
    found = [measured(*point) for point in grid]
    fit = [(at + at // len(PROBES)) % 2 == 0 for at in range(len(grid))]  # every width, depth and probe in both halves
    known = [one for one, used in zip(sizes, fit, strict=True) if used]
    others = [one for one, used in zip(sizes, fit, strict=True) if not used]
    rows = []
    for part, terms in MODELS.items():
        took = [one[part] for one in found]
        constants = fitted(part, known, [t for t, used in zip(took, fit, strict=True) if used])
        left = [t for t, used in zip(took, fit, strict=True) if not used]
        ratios = [predicted(part, constants, one) / t for one, t in zip(others, left, strict=True)]
        rows.append(
            {
                "part": part,
                "constants": {name: c for (name, _), c in zip(terms, constants, strict=True)},
                "predicted_over_measured": sorted(ratios),
                "median": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    plans = {"ResNet-50, ImageNet": on_paper(resnet50()), "transformer, 1.2 billion": on_paper(transformer())}
    result = {
        "benchmark": NAME,
        "date": str(datetime.date.today()),
        "command": "python benchmarks/scaling.py",
        "machine": machine(),
        "torch": torch.__version__,
        "grid": grid,
        "seconds": found,
        "rows": rows,
        "plans": plans,
    }
    text = [
        "# How cost grows",
        "",
        f"`{result['command']}`, one thread of {machine()['cpu']}, processor seconds, medians of {TIMES} calls; chains of "
        f"linear layers of width {WIDTHS}, depth {DEPTHS}, probe {PROBES}. Fitted on {len(known)} networks, held against the "
        f"{len(others)} others.",
        "",
        "| part | seconds = | predicted / measured on the others: median | least | most |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        terms_ = " + ".join(f"{c:.2g}·{name}" for name, c in row["constants"].items() if c > 0)
        text.append(f"| {row['part']} | {terms_} | {row['median']:.2f} | {row['least']:.2f} | {row['most']:.2f} |")
    text += ["", "On paper, bytes by the counts alone (n = 1,000):", "", f"| | {' | '.join(plans)} |", "|---|---|---|"]
    text += [
        f"| {what} | {' | '.join(human(plan[what]) for plan in plans.values())} |"
        for what in next(iter(plans.values()))
    ]
    said.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    said.out.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
