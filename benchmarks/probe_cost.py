"""What a look at the flow costs: `incop.measure` against the plain passes it cannot do without.

Information flow is held against one forward pass, gradient flow against one forward and backward pass, over the same
probe: 1,024 training images in one batch, as `incop search` cuts its probe. The model is in evaluation mode on both sides
and has gradients in `.grad`, as between two steps of training.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import torch
from side_by_side import arguments, images, side_by_side, write
from torch.nn import functional

import incop
from incop.experiments import models

NAME = "probe-cost"
GOAL = 1.3
PROBE = 1024  # images
CASES = [  # network, data, pairs to time
    ("lenet-300-100", "fashion-mnist", 201),
    ("lenet-5", "fashion-mnist", 101),
    ("resnet-20", "cifar10", 31),
]
METERS = [incop.flow.InformationFlow(reduction) for reduction in ("mean", "absolute", "square")]
METERS.append(incop.flow.GradientFlow(functional.cross_entropy))


def main() -> None:
    options = arguments(NAME, __doc__)
    torch.set_num_threads(1)
    rows = []
    for name, data, repeats in CASES:
        x, y = images(data, PROBE)
        model = models.build(name, channels=x.shape[1], size=tuple(x.shape[2:]), classes=10, seed=0).eval()
        probe = [(x, y)]

        def forward(model=model, probe=probe):
            with torch.no_grad():
                for inputs, _ in probe:
                    model(inputs)

        def backward(model=model, probe=probe):
            model.zero_grad()
            for inputs, labels in probe:
                functional.cross_entropy(model(inputs), labels).backward()

        backward()
        for meter in METERS:
            plain = backward if isinstance(meter, incop.flow.GradientFlow) else forward

            def measured(model=model, probe=probe, meter=meter):
                incop.measure(model, probe, meter)

            spread = side_by_side(measured, plain, options.repeats or repeats)
            against = "forward + backward" if plain is backward else "forward"
            rows.append({"model": name, "data": data, "what": f"{meter} / {against}", **spread})
            print(f"{name}: {meter}: {spread['median']:.3f}", flush=True)
    title = f"A measurement on a probe of {PROBE:,} images in one batch, per plain pass over it."
    write(options, NAME, title, GOAL, rows)


if __name__ == "__main__":
    main()
