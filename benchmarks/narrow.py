"""Networks of the field in narrow forms that a CPU trains many times: Conv-2 a quarter as wide, ResNet-20 half as wide."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from incop.experiments.models.resnet import Block
from incop.experiments.models.weights import glorot, kaiming


def conv_2(classes: int = 10, channels: int = 3, size: tuple[int, int] = (32, 32), width: int = 16) -> nn.Sequential:
    """Two convolutions, a pooling and two layers of units, as in incop's `conv-2`, each a quarter as wide."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(width, width, 3, padding=1),
        relu2=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(width * (size[0] // 2) * (size[1] // 2), 4 * width),
        relu3=nn.ReLU(),
        fc2=nn.Linear(4 * width, 4 * width),
        relu4=nn.ReLU(),
        fc3=nn.Linear(4 * width, classes),
    )
    return glorot(nn.Sequential(layers))


def resnet_20(classes: int = 10, channels: int = 3, width: int = 8) -> nn.Sequential:
    """Three stages of three blocks, as in incop's `resnet-20`, of 8, 16 and 32 channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(width), relu1=nn.ReLU()
    )
    before = width
    for stage, own in enumerate((width, 2 * width, 4 * width)):
        first = Block(before, own, stride=1 if stage == 0 else 2)
        layers[f"layer{stage + 1}"] = nn.Sequential(first, Block(own, own), Block(own, own))
        before = own
    layers |= OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(before, classes))
    return kaiming(nn.Sequential(layers))
