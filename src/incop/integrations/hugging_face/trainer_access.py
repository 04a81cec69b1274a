"""What the callback and the search's trainer must know of a `transformers.Trainer` beyond its public face."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from incop.batches import walk
from incop.errors import InputError

__all__ = [
    "StepCounter",
    "agreed",
    "as_written",
    "found_as_it_was",
    "refuse_sharded",
    "right_and_all",
    "shifts_labels",
]

WRAPPED = ("forward", "_original_forward", "_is_accelerate_prepared")  # what accelerate writes on a model


def refuse_sharded(trainer: Any) -> None:
    """Refuse a Trainer whose weights lie in pieces on several devices: a mask is of a whole weight.

    Raises:
        InputError: DeepSpeed or FSDP is on.
    """
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


def shifts_labels(model: nn.Module) -> bool:
    """Say whether output i of the model is held against label i + 1, as in a causal language model."""
    from transformers.models.auto.modeling_auto import (  # type: ignore[import-not-found,unused-ignore]
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    causal = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _several(names)}
    return getattr(model, "loss_type", None) == "ForCausalLM" or any(
        one.__name__ in causal for one in type(model).__mro__
    )


def _several(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def agreed(stop: bool, world_size: int) -> bool:
    """Return the first process's answer: a last bit that differs must not end the training of one process alone."""
    if world_size <= 1 or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return stop
    told = [stop]
    torch.distributed.broadcast_object_list(told, src=0)
    return bool(told[0])


def right_and_all(logits: Any, labels: Any, *, shifted: bool) -> tuple[int, int]:
    """Return how many labels the largest logit names, and how many there are; -100 is no label.

    Args:
        logits: (N, C), or (N, T, C) with a label a token; the first of a tuple is taken.
        labels: (N,) or (N, T), whole numbers.
        shifted: hold output i against label i + 1.

    Raises:
        InputError: they do not fit together, as in regression and with several labels a sample.
    """
    logits = logits[0] if isinstance(logits, tuple | list) and logits else logits
    fits = isinstance(logits, Tensor) and isinstance(labels, Tensor) and logits.dim() > 1 and logits.shape[-1] > 1
    if not fits or labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (logits, labels)]
        raise InputError(
            f"accuracy cannot be taken of outputs {shapes[0]} and labels {shapes[1]} by the largest logit: pass "
            "compute_metrics and accuracy=, the name of one of its values in [0, 1]"
        )
    if shifted:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    wanted = labels != -100
    return int(((logits.argmax(-1) == labels) & wanted).sum()), int(wanted.sum())
