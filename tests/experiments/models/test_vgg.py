import pytest
import torch
from torch import nn

from incop.errors import InputError
from incop.experiments.models.vgg import vgg


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "total", "biases"), [(11, 9_231_114, 2_752), (16, 14_728_266, 4_224)])
def test_counts_hold_with_the_biases_of_the_convolutions(depth, total, biases):
    model = vgg(depth)
    assert count(model) == total
    assert sum(m.bias.numel() for m in model if isinstance(m, nn.Conv2d)) == biases
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model) == depth - 2


@pytest.mark.parametrize("side", [4, 8, 17, 28, 32, 64])
def test_the_last_convolution_sees_more_than_one_pixel_and_the_count_stays(side):
    model = vgg(16, size=(side, side)).eval()
    seen = []
    model.conv13.register_forward_hook(lambda _m, _x, out: seen.append(out.shape[-1]))
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    assert seen[0] >= 2
    assert count(model) == 14_728_266


def test_unknown_depth():
    with pytest.raises(InputError, match="there is no vgg-19: choose vgg-11 or vgg-16"):
        vgg(19)
