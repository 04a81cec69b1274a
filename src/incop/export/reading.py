"""Reading: what a file of any form on disk holds. Needs torch, NumPy and safetensors; for the form `sparse` zstandard too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from incop.checkpoints import MOST_HEADER
from incop.errors import InputError, quoted
from incop.export.stored import KEY, PREFIX, SCHEMA, mask_of
from incop.masks import Masks
from incop.rundir import is_file

__all__ = ["Exported", "read"]

START = b"incopsp"  # of a sparse file; said here so that other files are read without zstd


@dataclass(frozen=True)
class Exported:
    """What an exported file holds.

    Args:
        weights: parameters and buffers, in the order of the model's state dict; those that were one tensor are one.
        masks: which weights are left; empty for a file that keeps none.
        about: what was said about the ticket.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    about: Mapping[str, Any]


def read(file: str | Path, *, most: int | None = None) -> Exported:
    """Read a file that `write` made, of the forms `safetensors`, `sparse` and `folded`; any safetensors file is read as the last.

    `model.load_state_dict(read(file).weights)` puts it into a network.

    Args:
        file: the file.
        most: bytes that a sparse file may unpack to; by default 1,000 times its own size, and 256 MiB always.

    Raises:
        InputError: the file is absent, damaged, or unpacks to more than it may.
        MissingExtra: it is sparse and zstandard is not installed.

    Example:
        >>> import tempfile, torch
        >>> from incop import Masks, export
        >>> net = torch.nn.Linear(2, 2)
        >>> subject = export.Subject.of(net, Masks({"weight": torch.eye(2) > 0}), about={"by": "me"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = export.read(export.write(subject, "sparse", folder).files[0])
        >>> list(found.weights), found.masks.remaining, found.about["by"]
        (['weight', 'bias'], 2, 'me')
    """
    path = Path(file)
    if not is_file(path):
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if start.startswith(START):
                from incop.export import sparse

                weights, masks, about = sparse.unpack(start + stream.read(), most)
                return Exported(weights, Masks(masks), about)
        return _safetensors(path, start)
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read, or is damaged: {error}") from error


def _safetensors(file: Path, start: bytes) -> Exported:
    announced = int.from_bytes(start, "little")
    if announced > MOST_HEADER:
        raise InputError(f"its header announces {announced} bytes, and at most {MOST_HEADER} are read")
    with safe_open(str(file), framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        told = (content.metadata() or {}).get(KEY)
    if told is None:
        return Exported(tensors, Masks({}), {})
    try:
        head = json.loads(told)
        if type(head["schema"]) is not int or head["schema"] > SCHEMA:
            raise InputError(f"it was written by a newer incop (schema {quoted(head['schema'])}): upgrade")
        order, said = head["order"], head["masks"]
        if sorted(tensors) != sorted([*order, *(PREFIX + name for name in said)]):
            raise InputError("its tensors are not those that it was written with")
        masks = Masks({name: mask_of(name, tensors[PREFIX + name], one) for name, one in said.items()})
        for name, mask in masks.items():
            if tensors[name].shape != mask.shape or _whole(tensors[name], ~mask):
                raise InputError(f"the mask of {quoted(name)} does not fit its weights")
        return Exported({name: tensors[name] for name in order}, masks, dict(head["about"]))
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"what it says of itself cannot be understood ({type(error).__name__}: {error})") from error


def _whole(weight: Tensor, pruned: Tensor) -> bool:
    """Say whether a pruned weight is other than +0.0."""
    flat = weight.contiguous().reshape(-1).view(torch.uint8).numpy().reshape(weight.numel(), -1)
    return bool(np.any(flat[pruned.numpy().reshape(-1)])) if weight.numel() else False
