"""The form `safetensors`: weights with exact zeros under the user's own names, masks bit-packed, and what a reader should know."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

import incop
from incop.errors import InputError, TrainingError
from incop.export.folded import weights_of
from incop.export.subject import Outputs, Subject, outputs_of, tensors_of
from incop.masks.bits import Bits

__all__ = ["KEY", "PREFIX", "SCHEMA", "DenseForm", "SparseForm", "dense_size", "mask_of"]

KEY = "incop"  # of the metadata: one, because the order of several is not the same in every process
PREFIX = "incop.masks/"
SCHEMA = 1


class DenseForm:
    """Weights, masks and metadata as one safetensors file, which any reader of safetensors opens."""

    name = "safetensors"
    tolerance = 0.0

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `model.safetensors`."""
        weights = weights_of(subject)
        taken = next((name for name in weights if name.startswith(PREFIX)), None)
        if taken is not None:
            raise InputError(f"the model's own {taken!r} begins as the names of masks do: rename it")
        _refuse_strange(subject, weights)
        packed = {name: subject.masks.bits(name).bytes for name in subject.masks}
        told = {
            "schema": SCHEMA,
            "incop": incop.__version__,
            "about": dict(subject.about),
            "masks": {
                name: {"shape": list(subject.masks.bits(name).shape), "remaining": subject.masks.remaining_in(name)}
                for name in subject.masks
            },
            "order": list(weights),
        }
        file = folder / "model.safetensors"
        named = {PREFIX + name: mask for name, mask in packed.items()}
        file.write_bytes(save({**weights, **named}, metadata={KEY: json.dumps(told)}))
        _held(file, subject)
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the network that the file makes, as a function."""
        return outputs_of(_filled(file, subject))


class SparseForm:
    """What is left and where it stands, packed; `incop.export.read` gives it back bit for bit."""

    name = "sparse"
    tolerance = 0.0

    def __init__(self) -> None:
        from incop.export import sparse  # whether zstd is absent is known before anything is read

        self._bound = sparse.bound

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `model.sparse`."""
        from incop.export import sparse

        state = tensors_of(subject.model)
        _refuse_strange(subject, state)
        about = {"incop": incop.__version__, **subject.about}
        file = folder / "model.sparse"
        file.write_bytes(sparse.pack(state, subject.masks, about))
        _held(file, subject)
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the network that the file makes, as a function."""
        return outputs_of(_filled(file, subject))

    def bound(self, subject: Subject) -> int:
        """Return the bytes that mask and values need by their entropy; see `incop.export.sparse.bound`."""
        state = tensors_of(subject.model)
        return self._bound(subject.masks, state)


def dense_size(subject: Subject) -> int:
    """Return the bytes of the dense network in float32: 4 for each entry of its state dict, of tensors that are one once.

    Example:
        >>> import torch
        >>> from incop.export import Subject
        >>> from incop.export.stored import dense_size
        >>> dense_size(Subject.of(torch.nn.Linear(4, 2)))
        40
    """
    found: dict[Any, int] = {}
    for name, tensor in subject.model.state_dict().items():
        if isinstance(tensor, Tensor):
            found[(tensor.data_ptr(), tensor.shape) if tensor.data_ptr() else name] = 4 * tensor.numel()
    return sum(found.values())


def mask_of(name: str, packed: Tensor, said: dict[str, Any]) -> Tensor:
    """Return a mask from its packed bits and what is said of it.

    Raises:
        InputError: they do not fit.
    """
    try:
        return Bits.read(name, packed, said["shape"], said["remaining"]).unpacked()
    except ValueError as error:
        raise InputError(f"the mask of {error}") from error


def _refuse_strange(subject: Subject, weights: dict[str, Tensor]) -> None:
    """Refuse a network whose state dict gives its masked weights other names, since nobody could put the two together."""
    for name in subject.masks:
        if name not in weights:
            raise InputError(f"the state dict of {type(subject.model).__name__} has no {name!r}, which is masked")


def _filled(file: Path, subject: Subject) -> torch.nn.Module:
    """Return a copy of the network with the file's weights."""
    model = copy.deepcopy(subject.model)
    model.load_state_dict(_held(file, subject))
    return model


def _held(file: Path, subject: Subject) -> dict[str, Tensor]:
    """Read a file back and hold every bit of it against the network."""
    from incop.export.reading import read

    weights = tensors_of(subject.model)
    found = read(file, most=2 * sum(t.numel() * t.element_size() for t in weights.values()))
    same = list(found.weights) == list(weights) and all(_same(t, weights[name]) for name, t in found.weights.items())
    if not same or found.masks != subject.masks:
        raise TrainingError(f"{file.name!r} was not read back as it was written: check the disk")
    return dict(found.weights)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
