"""What masks cost in training: a step with `incop.hold` against the same step without.

Two copies of one network take turns, step by step, on the same batches of real images; one of them is held at 90 %
sparsity. The control has nothing held on either side: how far its median is from 1 is what cannot be told apart.

The learning rate is 0, which saves no arithmetic and keeps the weights of both copies equal. At a real rate they drift
apart, and kernels that branch on values (max pooling) then differ by up to 2 % with nothing held at all (LeNet-5, after
300 steps of SGD): that is the cost of other weights, not of masks.
"""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch
from side_by_side import arguments, images, side_by_side, write
from torch import nn
from torch.nn import functional

import incop
from incop.experiments import models

NAME = "mask-cost"
GOAL = 1.03
SPARSITY = 0.9
WAYS = {  # as incop's trainer holds them when it does not clip (the goal); as `hold` does by default; a step against itself
    "": lambda masks, a: incop.hold(masks, a.model, a.optimizer, gradients=False),
    ", gradients held too": lambda masks, a: incop.hold(masks, a.model, a.optimizer),
    ", control": lambda masks, a: nullcontext(),
}
CASES = [  # network, data, batch, pairs to time, whether the goal is for it
    ("lenet-300-100", "fashion-mnist", 60, 1001, False),
    ("lenet-5", "fashion-mnist", 60, 1001, True),
    ("resnet-20", "cifar10", 128, 31, True),
]
OPTIMIZERS = {
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=1e-4),
    "Adam, fused": lambda weights: torch.optim.Adam(weights, lr=0.0, fused=True),
}


class Stepper:
    """One network in training; every call is a step on its next batch."""

    def __init__(self, model: nn.Module, optimizer: str, batches: list) -> None:
        self.model, self.batches, self.at = model.train(), batches, 0
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())

    def __call__(self) -> None:
        """Train one step."""
        x, y = self.batches[self.at % len(self.batches)]
        self.at += 1
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()


def main() -> None:
    options = arguments(NAME, __doc__)
    torch.set_num_threads(1)
    rows = []
    for name, data, batch, repeats, goal in CASES:
        x, y = images(data, 12 * batch)
        batches = list(zip(x.split(batch), y.split(batch), strict=True))
        model = models.build(name, channels=x.shape[1], size=tuple(x.shape[2:]), classes=10, seed=0)
        masks = incop.prune(model, amount=SPARSITY)
        masks.apply(model)  # both copies begin with the same weights
        for optimizer in OPTIMIZERS:
            for way, held in WAYS.items():
                a, b = (Stepper(copy.deepcopy(model), optimizer, batches) for _ in range(2))
                with held(masks, a):
                    spread = side_by_side(a, b, options.repeats or repeats)
                what = f"{optimizer}, batch {batch}{way}"
                rows.append(
                    {
                        "model": name,
                        "data": data,
                        "what": what,
                        "goal": goal and not way,
                        **spread,
                    }
                )
                print(f"{name}: {what}: {spread['median']:.4f}", flush=True)
    title = f"A training step with masks held at {SPARSITY:.0%} sparsity, per step without masks."
    write(options, NAME, title, GOAL, rows)


if __name__ == "__main__":
    main()
