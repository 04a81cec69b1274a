"""The file of the form `safetensors`: weights under the user's own names, masks bit-packed, and what a reader should know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import incop
from incop.checkpoint_files import MAX_HEADER
from incop.errors import InputError, quoted
from incop.masks import Masks
from incop.masks.bits import Bits

KEY = "incop"  # of the metadata: one, because the order of several is not the same in every process
PREFIX = "incop.masks/"
SCHEMA = 1


def pack(weights: Mapping[str, Tensor], masks: Masks, about: Mapping[str, Any]) -> bytes:
    """Return the file of a state dict and its masks.

    Args:
        weights: the state dict, on the CPU, no two tensors in the same memory.
        masks: of some of them.
        about: what a reader should know, as JSON values.
    """
    taken = next((name for name in weights if name.startswith(PREFIX)), None)
    if taken is not None:
        raise InputError(f"the model's own {taken!r} begins as the names of masks do: rename it")
    head = {
        "schema": SCHEMA,
        "incop": incop.__version__,
        "about": dict(about),
        "masks": {
            name: {"shape": list(masks.bits(name).shape), "remaining": masks.remaining_in(name)} for name in masks
        },
        "order": list(weights),
    }
    packed = {PREFIX + name: masks.bits(name).bytes for name in masks}
    return save({**weights, **packed}, metadata={KEY: json.dumps(head)})


def unpack(file: Path) -> tuple[dict[str, Tensor], Masks, dict[str, Any]]:
    """Return weights, masks and what is said about them; of a safetensors file that is not incop's the tensors alone."""
    tensors, metadata = opened(file)
    told = metadata.get(KEY)
    if told is None:
        return tensors, Masks({}), {}
    try:
        head = json.loads(told)
        if type(head["schema"]) is not int or head["schema"] > SCHEMA:
            raise InputError(f"it was written by a newer incop (schema {quoted(head['schema'])}): upgrade")
        order, said = head["order"], head["masks"]
        if sorted(tensors) != sorted([*order, *(PREFIX + name for name in said)]):
            raise InputError("its tensors are not those that it was written with")
        masks = Masks({name: _mask(name, tensors[PREFIX + name], one) for name, one in said.items()})
        for name, mask in masks.items():
            if tensors[name].shape != mask.shape or _whole(tensors[name], ~mask):
                raise InputError(f"the mask of {quoted(name)} does not fit its weights")
        return {name: tensors[name] for name in order}, masks, dict(head["about"])
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"what it says of itself cannot be understood ({type(error).__name__}: {error})") from error


def opened(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, whose header must not be endless."""
    with file.open("rb") as stream:
        announced = int.from_bytes(stream.read(8), "little")
    if announced > MAX_HEADER:
        raise InputError(f"its header announces {announced} bytes, and at most {MAX_HEADER} are read")
    with safe_open(str(file), framework="pt") as content:
        return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118  # no mapping


def _mask(name: str, packed: Tensor, said: dict[str, Any]) -> Tensor:
    """Return a mask from its packed bits and what is said of it."""
    try:
        return Bits.read(name, packed, said["shape"], said["remaining"]).unpacked()
    except ValueError as error:
        raise InputError(f"the mask of {error}") from error


def _whole(weight: Tensor, pruned: Tensor) -> bool:
    """Say whether a pruned weight is other than +0.0."""
    flat = weight.contiguous().reshape(-1).view(torch.uint8).numpy().reshape(weight.numel(), -1)
    return bool(np.any(flat[pruned.numpy().reshape(-1)])) if weight.numel() else False
