"""Prune your own model in your own loop: plain PyTorch, Adam, a DataLoader; three levels; no trainer of incop's."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop import flow, pruning, stopping
from incop.experiments import datasets


class Mine(nn.Module):
    """A small convolutional network that incop has never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.body = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        return self.head(functional.relu(self.body(x)).flatten(1))


def train_one_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    data = datasets.load("digits", seed=0)
    images, labels = data.train.images / 255.0, data.train.labels
    held_out = data.validation.images / 255.0, data.validation.labels
    loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
    probe = [(images[:500], labels[:500])]
    model, meter = Mine(), flow.GradientFlow(functional.cross_entropy)

    # Level 0: the dense network, trained in full; its flow is the reference, its first epoch the rewind point.
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(12):
        train_one_epoch(model, loader, optimizer)
        if epoch == 0:
            rewind_point = incop.Snapshot.of(model)
    dense_flow, dense_accuracy = incop.measure(model, probe, meter), accuracy(model, *held_out)
    print(f"dense: accuracy {dense_accuracy:.3f}")

    masks = incop.Masks.full(model)
    for level in range(1, 4):
        masks = incop.prune(model, pruning.Fraction(0.5), masks)
        rewind_point.rewind(model, masks)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        watch = incop.Watch(
            model,
            probe,
            meter=meter,
            masks=masks,
            level=level,
            reference=dense_flow,
            reference_accuracy=dense_accuracy,
            rule=stopping.FlowRestored(within=0.1) | stopping.AccuracyRestored(drop=0.01),
        )
        with incop.hold(masks, model, optimizer):
            for _epoch in range(12):
                train_one_epoch(model, loader, optimizer)
                verdict = watch.look(accuracy=accuracy(model, *held_out))
                if verdict.stop:
                    break
        end = watch.checks[-1]
        print(
            f"level {level}: sparsity {masks.sparsity:.3f}, {end.epoch:g} epochs, accuracy {end.accuracy:.3f}, {verdict.reason}"
        )
        assert incop.Masks.of(model).remaining <= masks.remaining


if __name__ == "__main__":
    main()
