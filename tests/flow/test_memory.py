"""What probing takes in memory: no matrix of units × units where the statistic needs none, and none larger than a pair's."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from incop import measure
from incop.flow import Damage, GradientFlow, InformationFlow
from incop.masks import Masks

WIDTHS = (64, 256, 192, 128)
WIDEST = 256 * 192
SAMPLES = 6


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def grouped():
    """Layers whose weights are far smaller than the matrices between their units."""
    torch.manual_seed(0)
    convs = [nn.Conv1d(a, b, 1, groups=32) for a, b in itertools.pairwise(WIDTHS)]
    net = nn.Sequential(*[part for conv in convs for part in (conv, nn.ReLU())], nn.Flatten())
    assert max(p.numel() for p in net.parameters()) * 8 < WIDEST
    return net


def largest(look):
    with Largest() as noted:
        look()
    return noted.numel


@pytest.mark.parametrize("alive_only", [False, True])
def test_the_mean_needs_no_matrix(alive_only):
    net, x = grouped(), torch.randn(SAMPLES, WIDTHS[0], 1)
    meter = InformationFlow("mean", alive_only=alive_only)
    assert largest(lambda: measure(net, x, meter)) < WIDEST / 8


@pytest.mark.parametrize("statistic", ["absolute", "square"])
def test_other_reductions_need_one_pair_s(statistic):
    net, x = grouped(), torch.randn(SAMPLES, WIDTHS[0], 1)
    assert largest(lambda: measure(net, [x[:3], x[3:]], InformationFlow(statistic))) == WIDEST


def test_the_gradient_flow_and_the_damage_need_none():
    net, x = grouped(), torch.randn(SAMPLES, WIDTHS[0], 1)
    loss = lambda output, target: output.square().mean()  # noqa: E731
    assert largest(lambda: measure(net, [(x, torch.zeros(SAMPLES))], GradientFlow(loss))) < WIDEST / 8
    damage = Damage(net, x)
    assert largest(lambda: damage(Masks.full(net))) < WIDEST / 8
