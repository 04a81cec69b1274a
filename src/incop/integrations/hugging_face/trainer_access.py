"""What the callback and the search's trainer must know of a `transformers.Trainer` beyond its public face."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from incop.batches import walk
from incop.errors import InputError

WRAPPED = ("forward", "_original_forward", "_is_accelerate_prepared")  # what accelerate writes on a model


def refuse_sharded(trainer: Any) -> None:
    """Refuse a Trainer whose weights lie in pieces on several devices: a mask is of a whole weight."""
    for name, what in (("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")):
        if getattr(trainer, name, False):
            raise InputError(
                f"{what} keeps each weight in pieces, and masks are of whole weights: train with DistributedDataParallel "
                f"(torchrun) or on one device, without {what}"
            )


class StepCounter:
    """Counts the samples and the loss that go into a Trainer's steps, by way of its `training_step`.

    Args:
        trainer: the Trainer; `release` gives its method back.
        losses: what `losses()` of another said, which this one goes on from.
    """

    def __init__(self, trainer: Any, losses: tuple[float, int] = (0.0, 0)) -> None:
        self._trainer = trainer
        self._own = vars(trainer).get("training_step")
        self._plain = trainer.training_step
        trainer.training_step = self._counted
        self._samples = 0
        self._loss, self._steps = torch.tensor(losses[0], dtype=torch.float32), losses[1]

    def _counted(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        first = next((tensor for tensor in walk(inputs) if tensor.dim()), None)
        loss = self._plain(model, inputs, *args, **kwargs)
        self._samples += 0 if first is None else int(first.shape[0])
        self._loss = self._loss + loss.detach().float()  # on its device: asking for its value would wait for it
        return loss

    def step(self) -> int:
        """Say that an optimizer step is done; return the samples that went into it, in all processes."""
        samples, self._samples = self._samples, 0
        self._steps += 1
        return samples * max(int(self._trainer.args.world_size), 1)

    def losses(self) -> tuple[float, int]:
        """Return the sum of the losses since the mean was last asked for, and of how many steps."""
        return float(self._loss), self._steps

    def loss(self) -> float | None:
        """Return the mean loss of the steps since this was last asked; None without any."""
        total, steps = self.losses()
        self._loss, self._steps = torch.zeros_like(self._loss), 0
        return total / steps if steps else None

    def release(self) -> None:
        """Give the Trainer its own `training_step` back."""
        if self._own is None:
            vars(self._trainer).pop("training_step", None)
        else:
            self._trainer.training_step = self._own


@contextlib.contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Call the model's own forward, without the autocast that accelerate puts round it for mixed precision."""
    wrapped, own = vars(model).get("forward"), vars(model).get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = wrapped


@contextlib.contextmanager
def found_as_it_was(model: nn.Module) -> Iterator[None]:
    """Take what accelerate wrote on the model off it again, so that it does not stay in autocast for good."""
    before = {name: vars(model)[name] for name in WRAPPED if name in vars(model)}
    try:
        yield
    finally:
        for name in WRAPPED:
            vars(model).pop(name, None)
        vars(model).update(before)


def agreed(stop: bool, world_size: int) -> bool:
    """Return the first process's answer: a last bit that differs must not end the training of one process alone."""
    if world_size <= 1 or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return stop
    told = [stop]
    torch.distributed.broadcast_object_list(told, src=0)
    return bool(told[0])
