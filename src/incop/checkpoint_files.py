"""A level's weights and masks, and what a search goes on from, on disk: safetensors only, masks bit-packed, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from incop.errors import InputError, TrainingError
from incop.flat_state import State
from incop.masks import Masks
from incop.masks.bits import Bits
from incop.rundir import inside, is_file, write_atomically

__all__ = ["load_masks", "load_weights", "save_masks", "save_weights"]

WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"
CHECKPOINT_SCHEMA = 2  # of what a checkpoint holds; a reader refuses a newer one
POINT = "points/"  # tensors of rewind points never change: each is written once, beside the checkpoints
MAX_HEADER = 2**22  # bytes: names, shapes and places of 40,000 tensors; a network of 300 needs 30 kB


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
    packed = {name: masks.bits(name).bytes.cpu() for name in masks}
    # one key: the order of several is not the same in every process, and equal masks are to be equal files
    about = json.dumps(
        {name: {"shape": list(masks.bits(name).shape), "remaining": masks.remaining_in(name)} for name in masks}
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
        masks = {
            name: Bits.read(name, packed[name], one["shape"], one["remaining"]).unpacked()
            for name, one in about.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{str(file)!r} holds no masks of incop, or is damaged: {what}") from error
    return Masks(masks)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)  # not its parents: a run folder that was removed does not come back as a fragment
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
    if announced > MAX_HEADER:
        raise InputError(
            f"{str(file)!r} is damaged or no safetensors file: its header announces {announced} bytes, and at most "
            f"{MAX_HEADER} are read"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back.

    Args:
        state: what the search goes on from.
        about: what was said about it when it was written.
    """

    state: State
    about: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of a run: each a file that is named by its number and by the hash of what it holds.

    A new one is written aside, brought to the disk, put in place by a rename, read back and compared; the one before it is kept
    until the next, for the case that the newest is damaged later.

    Args:
        folder: their folder; it is made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._points: dict[str, str] = {}  # rewind point → its file
        self._last: Path | None = None  # the newest that is known to be whole

    def write(self, state: Mapping[str, Any], *, about: Mapping[str, Any]) -> None:
        """Write a checkpoint; when this raises, the ones before it are as they were."""
        _make(self.folder)
        points: dict[str, dict[str, Any]] = {}
        rest: dict[str, Any] = {}
        for key, value in state.items():
            point, _, name = key.removeprefix(POINT).partition("/")
            if key.startswith(POINT) and isinstance(value, Tensor):
                points.setdefault(point, {})[name] = value
            else:
                rest[key] = value
        before = self._points  # those that the checkpoint before this one needs
        self._points = {
            point: before.get(point) or self._put(f"point-{re.sub('[^a-z0-9.]', '_', point)}", tensors, {}).name
            for point, tensors in points.items()
        }
        told = {"about": dict(about), "points": self._points}
        number = max((int(file.name[:6]) for file in self._numbered()), default=0) + 1
        new = self._put(f"{number:06d}", rest, told)
        wanted = {new, self._last, *(self.folder / name for name in (*before.values(), *self._points.values()))}
        for file in self.folder.iterdir():
            if file not in wanted:
                with contextlib.suppress(OSError):
                    file.unlink()
        self._last = new

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Return the newest checkpoint that is whole, None when there is none, and a sentence on each that is damaged."""
        wrong: list[str] = []
        for file in sorted(self._numbered(), reverse=True):
            try:
                state, told = _taken_apart(file)
                points: dict[str, str] = told.get("points", {})
                for point, name in points.items():
                    tensors, _ = _taken_apart(self.folder / Path(name).name)
                    state |= {f"{POINT}{point}/{key}": value for key, value in tensors.items()}
            except _DamagedError as error:
                wrong.append(str(error))
                continue
            self._points, self._last = dict(points), file
            return Checkpoint(state, told.get("about", {})), tuple(wrong)
        return None, tuple(wrong)

    def remove(self) -> None:
        """Remove them all, of a run that is finished."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _numbered(self) -> list[Path]:
        try:
            return [
                file for file in self.folder.iterdir() if re.fullmatch(r"\d{6}-[0-9a-f]{32}\.safetensors", file.name)
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{str(self.folder)!r} cannot be read: {error.strerror or error}") from error

    def _put(self, name: str, state: Mapping[str, Any], told: Mapping[str, Any]) -> Path:
        """Write one file, read it back, and return its path."""
        content = _put_together(state, told)
        file = self.folder / f"{name}-{_hash(content)}.safetensors"
        write_atomically(file, content)
        try:
            _taken_apart(file)
        except _DamagedError as error:
            file.unlink(missing_ok=True)
            raise TrainingError(
                f"a checkpoint was not read back as it was written ({error}): check the disk"
            ) from error
        return file


class _DamagedError(Exception):
    """A file does not hold what its name says."""


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _put_together(state: Mapping[str, Any], told: Mapping[str, Any]) -> bytes:
    tensors = {
        key: value.detach().cpu().contiguous().clone() for key, value in state.items() if isinstance(value, Tensor)
    }
    bits = {key: list(value.shape) for key, value in tensors.items() if value.dtype == torch.bool}
    packed = {key: torch.from_numpy(np.packbits(tensors[key].numpy().reshape(-1))) for key in bits}
    facts = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    # the order of masks is that of the network's layers, and a safetensors file keeps none
    whole = {"schema": CHECKPOINT_SCHEMA, "order": list(tensors), "facts": facts, "bits": bits, **told}
    return save({**tensors, **packed}, metadata={"incop": json.dumps(whole)})


def _taken_apart(file: Path) -> tuple[State, dict[str, Any]]:
    try:
        if not file.is_file():  # a pipe would block, a device never end
            raise FileNotFoundError("it is no regular file")
        content = file.read_bytes()
    except OSError as error:
        raise _DamagedError(f"{file.name} cannot be read: {error.strerror or error}") from error
    if f"-{_hash(content)}." not in file.name:
        raise _DamagedError(f"{file.name} is damaged: its content is not what was written")
    try:
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        told = json.loads(head["__metadata__"]["incop"])
        if told["schema"] > CHECKPOINT_SCHEMA:
            raise InputError(f"{str(file)!r} was written by a newer incop (schema {told['schema']}): upgrade")
        found = load(content)
        tensors = {key: found[key] for key in told["order"]}
        for key, shape in told["bits"].items():
            bits = np.unpackbits(tensors[key].numpy(), count=math.prod(shape))
            tensors[key] = torch.from_numpy(bits.astype(bool).reshape(shape))
        known = [told["facts"], told.get("about", {}), told.get("points", {})]
        if not all(isinstance(one, dict) for one in known) or not all(isinstance(n, str) for n in known[2].values()):
            raise TypeError("what it says is no object of names")
    except InputError:
        raise
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise _DamagedError(f"{file.name} is no checkpoint of incop: {error}") from error
    return {**tensors, **told["facts"]}, told
