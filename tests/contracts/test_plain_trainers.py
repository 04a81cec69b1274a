"""The contracts of trainers, over incop's own and over a loop as a user writes it in plain PyTorch."""

from itertools import islice

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import incop
from contracts.trainers import Contracts, World, builtin
from incop.flat_state import optimizer_state, part, restore_optimizer, under


class PlainLoop:
    """A user's own trainer: its optimizer, its data loader, its schedule; and what makes it go on exactly."""

    def __init__(self, task):
        self.task, self.epochs = task, task.epochs
        self.optimizer, self.losses, self.restored = None, [], {}

    def loader(self, level, epoch):
        order, own = self.task.order(level, epoch).tolist(), torch.Generator()
        # An iterator of a loader without a generator of its own takes a number from torch's: dropout would go on otherwise.
        return DataLoader(TensorDataset(*self.task.train), self.task.batch_size, sampler=order, generator=own)

    def fit(self, model, masks, watch):
        self.optimizer, self.losses = self.task.optimizer(model), []
        if watch.step > 0:  # gone on with, within the level
            restore_optimizer(self.optimizer, part("optimizer", self.restored))
            self.losses = list(self.restored["losses"])
        begin, per_epoch, total = watch.schedule_from, self.task.steps_per_epoch, self.task.steps(watch.schedule_from)

        def accuracy():
            watch.probed(len(self.task.validation[0]))
            return self.evaluate(model)

        if watch.due() and watch.look(accuracy=accuracy, epoch=0.0).stop:
            return
        model.train()
        with incop.hold(masks, model, self.optimizer):
            while watch.step < total:
                epoch, done = divmod(watch.step, per_epoch)
                for x, y in islice(self.loader(watch.level, epoch), done, min(per_epoch, total - epoch * per_epoch)):
                    self.optimizer.param_groups[0]["lr"] = self.task.rate(begin + watch.step / per_epoch)
                    self.optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    self.optimizer.step()
                    self.losses.append(loss.item())
                    watch.stepped(len(y), epoch=(watch.step + 1) / per_epoch)
                    if watch.due() or watch.step == total:
                        mean, self.losses = sum(self.losses) / len(self.losses), []
                        if watch.look(accuracy=accuracy, loss=mean).stop:
                            return
                    watch.rest()

    @torch.no_grad()
    def evaluate(self, model):
        was = model.training
        model.eval()
        x, y = self.task.validation
        right = float((model(x).argmax(1) == y).double().mean())
        model.train(was)
        return right

    def state(self):
        gathered = {} if self.optimizer is None else optimizer_state(self.optimizer)
        return {"losses": list(self.losses), **under("optimizer", gathered)}

    def restore(self, state):
        self.restored = state


class TestBuiltIn(Contracts):
    world = World("incop's own", builtin)


class TestPlainLoop(Contracts):
    world = World("plain loop", PlainLoop)
