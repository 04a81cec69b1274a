"""The contracts of trainers, over a `transformers.Trainer` and over a loop of one's own with Accelerate."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

import incop
from contracts.trainers import Contracts, World
from incop.integrations.hugging_face import HuggingFaceTrainer


class WithLoss(nn.Module):
    """A network as a Trainer wants it: called with labels, it returns its loss."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Order:
    """Draws the order of samples as incop's own trainer does: from the level's seed, which the adapter sets."""

    def __init__(self, count):
        self.count, self.generator = count, torch.Generator().manual_seed(torch.initial_seed())

    def __iter__(self):
        return iter(torch.randperm(self.count, generator=self.generator).tolist())

    def __len__(self):
        return self.count


class Ordered(Trainer):
    """A Trainer whose samples come in that order."""

    def get_train_dataloader(self):
        data, size = self.train_dataset, self.args.train_batch_size
        return DataLoader(data, size, sampler=Order(len(data)), collate_fn=self.data_collator)


def samples(split):
    return [{"x": x, "labels": int(y)} for x, y in zip(*split, strict=True)]


def hugging_face(task):
    train, validation = samples(task.train), samples(task.validation)

    def make(model):
        optimizer = task.optimizer(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: task.rate(step / task.steps_per_epoch) / task.lr
        )
        args = TrainingArguments(
            "unused",
            num_train_epochs=task.epochs,
            per_device_train_batch_size=task.batch_size,
            max_grad_norm=0.0,
            seed=task.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        return Ordered(model, args, train_dataset=train, eval_dataset=validation, optimizers=(optimizer, schedule))

    return HuggingFaceTrainer(make=make)


class Accelerated:
    """A user's own loop with Accelerate; a search is resumed at the beginning of the level it was in."""

    def __init__(self, task):
        self.task, self.epochs = task, task.epochs
        self.accelerator = Accelerator(cpu=True)

    def fit(self, model, masks, watch):
        task, begin = self.task, watch.schedule_from
        per_epoch, total = task.steps_per_epoch, task.steps(begin)

        def accuracy():
            watch.probed(len(task.validation[0]))
            return self.evaluate(model)

        if watch.due() and watch.look(accuracy=accuracy, epoch=0.0).stop:
            return
        prepared, optimizer = self.accelerator.prepare(model, task.optimizer(model))
        losses = []
        try:
            with incop.hold(masks, prepared, optimizer), torch.random.fork_rng():
                torch.manual_seed(task.seed * 1_000_003 + watch.level)
                prepared.train()
                while watch.step < total:
                    order = task.order(watch.level, watch.step // per_epoch).tolist()
                    data = DataLoader(TensorDataset(*task.train), task.batch_size, sampler=order)
                    for x, y in self.accelerator.prepare(data):
                        with self.accelerator.accumulate(prepared):
                            optimizer.param_groups[0]["lr"] = task.rate(begin + watch.step / per_epoch)
                            loss = nn.functional.cross_entropy(prepared(x), y)
                            self.accelerator.backward(loss)
                            optimizer.step()
                            optimizer.zero_grad()
                        losses.append(loss.item())
                        watch.stepped(len(y), epoch=(watch.step + 1) / per_epoch)
                        if watch.due() or watch.step == total:
                            mean, losses = sum(losses) / len(losses), []
                            if watch.look(accuracy=accuracy, loss=mean).stop:
                                return
                        if watch.step == total:
                            return
        finally:
            self.accelerator.free_memory()

    @torch.no_grad()
    def evaluate(self, model):
        was = model.training
        model.eval()
        x, y = self.task.validation
        right = float((model(x).argmax(1) == y).double().mean())
        model.train(was)
        return right


class TestHuggingFace(Contracts):
    world = World("Hugging Face's Trainer", hugging_face, model=WithLoss, prefix="net.", exact=False)


class TestAccelerate(Contracts):
    world = World("Accelerate", Accelerated, exact=False)
