"""Let the search drive your own training: a class with fit and evaluate, plain PyTorch within, on the optical digits."""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop import flow, stopping
from incop.experiments import datasets


class Mine:
    """A trainer of your own: your optimizer, your loader, your schedule; incop says when to stop."""

    epochs = 8

    def __init__(self, train: TensorDataset, validation: TensorDataset) -> None:
        self.train = DataLoader(train, batch_size=64, shuffle=True)
        self.validation = DataLoader(validation, batch_size=500)

    def rate(self, epoch: float) -> float:
        return 0.1 * (0.05 + 0.95 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0))) / 2)

    def fit(self, model: nn.Module, masks: incop.Masks, watch: incop.Watch) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=self.rate(0), momentum=0.9, nesterov=True, weight_decay=1e-4)
        begin = watch.schedule_from  # where in the schedule the level starts; what is left of it is its budget
        epochs = self.epochs if math.isinf(begin) else self.epochs - round(begin)
        with incop.hold(masks, model, optimizer):
            for epoch in range(epochs):
                model.train()
                for step, (images, labels) in enumerate(self.train):
                    done = epoch + step / len(self.train)
                    optimizer.param_groups[0]["lr"] = self.rate(begin + done)
                    optimizer.zero_grad()
                    functional.cross_entropy(model(images), labels).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                    optimizer.step()
                    watch.stepped(len(labels), epoch=done + 1 / len(self.train))
                if watch.look(accuracy=lambda: self.evaluate(model)).stop:
                    return

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        model.eval()
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in self.validation)
        return right / len(self.validation.dataset)


def main() -> None:
    torch.manual_seed(0)
    data = datasets.load("digits", seed=0)
    train = TensorDataset(data.train.images / 255.0, data.train.labels)
    validation = TensorDataset(data.validation.images / 255.0, data.validation.labels)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )

    tickets = incop.search(
        model,
        Mine(train, validation),
        levels=4,
        probe=train.tensors[0][:300],
        meter=flow.InformationFlow("absolute", alive_only=True),
        rule=stopping.FlowSettled() | stopping.AccuracyRestored(drop=0.005),
        amount=0.5,
        rewind="early:1",
    )
    for ticket in tickets:
        print(ticket)


if __name__ == "__main__":
    main()
