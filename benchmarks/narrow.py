"""A network of the field in a narrow form that a CPU trains many times: Conv-2 a quarter as wide."""

from __future__ import annotations

from torch import nn

from incop.experiments.models.conv import conv


def conv_2(channels: int, size: tuple[int, int], classes: int) -> nn.Sequential:
    return conv(2, channels=channels, size=size, classes=classes, width=16)
