"""VGG-11 and VGG-16 with batch normalization and one linear classifier, for 32×32 images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from incop.errors import InputError
from incop.experiments.models.shape import check, halvings
from incop.experiments.models.weights import kaiming

WIDTHS = (64, 128, 256, 512, 512)
STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # convolutions before each pooling: columns A and D


def vgg(depth: int, *, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10) -> nn.Sequential:
    """Five stages of 3×3 convolutions, each pooled, then the mean over the map and one linear layer.

    9,231,114 parameters (VGG-11) and 14,728,266 (VGG-16) on 3×32×32 and 10 classes, equal to the published
    counts. They hold *with* the convolutions' biases (2,752 and 4,224 of them), although batch normalization
    makes these idle.

    The 4096-unit layers of the original, made for 224×224 images, are gone, as is usual on CIFAR. ReLU, max
    pooling, Kaiming normal weights. Odd sides round up when pooled; images of 16×16 and below leave out the
    first poolings (`shape.halvings`), and larger ones than 32×32 are averaged over the last map: the
    parameters do not depend on the size.

    Args:
        depth: number of layers with weights, as in the original's name: 11 or 16. One linear layer stands for
            its three.
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
    """
    if depth not in STAGES:
        raise InputError(f"there is no vgg-{depth}: choose vgg-11 or vgg-16")
    check(f"vgg-{depth}", channels=channels, size=size, classes=classes)
    first = len(WIDTHS) - halvings(size, most=len(WIDTHS))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number, before = 0, channels
    for stage, (width, convolutions) in enumerate(zip(WIDTHS, STAGES[depth], strict=True)):
        for _ in range(convolutions):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1)
            layers[f"bn{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            before = width
        if stage >= first:
            layers[f"pool{stage + 1}"] = nn.MaxPool2d(2, ceil_mode=True)
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before, classes)
    return kaiming(nn.Sequential(layers))
