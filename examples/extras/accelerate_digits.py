"""Prune in your own Accelerate loop: accumulation, clipping, a schedule; one retraining by hand, then a whole search.

Needs `pip install 'incop[transformers]'`, which brings accelerate.
"""

import math

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import incop
from incop import flow, pruning, stopping
from incop.experiments import datasets


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))


class Mine:
    """A training loop with Accelerate, as one has it, with the four calls that a search needs: hold, stepped, due, look."""

    def __init__(self, train: TensorDataset, validation: TensorDataset, epochs: int) -> None:
        self.accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        self.train, self.validation, self.epochs = train, validation, epochs

    def fit(self, model: nn.Module, masks: incop.Masks, watch: incop.Watch) -> None:
        accelerator = self.accelerator
        order = torch.Generator().manual_seed(watch.level)  # every level its own, and the same when it is run again
        loader = DataLoader(self.train, batch_size=32, shuffle=True, generator=order)
        steps = math.ceil(len(loader) / accelerator.gradient_accumulation_steps)  # of the optimizer, in an epoch
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 1 - 0.9 * min(step / steps / self.epochs + watch.schedule_from / self.epochs, 1.0)
        )
        prepared, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        budget = self.epochs if math.isinf(watch.schedule_from) else self.epochs - watch.schedule_from
        samples = 0
        try:
            with incop.hold(masks, prepared, optimizer):  # what prepare returned, or what went into it: both will do
                while watch.epoch < budget:
                    for inputs, labels in loader:
                        prepared.train()
                        with accelerator.accumulate(prepared):
                            accelerator.backward(functional.cross_entropy(prepared(inputs), labels))
                            if accelerator.sync_gradients:
                                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                            optimizer.step()
                            schedule.step()
                            optimizer.zero_grad()
                        samples += len(labels)
                        if not accelerator.sync_gradients:
                            continue
                        watch.stepped(samples, epoch=(watch.step + 1) / steps)
                        samples = 0
                        if (watch.due() or watch.epoch >= budget) and watch.look(accuracy=self.checked(watch)).stop:
                            return
                        if watch.epoch >= budget:
                            return
        finally:
            accelerator.free_memory()

    def checked(self, watch: incop.Watch) -> float:
        watch.probed(len(self.validation))
        return self.evaluate(watch.model)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        model.eval()
        inputs, labels = self.validation.tensors
        return float((model(inputs).argmax(1) == labels).float().mean())


def main() -> None:
    data = datasets.load("digits", seed=0)
    train, validation = (TensorDataset(split.images / 255.0, split.labels) for split in (data.train, data.validation))
    trainer, probe = Mine(train, validation, epochs=4), [train.tensors[0][:300]]

    # One retraining by hand: half of the weights go, and the loop ends where the rule says so.
    model = network()
    masks = incop.prune(model, pruning.Fraction(0.5))
    watch = incop.Watch(model, masks=masks, rule=stopping.AfterEpochs(2), every="10steps", level=1)
    trainer.fit(model, masks, watch)
    print(f"by hand: {masks}, {watch.verdict.reason}, accuracy {watch.checks[-1].accuracy:.3f}")
    assert incop.Masks.of(model).remaining == masks.remaining

    # The same loop in a whole search.
    tickets = incop.search(
        network(),
        trainer,
        levels=3,
        amount=pruning.Fraction(0.4),
        probe=probe,
        meter=flow.InformationFlow("absolute"),
        rule=stopping.FlowSettled() | stopping.AfterEpochs(2),
        rewind="early:1",
    )
    for ticket in tickets:
        print(ticket)


if __name__ == "__main__":
    main()
