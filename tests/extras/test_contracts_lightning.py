"""The contracts of trainers, over a LightningModule trained by Lightning."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from contracts.trainers import Contracts, World
from incop.integrations.lightning import LightningTrainer


class Classifier(lightning.LightningModule):
    """A LightningModule as users write it: it holds the network as `self.net`."""

    def __init__(self, net):
        super().__init__()
        self.net, self.task = net, None

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = self.task.optimizer(self)
        rates = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.task.rate(step / self.task.steps_per_epoch) / self.task.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


class Order(Sampler):
    """Draws the samples of an epoch in the order that the task names for the level; Lightning says which epoch it is."""

    def __init__(self, task):
        self.task, self.level, self.epoch = task, 0, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.task.train[0])

    def __iter__(self):
        return iter(self.task.order(self.level, self.epoch).tolist())


class OfTheTask(LightningTrainer):
    """The adapter, with samples in the task's order, which depends on the level."""

    def __init__(self, task):
        self.order = Order(task)
        super().__init__(
            DataLoader(TensorDataset(*task.train), task.batch_size, sampler=self.order),
            DataLoader(TensorDataset(*task.validation), 25),
            max_epochs=task.epochs,
            accuracy="val_acc",
            seed=task.seed,
            accelerator="cpu",
        )

    def fit(self, model, masks, watch):
        self.order.level, model.task = watch.level, self.order.task
        super().fit(model, masks, watch)


class TestLightning(Contracts):
    world = World("Lightning", OfTheTask, model=Classifier, prefix="net.", exact=False)
