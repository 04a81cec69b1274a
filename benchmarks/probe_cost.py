"""What a look at the flow costs: `incop.measure` against the plain passes it cannot do without.

Information flow is held against one forward pass, gradient flow against one forward and backward pass, over the same
batches of the same probe of 1,024 training images: all in one batch, and in batches of 256. The model is in evaluation
mode on both sides and has gradients in `.grad`, as between two steps of training.
"""

from __future__ import annotations

import os
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch
from side_by_side import arguments, images, side_by_side, write
from torch import nn
from torch.nn import functional

import incop
from incop.experiments import models

NAME = "probe-cost"
GOAL = 1.3
PROBE = 1024  # images
BATCHES = (1024, 256)
CASES = [  # network, data, pairs to time
    ("lenet-300-100", "fashion-mnist", 101),
    ("lenet-5", "fashion-mnist", 51),
    ("resnet-20", "cifar10", 11),
]
METERS = [incop.flow.InformationFlow(reduction) for reduction in ("mean", "absolute", "square")]
METERS.append(incop.flow.GradientFlow(functional.cross_entropy))


def forward(model: nn.Module, probe: list) -> None:
    with torch.no_grad():
        for inputs, _ in probe:
            model(inputs)


def forward_backward(model: nn.Module, probe: list) -> None:
    model.zero_grad()
    for inputs, labels in probe:
        functional.cross_entropy(model(inputs), labels).backward()


def main() -> None:
    options = arguments(NAME, __doc__)
    torch.set_num_threads(1)
    rows = []
    for name, data, repeats in CASES:
        x, y = images(data, PROBE)
        model = models.build(name, channels=x.shape[1], size=tuple(x.shape[2:]), classes=10, seed=0).eval()
        for batch in BATCHES:
            probe = list(zip(x.split(batch), y.split(batch), strict=True))
            for meter in METERS:
                plain, against = forward, "forward"
                if isinstance(meter, incop.flow.GradientFlow):
                    plain, against = forward_backward, "forward + backward"
                forward_backward(model, probe)
                spread = side_by_side(
                    partial(incop.measure, model, probe, meter),
                    partial(plain, model, probe),
                    options.repeats or repeats,
                )
                what = f"{meter} / {against}, batch {batch}"
                rows.append({"model": name, "data": data, "what": what, **spread})
                print(f"{name}: {what}: {spread['median']:.3f}", flush=True)
    title = f"A measurement on a probe of {PROBE:,} images, per plain pass over the same batches."
    write(options, NAME, title, GOAL, rows)


if __name__ == "__main__":
    main()
