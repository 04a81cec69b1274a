"""What both of incop's Lightning callbacks do: hold zeros, count steps, and look when a look is due."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from incop.batches import walk
from incop.errors import InputError
from incop.integrations.lightning.package import Callback
from incop.masks import Hold, Masks, hold
from incop.records import Verdict
from incop.watch import Watch


class Looking(Callback):  # type: ignore[misc]  # Lightning is not installed where types are checked
    """Holds zeros, counts optimizer steps and looks when one is due, while Lightning fits a module.

    A step is a batch after which Lightning's count of optimizer steps has grown: with accumulation several batches are one,
    and several optimizers in one batch are one too. Where a validation metric is taken, a look waits for the end of the
    validation that follows its step; Lightning runs it before the next batch.

    Args:
        accuracy: name of the logged metric to take as validation accuracy, or None.
    """

    def __init__(self, accuracy: str | None) -> None:
        self._accuracy = accuracy
        self._watch: Watch | None = None
        self._masks: Masks | None = None
        self._holds: list[Hold] = []
        self._counted = 0  # Lightning's global step that the watch was told of last
        self._stepped = False  # whether the watch was told of a step since the last batch ended
        self._before = 0  # epochs that Lightning had trained before this fit began
        self._samples = 0  # of batches whose step has not come yet
        self._batch = (0, 0)  # index and samples of the batch that is trained
        self._losses: list[Tensor] = []  # since the last look
        self._awaited = False  # whether a look waits for a validation
        self._validation = (0.0, 0)  # when it began, and its samples so far

    def _looked(self, trainer: Any, verdict: Verdict) -> None:
        """Do what follows a look."""
        raise NotImplementedError

    def _due(self) -> bool:
        """Say whether a look is due where training stands."""
        return self._now.due()

    # --- hooks, in Lightning's order

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what would go wrong silently: several processes, each with its own flow and its own verdict."""
        if stage == "fit" and trainer.world_size > 1:
            raise InputError(
                f"Lightning was given {trainer.world_size} processes, and each would measure its own flow and ask the rule "
                "by itself: train on one device, Trainer(devices=1)"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Hold the masks; the optimizers are made by now, and what a checkpoint holds of them comes after this."""
        if self._masks is not None:
            self._holds = _held(self._masks, pl_module, trainer.optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out what can be known now that the data loaders are there."""
        every = self._now.every
        if every.unit == "epochs" and every.amount % 1 and math.isinf(trainer.num_training_batches):
            raise InputError(
                f"a check every {every} epochs needs a data loader that knows its length: count in steps, check_every='50steps'"
            )
        if self._accuracy is not None and not trainer.enable_validation:
            raise InputError(
                f"accuracy={self._accuracy!r} is logged by Lightning's validation, and this fit has none: give it validation "
                "data and a validation_step that logs it"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the batch, whose step may be counted before it has ended."""
        self._batch = batch_idx, samples_in(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and look if a look is due."""
        self._awaited = False
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning has divided it, where it steps by itself, so that gradients of several batches are their mean
            parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach().float().reshape(()) * parts)
        self._count(trainer)
        stepped, self._stepped = self._stepped, False
        self._samples, self._batch = self._samples + self._batch[1], (batch_idx, 0)
        self._now.epoch = max(self._now.epoch, self._epoch(trainer))
        if (stepped or trainer.is_last_batch) and self._due():
            self._look_or_await(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock of training: what validating takes is none."""
        self._validation = time.perf_counter(), 0
        if self._watch is not None:
            self._watch.pause()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count samples, which a rule that asks for accuracy is charged with."""
        self._validation = self._validation[0], self._validation[1] + samples_in(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the look that waited for this validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._watch is None:
            return
        seconds = time.perf_counter() - self._validation[0]
        self._watch.start()
        if self._awaited:
            self._awaited = False
            self._look(trainer, pl_module, seconds)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count an epoch whose last batches the module left out: Lightning calls no hook of theirs."""
        if trainer.is_last_batch and self._now.epoch < self._epoch(trainer):
            self._now.epoch = self._epoch(trainer)
            if self._due() and not self._needs_validation:  # none follows: Lightning leaves that out too
                self._look(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the weights; Lightning calls no teardown then."""
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the weights."""
        self._release()

    # --- how

    @property
    def _needs_validation(self) -> bool:
        """Whether a look without an accuracy would be none to the rule."""
        rule = self._now.rule
        return rule is not None and "accuracy" in rule.wants

    @property
    def _now(self) -> Watch:
        assert self._watch is not None, "a fit has begun"
        return self._watch

    def _epoch(self, trainer: Any) -> float:
        """Return the epochs of this fit trained so far; fractions only where the data loader knows its length."""
        done = trainer.current_epoch - self._before
        if trainer.is_last_batch:
            return float(done + 1)
        return float(done + (self._batch[0] + 1) / trainer.num_training_batches)  # of infinitely many: done

    def _count(self, trainer: Any) -> None:
        """Tell the watch of a step that Lightning has made since the last call, if it has made one."""
        if trainer.global_step == self._counted:
            return
        self._counted, self._stepped = trainer.global_step, True
        samples, self._samples, self._batch = self._samples + self._batch[1], 0, (self._batch[0], 0)
        self._now.stepped(samples, epoch=self._epoch(trainer))

    def _look_or_await(self, trainer: Any, pl_module: Any) -> None:
        if self._accuracy is None:
            self._look(trainer, pl_module)
        else:
            self._awaited = True

    def _look(self, trainer: Any, pl_module: Any, seconds: float | None = None) -> None:
        """Look; `seconds` are those of the validation that has just given the accuracy."""

        def validated() -> float:
            metrics = trainer.callback_metrics
            if self._accuracy not in metrics:
                have = ", ".join(sorted(map(str, metrics))) or "none"
                raise InputError(
                    f"the validation logged no metric {self._accuracy!r} (it has: {have}): log it in validation_step, "
                    "self.log(name, value)"
                )
            self._now.probed(self._validation[1], seconds or 0.0)
            return float(metrics[self._accuracy])

        mean = math.fsum(torch.stack(self._losses).tolist()) / len(self._losses) if self._losses else None
        self._losses = []
        with torch.enable_grad():  # a validation ends under no_grad
            verdict = self._now.look(accuracy=None if seconds is None else validated, loss=mean, epoch=self._now.epoch)
        self._looked(trainer, verdict)

    def _release(self) -> None:
        for held in self._holds:
            held.release()
        self._holds = []


def _held(masks: Masks, module: nn.Module, optimizers: list[Any]) -> list[Hold]:
    """Hold the masks through every optimizer of the module; the first alone zeroes gradients, once is enough."""
    masks.apply(module)
    torchs = [_unwrapped(optimizer) for optimizer in optimizers]
    mine = {id(parameter) for parameter in module.parameters()}
    training = [o for o in torchs if any(id(p) in mine for group in o.param_groups for p in group["params"])]
    return [hold(masks, module, one, gradients=place == 0) for place, one in enumerate(training or torchs)]


def _unwrapped(optimizer: Any) -> Any:
    """Return torch's optimizer inside Lightning's own wrapper, whose hooks are nobody's."""
    return optimizer.optimizer if hasattr(optimizer, "toggle_model") else optimizer


def samples_in(batch: Any) -> int:
    """Return how many samples a batch of any form holds: the length of its first tensor."""
    return next((int(tensor.shape[0]) for tensor in walk(batch) if tensor.dim()), 0)
