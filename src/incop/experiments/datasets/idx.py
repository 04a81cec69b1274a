"""The idx files in which MNIST and its kin are published, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO

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

_CHUNK = 2**20
_UNSIGNED_BYTE = 0x08  # the third byte of the magic number says the type, the fourth how many dimensions
_NAME = re.compile(r"idx[13](-ubyte)?(\.gz)?$", re.IGNORECASE)


def holds_idx(folder: Path) -> bool:
    """Whether a folder has at least one file named like an idx file.

    Args:
        folder: any path.
    """
    return bool(_candidates(folder))


def read_folder(folder: Path) -> StoredParts:
    """The training and test part of a folder with idx files.

    Training files have "train" in their names, test files "t10k" or "test"; images are idx3, labels idx1.
    Where a file lies there both plain and compressed, the compressed one is read, because it has a checksum.

    Args:
        folder: where the files are.
    """
    train = _read_part(folder, "train")
    has_test = any(_belongs(path, "test") for path in _candidates(folder))
    return StoredParts(train, _read_part(folder, "test") if has_test else None)


def read_array(path: Path, dimensions: int) -> Tensor:
    """The content of one idx file of unsigned bytes.

    At most one byte more than the header announces is read, and that is held against the size of the file before.

    Args:
        path: the file; compressed if its name ends in ".gz".
        dimensions: how many the header must announce: 3 for images, 1 for labels.
    """
    compressed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            shape = _read_header(stream, path, dimensions)
            implied = math.prod(shape)
            check_count(str(path), shape[0])
            if compressed:
                check_unpacked(str(path), implied, path.stat().st_size)
            content = _read_at_most(stream, implied + 1)
    except EOFError:
        raise InputError(
            f"{path} ends in the middle of its gzip stream: the download was probably cut short; fetch it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as fault:
        raise InputError(
            f"{path} is not a sound gzip file ({fault}): it is damaged or not compressed; fetch it again, or"
            " drop .gz from its name if it is plain"
        ) from None
    except OSError as fault:
        raise InputError(
            f"{path} cannot be read ({fault.strerror or fault}): check that it is a readable file"
        ) from None
    if len(content) != implied:
        held_bytes = f"more than {implied}" if len(content) > implied else str(len(content))
        raise InputError(
            f"{path} announces {'×'.join(map(str, shape))} = {implied} bytes but holds {held_bytes}: it is"
            " truncated or damaged; fetch it again"
        )
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def _read_header(stream: IO[bytes] | gzip.GzipFile, path: Path, dimensions: int) -> tuple[int, ...]:
    length = 4 + 4 * dimensions
    header = stream.read(length)
    expected = _UNSIGNED_BYTE << 8 | dimensions
    magic = int.from_bytes(header[:4], "big")
    if len(header) >= 4 and magic != expected:
        raise InputError(
            f"{path} begins with the magic number {magic}, not {expected} (idx, unsigned bytes, {dimensions}"
            " dimensions): it is another kind of file, perhaps images and labels swapped; put the right one"
            " there"
        )
    if len(header) < length:
        raise InputError(
            f"{path} holds {len(header)} bytes, less than its header of {length}: the download was probably"
            " cut short; fetch it again"
        )
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, length, 4))
    if math.prod(shape) == 0 or math.prod(shape) > MAX_BYTES:
        raise InputError(
            f"{path} announces {'×'.join(map(str, shape))} bytes, which is not between 1 and {MAX_BYTES}: its"
            " header is probably damaged; fetch it again"
        )
    return shape


def _read_at_most(stream: IO[bytes] | gzip.GzipFile, count: int) -> bytearray:
    """Up to `count` bytes, in pieces: asking for them at once would allocate what the header claims."""
    content = bytearray()
    while len(content) < count:
        piece = stream.read(min(_CHUNK, count - len(content)))
        if not piece:
            break
        content += piece
    return content


def _read_part(folder: Path, part: str) -> StoredPart:
    images, labels = (_find(folder, part, what) for what in ("images", "labels"))
    pixels = read_array(images, 3).unsqueeze(1)
    return held(pixels, read_array(labels, 1).to(torch.int64), f"{images.parent} ({images.name}, {labels.name})")


def _candidates(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.search(path.name) and path.is_file())


def _belongs(path: Path, part: str) -> bool:
    name = path.name.lower()
    if part == "train":
        return "train" in name
    return "train" not in name and ("t10k" in name or "test" in name)


def _find(folder: Path, part: str, what: str) -> Path:
    kind = "idx3" if what == "images" else "idx1"
    paths = [path for path in _candidates(folder) if kind in path.name.lower() and what in path.name.lower()]
    paths = [path for path in paths if _belongs(path, part)]
    paths = [path for path in paths if path.with_name(path.name + ".gz") not in paths]
    if not paths:
        usual = f"{'train' if part == 'train' else 't10k'}-{what}-{kind}-ubyte"
        raise InputError(f"{folder} has no {part} {what}: put {usual}.gz or {usual} there")
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths[:2])
        raise InputError(f"{folder} has several files with {part} {what}, {names}: leave one there")
    return paths[0]
