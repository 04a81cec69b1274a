"""Search a sparse network on the optical digits with incop's own trainer, in about ten seconds on one core."""

import torch

import incop
from incop import flow, pruning, stopping
from incop.experiments import datasets, models


def main() -> None:
    data = datasets.load("digits", seed=0)

    def floats(split: datasets.Split) -> tuple[torch.Tensor, torch.Tensor]:
        return (split.images / 255 - data.mean[0]) / data.std[0], split.labels

    train, validation, test = floats(data.train), floats(data.validation), floats(data.test)
    model = models.build("lenet-300-100", channels=1, size=data.size, classes=data.classes, seed=0)
    trainer = incop.Trainer(train, validation, epochs=10)

    tickets = incop.search(
        model,
        trainer,
        levels=6,
        probe=train[0][:500],
        meter=flow.InformationFlow("absolute", alive_only=True),
        rule=stopping.FlowSettled() | stopping.AfterEpochs(10),
        amount=pruning.Target(0.95, levels=6),
        rewind="early:1",
    )
    for ticket in tickets:
        print(ticket, f"· test {trainer.evaluate(model, test):.3f}")


if __name__ == "__main__":
    main()
