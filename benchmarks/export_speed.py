"""What each form of a sparse network takes on disk and in time, against the dense network in the same run.

Weights and masks are random: speed depends on shapes and on how many weights are left, not on which. A form is made and proven
by `incop.export.write` on 256 inputs before it is timed. CSR appears chosen for batches of 1 and 64 both, and for each alone.

    python benchmarks/export_speed.py [--networks wide-mlp,…] [--sparsities 0.9,…] [--forms csr,…] [--rounds N] [--out FILE.json]

The extra `incop[onnx]` brings the ONNX rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from incop import Masks, export
from incop.experiments import models
from incop.export.benchmark import default_forms

SAMPLES = 256
DISK = ("safetensors", "sparse")  # forms that are loaded as dense weights
SPARSITIES = "0.9,0.95,0.98,0.99"


class Tokens(nn.Module):
    """A small transformer over 32 tokens: two layers of width 256, plain linear layers for its attention."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(1000, width)
        names = ("query", "key", "value", "out", "up", "down")
        shapes = dict.fromkeys(names[:4], (width, width)) | {"up": (width, 4 * width), "down": (4 * width, width)}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*shape) for name, shape in shapes.items()}) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (n, 10) for tokens (n, T)."""
        x = self.words(ids)
        for place, block in enumerate(self.blocks):
            h = self.norms[2 * place](x)
            q, k, v = (
                block[name](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value")
            )
            attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + block["out"](attended)
            x = x + block["down"](nn.functional.gelu(block["up"](self.norms[2 * place + 1](x))))
        return self.head(x.mean(1))


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "wide-mlp":
        sizes = (1024, 4096, 4096)
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], 10)), torch.randn(SAMPLES, sizes[0])
    if name == "transformer":
        return Tokens(), torch.randint(1000, (SAMPLES, 32))
    shape = (3, 32, 32) if name == "resnet-20" else (1, 28, 28)
    net = models.build(name, channels=shape[0], size=shape[1:], classes=10, seed=0)
    return net, torch.randn(SAMPLES, *shape)


def masks_of(net: nn.Module, sparsity: float) -> Masks:
    generator = torch.Generator().manual_seed(1)
    full = Masks.full(net)
    return Masks({name: torch.rand(mask.shape, generator=generator) >= sparsity for name, mask in full.items()})


def measured(name: str, sparsity: float, rounds: int, words: str | None) -> dict:
    net, example = network(name)
    about = {"model": name, "sparsity": sparsity}
    subject = export.Subject.of(net, masks_of(net, sparsity), example=example, about=about)
    wanted = words.split(",") if words else [word for word in default_forms() if word not in DISK] + ["csr@1", "csr@64"]
    return export.bench(subject, wanted, rounds=rounds).to_json()


def markdown(result: dict) -> str:
    environment, settings = result["environment"], result["settings"]
    versions = ", ".join(f"{what} {version}" for what, version in environment["versions"].items())
    lines = [
        f"# export_speed, {result['date']}",
        "",
        "How many times as fast as the dense network in PyTorch, from the same rounds: median and 95 % interval; below 1: slower.",
        "",
        f"- machine: {environment['cpu']}, {environment['cores']} cores, {environment['system']}; "
        f"{settings['threads']} thread used",
        f"- load of the last minute, in jobs, while measuring: {result['load'][0]:.1f} to {result['load'][1]:.1f}",
        f"- versions: {versions}",
        f"- command: `{result['command']}`",
        f"- {settings['rounds']} rounds, times are {settings['clock']}; answers proven on {settings['samples']} inputs",
        "- weights and masks are random",
        "- “compacted+onnx” has two columns: against PyTorch, and against the form onnx, the dense network in ONNX Runtime",
        "- a form that is absent could not be made; why is in the `.json`. csr@1 and csr@64 are chosen by that batch alone",
        "",
        "| network | sparsity | form | bytes | ms at 1 | times as fast | ms at 64 | times as fast | in its runtime |",
        "|---|---:|---|---:|---:|---|---:|---|---|",
    ]
    for bench in result["benches"]:
        for row in bench["rows"]:
            one, many = row["speeds"]
            own = [
                "–" if s["against_runtime"] is None else f"{s['against_runtime']['median']:.2f}" for s in (one, many)
            ]
            about = bench["about"]
            lines.append(
                f"| {about['model']} | {about['sparsity']} | {row['form']} | {row['bytes']:,} "
                f"| {one['ms']:.3g} | {times(one)} | {many['ms']:.3g} | {times(many)} "
                f"| {own[0]} and {own[1]} |"
            )
    return "\n".join(lines) + "\n"


def times(speed: dict) -> str:
    ratio = speed["against_dense"]
    return "1" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} – {ratio['high']:.2f})"


def main() -> None:
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-export_speed.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="wide-mlp,lenet-300-100,lenet-5,resnet-20,transformer")
    parser.add_argument("--sparsities", default=SPARSITIES)
    parser.add_argument(
        "--forms", help="by default all that are not loaded as dense weights, and folded as their control"
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=dated, help="the .json to write; the .md is written beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    benches, loads = [], []
    for name in options.networks.split(","):
        for sparsity in map(float, options.sparsities.split(",")):
            benches.append(measured(name, sparsity, options.rounds, options.forms))
            loads.append(os.getloadavg()[0])
            print(name, sparsity, benches[-1]["verdict"], flush=True)
            result = {
                "benchmark": "export_speed",
                "date": str(datetime.date.today()),
                "command": shlex.join(["python", "benchmarks/export_speed.py", *sys.argv[1:]]),
                "environment": benches[0]["environment"],
                "settings": benches[0]["settings"],
                "load": [min(loads), max(loads)],
                "benches": benches,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            options.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
