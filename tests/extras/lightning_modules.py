"""LightningModules as users write them, small, and Trainers that print nothing."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


def split(samples=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 8, generator=generator)
    return x, x[:, :3].argmax(1)


X, Y = split()


def loader(samples=60, batch_size=10, shuffle=False):
    return DataLoader(TensorDataset(*split(samples)), batch_size, shuffle=shuffle)


def network(dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        layers = [nn.Linear(8, 48), nn.ReLU(), nn.Dropout(dropout), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3)]
        return nn.Sequential(*layers)


class Module(lightning.LightningModule):
    """A classifier; `optimizer` says what `configure_optimizers` makes."""

    def __init__(self, optimizer=None, dropout=0.0):
        super().__init__()
        self.net = network(dropout)
        self.make = optimizer or (lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1))

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return self.make(self.parameters())


class ByHand(Module):
    """Two optimizers, stepped by the module itself, each in turn for the layers it has."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return (
            torch.optim.AdamW(self.net[0].parameters(), 1e-2, weight_decay=0.1),
            torch.optim.RMSprop(self.net[3:].parameters(), 1e-3, momentum=0.9),
        )

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


def trainer(**arguments):
    return lightning.Trainer(**{**QUIET, **arguments})


def weights(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
