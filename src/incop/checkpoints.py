"""A level's weights and masks on disk: safetensors only, masks bit-packed, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from incop.errors import InputError
from incop.masks import Masks
from incop.rundir import write_atomically

__all__ = ["load_masks", "load_weights", "save_masks", "save_weights"]

WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers, under the model's own names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    write_atomically(folder / WEIGHTS, save(tensors))


def load_weights(file: Path) -> dict[str, Tensor]:
    """Read parameters and buffers from a level's folder or a safetensors file.

    Raises:
        InputError: the file is absent or damaged.
    """
    return _load(file / WEIGHTS if file.is_dir() else file)[0]


def save_masks(folder: Path, masks: Masks) -> None:
    """Write masks, eight positions a byte; shapes stand in the file's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in masks.items()}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    write_atomically(folder / MASKS, save(packed, metadata={"shapes": shapes}))


def load_masks(file: Path) -> Masks:
    """Read masks from a level's folder or file.

    Raises:
        InputError: the file is absent or damaged.
    """
    file = file / MASKS if file.is_dir() else file
    packed, metadata = _load(file)
    try:
        shapes = {str(name): tuple(int(n) for n in shape) for name, shape in json.loads(metadata["shapes"]).items()}
        masks = {}
        for name, shape in shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            bits = packed[name].numpy()
            if bits.dtype != np.uint8 or count < 0 or bits.size != (count + 7) // 8:
                raise ValueError(f"{name!r} has {bits.size} bytes for {count} positions")
            masks[name] = torch.from_numpy(np.unpackbits(bits, count=count).astype(bool).reshape(shape))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{str(file)!r} holds no masks of incop, or is damaged: {error}") from error
    return Masks(masks)


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise InputError(f"there is no file {str(file)!r}: the level was not finished, or the path is wrong")
    try:
        with safe_open(str(file), framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, dict(content.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(file)!r} is damaged or no safetensors file: {error}") from error
