"""Networks that forms are tried on: two LeNets, a residual one and a small transformer of tokens."""

import torch
from torch import nn

from incop import Masks, export
from incop.experiments import models

NAMES = ("lenet-300-100", "lenet-5", "resnet-20", "transformer")
SPARSITIES = (0.9, 0.98)
SAMPLES = 256


class Tokens(nn.Module):
    """A small encoder over tokens with two outputs, by name."""

    def __init__(self, width=32):
        super().__init__()
        self.words = nn.Embedding(50, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, ids, padding=None):
        hidden = self.encoder(self.words(ids), src_key_padding_mask=padding)
        return {"logits": self.head(hidden.mean(1)), "hidden": hidden}


def network(name):
    """Return a network with random weights and its example of 256 samples."""
    torch.manual_seed(0)
    if name == "transformer":
        padding = torch.zeros(SAMPLES, 9, dtype=torch.bool)
        padding[:, 7:] = torch.rand(SAMPLES, 2) > 0.5
        return Tokens(), {"ids": torch.randint(50, (SAMPLES, 9)), "padding": padding}
    shape = (3, 32, 32) if name == "resnet-20" else (1, 28, 28)
    net = models.build(name, channels=shape[0], size=shape[1:], classes=10, seed=0)
    for module in net.modules():  # as after training: statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net, torch.randn(SAMPLES, *shape)


def pruned(model, sparsity, seed=1):
    """Return masks at random that keep so many of each weight."""
    generator = torch.Generator().manual_seed(seed)
    full = Masks.full(model)
    return Masks({name: torch.rand(mask.shape, generator=generator) >= sparsity for name, mask in full.items()})


def subject(name, sparsity):
    """Return a network as what is exported."""
    net, example = network(name)
    return export.Subject.of(net, pruned(net, sparsity), example=example, about={"model": name, "level": 7})
