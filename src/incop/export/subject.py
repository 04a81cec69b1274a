"""The subject: the network that is exported, with its pruned weights at exactly zero; and what a form of it has to do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from incop import inspection
from incop.batches import Batch, call, mapped, placed, unpack, walk
from incop.errors import InputError
from incop.masks import Masks
from incop.wrappers import unwrapped

Outputs = Callable[[Batch], list[Tensor]]


@dataclass(frozen=True)
class Subject:
    """What is exported. Made by `Subject.of`; a copy, so that nothing done to it reaches the user's model.

    Args:
        model: the network, on the CPU, in evaluation mode, pruned weights at exactly zero.
        masks: which weights are left.
        example: a batch of inputs, by which a form proves its answers; None where there is none.
        about: what a reader of the file should know (run, level, sparsity, shape of the input, …), as JSON values.
    """

    model: nn.Module
    masks: Masks
    example: Batch | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        masks: Masks | None = None,
        *,
        example: Any = None,
        about: Mapping[str, Any] | None = None,
    ) -> Subject:
        """Copy a model and set its pruned weights to zero; the model itself stays as it is.

        Args:
            model: any module, or what wraps it to train it.
            masks: the weights that are left; by default those that are not exactly zero.
            example: a batch of any usual form, see `incop.batches.unpack`; its target is not used.
            about: what a reader of the file should know, as JSON values.

        Raises:
            InputError: the masks belong to another model, or the model cannot be copied or has no values yet.

        Example:
            >>> import torch
            >>> from incop.export import Subject
            >>> subject = Subject.of(torch.nn.Linear(4, 2), example=torch.zeros(8, 4))
            >>> subject.masks.sparsity, subject.example.samples
            (0.0, 8)
        """
        model = unwrapped(model)
        inspection.refuse_empty(model)
        masks = masks if masks is not None else Masks.of(model)
        masks.weights(model)
        try:
            own = copy.deepcopy(model).cpu().eval()
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): export needs a copy, so that the "
                "model itself stays as it is"
            ) from error
        masks = Masks({name: mask.cpu() for name, mask in masks.items()})
        masks.apply(own)
        batch = None if example is None else placed(unpack(example), device=torch.device("cpu"))
        if batch is not None:
            batch = Batch(batch.args, batch.kwargs, None, batch.samples)
        return cls(own, masks, batch, dict(about or {}))

    def needed_example(self, what: str) -> Batch:
        """Return the example, for a form that cannot be made without one.

        Raises:
            InputError: there is none.
        """
        if self.example is None:
            raise InputError(f"{what} needs a batch of inputs to follow the network with: give example=…")
        return self.example

    def outputs(self, batch: Batch) -> list[Tensor]:
        """Return all tensors that the masked network answers a batch with, in order."""
        return Answers(self.model)(batch)


class Form(Protocol):
    """Writes a subject into files, and makes of them again what answers a batch.

    Attributes:
        name: the word for it.
        again: optional; names of files that hold the same once more for another reader, and are not counted in its size.
        tolerance: how far its answers may be from the masked network's, relative to the largest of them; 0: the same bits.
    """

    name: str
    tolerance: float

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write the form's files into an empty folder and return them, the main one first.

        Raises:
            InputError: this network cannot have this form; the sentence names the layer or operator.
            MissingExtra: a library is absent.
        """

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the function from a batch to the answers of what the main file holds, as `Subject.outputs` gives them."""


class Answers:
    """A model as the function from a batch to all tensors of its answer, without gradients.

    Args:
        model: what answers, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Return all tensors of the answer, in order."""
        with torch.inference_mode():
            return [tensor.clone() for tensor in walk(call(self.model, batch))]

    def ready(self, batch: Batch) -> Callable[[], Any]:
        """Return the call that answers one batch and nothing else, for who measures its time."""
        return lambda: call(self.model, batch)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict, for a file that holds tensors alone."""
    found = {}
    for name, entry in model.state_dict().items():
        if not isinstance(entry, Tensor):
            raise InputError(
                f"the state dict of {type(model).__name__} has {name!r}, a {type(entry).__name__}, and a file of this form holds "
                "tensors alone: let get_extra_state return a tensor, or leave it out of the model for the export"
            )
        found[name] = entry
    return found


def repeated(batch: Batch, samples: int) -> Batch:
    """Return a batch of so many samples: the first ones, and these again where there are not enough."""
    if samples < 1:
        raise InputError(f"a batch of {samples} samples cannot be measured: give at least 1")
    places = torch.arange(samples) % batch.samples

    def change(t: Tensor) -> Tensor:
        return t.index_select(0, places) if t.dim() and t.shape[0] == batch.samples else t

    return replace(
        batch, args=mapped(batch.args, change), kwargs=mapped(dict(batch.kwargs), change), target=None, samples=samples
    )
