"""Samples a second of `incop.Trainer` beside two plain ways of training the same network on the same images.

- **script**: the loop of the field's scripts. A data set in torchvision's manner makes a PIL image of every sample,
  turns it into floats and normalises it; `DataLoader(batch_size=60, shuffle=True)`; torch's own Adam, 1.2e-3, as it comes
  (not fused); weights multiplied by their masks after every step. Scripts that multiply the gradients instead are slower:
  the square root of Adam is slow at the exact zeros which the second moments then are.
- **open_lth**: the way of facebookresearch/open_lth in our words. A data set over a NumPy array, a PIL image a sample, a
  DataLoader over a shuffled order, SGD 0.1 in batches of 128, masks multiplied into the weights in every forward pass, a
  schedule stepped at every step.

Both run with the samples made in the training process and with two workers that stay alive between epochs. The goal is
against the faster of the two, by its median. torchvision's transforms are written out here, with what they check left out.
The Trainer gets what `incop search` gives it: the images normalised once, in memory, which is not in its time (it is half a
second for all levels of a search), and the weights with channels innermost. Everybody trains the same network from the
same weights with the same masks.

Run it on idle cores, with OMP_WAIT_POLICY as it is by default: threads that wait passively make two threads slower than
one here. Wall time of one epoch each, in turn, in one process; validation is in nobody's time.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import PIL
import torch
from PIL import Image
from side_by_side import arguments, machine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import incop
from incop.experiments import datasets, models

NAME = "throughput"
GOAL = 3.0
IMAGES = 20_000  # of which nine tenths are trained on: 300 steps of 60
WORKERS = (0, 2)
CASES = [("mnist", "lenet-300-100"), ("fashion-mnist", "lenet-5")]
SPARSITIES = (0.0, 0.9)
WARM_UP = 1  # epochs of everybody before any is counted


class Pictures(Dataset):
    """Images as torchvision's MNIST hands them out: a PIL image a sample, made into a normalised tensor."""

    def __init__(self, images: Tensor | np.ndarray, labels: Tensor | np.ndarray, mean: tuple, std: tuple) -> None:
        self.images, self.labels, self.mean, self.std = images, labels, mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index], self.labels[index]
        picture = Image.fromarray(image.numpy() if isinstance(image, Tensor) else image)
        return normalised(to_tensor(picture), self.mean, self.std), int(label)


def to_tensor(picture: Image.Image) -> Tensor:
    width, height = picture.size
    pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True)).view(height, width, -1)
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def normalised(image: Tensor, mean: tuple, std: tuple) -> Tensor:
    mean, std = (torch.as_tensor(value, dtype=image.dtype).view(-1, 1, 1) for value in (mean, std))
    return image.clone().sub_(mean).div_(std)


class Masked(nn.Module):
    """A network whose weights are multiplied by their masks in every forward pass."""

    def __init__(self, model: nn.Module, masks: incop.Masks) -> None:
        super().__init__()
        self.model = model
        self.masked = [(p, masks[name].float()) for name, p in model.named_parameters() if name in masks]

    def forward(self, inputs: Tensor) -> Tensor:
        """Mask the weights and call the network."""
        for weight, mask in self.masked:
            weight.data.mul_(mask)
        return self.model(inputs)


def script(model: nn.Module, masks: incop.Masks, loader: DataLoader) -> Callable[[], float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    masked = [(p, masks[name].float()) for name, p in model.named_parameters() if name in masks]

    def epoch() -> float:
        started = time.perf_counter()
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            for weight, mask in masked:
                weight.data.mul_(mask)
        return time.perf_counter() - started

    return epoch


def open_lth(model: nn.Module, masks: incop.Masks, loader: DataLoader) -> Callable[[], float]:
    model = Masked(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def epoch() -> float:
        started = time.perf_counter()
        for inputs, labels in loader:
            optimizer.zero_grad()
            model.train()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            schedule.step()
        return time.perf_counter() - started

    return epoch


def ours(model: nn.Module, masks: incop.Masks, trainer: incop.Trainer) -> Callable[[], float]:
    def epoch() -> float:
        watch = incop.Watch(model)
        trainer.fit(model, masks, watch)
        return watch.spent.seconds  # from the making of the optimizer to the last step

    return epoch


WAYS = {  # the opponent, its batch, the Trainer's arguments for the same training
    "script": (script, 60, {"optimizer": "adam", "lr": 1.2e-3}),
    "open_lth": (open_lth, 128, {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0}),
}


def rows_of(name: str, data: str, way: str, sparsity: float, repeats: int) -> list[dict]:
    opponent, batch, arguments_of_trainer = WAYS[way]
    found = datasets.load(data, limit=IMAGES)
    train, mean, std = found.train, found.mean, found.std
    kept = train.images[:, 0] if way == "script" else train.images[:, 0].numpy()
    pictures = Pictures(kept, train.labels if way == "script" else train.labels.numpy(), mean, std)
    everything = (train.images.float() / 255 - mean[0]) / std[0]
    model = models.build(name, channels=1, size=(28, 28), classes=10, seed=0)
    laid_out = copy.deepcopy(model).to(memory_format=torch.channels_last)  # as `incop search` lays it out on a CPU
    masks = incop.prune(model, amount=sparsity) if sparsity else incop.Masks.full(model)
    masks.apply(model)
    masks.apply(laid_out)
    few = (everything[:1000], train.labels[:1000])
    trainer = incop.Trainer((everything, train.labels), few, epochs=1, batch_size=batch, **arguments_of_trainer)
    contenders = {"incop": ours(laid_out, masks, trainer)}
    for workers in WORKERS:
        loader = DataLoader(pictures, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        contenders[f"{way}, {workers} workers"] = opponent(copy.deepcopy(model), masks, loader)
    times = {who: [] for who in contenders}
    load = os.getloadavg()[0]
    for turn in range(WARM_UP + repeats):
        order = list(contenders)
        for who in order[turn % len(order) :] + order[: turn % len(order)]:
            taken = contenders[who]()
            if turn >= WARM_UP:
                times[who].append(taken)
    rows = []
    theirs = [who for who in contenders if who != "incop"]
    faster = min(theirs, key=lambda who: statistics.median(times[who]))
    for who in theirs:
        ratios = [b / a for a, b in zip(times["incop"], times[who], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rate, plain_rate = (len(pictures) / statistics.median(times[w]) for w in ("incop", who))
        rows.append(
            {
                "model": name,
                "data": data,
                "sparsity": sparsity,
                "against": who,
                "batch": batch,
                "n": repeats,
                "median": middle,
                "q1": low,
                "q3": high,
                "least": min(ratios),
                "most": max(ratios),
                "samples_per_second": rate,
                "plain_samples_per_second": plain_rate,
                "load": load,
                "holds": middle >= GOAL if who == faster else None,
            }
        )
        print(f"{name} at {sparsity:.0%}, against {who}: {middle:.2f}", flush=True)
    return rows


def main() -> None:
    options = arguments(NAME, __doc__)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    repeats = options.repeats or 11
    run = partial(rows_of, repeats=repeats)
    rows = [
        row for data, name in CASES for way in WAYS for sparsity in SPARSITIES for row in run(name, data, way, sparsity)
    ]
    versions = {
        "incop": incop.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
    }
    result = {
        "benchmark": NAME,
        "date": str(datetime.date.today()),
        "command": "python benchmarks/throughput.py" + (f" --repeats {options.repeats}" if options.repeats else ""),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        "ratio": "Samples a second of incop's Trainer, per the same of a plain loop.",
        "goal": GOAL,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text := markdown(result), encoding="utf-8")
    print(text)


def markdown(result: dict) -> str:
    m, verdicts = result["machine"], {True: "yes", False: "**no**", None: "–"}
    loads = [row["load"] for row in result["rows"]]
    lines = [
        f"# {result['benchmark']}, {result['date']}",
        "",
        f"{result['ratio']} Goal: a median of at least {result['goal']:g} against the faster number of workers.",
        "",
        f"- machine: {m['cpu']} ({m['instructions']}), {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; "
        f"{m['threads']} thread{'s' if m['threads'] > 1 else ''} on every side; load while it ran {min(loads):.1f} – "
        f"{max(loads):.1f}, its own share included",
        "- versions: " + ", ".join(f"{what} {version}" for what, version in result["versions"].items()),
        f"- command: `{result['command']}`",
        f"- n epochs of {IMAGES * 9 // 10:,} images each, in turn in one process, after {WARM_UP} to warm up; wall time",
        "",
        "| network | data | sparsity | against | batch | n | ratio: median | quartiles | least – most | samples/s "
        "| theirs | goal holds |",
        "|---|---|---:|---|---:|---:|---:|---|---|---:|---:|---|",
    ]
    lines += [
        f"| {r['model']} | {r['data']} | {r['sparsity']:.0%} | {r['against']} | {r['batch']} | {r['n']} | {r['median']:.2f} "
        f"| {r['q1']:.2f} – {r['q3']:.2f} | {r['least']:.2f} – {r['most']:.2f} | {r['samples_per_second']:,.0f} "
        f"| {r['plain_samples_per_second']:,.0f} | {verdicts[r['holds']]} |"
        for r in result["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
