"""What every reader hands over: parts of a data set, labels at hand and images on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from incop.errors import InputError

MAX_BYTES = 8 * 2**30
"""The most bytes any one array may take; a header that asks for more is refused before allocating."""

MAX_EXAMPLES = 10_000_000
"""The most examples a part may have; 10 million labels and what sorting them takes are 240 MB."""

MAX_RATIO = 100
"""The most bytes that one stored byte may become; gzip makes 1,000 of one, MNIST 5, a drawing stored as PNG 50."""

SMALL = 32 * 2**20
"""Bytes that may always be unpacked: blank pictures are not refused for packing well."""


@dataclass(frozen=True, eq=False)
class StoredPart:
    """One stored part of a data set: every label, and the images of chosen rows.

    Attributes:
        labels: int64 (N,), in stored order.
        take: given row numbers (int64, ascending), returns their images, uint8 (rows, C, H, W).
        where: the file or folder the part comes from, for error messages.
    """

    labels: Tensor
    take: Callable[[Tensor], Tensor]
    where: str

    def __len__(self) -> int:
        return self.labels.numel()


@dataclass(frozen=True, eq=False)
class StoredParts:
    """The parts of a data set as stored; None where the source has no such part."""

    train: StoredPart
    test: StoredPart | None = None
    validation: StoredPart | None = None


def check_unpacked(where: str, announced: int, stored: int) -> None:
    """Refuse what would take far more memory than its file takes on disk, before it is unpacked.

    Args:
        where: the file, for the error.
        announced: bytes when unpacked.
        stored: bytes of the file.
    """
    if announced > max(SMALL, MAX_RATIO * stored):
        raise InputError(
            f"{where} has {stored} bytes and would take {announced} unpacked, more than {MAX_RATIO} times as many: it"
            " is damaged or made to fill the memory; store it uncompressed if it is sound"
        )


def check_count(where: str, count: int) -> None:
    """Refuse more examples than a part may have, before their labels are held."""
    if count > MAX_EXAMPLES:
        raise InputError(f"{where} announces {count} examples, more than {MAX_EXAMPLES}: take a part of them")


def held(images: Tensor, labels: Tensor, where: str) -> StoredPart:
    """A part whose images are in memory already.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        where: the file or folder the part comes from.
    """
    if len(images) != len(labels):
        raise InputError(
            f"{where} holds {len(images)} images but {len(labels)} labels: the files probably belong to"
            " different data sets or one is incomplete; put matching files there"
        )
    return StoredPart(labels, lambda rows: images[rows], where)


def pick(part: StoredPart, rows: Tensor) -> StoredPart:
    """The part made of the given rows of another.

    Args:
        part: the part to choose from.
        rows: int64, ascending, each in [0, len(part)).
    """
    return replace(part, labels=part.labels[rows], take=lambda chosen: part.take(rows[chosen]))


def every_fifth(count: int) -> Tensor:
    """Which of `count` examples are test where the source has no test part: every fifth, index % 5 == 4.

    Args:
        count: number of examples, >= 0.
    """
    return torch.arange(count) % 5 == 4


def carve_test(parts: StoredParts) -> StoredParts:
    """The same parts with a test part; where there is none, every fifth training example becomes test.

    Args:
        parts: what a reader found.
    """
    if parts.test is not None:
        return parts
    is_test = every_fifth(len(parts.train))
    if not is_test.any():
        raise InputError(
            f"{parts.train.where} holds {len(parts.train)} images and no test part: every fifth image becomes"
            " test, which needs at least 5; add images or a test part"
        )
    train, test = (pick(parts.train, rows.nonzero().flatten()) for rows in (~is_test, is_test))
    return replace(parts, train=train, test=test)


def check_labels(parts: StoredParts) -> int:
    """How many classes there are, once the labels are known to be sound.

    Args:
        parts: the parts, with a test part.
    """
    named = {"training": parts.train, "validation": parts.validation, "test": parts.test}
    present = {what: part for what, part in named.items() if part is not None}
    for what, part in present.items():
        if len(part) == 0:
            raise InputError(f"{part.where} holds no {what} images: fill it or give another data set")
    seen = torch.unique(parts.train.labels)
    where, low, high = parts.train.where, int(seen[0]), int(seen[-1])
    if low < 0:
        raise InputError(
            f"{where} has the label {low}: labels must be 0 to K-1, and a negative one usually marks images"
            " without a label; leave those out"
        )
    missing = (seen != torch.arange(len(seen))).nonzero().flatten()
    if len(missing):
        raise InputError(
            f"{where} has training labels from {low} to {high} but none equal to {int(missing[0])}: labels"
            " must be 0 to K-1 with every class among the training images; renumber them"
        )
    if len(seen) < 2:
        raise InputError(f"{where} has one class only: classification needs at least 2; give a data set with more")
    for what, part in present.items():
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(seen):
            raise InputError(
                f"{part.where} has the {what} label {low if low < 0 else high}, but the training labels are 0"
                f" to {len(seen) - 1}: the two parts probably use different numbering; renumber them"
            )
    return len(seen)
