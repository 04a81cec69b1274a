"""Which score of a unit to prune by: validation accuracy after three cuts, each followed by training, for each way to score.

`l1` is the mean of |w| over the weights into a unit (what `pruning.Units` does), `rms` the root of their mean square, `l2` their
norm, not divided by how many there are; `…rel` is divided by the layer's mean, `…io` is over the weights into and out of the
unit; `layer` is `l1` with the same share of units from every layer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from side_by_side import machine

import incop
from incop import pruning, stopping
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.loop import Dense
from incop.pruning import units as room
from incop.rewind_points import Snapshot

NAME = "unit-scores"
CASES = [("lenet-300-100", "mnist", (0.8, 0.95)), ("lenet-5", "fashion-mnist", (0.7, 0.9))]
WAYS = ["l1", "rms", "l1rel", "rmsrel", "l2", "l1io", "rmsio", "layer"]
LEVELS, IMAGES, EPOCHS = 3, 12_000, 5.0


@dataclass(frozen=True)
class Ways(pruning.Units):
    """Whole units, scored in one of the ways."""

    way: str = "l1"

    def _places(self, model, scores, masks, layers, total):
        readers = self.removable(model).readers
        goes, numbers = [], []
        for layer, own in layers.items():
            sums, counts = self._sums(model, scores, masks, layer, own, readers)
            mean = sums.sqrt() if self.way == "l2" else sums / counts
            mean = mean.sqrt() if self.way.startswith("rms") else mean
            mean = torch.where(counts > 0, mean, -torch.inf)
            if self.way.endswith("rel"):
                mean = mean / mean[mean.isfinite()].mean()
            ranked = mean.argsort(stable=True)
            order = torch.empty_like(ranked)
            order[ranked] = torch.arange(len(own))
            stays = order == len(own) - 1
            goes.append(((order + 0.5) / len(own) if self.each_layer else mean)[~stays])
            numbers.append((own.start + torch.arange(len(own)))[~stays])
        number = torch.cat(numbers)[torch.cat(goes).argsort(stable=True)]
        place = torch.full((total + 1,), room.NEVER, dtype=torch.int32)
        place[number] = torch.arange(len(number), dtype=torch.int32)
        return place

    def _sums(self, model, scores, masks, layer, own, readers):
        def term(values):
            return values.double() if self.way.startswith("l1") else values.double().square()

        name = f"{layer}.weight"
        unit = room._unit_and_input(model, layer)[0].expand(masks[name].shape)[masks[name]]
        sums = torch.zeros(len(own), dtype=torch.float64).index_add(0, unit, term(scores[name][masks[name]]))
        counts = torch.bincount(unit, minlength=len(own))
        for reader, read_by_input in readers.items() if self.way.endswith("io") else ():
            name = f"{reader}.weight"
            number = read_by_input[room._unit_and_input(model, reader)[1]].expand(masks[name].shape)
            theirs = masks[name] & (number >= own.start) & (number < own.stop)
            sums.index_add_(0, number[theirs] - own.start, term(scores[name][theirs]))
            counts = counts + torch.bincount(number[theirs] - own.start, minlength=len(own))
        return sums, counts


def rows(seeds):
    for seed in seeds:
        for model, data, sparsities in CASES:
            plan = resolve(
                Plan(
                    data=data, model=model, method="lth-rate", seed=seed, limit=IMAGES, max_epochs=EPOCHS, levels=LEVELS
                )
            )
            dense = None
            for way in WAYS:
                for sparsity in sparsities:
                    parts = prepare(plan)
                    how = Ways(parts.probe[0], way == "layer", "l1" if way == "layer" else way)
                    found = list(
                        incop.search(
                            parts.model,
                            parts.trainer,
                            levels=LEVELS,
                            amount=pruning.Target(sparsity, LEVELS),
                            rewind="rate",
                            selection=how,
                            dense=dense,
                            rule=stopping.AfterEpochs(1),
                            probe=parts.probe,
                        )
                    )
                    first, *_, last = found
                    if dense is None:
                        dense = Dense(first.record, Snapshot(first.weights, first.record.epochs), first.points)
                    yield {
                        "seed": seed,
                        "model": model,
                        "data": data,
                        "way": way,
                        "target": sparsity,
                        "sparsity": last.sparsity,
                        "validation": last.record.val_accuracy,
                        "dense": first.record.val_accuracy,
                        "widths": [int(m.flatten(1).any(1).sum()) for m in last.masks.values()],
                    }


def table(found, seeds):
    lines = [
        f"# {NAME}, {datetime.date.today()}",
        "",
        f"Validation accuracy in percent, mean of {seeds} seeds: {IMAGES:,} training images, dense {EPOCHS:g} epochs, "
        f"then {LEVELS} even cuts to the sparsity, one epoch after each, "
        f"the last {EPOCHS:g} (learning-rate rewinding). Ways: see the script.",
        "",
        "| network | sparsity | dense | " + " | ".join(WAYS) + " |",
        "|---|---:|---:|" + "---:|" * len(WAYS),
    ]
    for model, _, sparsities in CASES:
        for sparsity in sparsities:
            cell = [r for r in found if (r["model"], r["target"]) == (model, sparsity)]
            means = [statistics.mean(r["validation"] for r in cell if r["way"] == way) for way in WAYS]
            dense = statistics.mean(r["dense"] for r in cell)
            lines.append(
                f"| {model} | {sparsity} | {100 * dense:.1f} | " + " | ".join(f"{100 * m:.1f}" for m in means) + " |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-{NAME}.json"
    parser.add_argument("--out", type=Path, default=dated)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = list(rows(range(options.seeds)))
    result = {
        "benchmark": NAME,
        "machine": machine(),
        "torch": torch.__version__,
        "seeds": options.seeds,
        "rows": found,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text := table(found, options.seeds), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
