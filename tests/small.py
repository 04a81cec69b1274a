"""Small networks, data and masks that tests of several files use."""

from itertools import pairwise

import torch
from torch import nn

from incop import Masks


def mlp(*widths, seed=0, extra=()):
    """Linear layers with ReLU between, drawn after `torch.manual_seed(seed)`; `extra` follows the first of them."""
    torch.manual_seed(seed)
    first, *rest = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return nn.Sequential(first, *extra, *rest)


def normalised(seed=0):
    """Return 8 inputs, two hidden layers, the first with batch normalization, and 3 classes; the generator stays as it was."""
    with torch.random.fork_rng():
        return mlp(8, 24, 16, 3, seed=seed, extra=[nn.BatchNorm1d(24)])


def data(n=120, seed=1):
    """Return n samples of 8 inputs that a small network can sort into 3 classes."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def random_masks(model, seed=0, left=0.4):
    generator = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(m.shape, generator=generator) < left for n, m in Masks.full(model).items()})
