"""The data sets known by name: how many images of which shape they must have, and where they are found."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from incop.errors import InputError
from incop.experiments.datasets.stored_parts import StoredParts


@dataclass(frozen=True)
class Known:
    """One published data set.

    Attributes:
        name: as `names` lists it; also the folder it lies in.
        train: how many training images each class has.
        test: how many test images each class has.
        shape: channels, height and width.
        augment: "crop-flip" or "none".
        inner: the folder inside, for the layout of the Hugging Face hub.
        label: the label column of its parquet files.
        files: the files looked for, as names or patterns; none for one that is shipped.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    shape: tuple[int, int, int]
    augment: str = "none"
    inner: str = ""
    label: str = "label"
    files: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.train)


@dataclass(frozen=True)
class CatalogueEntry:
    """One line of the list of known data sets.

    Attributes:
        name: what `load` takes.
        train: number of training images, before validation is carved off.
        test: number of test images.
        shape: channels, height and width.
        classes: number of classes.
        found: where its files must lie, in words.
    """

    name: str
    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    found: str


_IDX = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_SHARDS = ("train-*.parquet", "test-*.parquet")

_ROWS = (
    Known(
        "digits",
        (151, 161, 143, 131, 147, 154, 150, 136, 127, 138),
        (27, 21, 34, 52, 34, 28, 31, 43, 47, 42),
        (1, 8, 8),
    ),
    Known(
        "mnist",
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        (1, 28, 28),
        files=_IDX,
    ),
    Known("fashion-mnist", (6000,) * 10, (1000,) * 10, (1, 28, 28), files=_IDX),
    Known("cifar10", (5000,) * 10, (1000,) * 10, (3, 32, 32), "crop-flip", "plain_text", "label", _SHARDS),
    Known("cifar100", (500,) * 100, (100,) * 100, (3, 32, 32), "crop-flip", "cifar100", "fine_label", _SHARDS),
)

KNOWN: dict[str, Known] = {row.name: row for row in _ROWS}
"""Every known data set by name, in the order they are listed."""


def names() -> list[str]:
    """The data sets that `load` knows by name.

    Returns:
        Their names, smallest data set first.

    Example:
        >>> from incop.experiments import datasets
        >>> datasets.names()
        ['digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100']
    """
    return list(KNOWN)


def describe() -> list[CatalogueEntry]:
    """One row for each known data set, for a list on the screen.

    Returns:
        Rows in the order of `names`.

    Example:
        >>> from incop.experiments import datasets
        >>> row = datasets.describe()[0]
        >>> row.name, row.train, row.test, row.shape, row.classes, row.found
        ('digits', 1438, 359, (1, 8, 8), 10, 'shipped with incop')
    """
    return [
        CatalogueEntry(row.name, sum(row.train), sum(row.test), row.shape, row.classes, _found(row))
        for row in KNOWN.values()
    ]


def known(name: str) -> Known | None:
    """The known data set of that name, whatever its case, hyphens and underscores.

    Args:
        name: what the user gave.
    """
    return next((row for row in KNOWN.values() if _bare(row.name) == _bare(name)), None)


def check_published(row: Known, parts: StoredParts) -> None:
    """Refuse parts that do not have exactly the published number of images, in all and in each class.

    The numbers in each class also tell MNIST from the data sets that share its format and file names.

    Args:
        row: what was published.
        parts: what was read, before anything is left out.
    """
    for what, part, expected in (("training", parts.train, row.train), ("test", parts.test, row.test)):
        if part is None:
            raise InputError(f"{parts.train.where} has no {what} part of {row.name}: fetch the data set again")
        if len(part) != sum(expected):
            raise InputError(
                f"{part.where} holds {len(part)} {what} images but {row.name} has {sum(expected)}: it is"
                " incomplete or another data set; fetch it again"
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= row.classes:
            raise InputError(
                f"{part.where} has the label {low if low < 0 else high} but those of {row.name} are 0 to"
                f" {row.classes - 1}: it is damaged or another data set; fetch it again"
            )
        counts = torch.bincount(part.labels, minlength=row.classes).tolist()
        wrong = next((k for k in range(row.classes) if counts[k] != expected[k]), None)
        if wrong is not None:
            raise InputError(
                f"{part.where} holds {counts[wrong]} {what} images of class {wrong} but {row.name} has"
                f" {expected[wrong]}: it is probably another data set in the same format; fetch {row.name}"
                " itself"
            )


def check_shape(row: Known, shape: tuple[int, ...], where: str) -> None:
    """Refuse images that do not have the published shape.

    Args:
        row: what was published.
        shape: channels, height and width read.
        where: the file or folder read.
    """
    if tuple(shape) != row.shape:
        found, published = ("×".join(map(str, sizes)) for sizes in (shape, row.shape))
        raise InputError(
            f"{where} holds images of {found} (channels×height×width) but those of {row.name} are"
            f" {published}: it is another data set; fetch it again"
        )


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _found(row: Known) -> str:
    if not row.files:
        return "shipped with incop"
    inner = f"{row.inner}/" if row.inner else ""
    return f"{row.name}/{inner} in the data folder: {', '.join(row.files)}"
