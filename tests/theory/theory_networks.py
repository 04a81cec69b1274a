"""Small networks in float64, and the loop that trains them."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

import incop


@dataclass(frozen=True)
class Network:
    """A network in float64, with data it was trained on; tests that change it take a copy."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    names: tuple[str, ...]

    def copy(self):
        return copy.deepcopy(self.model)


def mlp(inputs, *widths):
    layers = []
    for before, after in zip((inputs, *widths), (*widths, 10), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double(), tuple(str(2 * k) for k in range(len(widths) + 1))


def cnn():
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )  # fmt: skip
    return net.double(), ("0", "3", "6")


def train(model, x, y, epochs, masks=None, lr=3e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    masks = masks or incop.Masks.full(model)
    order = torch.Generator().manual_seed(1)
    with incop.hold(masks, model, optimizer):
        for _ in range(epochs):
            for index in torch.randperm(len(x), generator=order).split(64):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
    return model
