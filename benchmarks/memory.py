"""What incop takes in memory over plain training: the largest resident set of processes that differ in one thing.

Every row is a process of its own that trains the same network by the same loop; its peak is held against that of the loop
alone. A network of wide linear layers, so that weights and what is kept of them are what matters, not activations.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch
from side_by_side import arguments, machine
from torch import nn
from torch.nn import functional

import incop
from incop import flow

ROOMS = (
    incop.search,
    incop.hold,
    incop.prune,
    incop.measure,
    incop.Watch,
)  # loaded by every process, the loop alone's too
NAME = "memory"
WIDTH, DEPTH, BATCH = 2048, 12, 32
SPARSITY = 0.9


def network() -> nn.Module:
    """Return a network of 50 million weights."""
    torch.manual_seed(0)
    parts = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(WIDTH, 10))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return random batches."""
    torch.manual_seed(1)
    return [(torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))) for _ in range(count)]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, each: object = None) -> None:
    """Train some steps."""
    for x, y in batches(count):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if each is not None:
            each()


class Plain:
    """The loop of a user: SGD with momentum."""

    epochs = 1.0

    def fit(self, model: nn.Module, masks: incop.Masks, watch: incop.Watch) -> None:
        """Train one level."""
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        with incop.hold(masks, model, optimizer):
            steps(model, optimizer, 3, lambda: watch.stepped(epoch=watch.epoch + 1 / 3))
        model.zero_grad()
        watch.look(accuracy=0.5, epoch=1.0)

    def evaluate(self, model: nn.Module) -> float:
        """Return a number; nothing is judged here."""
        return 0.5


def alone() -> None:
    """Train without incop."""
    model = network()
    for _ in range(3):
        steps(model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9), 3)
        model.zero_grad()


def held() -> None:
    """Train with most weights held at zero."""
    model = network()
    masks = incop.prune(model, amount=SPARSITY, selection=incop.pruning.Layerwise())
    for _ in range(3):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        with incop.hold(masks, model, optimizer):
            steps(model, optimizer, 3)
        model.zero_grad()


def searched(
    rewind: str,
    offload: str | None,
    keep_tickets: bool,
    meter: flow.Meter | None = None,
    score: incop.pruning.Score | None = None,
) -> None:
    """Search two levels."""
    with tempfile.TemporaryDirectory() as folder:
        tickets = incop.search(
            network(),
            Plain(),
            levels=2,
            amount=0.7,
            selection=incop.pruning.Layerwise(),
            rewind=rewind,
            offload=Path(folder) if offload == "disk" else offload,
            meter=meter,
            score=score,
            probe=None if meter is None else [x for x, _ in batches(4)],
        )
        kept = None
        for ticket in tickets:
            kept = ticket if keep_tickets else None
            del ticket
        del kept


CASES = {
    "the loop alone": alone,
    "weights held at zero": held,
    "search, rewind rate": lambda: searched("rate", None, False),
    "search, rewind rate, by saliency": lambda: searched("rate", None, False, score=incop.pruning.Saliency()),
    "search, rewind rate, the last ticket kept": lambda: searched("rate", None, True),
    "search, rewind early": lambda: searched("early:2steps", None, False),
    "search, rewind dense": lambda: searched("dense", None, False),
    "search, rewind dense, copies on disk": lambda: searched("dense", "disk", False),
    "search, rewind dense, mean information flow": lambda: searched("dense", None, False, flow.InformationFlow()),
    "search, rewind dense, absolute information flow": lambda: searched(
        "dense", None, False, flow.InformationFlow("absolute")
    ),
}


def peak(case: str) -> float:
    """Return the largest resident set of a process with this case, in bytes."""
    # glibc would keep freed tensors below 32 MB for later; so each goes back to the system, and the peak is of what is in use
    around = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case], check=True, capture_output=True, text=True, env=around
    )
    return float(done.stdout)


def main() -> None:
    """Measure every case and write the table."""
    said = arguments(NAME, __doc__ or "")
    repeats = said.repeats or 3
    weights = sum(p.numel() for p in network().parameters() if p.dim() == 2)
    peaks = {case: [peak(case) for _ in range(repeats)] for case in CASES}
    plain = statistics.median(peaks["the loop alone"])
    rows = []
    for case, found in peaks.items():
        more = (statistics.median(found) - plain) / weights  # bytes a weight
        rows.append(
            {
                "case": case,
                "peaks": found,
                "peak_mb": statistics.median(found) / 1e6,
                "spread_mb": (max(found) - min(found)) / 1e6,
                "bits_a_weight": 8 * more,
                "times_the_parameters": more / 4,
            }
        )
    result = {
        "benchmark": NAME,
        "date": str(datetime.date.today()),
        "command": f"python benchmarks/memory.py --repeats {repeats}",
        "machine": machine(),
        "torch": torch.__version__,
        "weights": weights,
        "rows": rows,
    }
    text = [
        "# Memory over plain training",
        "",
        f"A network of {weights:,} prunable weights of 4 bytes, SGD with momentum, batches of {BATCH}; the largest resident set "
        f"of a process, median of n = {repeats}; spread: largest less smallest. `{result['command']}`, {machine()['cpu']}.",
        "",
        "| process | peak, MB | spread, MB | over the loop alone: bits a weight | times the parameters |",
        "|---|---|---|---|---|",
        *(
            f"| {row['case']} | {row['peak_mb']:.0f} | {row['spread_mb']:.0f} | {row['bits_a_weight']:+.2f} | "
            f"{row['times_the_parameters']:+.3f} |"
            for row in rows
        ),
        "",
    ]
    said.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    said.out.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        torch.set_num_threads(1)
        CASES[sys.argv[2]]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    else:
        main()
