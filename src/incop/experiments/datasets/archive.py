"""NumPy archives (.npz): named arrays in a zip file, read without pickle."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from incop.errors import InputError
from incop.experiments.datasets.stored_parts import (
    MAX_BYTES,
    StoredPart,
    StoredParts,
    check_count,
    check_unpacked,
    held,
)

_Array = npt.NDArray[np.generic]
_CHANNELS = (1, 3)
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; others take memory as their header says
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_archive(path: Path) -> StoredParts:
    """The parts of a data set in one .npz file.

    The arrays are `x_train`, `y_train` and optionally `x_test`, `y_test` and `x_val`, `y_val`; or `images`,
    `labels`. Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3 and whole numbers 0 to 255;
    labels are whole numbers, (N,) or (N, 1). Other arrays are left alone.

    Args:
        path: the file.
    """
    wanted = ["x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "images", "labels"]
    try:
        with path.open("rb") as stream:
            arrays = read_arrays(stream, wanted, str(path))
    except OSError as fault:
        raise InputError(
            f"{path} cannot be read ({fault.strerror or fault}): check that it is a readable file"
        ) from None
    plain, split = {"images", "labels"} & arrays.keys(), {"x_train", "y_train"} & arrays.keys()
    if bool(plain) == bool(split):
        raise InputError(
            f"{path} has {'both' if plain else 'neither'} x_train, y_train {'and' if plain else 'nor'}"
            " images, labels among its arrays: store one of the two pairs, with the test part as x_test,"
            " y_test"
        )
    if plain:
        return StoredParts(_required(arrays, "images", "labels", path))
    return StoredParts(
        _required(arrays, "x_train", "y_train", path),
        _optional(arrays, "x_test", "y_test", path),
        _optional(arrays, "x_val", "y_val", path),
    )


def read_arrays(stream: IO[bytes], wanted: list[str], where: str) -> dict[str, _Array]:
    """Chosen arrays of a .npz file, each checked against its header before memory is taken for it.

    Args:
        stream: the file, open for reading bytes and seekable.
        wanted: names of the arrays to read, without ".npy"; those that are absent are skipped.
        where: what to call the file in an error.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = {name: members[name] for name in wanted if name in members}
            total = sum(info.file_size for info in chosen.values())
            check_unpacked(where, total, stream.seek(0, os.SEEK_END))
            if total > MAX_BYTES:
                raise InputError(
                    f"{where} would take {total} bytes when decompressed, more than {MAX_BYTES}: store the"
                    " images as uint8, or fewer of them"
                )
            return {name: _read_member(archive, info, f"{where}: {name}") for name, info in chosen.items()}
    except (InputError, MemoryError):
        raise
    except Exception as fault:  # what zipfile raises on damaged bytes ranges from BadZipFile to UnicodeDecodeError
        raise InputError(
            f"{where} is not a sound .npz file ({fault}): it is damaged, encrypted or of another kind; write"
            " it again with numpy.savez"
        ) from None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> _Array:
    if info.compress_type not in _PACKINGS:
        raise InputError(f"{where} is packed in a way that NumPy does not use: write it again with numpy.savez")
    with archive.open(info) as member:
        try:
            reader = _HEADER_READERS[np.lib.format.read_magic(member)]
            shape, fortran, dtype = reader(member)
        except Exception as fault:  # NumPy reads the header as Python's literals, which fail in many ways
            reason = " ".join(str(fault).split())[:200]
            raise InputError(f"{where} is not a NumPy array ({reason}): write it again with numpy.savez") from None
        if dtype.hasobject:
            raise InputError(f"{where} holds pickled objects, which are never loaded: store an array of whole numbers")
        implied, left = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if dtype.kind not in "biufc":
            raise InputError(f"{where} is of type {str(dtype)[:80]}, which is no number: store whole numbers")
        if any(length < 0 for length in shape) or implied != left:
            raise InputError(
                f"{where} announces {'×'.join(map(str, shape))} {dtype} = {implied} bytes but holds {left}:"
                " it is truncated or damaged; write it again with numpy.savez"
            )
        # one byte more than announced, so that the end is reached and the zip checksum is compared
        content = bytearray(member.read(implied + 1))
    if len(content) != implied:
        raise InputError(f"{where} holds {len(content)} bytes instead of {implied}: it is damaged; write it again")
    flat: _Array = np.frombuffer(content, dtype)
    try:
        return flat.reshape(shape, order="F" if fortran else "C")
    except ValueError as fault:  # none of its lengths fits, beside one of zero
        raise InputError(f"{where} has an impossible shape ({fault}): write it again with numpy.savez") from None


def _required(arrays: dict[str, _Array], images: str, labels: str, path: Path) -> StoredPart:
    for name, other in ((images, labels), (labels, images)):
        if name not in arrays:
            raise InputError(f"{path} has {other} but no {name}: store both")
    return held(
        _images(arrays[images], f"{path}: {images}"),
        _labels(arrays[labels], f"{path}: {labels}"),
        f"{path} ({images}, {labels})",
    )


def _optional(arrays: dict[str, _Array], images: str, labels: str, path: Path) -> StoredPart | None:
    if not {images, labels} & arrays.keys():
        return None
    return _required(arrays, images, labels, path)


def _images(array: _Array, where: str) -> Tensor:
    if array.dtype.kind not in "ui":
        raise InputError(
            f"{where} is of type {array.dtype}: images must be whole numbers 0 to 255, because scaled ones"
            " cannot be told apart; store the pixels as uint8"
        )
    if array.size == 0:
        raise InputError(f"{where} has shape {array.shape} and so no pixels: store at least one image a class")
    if array.dtype != np.uint8 and not (int(array.min()) >= 0 and int(array.max()) <= 255):
        raise InputError(
            f"{where} has values from {array.min()} to {array.max()}: images must lie in 0 to 255; rescale"
            " and store them as uint8"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8))
    if pixels.dim() == 3:
        return pixels.unsqueeze(1)
    first, last = (pixels.dim() == 4 and pixels.shape[axis] in _CHANNELS for axis in (1, -1))
    if first == last:
        raise InputError(
            f"{where} has shape {array.shape}, from which the channel axis cannot be told: store (N, H, W),"
            " or 4 axes of which exactly one of the second and the last is 1 or 3"
        )
    return pixels if first else pixels.permute(0, 3, 1, 2).contiguous()


def _labels(array: _Array, where: str) -> Tensor:
    if array.dtype.kind not in "ui" or array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise InputError(
            f"{where} is {array.dtype} of shape {array.shape}: labels must be one whole number an image,"
            " shape (N,); store class numbers 0 to K-1"
        )
    check_count(where, array.size)
    if array.size and int(array.max()) >= 2**63:
        raise InputError(f"{where} has the label {array.max()}: labels must be 0 to K-1; renumber them")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
