"""The forms `safetensors` and `sparse`: one file each, with the masks, which `incop.export.read` gives back bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import incop
from incop.errors import InputError, TrainingError
from incop.export import dense_file
from incop.export.folded import weights_of
from incop.export.reader import read
from incop.export.subject import Answers, Outputs, Subject, tensors_of


class SafetensorsForm:
    """Weights, masks and metadata as one safetensors file, which any reader of safetensors opens."""

    name = "safetensors"
    tolerance = 0.0

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `model.safetensors`."""
        weights = weights_of(subject)
        _refuse_strange(subject, weights)
        file = folder / "model.safetensors"
        file.write_bytes(dense_file.pack(weights, subject.masks, subject.about))
        _held(file, subject)
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the network that the file makes, as a function."""
        return Answers(_filled(file, subject))


class SparseForm:
    """What is left and where it stands, packed; `incop.export.read` gives it back bit for bit.

    Attributes:
        details: after writing: the bytes that masks and values need by their entropy, see `incop.export.sparse_file.bound`.
    """

    name = "sparse"
    tolerance = 0.0

    def __init__(self) -> None:
        from incop.export import sparse_file  # whether zstd is absent is known before anything is read

        self._file = sparse_file
        self.details: dict[str, Any] = {}

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `model.sparse`."""
        state = tensors_of(subject.model)
        _refuse_strange(subject, state)
        about = {"incop": incop.__version__, **subject.about}
        file = folder / "model.sparse"
        file.write_bytes(self._file.pack(state, subject.masks, about))
        _held(file, subject)
        self.details = {"bound": self._file.bound(subject.masks, state)}
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the network that the file makes, as a function."""
        return Answers(_filled(file, subject))


def dense_size(subject: Subject) -> int:
    """Return the bytes of the dense network in float32: 4 for each entry of its state dict, of tensors that are one once."""
    found: dict[Any, int] = {}
    for name, tensor in subject.model.state_dict().items():
        if isinstance(tensor, Tensor):
            found[(tensor.data_ptr(), tensor.shape) if tensor.data_ptr() else name] = 4 * tensor.numel()
    return sum(found.values())


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
