"""What the forms on disk take: bytes of each, of masks' and values' entropy, and of the dense network.

Each network is trained for a short while, its smallest weights by magnitude are cut, over the whole network at once, and what is
left is trained again as long. The sizes do not depend on the accuracy; that the weights were really trained matters, since what
packs in a weight is its exponent.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import numpy as np
import torch
from side_by_side import machine
from torch import nn
from torch.nn import functional

import incop
from incop import Masks, export, pruning
from incop.experiments import datasets, models
from incop.export.lossless import dense_size

NAME = "export-sizes"
GOAL, TIMES = 1.15, 8.0
SPARSITIES = (0.9, 0.95, 0.98)
STEPS, BATCH = 40, 16


class Rows(nn.Module):
    """A small transformer that reads an image row by row: 4 layers of width 64."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, 64)
        self.place = nn.Parameter(torch.zeros(rows, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of the classes."""
        return self.head(self.encoder(self.embed(images[:, 0]) + self.place).mean(1))


CASES = [("lenet-300-100", "mnist"), ("lenet-5", "mnist"), ("resnet-20", "cifar10"), ("transformer", "mnist")]


def train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, masks: Masks, steps: int) -> float:
    """Train by Adam with the masks held, and return the accuracy on the last ten batches."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    right = []
    net.train()
    with incop.hold(masks, net, optimizer):
        for _ in range(steps):
            chosen = torch.randint(len(images), (BATCH,), generator=draw)
            output = net(images[chosen])
            optimizer.zero_grad()
            functional.cross_entropy(output, labels[chosen]).backward()
            optimizer.step()
            right.append(float((output.argmax(1) == labels[chosen]).float().mean()))
    return sum(right[-10:]) / len(right[-10:])


def zipped(content: bytes) -> int:
    """Return the bytes of a zip archive of a file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("model", content)
    return len(out.getvalue())


def measured(name: str, data: str, steps: int) -> list[dict[str, object]]:
    loaded = datasets.load(data, limit=5000)
    images, labels = loaded.train.images.float() / 255, loaded.train.labels
    torch.manual_seed(0)
    if name == "transformer":
        net: nn.Module = Rows(loaded.size[1], loaded.size[0])
    else:
        net = models.build(name, channels=loaded.channels, size=loaded.size, classes=loaded.classes, seed=0)
    dense = train(net, images, labels, Masks.full(net), steps)
    rows = []
    for sparsity in SPARSITIES:
        masks = pruning.prune(net, amount=pruning.Target(sparsity, 1), selection=pruning.Global())
        accuracy = train(net, images, labels, masks, steps)
        subject = export.Subject.of(net, masks, example=images[:8], about={"model": name, "data": data})
        with tempfile.TemporaryDirectory() as folder:
            written = {w.form: w for w in export.write_all(subject, ["folded", "safetensors", "sparse"], folder)}
            assert all(one.difference == 0.0 for one in written.values())
            folded = written["folded"].files[0].read_bytes()
        bound = written["sparse"].details["bound"]
        sizes = {form: one.size for form, one in written.items()}
        rows.append(
            {
                "network": name,
                "data": data,
                "sparsity": masks.sparsity,
                "training_accuracy": {"dense": dense, "pruned": accuracy},
                "dense": dense_size(subject),
                **sizes,
                "folded_zipped": zipped(folded),
                "bound": bound,
                "of_bound": sizes["sparse"] / bound,
                "times_smaller": dense_size(subject) / sizes["sparse"],
                "holds": sizes["sparse"] <= GOAL * bound
                and (masks.sparsity < 0.949 or TIMES * sizes["sparse"] <= dense_size(subject)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training before the cuts, and after each")
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-{NAME}.json"
    parser.add_argument("--out", type=Path, default=dated, help="the .json to write; the .md is written beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name, data in CASES for row in measured(name, data, options.steps)]
    versions = {"incop": incop.__version__, "torch": torch.__version__, "numpy": np.__version__}
    result = {"benchmark": NAME, "date": str(datetime.date.today()), "goal": GOAL, "machine": machine()}
    result |= {"versions": versions, "steps": options.steps, "rows": rows}
    result["command"] = "python benchmarks/export_sizes.py" + (
        "" if options.steps == STEPS else f" --steps {options.steps}"
    )
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text := markdown(result), encoding="utf-8")
    print(text)


def markdown(result: dict) -> str:
    rows = result["rows"]
    lines = [
        f"# {NAME}, {result['date']}",
        "",
        f"Bytes on disk. Goal: the sparse form at most {GOAL:g} times the bound, and at 95 % at least {TIMES:g} times "
        f"smaller than dense float32; {'it holds' if all(row['holds'] for row in rows) else 'MISSED'}.",
        "",
        "- versions: " + ", ".join(f"{what} {version}" for what, version in result["versions"].items()),
        f"- command: `{result['command']}`",
        f"- networks trained for {result['steps']} steps of {BATCH} images by Adam, cut by magnitude over the whole network, and "
        f"trained for {result['steps']} steps again before the next cut: sizes of trained weights, not of good tickets",
        "- dense: 4 bytes for each entry of the state dict; bound: the masks' entropy, 4 bytes for each weight left and the "
        "full width of biases, statistics and counters; zip: the folded file, deflated",
        "- every form was read back and answered as the masked network does, to the bit",
        "",
        "| network | sparsity | dense | folded | zip of it | safetensors | sparse | bound | of the bound | times smaller |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {r['network']} | {r['sparsity']:.3f} | {r['dense']:,} | {r['folded']:,} | {r['folded_zipped']:,} | "
            f"{r['safetensors']:,} | {r['sparse']:,} | {r['bound']:,} | {r['of_bound']:.2f} | {r['times_smaller']:.1f} |"
            for r in rows
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
