"""From a name or a path to a data set: finding the files and handing them to the right reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incop.errors import InputError, quoted, unknown
from incop.experiments.datasets import archive, folder, hub, idx, parquet, vision
from incop.experiments.datasets.catalogue import Known, check_published, check_shape, known, names
from incop.experiments.datasets.splits import Choices, Dataset, assemble, stem
from incop.experiments.datasets.stored_parts import StoredPart, StoredParts, carve_test, held

_SUFFIXES = (".npz", ".parquet")
_VARIABLE = "INCOP_DATA"


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    validation: float = 0.1,
    limit: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set by its name or from a path, whole and as published, or not at all.

    Known names are `digits`, which is shipped (8×8 images of values 0 to 16, scaled to 0 to 255 by
    value * 255 // 16), and `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, whose files must lie in the data
    folder; they are read only when every count, in all and in each class, is the published one. Upper and
    lower case, hyphens and underscores in a known name do not matter.

    Anything else is a path if it contains a separator, ends in .npz or .parquet, or exists: a folder with idx
    files, a folder with parquet shards (or the one folder inside it that has them), an image folder
    (`train/<class>/*.png` with optional `test` and `val`, or plain `<class>/*.png`), a .npz file (`x_train`,
    `y_train` and optionally `x_test`, `y_test`, `x_val`, `y_val`; or `images`, `labels`), or a .parquet file.

    `hf:NAME_OR_FOLDER[:CONFIG]` is read by the library `datasets`, from its hub or a local folder, and
    `torchvision:NAME` by torchvision, from files in the data folder. Neither runs a script of the data's.

    Where the source has no test part, as with `digits`, every fifth example (index % 5 == 4) becomes test.
    Where it has a validation part, that one is used; otherwise one is carved off the training part by `seed`.
    The test images never depend on the seed.

    Args:
        name: a known name, or a path to a file or folder.
        data_dir: the folder that holds one folder for each known data set, or that folder itself; by default
            what the environment variable INCOP_DATA names. A path in `name` does not need it.
        seed: chooses the validation images, in [0, 2**63).
        validation: fraction of the training images carved off, in (0, 1); at least one image, and at least
            one is left to train on.
        limit: use only this many training images, before validation is carved off, and at most as many
            validation and test images; at least 10 and two for each class. The choice is random but always
            the same, and a smaller limit chooses among the images of a larger one. None uses all.
        arguments: of `hf:` which columns and splits (image_column, label_column, validation_split, test_split); of
            `torchvision:FakeData` size, image_size and num_classes; of others none.

    Returns:
        The data set, with uint8 images and statistics of the final training split.

    Raises:
        InputError: the name is unknown, a file is missing, damaged or not what it should be, or an argument
            is out of range; always one sentence that says what to do.
        MissingExtra: pyarrow, Pillow, datasets or torchvision is needed and not installed.

    Example:
        >>> from incop.experiments import datasets
        >>> digits = datasets.load("digits", validation=0.2, seed=1)
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (1150, 288, 359)
        >>> digits.channels, digits.size, digits.classes
        (1, (8, 8), 10)
    """
    choices = Choices(seed, validation, limit)
    check_name(name)
    given = dict(arguments or {})
    if name.startswith(hub.PREFIX):
        return assemble(stem(_expanded(name.removeprefix(hub.PREFIX))), hub.read(name, given), choices)
    if name.startswith(vision.PREFIX):
        root = _root(name, data_dir) if vision.needs_folder(name) else None
        return assemble(name.partition(":")[2], vision.read(name, root, given), choices, augment=vision.augmented(name))
    if given:
        raise InputError(f"the data {quoted(name)} takes no data_args: {quoted(next(iter(given)))} is none of its own")
    row, path = known(name), _expanded(name)
    try:
        if row is not None:
            return assemble(row.name, _published(row, data_dir), choices, augment=row.augment)
        parts = _at_path(path)
    except OSError as fault:
        raise InputError(f"{name} cannot be read ({fault}): check the path and its permissions") from None
    return assemble(stem(path), parts, choices)


def check_name(name: str) -> None:
    """Refuse a name that is neither a known data set nor a path to anything, without reading a file.

    Raises:
        InputError: there is no such data set; the nearest name is suggested.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"the data set must be a name ({', '.join(names())}) or a path, not {name!r}")
    if known(name) is not None:
        return
    for library in (hub, vision):
        if name.startswith(library.PREFIX):
            library.check(name)
            return
    path = _expanded(name)
    try:
        there = path.exists()
    except (OSError, ValueError) as fault:  # ValueError: a NUL within it
        raise InputError(f"{quoted(name)} cannot be read ({fault}): check the path and its permissions") from None
    separated = any(mark in name for mark in (os.sep, os.altsep) if mark)
    if there:
        return
    if separated or name.lower().endswith(_SUFFIXES):
        raise InputError(f"{path} does not exist: check the path, or give one of {', '.join(names())}")
    raise unknown("data set", name, names())


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} begins with the home of an unknown user: write the path in full") from None


def _at_path(path: Path) -> StoredParts:
    if path.is_dir():
        if idx.holds_idx(path):
            return idx.read_folder(path)
        shards = _shard_folder(path)
        return parquet.read_folder(shards) if shards else folder.read_folder(path)
    if path.suffix.lower() == ".npz":
        return archive.read_archive(path)
    if path.suffix.lower() == ".parquet":
        return parquet.read_file(path)
    raise InputError(f"{path} is not a data set that can be read: give a .npz or .parquet file, or a folder")


def _shard_folder(path: Path) -> Path | None:
    """The folder itself or the one folder inside it that has parquet files; None where there is none."""
    if parquet.holds_parquet(path):
        return path
    inside = sorted(inner for inner in path.iterdir() if parquet.holds_parquet(inner))
    if len(inside) > 1:
        raise InputError(f"{path} has parquet files in both {inside[0].name} and {inside[1].name}: give one of them")
    return inside[0] if inside else None


def _published(row: Known, data_dir: str | Path | None) -> StoredParts:
    if not row.files:
        parts = carve_test(StoredParts(_digits()))
    elif row.inner:
        columns = parquet.Columns("img", row.label)
        parts = parquet.read_folder(_find(row, data_dir), columns)
    else:
        parts = idx.read_folder(_find(row, data_dir))
    check_published(row, parts)
    assert parts.test is not None
    # a validation part is never published with these: whatever lies there is not theirs
    return StoredParts(_shaped(row, parts.train), _shaped(row, parts.test))


def _shaped(row: Known, part: StoredPart) -> StoredPart:
    def take(rows: Tensor) -> Tensor:
        images = part.take(rows)
        check_shape(row, images.shape[1:], part.where)
        return images

    return replace(part, take=take)


def _digits() -> StoredPart:
    where = "digits.npz in the installed package"
    with (resources.files("incop.experiments.datasets") / "digits.npz").open("rb") as stream:
        arrays = archive.read_arrays(stream, ["images", "labels"], where)
    images = (arrays["images"].astype(np.int32) * 255 // 16).astype(np.uint8)
    labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    return held(torch.from_numpy(images).unsqueeze(1), labels, where)


def _root(name: str, data_dir: str | Path | None) -> Path:
    """The folder that torchvision is to look in."""
    given = data_dir if data_dir is not None else os.environ.get(_VARIABLE) or None
    remedy = f"pass --data-dir or set {_VARIABLE} to the folder that torchvision keeps its data in"
    if given is None or not _expanded(given).is_dir():
        raise InputError(
            f"{name} needs a data folder, and {'none is named' if given is None else f'{given} is none'}: {remedy}"
        )
    return _expanded(given)


def _find(row: Known, data_dir: str | Path | None) -> Path:
    """The folder that holds the files of a known data set."""
    files = ", ".join(row.files)
    given = data_dir if data_dir is not None else os.environ.get(_VARIABLE) or None
    remedy = f"pass --data-dir or set {_VARIABLE} to the folder that holds {row.name}/"
    if given is None:
        raise InputError(f"{row.name} needs {files} from a data folder, and none is named: {remedy}")
    if not isinstance(given, str | Path):
        raise InputError(f"data_dir must be a path, not {given!r}")
    base = _expanded(given)
    if not base.is_dir():
        raise InputError(f"{row.name} needs {files}, but the data folder {base} does not exist: {remedy}")
    places = [base / row.name / row.inner, base / row.name, base / row.inner, base]
    other = known(base.resolve().name)
    if other not in (None, row):
        places = places[:2]  # the folder is another data set's own, and formats are shared
    holds = parquet.holds_parquet if row.inner else idx.holds_idx
    for place in places:
        if holds(place):
            return place
    looked = " or ".join(dict.fromkeys(str(place) for place in places))
    raise InputError(f"{row.name} is not there: {files} were looked for in {looked}; {remedy}")
