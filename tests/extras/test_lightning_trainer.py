"""The adapter, beyond the contracts of trainers: schedules, manners, and what it refuses."""

import logging
import math
import os
import random
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning_modules import ByHand, Module, X, Y, loader, trainer, weights
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import incop
from incop import flow, stopping
from incop.errors import InputError, TrainingError
from incop.integrations.lightning import LightningTrainer
from incop.integrations.lightning.schedules import _times


def made(**arguments):
    given = {"max_epochs": 2, "accuracy": "val_acc", "accelerator": "cpu", **arguments}
    return LightningTrainer(given.pop("train", loader()), given.pop("val", loader()), **given)


def searched(module, adapter, **arguments):
    torch.manual_seed(5)
    return list(incop.search(module, adapter, **{"levels": 1, "rewind": "init", **arguments}))


class Rates(Callback):
    """Notes the learning rate of every step, level after level."""

    def __init__(self):
        self.levels = []

    def on_train_start(self, trainer, pl_module):
        self.levels.append([])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.levels[-1].append(optimizer.param_groups[0]["lr"])


class Scheduled(Module):
    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer, self)}


SCHEDULES = {
    "every epoch": lambda o, m: lr_scheduler.ExponentialLR(o, 0.5),
    "every step": lambda o, m: {"scheduler": lr_scheduler.ExponentialLR(o, 0.9), "interval": "step"},
    "every third step": lambda o, m: {
        "scheduler": lr_scheduler.ExponentialLR(o, 0.9),
        "interval": "step",
        "frequency": 3,
    },
    "warm-up": lambda o, m: {
        "scheduler": lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 10, 1.0)),
        "interval": "step",
    },
    "one cycle over the budget": lambda o, m: {
        "scheduler": lr_scheduler.OneCycleLR(o, 0.1, total_steps=int(m.trainer.estimated_stepping_batches)),
        "interval": "step",
    },
    "cosine over the budget": lambda o, m: lr_scheduler.CosineAnnealingLR(o, m.trainer.max_epochs),
}


@pytest.mark.parametrize("several", [1, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_level_begins_within_the_schedule_where_the_dense_level_was(name, several):
    """The oracle is the dense level itself: the rates of its steps from the rewind point on."""
    for rewind, skipped in (("early:1", 1), ("early:2", 2), ("rate", 0)):
        rates = Rates()
        adapter = made(max_epochs=4, callbacks=[rates], accumulate_grad_batches=several)
        searched(Scheduled(SCHEDULES[name]), adapter, rewind=rewind)
        dense, level = rates.levels
        assert level == pytest.approx(dense[skipped * len(dense) // 4 :])
        assert len(set(dense)) > 1


@pytest.mark.parametrize("name", ["every epoch", "every third step", "one cycle over the budget"])
def test_a_schedule_that_has_ended_stays_at_its_end(name):
    rates = Rates()
    searched(Scheduled(SCHEDULES[name]), made(max_epochs=3, callbacks=[rates]), rewind="none")
    dense, level = rates.levels
    assert len(level) == 18
    assert len(set(level)) == 1
    assert level[0] <= min(dense)


def test_a_schedule_that_ends_at_nothing_is_told():
    def cosine(optimizer, module):
        return lr_scheduler.CosineAnnealingLR(optimizer, module.trainer.max_epochs)

    with pytest.warns(UserWarning, match="CosineAnnealingLR ends at a learning rate of 0"):
        searched(Scheduled(cosine), made(), rewind="none")


def test_a_schedule_stepped_at_every_second_epoch_is_told_where_levels_begin_between():
    def every_second(optimizer, module):
        return {"scheduler": lr_scheduler.ExponentialLR(optimizer, 0.5), "frequency": 2}

    with pytest.warns(UserWarning, match="frequency=2, counted anew"):
        searched(Scheduled(every_second), made(max_epochs=4), rewind="early:1")
    rates = Rates()
    searched(Scheduled(every_second), made(max_epochs=4, callbacks=[rates]), rewind="early:2")
    assert rates.levels[1] == rates.levels[0][12:] == [0.05] * 12


def test_a_level_can_begin_in_the_middle_of_an_epoch():
    rates = Rates()
    tickets = searched(Scheduled(SCHEDULES["every step"]), made(callbacks=[rates]), rewind="early:2steps")
    assert tickets[1].record.steps == 10
    assert rates.levels[1] == pytest.approx(rates.levels[0][2:])


def test_times_are_those_that_lightning_steps():
    for batches in (5, 6):
        for several in (1, 2, 4):
            for frequency in (1, 2, 3):
                steps = []
                scheduler = SimpleNamespace(interval="step", frequency=frequency)

                class Counts(Scheduled):
                    def lr_scheduler_step(self, scheduler, metric, steps=steps):
                        steps.append(self.trainer.current_epoch)

                module = Counts(
                    lambda o, m, every=frequency: {
                        "scheduler": lr_scheduler.ConstantLR(o, 1.0),
                        "interval": "step",
                        "frequency": every,
                    }
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fitted = trainer(max_epochs=2, accumulate_grad_batches=several)
                    fitted.fit(module, loader(batches * 10))
                told = SimpleNamespace(num_training_batches=batches, accumulate_grad_batches=several)
                assert _times(told, scheduler, 2.0) == len(steps)
                assert _times(told, scheduler, 1.0) == steps.count(0)


class Plateau(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_acc"}


def test_a_plateau_schedule_starts_afresh_and_is_told():
    with pytest.warns(UserWarning, match="ReduceLROnPlateau follows a metric.*cannot begin at epoch 1"):
        searched(Plateau(), made(), rewind="early:1")
    searched(Plateau(), made(), rewind="init")


class HandScheduled(ByHand):
    def configure_optimizers(self):
        optimizers = super().configure_optimizers()
        return list(optimizers), [lr_scheduler.ExponentialLR(one, 0.5) for one in optimizers]


def test_a_module_that_steps_its_own_schedule_is_refused_where_that_should_move():
    searched(HandScheduled(), made(), rewind="init")
    with pytest.raises(InputError, match="begin at epoch 1, and HandScheduled steps its schedulers by hand"):
        searched(HandScheduled(), made(), rewind="early:1")


def test_two_optimizers_stepped_by_hand_are_searched():
    tickets = searched(ByHand(), made(gradient_clip_val=None), levels=2, amount=0.5, rewind="rate")
    for ticket in tickets[1:]:
        for name, mask in ticket.masks.items():
            assert not ticket.weights[name][~mask].any()
    assert [ticket.record.steps for ticket in tickets] == [12, 12, 12]


@pytest.mark.parametrize("epochs", [0.5, 1.5, 2])
def test_budgets_may_be_parts_of_epochs(epochs):
    tickets = searched(Module(), made(max_epochs=epochs, level_epochs=1.25))
    assert [t.record.steps for t in tickets] == [round(6 * epochs), 8]
    assert [t.record.max_epochs for t in tickets] == [epochs, 1.25]


# --- what is trained does not depend on what looks


def test_checking_more_often_trains_the_same():
    """Shuffling, dropout, and a validation whose loader takes a number from torch's generator each time."""
    ends = []
    for every in (1, "1steps"):
        adapter = made(train=loader(shuffle=True))
        arguments = {"check_every": every, "probe": X, "meter": flow.InformationFlow("square")}
        tickets = searched(Module(dropout=0.3), adapter, **arguments)
        ends.append(tickets[-1].weights)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("kind", ["shuffle", "generator", "sampler"])
def test_levels_can_be_gone_on_with_whatever_draws_the_order(kind):
    """A loader's own generator stands elsewhere after every level; a new one of another process does not."""

    def batches():
        data, own = TensorDataset(X, Y), torch.Generator().manual_seed(3)
        if kind == "sampler":
            return DataLoader(data, 10, sampler=RandomSampler(data, generator=own))
        return DataLoader(data, 10, shuffle=True, generator=own if kind == "generator" else None)

    states = []
    whole = searched(Module(dropout=0.3), made(train=batches()), levels=2, on_state=lambda take: states.append(take()))
    assert len(states) == 3
    for number, state in enumerate(states):
        again = searched(Module(dropout=0.3), made(train=batches()), levels=2, resume=state)
        for ticket in again:
            same = whole[ticket.level].weights
            assert all(torch.equal(ticket.weights[name], same[name]) for name in same)
        assert again[0].level == number


def test_the_callers_random_states_and_the_module_are_left_as_found():
    module, adapter = Module(dropout=0.3), made(train=loader(shuffle=True))
    module.net[2].eval()  # a part that the user keeps in evaluation mode
    modes = [part.training for part in module.modules()]
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with pytest.warns(UserWarning, match="in eval mode"):  # Lightning's own, and it is real
        list(incop.search(module, adapter, levels=1, rewind="init"))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert [part.training for part in module.modules()] == modes
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        _ = module.trainer


def test_evaluating_is_what_lightning_says():
    module, adapter = Module(), made()
    assert adapter.evaluate(module) == pytest.approx(float((module(X).argmax(1) == Y).float().mean()))


# --- quiet, but not deaf


def test_a_search_prints_nothing_and_leaves_the_logs_as_they_were(capfd, caplog):
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    searched(Module(), made(), levels=2)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert log.level == level


def test_a_real_warning_passes():
    class Warns(Module):
        def training_step(self, batch, batch_idx):
            warnings.warn("something is wrong with this module", stacklevel=1)
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="something is wrong"):
        searched(Warns(), made())


def test_a_level_that_something_else_ended_is_told():
    def stopping_early():
        return [EarlyStopping("val_acc", patience=1, min_delta=2.0, mode="max")]

    with pytest.warns(UserWarning, match=r"Lightning ended level 0 after 2 of 5 epochs"):
        searched(Module(), made(max_epochs=5, callbacks=stopping_early), levels=0)


def test_epochs_that_the_module_leaves_early_are_epochs_of_the_budget():
    """Lightning calls neither the last batch's hooks nor a validation then; the accuracy is measured after the level."""

    class Leaves(Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 4 else None

    tickets = searched(Leaves(), made(max_epochs=3))
    for ticket in tickets:
        assert [(check.step, check.epoch) for check in ticket.checks] == [(4, 1.0), (8, 2.0), (12, 3.0)]
        assert ticket.record.val_accuracy is not None


def test_interrupting_ends_the_search():
    class Interrupts(Callback):
        def on_train_batch_end(self, *rest):
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        searched(Module(), made(callbacks=[Interrupts()]))
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_diverged_training_is_told():
    class Diverges(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * math.inf

    with pytest.raises(TrainingError, match=r"not finite|the mean loss is|training diverged"):
        searched(Diverges(), made())


# --- data from elsewhere


def test_a_module_may_bring_its_data():
    class Brings(Module):
        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return loader()

    tickets = searched(Brings(), LightningTrainer(max_epochs=1, accuracy="val_acc", accelerator="cpu"))
    same = searched(Module(), made(max_epochs=1))
    assert all(torch.equal(tickets[1].weights[name], same[1].weights[name]) for name in same[1].weights)


def test_a_rule_may_ask_for_accuracy():
    tickets = searched(
        Module(), made(max_epochs=6), levels=2, rule=stopping.AccuracyRestored(), rewind="rate", last_level_full=False
    )
    assert tickets[1].record.epochs < 6
    assert tickets[1].checks[-1].accuracy >= tickets[0].record.val_accuracy


def test_a_module_of_the_older_package_is_trained_by_its_own_trainer():
    older = pytest.importorskip("pytorch_lightning")

    class Old(older.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Module().net

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.1)

    old, new = searched(Old(), made()), searched(Module(), made())
    assert all(torch.equal(old[1].weights[name], new[1].weights[name]) for name in new[1].weights)


# --- refused


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_epochs": 0}, "max_epochs=0"),
        ({"level_epochs": -1}, "level_epochs=-1"),
        ({"accuracy": ""}, "name the metric"),
        ({"min_epochs": 2}, "min_epochs=2: the rule would not be obeyed"),
        ({"max_steps": 100}, "max_steps=100"),
        ({"fast_dev_run": True}, "fast_dev_run=True"),
        ({"devices": 2}, "devices=2.*one device"),
        ({"devices": [0, 1]}, "one device"),
        ({"num_nodes": 2}, "num_nodes=2"),
        ({"datamodule": object()}, "brings its own"),
        ({"callbacks": [EarlyStopping("val_acc")]}, r"EarlyStopping remembers its last fit.*lambda: \[EarlyStopping"),
        ({"callbacks": ["early"]}, "no Lightning callback"),
    ],
)
def test_arguments_are_refused_at_once(arguments, match):
    with pytest.raises(InputError, match=match):
        made(**arguments)


@pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")
@pytest.mark.parametrize(
    ("module", "arguments", "match"),
    [
        (Module().net, {}, "the model is a Sequential, not a LightningModule"),
        (Module(), {"presicion": "bf16-mixed"}, "did you mean 'precision'"),
        (Module(), {"accuracy": "valacc"}, r"'valacc' \(it has: val_acc\)"),
        (Module(), {"val": None}, "this fit has none"),
    ],
    ids=["network", "argument", "metric", "validation"],
)
def test_what_the_first_fit_shows_is_refused(module, arguments, match):
    with pytest.raises(InputError, match=match):
        searched(module, made(**arguments))


def test_a_metric_out_of_range_is_refused():
    class Percent(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", 93.0)

    with pytest.raises(InputError, match=r"93.*fraction in \[0, 1\]"):
        searched(Percent(), made())
    with pytest.raises(InputError, match=r"is 93: an accuracy is a fraction"):
        made().evaluate(Percent())


def test_a_validation_that_does_not_come_is_told():
    with pytest.raises(TrainingError, match="ran no validation after step 6 of level 0"):
        searched(Module(), made(check_val_every_n_epoch=2))


def test_weights_of_a_plain_fit_are_those_of_the_dense_level():
    """The adapter adds nothing: a Trainer of the user's own, seeded alike, trains the same."""
    tickets = searched(Module(dropout=0.3), made(train=loader(shuffle=True), seed=4), levels=0)
    module = Module(dropout=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(4 * 1_000_003)
        trainer(max_epochs=2, limit_val_batches=0).fit(module, loader(shuffle=True))
    assert all(torch.equal(tensor, tickets[0].weights[name]) for name, tensor in weights(module).items())
