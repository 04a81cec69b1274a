import pytest
import torch
from torch import nn

from incop.experiments.models.weights import glorot, kaiming


@pytest.mark.parametrize(
    ("draw", "layer", "variance"),
    [
        (glorot, nn.Linear(400, 600), 2 / 1000),
        (glorot, nn.Conv2d(32, 96, 5), 2 / (25 * 128)),
        (kaiming, nn.Linear(400, 600), 2 / 400),
        (kaiming, nn.Conv2d(32, 96, 5), 2 / (25 * 32)),
    ],
)
def test_variance_and_zero_biases(draw, layer, variance):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        assert draw(layer) is layer
    # a sample of n ≥ 76,800 values: its variance is known to √(2/n) ≈ 0.5 %
    assert layer.weight.var().item() == pytest.approx(variance, rel=0.03)
    assert layer.weight.mean().item() == pytest.approx(0, abs=4 * (variance / layer.weight.numel()) ** 0.5)
    assert not layer.bias.any()


def test_layers_without_biases_and_batch_normalization():
    model = kaiming(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)))
    assert model[1].weight.eq(1).all()
    assert model[1].bias.eq(0).all()
