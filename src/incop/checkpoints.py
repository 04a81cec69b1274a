"""A level's weights and masks on disk: safetensors only, masks bit-packed, written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from incop.errors import InputError, TrainingError, quoted
from incop.masks import Masks
from incop.rundir import inside, is_file, write_atomically

__all__ = ["load_masks", "load_weights", "save_masks", "save_weights"]

WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"
MOST_HEADER = 2**22  # bytes: names, shapes and places of 40,000 tensors; a network of 300 needs 30 kB


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers, under the model's own names.

    Raises:
        TrainingError: the folder cannot be written.
    """
    _make(folder)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_atomically(folder / WEIGHTS, save(tensors))


def load_weights(file: str | Path) -> dict[str, Tensor]:
    """Read parameters and buffers from a level's folder or a safetensors file.

    Raises:
        InputError: the file is absent or damaged.
    """
    return _load(_within(file, WEIGHTS))[0]


def save_masks(folder: Path, masks: Masks) -> None:
    """Write masks, eight positions a byte; shapes and counts of what is left stand in the file's metadata.

    Raises:
        TrainingError: the folder cannot be written.
    """
    _make(folder)
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in masks.items()}
    # one key: the order of several is not the same in every process, and equal masks are to be equal files
    about = json.dumps(
        {name: {"shape": list(m.shape), "remaining": masks.remaining_in(name)} for name, m in masks.items()}
    )
    write_atomically(folder / MASKS, save(packed, metadata={"masks": about}))


def load_masks(file: str | Path) -> Masks:
    """Read masks from a level's folder or file.

    Raises:
        InputError: the file is absent or damaged.
    """
    file = _within(file, MASKS)
    packed, metadata = _load(file)
    try:
        about = json.loads(metadata["masks"])
        if set(about) != set(packed):
            raise ValueError("its list of masks does not fit its tensors")
        masks = {name: _unpacked(name, packed[name], one["shape"], one["remaining"]) for name, one in about.items()}
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{str(file)!r} holds no masks of incop, or is damaged: {what}") from error
    return Masks(masks)


def _unpacked(name: str, packed: Tensor, shape: list[int], remaining: int) -> Tensor:
    if packed.dtype != torch.uint8 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name!r} is no packed mask")
    count = math.prod(shape)
    if packed.shape != ((count + 7) // 8,):
        raise ValueError(f"{name!r} has {packed.numel()} bytes for {quoted(count)} positions")
    bits = np.unpackbits(packed.numpy(), count=count)
    if int(bits.sum()) != remaining:
        raise ValueError(f"{name!r} keeps {int(bits.sum())} positions and was written with {quoted(remaining)}")
    return torch.from_numpy(bits.view(np.bool_).reshape(shape))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the folder {str(folder)!r} cannot be made: {error.strerror or error}") from error


def _within(file: str | Path, name: str) -> Path:
    path = Path(file)
    return inside(path, path / name) if path.is_dir() else path


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not is_file(file):
        raise InputError(f"there is no file {str(file)!r}: the level was not finished, or the path is wrong")
    _check_header(file)
    try:
        with safe_open(str(file), framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, dict(content.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(file)!r} is damaged or no safetensors file: {error}") from error


def _check_header(file: Path) -> None:
    """Refuse a header that is larger than any network needs, before every name in it becomes an object."""
    try:
        with file.open("rb") as stream:
            announced = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise InputError(f"{str(file)!r} is damaged or no safetensors file: {error}") from error
    if announced > MOST_HEADER:
        raise InputError(
            f"{str(file)!r} is damaged or no safetensors file: its header announces {announced} bytes, and at most "
            f"{MOST_HEADER} are read"
        )
