"""The callback: zeros through anything Lightning steps, checks and stops at their step, and fits that go on exactly."""

import csv
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_modules import ByHand, Module, X, Y, loader, split, trainer, weights
from torch import nn
from torch.optim import optimizer as optimizers

import incop
from incop import flow, stopping
from incop.errors import InputError, TrainingError
from incop.integrations.lightning import InCoPCallback
from incop.records import Flow, Verdict

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*deprecated"),
]
METER = flow.InformationFlow("square")


def cut(module, amount=0.6):
    return incop.prune(module, masks=incop.Masks.full(module), amount=amount)


class Zeros:
    """Proves after every step of any optimizer that pruned weights are zero, and counts the steps."""

    def __init__(self, module, masks):
        self.module, self.masks, self.steps = module, masks, 0

    def __enter__(self):
        self.handle = optimizers.register_optimizer_step_post_hook(self.after)
        return self

    def after(self, optimizer, args, kwargs):
        self.steps += 1
        for name, weight in self.masks.weights(self.module).items():
            assert not weight.detach()[~self.masks[name]].any(), f"{name} moved at step {self.steps}"

    def __exit__(self, *error):
        self.handle.remove()


class Strange(torch.optim.Optimizer):
    """Moves weights by no gradient at all."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            result = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.01)
        return result


class TwoStrange(ByHand):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.net[0].parameters(), 1e-2), Strange(self.net[3:].parameters())


# --- zeros


@pytest.mark.parametrize(
    ("module", "arguments", "steps"),
    [
        (Module, {}, 12),
        (lambda: Module(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1)), {}, 12),
        (lambda: Module(lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9)), {}, 12),
        (lambda: Module(lambda p: torch.optim.LBFGS(p, max_iter=3)), {}, 12),
        (lambda: Module(Strange), {}, 12),
        (Module, {"accumulate_grad_batches": 4}, 4),
        (Module, {"gradient_clip_val": 0.1}, 12),
        (Module, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, 12),
        (Module, {"precision": "bf16-mixed"}, 12),
        (Module, {"precision": "bf16-true"}, 12),
        (ByHand, {}, 24),
        (ByHand, {"precision": "bf16-mixed"}, 24),
        (TwoStrange, {}, 24),
    ],
    ids=[
        "adamw",
        "nesterov",
        "rmsprop",
        "lbfgs",
        "strange",
        "accumulated",
        "clipped",
        "clipped-value",
        "bf16",
        "bf16-true",
        "two",
        "two-bf16",
        "two-strange",
    ],
)
def test_pruned_weights_stay_zero_and_the_others_are_trained(module, arguments, steps):
    torch.manual_seed(0)
    module = module()
    trainer(max_epochs=1).fit(module, loader())  # so that there is something to bring pruned weights back
    masks = cut(module)
    before = weights(module)
    with Zeros(module, masks) as zeros:
        trainer(max_epochs=2, callbacks=[InCoPCallback(masks=masks)], **arguments).fit(module, loader(), loader())
    assert zeros.steps == steps
    for name, mask in masks.items():
        after = module.state_dict()[name]
        assert not after[~mask].any()
        assert not torch.equal(after[mask].float(), before[name][mask].float())


def test_clipping_by_norm_does_not_see_gradients_of_pruned_weights():
    module = Module()
    masks = cut(module)
    seen = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append({name: p.grad[~masks[name]].any() for name, p in masks.weights(pl_module).items()})

    trainer(max_epochs=1, callbacks=[InCoPCallback(masks=masks), Norms()]).fit(module, loader())
    assert len(seen) == 6
    assert not any(any(found.values()) for found in seen)


def test_holds_are_let_go_of_after_the_fit_and_after_an_error():
    def hooks(module):
        return [p for p in module.parameters() if getattr(p, "_post_accumulate_grad_hooks", None)]

    class Broken(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            assert hooks(pl_module)
            raise RuntimeError("broken")

    module = Module()
    masks = cut(module)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(max_epochs=1, callbacks=[InCoPCallback(masks=masks), Broken()]).fit(module, loader())
    assert not hooks(module)
    trainer(max_epochs=1, callbacks=[InCoPCallback(masks=masks)]).fit(module, loader())
    assert not hooks(module)


def test_a_callback_that_writes_to_pruned_weights_is_told():
    class Writes(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.net[3].weight.data.add_(1.0)

    module = Module()
    with pytest.raises(TrainingError, match=r"'net\.0\.weight'|'net\.3\.weight'"):
        trainer(max_epochs=1, callbacks=[InCoPCallback(masks=cut(module)), Writes()]).fit(module, loader())


# --- checks and stops


@pytest.mark.parametrize(
    ("every", "arguments", "at"),
    [
        (1, {}, [6, 12, 18]),
        (2, {}, [12, 18]),
        (0.5, {}, [3, 6, 9, 12, 15, 18]),
        ("4steps", {}, [4, 8, 12, 16, 18]),
        ("2steps", {"accumulate_grad_batches": 4}, [2, 4, 6]),
        (0.5, {"accumulate_grad_batches": 4}, [1, 2, 3, 4, 5, 6]),
        (1, {"max_steps": 8}, [6, 8]),
        (1, {"limit_train_batches": 4}, [4, 8, 12]),
    ],
)
def test_checks_are_made_at_their_steps_and_at_the_end(every, arguments, at):
    watched = InCoPCallback(probe=X, meter=METER, check_every=every)
    trainer(**{"max_epochs": 3, "callbacks": [watched], **arguments}).fit(Module(), loader())
    assert [check.step for check in watched.checks] == at
    assert [check.number for check in watched.checks] == list(range(1, len(at) + 1))
    batches = arguments.get("limit_train_batches", 6)
    several = arguments.get("accumulate_grad_batches", 1)
    assert watched.checks[-1].spent.samples == (8 if "max_steps" in arguments else 3 * batches) * 10
    if several == 1:
        assert [check.epoch for check in watched.checks] == pytest.approx([step / batches for step in at])
    assert all(check.loss > 0 for check in watched.checks)


def test_loss_of_a_check_is_the_mean_of_its_batches():
    def losses(**arguments):
        watched = InCoPCallback()
        module = Module(lambda p: torch.optim.SGD(p, 0.0))
        trainer(max_epochs=1, callbacks=[watched], **arguments).fit(module, loader())
        return watched.checks[-1].loss, float(module.loss((X, Y)).detach())

    for arguments in ({}, {"accumulate_grad_batches": 3}):
        found, whole = losses(**arguments)
        assert found == pytest.approx(whole, rel=1e-5)


class StopAt(stopping.Rule):
    wants = frozenset()

    def __init__(self, number):
        self.number = number

    def __call__(self, history):
        return Verdict(history.now.number == self.number, f"check {history.now.number}", "stop at")


@pytest.mark.parametrize("validation", [None, 6])
@pytest.mark.parametrize(
    ("every", "number", "step"), [(1, 2, 12), (0.5, 1, 3), ("5steps", 2, 10), ("1steps", 1, 1), ("7steps", 2, 14)]
)
def test_a_stop_is_obeyed_at_its_step(every, number, step, validation):
    watched = InCoPCallback(probe=X, meter=METER, rule=StopAt(number), check_every=every)
    fitted = trainer(max_epochs=5, callbacks=[watched])
    fitted.fit(Module(), loader(), None if validation is None else loader())
    assert fitted.global_step == step
    assert watched.verdict.stop
    assert watched.verdict.reason == f"check {number}"
    assert watched.watch.spent.steps == step


@pytest.mark.parametrize(
    ("least", "step"), [({"min_epochs": 3}, 18), ({"min_steps": 15}, 15), ({"min_epochs": 1}, 6), ({"min_steps": 2}, 6)]
)
def test_min_epochs_are_trained_and_told(least, step):
    watched = InCoPCallback(rule=StopAt(1), check_every="3steps")
    fitted = trainer(max_epochs=5, callbacks=[watched], **least)
    with pytest.warns(UserWarning, match=r"ended this fit at step 3 \(check 1\).*min_"):
        fitted.fit(Module(), loader())
    assert fitted.global_step == step
    assert [check.step for check in watched.checks] == [3]  # nothing is asked any more


def test_the_flow_rule_sees_the_distance_to_the_dense_module():
    torch.manual_seed(0)
    module, dense = Module(), InCoPCallback(probe=X, meter=METER)
    trainer(max_epochs=3, callbacks=[dense]).fit(module, loader())
    assert dense.flow == incop.measure(module, X, METER)
    masks = cut(module)
    rule = stopping.FlowRestored(within=1e-12)
    again = InCoPCallback(probe=X, meter=METER, rule=rule, reference=dense.flow, masks=masks)
    trainer(max_epochs=2, callbacks=[again]).fit(module, loader())
    assert len(again.checks) == 2
    assert again.flow == incop.measure(module, X, METER, masks=masks)
    assert again.checks[-1].distance == pytest.approx(again.flow.distance(dense.flow))
    assert again.checks[-1].distance > 0


def test_gradient_flow_is_measured_within_a_validation_too():
    """A validation ends under no_grad, and this meter needs gradients."""
    meter = flow.GradientFlow(nn.functional.cross_entropy)
    watched = InCoPCallback(probe=(X, Y), meter=meter, accuracy="val_acc")
    module = Module()
    trainer(max_epochs=1, callbacks=[watched]).fit(module, loader(), loader())
    assert watched.flow == incop.measure(module, (X, Y), meter)


def test_accuracy_comes_from_the_validation_at_the_check():
    rule = stopping.AccuracyRestored()
    watched = InCoPCallback(rule=rule, reference_accuracy=0.9, accuracy="val_acc")
    module, seen = Module(), []

    class Sees(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float((pl_module(X).argmax(1) == Y).float().mean()))

    fitted = trainer(max_epochs=40, callbacks=[Sees(), watched])
    fitted.fit(module, loader(), loader())
    assert [check.accuracy for check in watched.checks] == pytest.approx(seen)
    assert watched.verdict.stop
    assert fitted.global_step == 6 * len(seen) < 240
    assert watched.checks[-1].spent.probe_samples == 60 * len(seen)
    assert watched.checks[-1].spent.probe_seconds > 0


def test_with_accuracy_a_check_waits_for_the_next_validation():
    watched = InCoPCallback(accuracy="val_acc", check_every="2steps")
    trainer(max_epochs=2, callbacks=[watched], val_check_interval=3).fit(Module(), loader(), loader())
    assert [check.step for check in watched.checks] == [3, 6, 9, 12]  # due at 2, 4, 6, …; validated after 3, 6, …
    assert all(check.accuracy is not None for check in watched.checks)


def test_validating_is_no_training():
    class Slow(Module):
        def on_validation_epoch_start(self):
            import time

            time.sleep(0.3)

    watched = InCoPCallback()
    trainer(max_epochs=1, callbacks=[watched]).fit(Slow(), loader(), loader())
    trainer(max_epochs=1, callbacks=[also := InCoPCallback(accuracy="val_acc")]).fit(Slow(), loader(), loader())
    assert also.checks[-1].spent.seconds < 0.3


def test_an_epoch_that_the_module_leaves_early_is_an_epoch():
    class Leaves(Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 4 else None

    watched = InCoPCallback(rule=StopAt(2))
    fitted = trainer(max_epochs=5, callbacks=[watched])
    fitted.fit(Leaves(), loader())
    assert [(check.step, check.epoch) for check in watched.checks] == [(4, 1.0), (8, 2.0)]
    assert fitted.global_step == 8


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(zip(*split(), strict=True))


def test_a_stream_without_length_is_counted_in_steps_or_whole_epochs():
    stream = torch.utils.data.DataLoader(Stream(), 10)
    for every, at in (("4steps", [4, 8, 12]), (1, [6, 12])):
        watched = InCoPCallback(check_every=every)
        trainer(max_epochs=2, callbacks=[watched]).fit(Module(), stream)
        assert [check.step for check in watched.checks] == at
        assert watched.checks[-1].epoch == 2.0
    with pytest.raises(InputError, match=r"every 0\.5 epochs.*steps"):
        trainer(max_epochs=2, callbacks=[InCoPCallback(check_every=0.5)]).fit(Module(), stream)


# --- training is left alone


@pytest.mark.parametrize("every", ["1steps", 1])
def test_looking_changes_nothing_of_what_is_trained(every):
    def trained(*callbacks):
        torch.manual_seed(3)
        module = Module(dropout=0.3)
        trainer(max_epochs=2, callbacks=list(callbacks)).fit(module, loader(shuffle=True), loader())
        return weights(module)

    plain = trained()
    for meter, probe in ((METER, loader(shuffle=True)), (flow.GradientFlow(nn.functional.cross_entropy), (X, Y))):
        watched = trained(InCoPCallback(probe=probe, meter=meter, check_every=every, accuracy="val_acc"))
        assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_flow_distance_and_sparsity_reach_the_loggers_and_other_callbacks(tmp_path):
    module = Module()
    dense = incop.measure(module, X, METER)
    masks = cut(module)
    watched = InCoPCallback(probe=X, meter=METER, reference=dense, masks=masks, check_every="4steps")
    saved = ModelCheckpoint(tmp_path / "saved", monitor="incop/distance", save_top_k=-1)
    log = CSVLogger(tmp_path)
    fitted = trainer(
        max_epochs=2, callbacks=[watched, saved], logger=log, enable_checkpointing=True, log_every_n_steps=1
    )
    fitted.fit(module, loader())
    with open(log.log_dir + "/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["incop/distance"]]
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    assert [float(row["incop/distance"]) for row in rows] == pytest.approx([c.distance for c in watched.checks])
    assert [float(row["incop/sparsity"]) for row in rows] == pytest.approx([masks.sparsity] * 3)
    assert float(rows[-1]["incop/flow/net.0-to-net.3"]) == pytest.approx(watched.flow.values["net.0->net.3"])
    assert saved.best_model_score == pytest.approx(min(watched.checks[number].distance for number in (0, 2)))


# --- checkpoints


class Save(Callback):
    """Saves a checkpoint once, in the hook and at the step asked for."""

    def __init__(self, file, hook, step):
        self.file, self.wanted = file, (hook, step)

    def _save(self, trainer, hook):
        if (hook, trainer.global_step) == self.wanted:
            trainer.save_checkpoint(self.file)

    def on_train_batch_end(self, trainer, *rest):
        self._save(trainer, "batch")

    def on_train_epoch_end(self, trainer, *rest):
        self._save(trainer, "epoch")

    def on_validation_end(self, trainer, *rest):
        self._save(trainer, "validation")


class Resumable:
    """A data loader that Lightning can take up in the middle of an epoch; torch's own it cannot."""

    def __init__(self):
        self.at = self.epoch = 0

    def __len__(self):
        return 6

    def __iter__(self):
        if self.at == 6:
            self.at, self.epoch = 0, self.epoch + 1
        while self.at < 6:
            order = torch.randperm(60, generator=torch.Generator().manual_seed(self.epoch))
            index = order[self.at * 10 : self.at * 10 + 10]
            self.at += 1
            yield X[index], Y[index]

    def state_dict(self):
        return {"at": self.at, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.at, self.epoch = state["at"], state["epoch"]


def watched_fit(data, *, ckpt=None, save=None, rule=None, first=False, module=None, **arguments):
    """Fit with a callback that checks twice an epoch; return the module, the callback and the Trainer."""
    torch.manual_seed(0)
    module = module or Module(dropout=0.3)
    watched = InCoPCallback(probe=X, meter=METER, masks=cut(module), check_every=0.5, rule=rule)
    callbacks = [watched] if save is None else [save, watched] if first else [watched, save]
    fitted = trainer(max_epochs=4, callbacks=callbacks, **arguments)
    if ckpt is not None:
        torch.manual_seed(99)  # another process would be elsewhere
    fitted.fit(module, data, loader(), ckpt_path=ckpt)
    return module, watched, fitted


def told(check):
    record = check.to_json()
    return {
        name: {n: v for n, v in value.items() if "seconds" not in n} if isinstance(value, dict) else value
        for name, value in record.items()
    }


def same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(weights(a[0]).values(), weights(b[0]).values(), strict=True))
    assert list(map(told, a[1].checks)) == list(map(told, b[1].checks))
    assert a[2].global_step == b[2].global_step


@pytest.mark.parametrize(
    ("data", "hook", "step"),
    [
        ("shuffled", "epoch", 12),
        ("shuffled", "validation", 12),
        ("shuffled", "batch", 12),
        ("resumable", "batch", 9),
        ("resumable", "batch", 7),
        ("resumable", "batch", 1),
        ("resumable", "validation", 12),
    ],
)
def test_a_fit_gone_on_with_ends_as_one_that_never_stopped(data, hook, step, tmp_path):
    """With dropout and shuffling: the callback takes the random states with it, which Lightning does not."""

    def batches():
        return loader(shuffle=True) if data == "shuffled" else Resumable()

    whole = watched_fit(batches())
    file = tmp_path / "fit.ckpt"
    same(whole, watched_fit(batches(), save=Save(file, hook, step)))  # saving changes nothing
    same(whole, watched_fit(batches(), ckpt=file))


def test_a_checkpoint_written_between_a_step_and_its_check_is_gone_on_from_with_the_check(tmp_path):
    whole = watched_fit(Resumable())
    file = tmp_path / "fit.ckpt"
    same(whole, watched_fit(Resumable(), save=Save(file, "batch", 9), first=True))
    again = watched_fit(Resumable(), ckpt=file)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole[0]).values(), weights(again[0]).values(), strict=True))
    assert [(c.step, c.epoch, c.flow) for c in again[1].checks] == [(c.step, c.epoch, c.flow) for c in whole[1].checks]
    assert again[1].watch.spent.samples == whole[1].watch.spent.samples


@pytest.mark.parametrize("every", [1, 3])
def test_accumulation_and_several_optimizers_are_gone_on_with_too(every, tmp_path):
    file = tmp_path / "fit.ckpt"
    for made, arguments in ((ByHand, {}), (Module, {"accumulate_grad_batches": every})):
        whole = watched_fit(loader(), module=made(), **arguments)
        step = whole[2].global_step // 2
        watched_fit(loader(), module=made(), save=Save(file, "epoch", step), **arguments)
        same(whole, watched_fit(loader(), module=made(), ckpt=file, **arguments))


def test_lightnings_own_checkpoints_go_on_exactly(tmp_path):
    whole = watched_fit(loader(shuffle=True))

    def saved(**arguments):
        callback = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1)
        return watched_fit(loader(shuffle=True), save=callback, enable_checkpointing=True, **arguments)

    same(whole, saved())
    for step in (6, 12, 18):
        with pytest.warns(UserWarning, match="exists and is not empty"):
            same(whole, saved(ckpt=tmp_path / "saved" / f"step={step}.ckpt"))


def test_a_stopped_fit_gone_on_with_stays_stopped(tmp_path):
    file = tmp_path / "fit.ckpt"
    stopped = watched_fit(Resumable(), rule=StopAt(3), save=Save(file, "batch", 9))
    assert stopped[2].global_step == 9
    again = watched_fit(Resumable(), rule=StopAt(3), ckpt=file)
    same(stopped, again)
    assert again[1].verdict.stop


def test_the_verdict_after_going_on_is_that_of_a_fit_that_never_stopped(tmp_path):
    file = tmp_path / "fit.ckpt"
    rule = stopping.LossPlateau(patience=3, less_than=0.3)
    whole = watched_fit(loader(shuffle=True), rule=rule)
    assert whole[1].verdict.stop
    assert 6 < whole[2].global_step < 24
    watched_fit(loader(shuffle=True), rule=rule, save=Save(file, "epoch", 6))
    same(whole, watched_fit(loader(shuffle=True), rule=rule, ckpt=file))


def test_checkpoints_are_plain_lightnings_and_hold_zeros(tmp_path):
    file = tmp_path / "fit.ckpt"
    module, watched, _ = watched_fit(loader(), save=Save(file, "epoch", 24))
    content = torch.load(file, weights_only=True)
    assert list(content["state_dict"]) == list(Module().state_dict())
    for name, mask in watched.masks.items():
        assert not content["state_dict"][name][~mask].any()
    plain = Module.load_from_checkpoint(file, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(module).values(), strict=True))
    with pytest.warns(UserWarning, match="InCoPCallback"):  # Lightning says that the callback is not there
        trainer(max_epochs=5).fit(plain, loader(), ckpt_path=file, weights_only=True)


def test_masks_of_a_checkpoint_need_not_be_given_again(tmp_path):
    file = tmp_path / "fit.ckpt"
    whole = watched_fit(loader())
    watched_fit(loader(), save=Save(file, "epoch", 12))
    module, watched = Module(dropout=0.3), InCoPCallback(probe=X, meter=METER, check_every=0.5)
    fitted = trainer(max_epochs=4, callbacks=[watched])
    fitted.fit(module, loader(), loader(), ckpt_path=file)
    same(whole, (module, watched, fitted))
    assert watched.masks == whole[1].masks


def test_other_masks_than_the_checkpoints_are_refused(tmp_path):
    file = tmp_path / "fit.ckpt"
    watched_fit(loader(), save=Save(file, "epoch", 12))
    module = Module()
    other = trainer(max_epochs=4, callbacks=[InCoPCallback(masks=cut(module, 0.3))])
    with pytest.raises(InputError, match="other masks than those given"):
        other.fit(module, loader(), ckpt_path=file)


def test_a_checkpoint_read_for_a_test_is_not_gone_on_from(tmp_path):
    class Tested(Module):
        def test_step(self, batch, batch_idx):
            pass

    file = tmp_path / "fit.ckpt"
    watched_fit(loader(), save=Save(file, "epoch", 12))
    watched = InCoPCallback()
    fitted = trainer(max_epochs=1, callbacks=[watched])
    fitted.test(Tested(dropout=0.3), loader(), ckpt_path=file, verbose=False)
    fitted.fit(Tested(), loader())
    assert [check.step for check in watched.checks] == [6]


def test_the_same_callback_can_watch_two_fits():
    watched, module = InCoPCallback(probe=X, meter=METER), Module()
    for _ in range(2):
        trainer(max_epochs=2, callbacks=[watched]).fit(module, loader())
        assert [(check.number, check.step, check.epoch) for check in watched.checks] == [(1, 6, 1.0), (2, 12, 2.0)]


# --- refused before any training


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"rule": stopping.AccuracyRestored(), "reference_accuracy": 0.9},
            "needs the validation accuracy.*InCoPCallback",
        ),
        ({"rule": stopping.FlowRestored(within=0.1)}, "needs a meter"),
        ({"rule": stopping.FlowRestored(within=0.1), "meter": METER, "probe": X}, "needs reference="),
        ({"rule": "flow within 0.1"}, "the rule is a str"),
        ({"meter": METER}, "a meter needs a probe"),
        ({"meter": METER, "probe": iter([X])}, "iterator"),
        ({"check_every": "often"}, "'often'"),
        ({"masks": {"net.0.weight": torch.ones(2)}}, "not a boolean tensor"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(arguments, match):
    with pytest.raises(InputError, match=match):
        InCoPCallback(**arguments)


class NoForward(Module):
    forward = nn.Module.forward

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("module", "arguments", "match"),
    [
        (Module, {"masks": {"0.weight": torch.ones(48, 8, dtype=torch.bool)}}, r"did you mean 'net\.0\.weight'"),
        (Module, {"accuracy": "val_acc"}, "this fit has none"),
        (Module, {"meter": METER, "probe": torch.randn(8, 5)}, "cannot be run on a batch of the probe"),
        (NoForward, {"meter": METER, "probe": X}, "forward"),
        (
            Module,
            {"meter": METER, "probe": X, "reference": Flow({"a->b": 1.0}, meter=str(METER))},
            "other layers",
        ),
    ],
    ids=["names", "no validation", "probe", "no forward", "reference"],
)
def test_what_the_fit_shows_to_be_wrong_is_refused_before_its_first_step(module, arguments, match):
    fitted = trainer(max_epochs=1, callbacks=[InCoPCallback(**arguments)])
    with pytest.raises(InputError, match=match):
        fitted.fit(module(), loader())
    assert fitted.global_step == 0


def test_a_metric_that_is_not_logged_is_named():
    fitted = trainer(max_epochs=1, callbacks=[InCoPCallback(accuracy="valacc")])
    with pytest.raises(InputError, match=r"'valacc' \(it has: .*val_acc"):
        fitted.fit(Module(), loader(), loader())


def test_several_processes_are_refused_in_a_sentence(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(p) for p in sys.path if p]!r}\n"
        "from lightning_modules import Module, loader, trainer\n"
        "from incop.integrations.lightning import InCoPCallback\n"
        "trainer(max_epochs=1, devices=2, strategy='ddp_fork', callbacks=[InCoPCallback()]).fit(Module(), loader())\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert "InputError: Lightning was given 2 processes" in run.stderr


# --- the older package


def test_the_older_package_is_served_too():
    older = pytest.importorskip("pytorch_lightning")

    class Made(older.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Module().net

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    module = Made()
    masks = cut(module)
    watched = InCoPCallback(probe=X, meter=METER, masks=masks, rule=StopAt(2))
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    fitted = older.Trainer(max_epochs=5, enable_model_summary=False, callbacks=[watched], **quiet)
    with Zeros(module, masks) as zeros:
        fitted.fit(module, loader())
    assert zeros.steps == fitted.global_step == 12
