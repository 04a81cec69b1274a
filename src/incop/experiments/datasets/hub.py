"""Data of the Hugging Face library `datasets`: a hub's name or a local folder, a column of pictures and one of labels."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incop.errors import InputError, nearest, quoted, unknown
from incop.experiments.datasets.pictures import Decoder
from incop.experiments.datasets.stored_parts import StoredPart, StoredParts, check_count
from incop.experiments.models.libraries import imported
from incop.experiments.models.named import place

PREFIX = "hf:"
ARGUMENTS = ("image_column", "label_column", "validation_split", "test_split")
_PREFERRED_LABELS = ("label", "labels", "fine_label")


def check(name: str) -> None:
    """Refuse a folder that is not there, or a machine without the library."""
    source, _ = _split(name)
    if source.startswith((".", "/", "~")) and not place(source).is_dir():
        raise InputError(f"{quoted(name)}: the folder {quoted(source)} does not exist: check the path")
    imported("datasets", f"the data {name}")


def read(name: str, arguments: Mapping[str, Any]) -> StoredParts:
    """The parts of a data set: train, and test and validation where they are there.

    Args:
        name: `hf:NAME_OR_FOLDER`, with `:CONFIG` behind it where there are several.
        arguments: image_column, label_column, validation_split and test_split, where they are not found by themselves.
    """
    if arguments.get("streaming"):
        raise InputError(
            f"{name} cannot be streamed: validation is carved off and every level is trained in the same order, which needs all "
            "of the data at hand; take it whole, or a part of it by --limit"
        )
    if strange := [key for key in arguments if key not in ARGUMENTS]:
        raise unknown(f"argument of {name}", strange[0], ARGUMENTS)
    library = imported("datasets", f"the data {name}")
    splits = _loaded(library, name)
    if "train" not in splits:
        raise InputError(
            f"{name} has no split 'train': it has {', '.join(map(repr, splits))}; name a configuration that has one"
        )
    decoder = Decoder()

    def part(split: str) -> StoredPart:
        return _part(library, splits[split], arguments, decoder, f"{name} ({split})")

    found: dict[str, StoredPart | None] = {}
    for what in ("test", "validation"):
        wanted = arguments.get(f"{what}_split", what)
        if f"{what}_split" in arguments and wanted not in splits:
            raise unknown(f"split of {name}", str(wanted), list(splits))
        found[what] = part(wanted) if wanted in splits else None
    return StoredParts(part("train"), found["test"], found["validation"])


def _split(name: str) -> tuple[str, str | None]:
    rest = name.removeprefix(PREFIX)
    if not rest:
        raise InputError(f"{quoted(name)} names no data: write hf:NAME or hf:FOLDER")
    if place(rest).exists():
        return rest, None
    source, colon, config = rest.rpartition(":")
    return (source, config) if colon and source else (rest, None)


def _loaded(library: Any, name: str) -> Mapping[str, Any]:
    source, config = _split(name)
    folder = place(source)
    given: dict[str, Any] = {}
    if "trust_remote_code" in inspect.signature(library.load_dataset).parameters:  # of versions that could run scripts
        given["trust_remote_code"] = False
    try:
        with _quiet(library):
            if (folder / "dataset_dict.json").is_file():
                found = library.load_from_disk(str(folder))
            else:
                found = library.load_dataset(str(folder) if folder.exists() else source, config, **given)
    except Exception as error:  # whatever its readers and its network raise
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"{name} cannot be had ({type(error).__name__}: {said}): check the name, connect to the network once, or give a folder"
        ) from error
    if not isinstance(found, Mapping):
        raise InputError(
            f"{name} is one {type(found).__name__} and no set of splits: save it as a DatasetDict with a split 'train'"
        )
    return found


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's own bars: what is printed here are levels and results."""
    was = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not was:
            library.enable_progress_bars()


def _part(library: Any, data: Any, arguments: Mapping[str, Any], decoder: Decoder, where: str) -> StoredPart:
    check_count(where, len(data))
    features = data.features
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    labels = [key for key, kind in features.items() if _is_label(library, kind)]
    labels.sort(key=lambda key: _PREFERRED_LABELS.index(key) if key in _PREFERRED_LABELS else len(_PREFERRED_LABELS))
    image = _column(arguments.get("image_column"), images, "pictures", "image_column", features, where)
    label = _column(arguments.get("label_column"), labels, "whole numbers for labels", "label_column", features, where)
    numbers = data.with_format(None).select_columns([label])[label]
    values = np.array([-1 if value is None else value for value in numbers], dtype=np.int64)
    stored = data.select_columns([image]).cast_column(image, library.Image(decode=False))
    return StoredPart(
        torch.from_numpy(values), lambda rows: decoder.stack(_pictures(stored, image, rows, where), len(rows)), where
    )


def _is_label(library: Any, kind: Any) -> bool:
    return isinstance(kind, library.ClassLabel) or str(getattr(kind, "dtype", "")).removeprefix("u").startswith("int")


def _column(wanted: Any, found: list[str], what: str, flag: str, features: Mapping[str, Any], where: str) -> str:
    shown = ", ".join(features)
    if wanted is not None and wanted not in found:
        near = nearest(str(wanted), features)
        raise InputError(f"{where} has no column {quoted(wanted)} of {what}: {near}(its columns are {shown})")
    if not found:
        raise InputError(f"{where} has no column of {what}: its columns are {shown}")
    if wanted is None and len(found) > 1 and found[0] not in ("image", "img", *_PREFERRED_LABELS):
        raise InputError(
            f"{where} has several columns of {what} ({', '.join(found)}): name one by --data-args '{{\"{flag}\": …}}'"
        )
    return str(wanted) if wanted is not None else found[0]


def _pictures(data: Any, column: str, rows: Tensor, where: str) -> Iterator[tuple[str, Path | bytes]]:
    for row in rows.tolist():
        value = data[row][column]
        if value is None or (value.get("bytes") is None and not Path(value.get("path") or "").is_file()):
            raise InputError(f"{where} row {row} has no picture: leave the row out or store the encoded bytes")
        yield f"{where} row {row}", value["bytes"] if value.get("bytes") is not None else Path(value["path"])
