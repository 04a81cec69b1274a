"""How damage grows with sparsity on dense networks: by a unit's correlation with itself, and by correlations between layers.

python benchmarks/damage_curves.py --runs FOLDER [--out benchmarks/results/DATE-damage-curves]

FOLDER is that of planned_cuts.py, whose dense levels (seed 0) are measured; a few seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from incop.experiments.run_levels import rebuild
from incop.flow import Damage
from incop.flow.taps import Taps
from incop.pruning import prune
from incop.rundir import RunDir

LAMBDAS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
PROBE = 128


def correlations(model: torch.nn.Module, x: torch.Tensor, chain: list[str]) -> list[np.ndarray]:
    """Return the correlation matrices of neighbouring layers, 0 where a unit does not vary."""
    with torch.no_grad(), Taps(model.eval(), chain) as taps:
        model(x)
        rows = {name: out.double().numpy() for name, out in taps.read(samples=len(x)).items()}
    unit = {}
    for name, out in rows.items():
        centred = out - out.mean(0)
        spread = centred.std(0)
        unit[name] = np.where(spread > 1e-6 * spread.max(), centred / np.where(spread > 0, spread, 1.0), 0.0)
    return [unit[a].T @ unit[b] / len(x) for a, b in pairwise(chain)]


def curve(folder: Path) -> list[dict[str, float]]:
    """Return both damages of one dense network at each λ."""
    run = RunDir.open(folder)
    parts, _ = rebuild(run, 0)
    model, x = parts.model, torch.cat([inputs for inputs, _ in parts.probe])[:PROBE]
    damage = Damage(model, x)
    chain = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    before = correlations(model, x, chain)
    rows = []
    for at in LAMBDAS:
        masks = prune(model, amount=1.0 - math.exp(-at))
        own = damage(masks)
        kept = {name: weight.detach().clone() for name, weight in masks.weights(model).items()}
        masks.apply(model)
        after = correlations(model, x, chain)
        with torch.no_grad():
            for name, weight in masks.weights(model).items():
                weight.copy_(kept[name])
        both = [(b != 0) & (a != 0) for b, a in zip(before, after, strict=True)]
        gap = sum(float(((b - a)[k] ** 2).sum()) for b, a, k in zip(before, after, both, strict=True))
        size = sum(float((b[k] ** 2).sum()) for b, k in zip(before, both, strict=True))
        rows.append(
            {"lambda": at, "unit with itself, share lost": own, "between layers, relative": math.sqrt(gap / size)}
        )
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument(
        "--out", type=Path, default=Path(f"benchmarks/results/{time.strftime('%Y-%m-%d')}-damage-curves")
    )
    told = options.parse_args()
    found = {}
    for pair in sorted(path for path in told.runs.iterdir() if (path / "runs").is_dir()):
        dense = next((pair / "runs").glob("dense-0-*"), None)
        if dense is not None:
            found[pair.name] = curve(dense)
    lines = ["# Damage of cuts on dense networks, by λ = −ln(density)\n"]
    for title in ("unit with itself, share lost", "between layers, relative"):
        lines += [f"## {title}\n", f"| pair | {' | '.join(f'{at:g}' for at in LAMBDAS)} | grows like λ to the |"]
        lines.append("|---" * (len(LAMBDAS) + 2) + "|")
        for pair, rows in found.items():
            values = [row[title] for row in rows]
            part = [
                (math.log(at), math.log(v)) for at, v in zip(LAMBDAS, values, strict=True) if 0.5 <= at <= 2.0 and v > 0
            ]
            power = np.polyfit([a for a, _ in part], [b for _, b in part], 1)[0]
            lines.append(f"| {pair} | {' | '.join(f'{v:.3g}' for v in values)} | {power:.1f} |")
        lines.append("")
    told.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    told.out.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
