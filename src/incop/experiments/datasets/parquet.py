"""Parquet files as on the Hugging Face hub: a column of encoded pictures and a column of labels."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incop.errors import InputError, MissingExtra
from incop.experiments.datasets.pictures import Decoder
from incop.experiments.datasets.stored_parts import MAX_BYTES, StoredPart, StoredParts, check_count, check_unpacked

_PARTS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_NAME = re.compile(r"(?P<part>train|test|validation|valid|val)(?![a-z0-9]).*\.parquet", re.IGNORECASE)
_SHARD = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d+)\.parquet$")
_PREFERRED_LABELS = ("label", "fine_label")
_SMALL_COUNT = 100_000  # rows that a file of any size may have: one row may be stored once for all that equal it
_BATCH = 256  # rows whose pictures are held at once, encoded: one stored once for many rows is not unpacked for all


@dataclass(frozen=True)
class Columns:
    """Which columns hold the pictures and the labels; None lets the schema decide.

    Attributes:
        image: name of the picture column; by default the first of type binary or struct(bytes, ...).
        label: name of the label column; by default `label`, `fine_label` or else the first of integers.
    """

    image: str | None = None
    label: str | None = None


def holds_parquet(folder: Path) -> bool:
    """Whether a folder has at least one file whose name ends in .parquet.

    Args:
        folder: any path.
    """
    return folder.is_dir() and any(path.is_file() for path in folder.glob("*.parquet"))


def read_folder(folder: Path, columns: Columns | None = None) -> StoredParts:
    """The parts of a folder with shards such as train-00000-of-00002.parquet and test-00000-of-00001.parquet.

    The part is told by how the name begins: train, test, or validation (valid, val). Labels are read at once,
    pictures are decoded when they are taken.

    Args:
        folder: where the files are.
        columns: which columns to read.
    """
    shards: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise InputError(
                f"{path} belongs to no known part: let its name begin with train-, test- or validation-, or"
                " move it away"
            )
        shards.setdefault(_PARTS[match["part"].lower()], []).append(path)
    if "train" not in shards:
        raise InputError(f"{folder} has no train-*.parquet: put the training shards there")
    decoder = Decoder()
    parts = {
        part: _read_part(_complete(paths), columns or Columns(), decoder, f"{folder} ({part}-*.parquet)")
        for part, paths in shards.items()
    }
    return StoredParts(parts["train"], parts.get("test"), parts.get("validation"))


def read_file(path: Path) -> StoredParts:
    """The one part of a single parquet file.

    Args:
        path: the file.
    """
    return StoredParts(_read_part(_complete([path]), Columns(), Decoder(), str(path)))


def _complete(paths: list[Path]) -> list[Path]:
    """The shards in order, when none is missing by the "-of-" count in the names."""
    numbered = [(_SHARD.search(path.name), path) for path in paths]
    matches = [match for match, _ in numbered if match is not None]
    if not matches and len(paths) == 1:
        return paths
    counts = {int(match["count"]) for match in matches}
    if len(matches) < len(paths) or len(counts) > 1:
        names = ", ".join(path.name for path in paths[:4])
        raise InputError(
            f"{paths[0].parent} mixes several sets of shards ({names}): leave there the files of one set,"
            " named ...-00000-of-00002.parquet and so on"
        )
    present = [int(match["number"]) for match in matches]
    count = counts.pop()
    missing = next((number for number in range(count) if number not in present), None)
    if missing is not None or len(present) != count:
        what = "a shard is there twice" if missing is None else f"shard {missing:05d} of {count:05d} is missing"
        raise InputError(f"{paths[0].parent}: beside {paths[0].name} {what}: fetch the whole set again")
    return [path for _, path in sorted(zip(present, paths, strict=True))]


def _read_part(paths: list[Path], columns: Columns, decoder: Decoder, where: str) -> StoredPart:
    labels, groups = [], []
    start = 0
    for path in paths:
        file = _guarded(path, partial(_open, path))
        with file:
            image, label = _choose(file.schema_arrow, columns, path)
            _check_sizes(file.metadata, path)
            values = _read_labels(file, label, path)
            labels.append(values)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if group.total_byte_size > MAX_BYTES:
                    raise InputError(f"{path} has a row group of {group.total_byte_size} bytes: write smaller ones")
                groups.append(_Group(path, number, image, start, group.num_rows))
                start += group.num_rows
    joined = torch.from_numpy(np.concatenate(labels))
    if len(joined) != start:
        raise InputError(f"{where} announces {start} rows but holds {len(joined)}: it is damaged; fetch it again")
    return StoredPart(joined, lambda rows: decoder.stack(_pictures(groups, rows), len(rows)), where)


def _check_sizes(metadata: Any, path: Path) -> None:
    """Hold what a file announces against its size: a few bytes of it may stand for any number of equal rows."""
    stored = path.stat().st_size
    check_count(str(path), metadata.num_rows)
    if metadata.num_rows > max(_SMALL_COUNT, stored):
        raise InputError(
            f"{path} has {stored} bytes and announces {metadata.num_rows} rows, each with a picture of its own: it is"
            " damaged or made to fill the memory"
        )
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not 0 <= group.num_rows <= metadata.num_rows:
            raise InputError(f"{path} announces {group.num_rows} rows in a group: it is damaged; fetch it again")
        for column in range(group.num_columns):
            check_unpacked(str(path), group.column(column).total_uncompressed_size, stored)


@dataclass(frozen=True)
class _Group:
    """One row group: where its rows begin in the part, and the column of its pictures."""

    path: Path
    number: int
    column: str
    start: int
    rows: int


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "reading parquet files") from None
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MissingExtra:
        raise
    except Exception as fault:  # what Arrow raises on damaged bytes ranges from OSError to UnicodeDecodeError
        reason = " ".join(str(fault).split())
        raise InputError(
            f"{path} cannot be read as parquet ({reason}): it is probably truncated or of another kind; fetch it again"
        ) from None


def _choose(schema: Any, columns: Columns, path: Path) -> tuple[str, str]:
    images = [field.name for field in schema if _is_picture(field.type)]
    labels = [field.name for field in schema if str(field.type).removeprefix("u").startswith("int")]
    labels.sort(key=lambda name: _PREFERRED_LABELS.index(name) if name in _PREFERRED_LABELS else 2)
    for kind, wanted, found in (("pictures", columns.image, images), ("labels", columns.label, labels)):
        if (wanted not in found) if wanted else not found:
            must = f"named {wanted!r} " if wanted else ""
            raise InputError(
                f"{path} has no column {must}with {kind}: its columns are {', '.join(schema.names)}; it needs"
                " encoded pictures as binary or struct(bytes, path) and labels as integers"
            )
    return columns.image or images[0], columns.label or labels[0]


def _is_picture(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_picture(kind.field(at).type)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _read_labels(file: Any, column: str, path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = _guarded(path, lambda: file.read(columns=[column]).column(column))
    if values.null_count:
        raise InputError(f"{path} has {values.null_count} rows without {column}: leave them out or label them")
    numbers = values.to_numpy()
    if len(numbers) and int(numbers.max()) >= 2**63:
        raise InputError(f"{path} has the {column} {numbers.max()}: labels must be 0 to K-1; renumber them")
    return np.array(numbers, dtype=np.int64)


def _pictures(groups: list[_Group], rows: Tensor) -> Iterator[tuple[str, bytes]]:
    """The encoded pictures of ascending rows, opening only the row groups that hold one of them."""
    wanted = rows.numpy()
    for group in groups:
        low, high = np.searchsorted(wanted, (group.start, group.start + group.rows))
        if low == high:
            continue
        chosen = deque((wanted[low:high] - group.start).tolist())
        given, stored = 0, group.path.stat().st_size
        for row, scalar in _rows(group):
            if row != chosen[0]:
                continue
            value = scalar.as_py()
            encoded = value["bytes"] if isinstance(value, dict) else value
            name = f"{group.path} row {row} of row group {group.number}"
            if encoded is None:
                raise InputError(f"{name} has no picture: leave the row out or store the encoded bytes")
            given += len(encoded)
            check_unpacked(f"{group.path}, up to row {row} of row group {group.number},", given, stored)
            yield name, encoded
            chosen.popleft()
            if not chosen:
                break
        else:
            raise InputError(f"{group.path} holds fewer rows than it announces: it is damaged; fetch it again")


def _rows(group: _Group) -> Iterator[tuple[int, Any]]:
    """Each row of a group with its value, some rows at a time."""
    file = _guarded(group.path, partial(_open, group.path))
    with file:
        batches = file.iter_batches(_BATCH, row_groups=[group.number], columns=[group.column])
        row = 0
        while (batch := _guarded(group.path, lambda: next(batches, None))) is not None:
            for scalar in batch.column(0):
                yield row, scalar
                row += 1
