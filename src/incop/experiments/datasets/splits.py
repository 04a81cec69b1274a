"""A data set ready for use: training, validation and test images, statistics and fingerprint."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from incop.errors import InputError
from incop.experiments.datasets.stored_parts import StoredPart, StoredParts, carve_test, check_labels

_LIMIT_SEED = 20_240_229  # any fixed number: `limit` must choose the same images whatever the run's seed
_SMALLEST_LIMIT = 10


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 (N, C, H, W), pixel values as stored.
        labels: int64 (N,), in [0, classes).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test images of one data set, with what is needed to feed them to a model.

    Attributes:
        name: the known name, or the stem of the file or folder read.
        train: the images to train on, in stored order.
        validation: images carved off the training part (or given beside it), in stored order.
        test: the test images; the same for every seed.
        classes: number of classes K >= 2; labels are 0 to K-1.
        mean: per channel, of `train` images / 255, in [0, 1].
        std: per channel, population standard deviation of `train` images / 255; 1.0 for a channel that is
            constant, so that dividing by it is always defined.
        augment: "crop-flip" where random crops and mirror images are customary (cifar10, cifar100), else
            "none".
        fingerprint: sha256 in hex over shapes and bytes of all three splits.
        carved: whether the validation images were carved off the training part; false where the source had its own.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    fingerprint: str
    carved: bool = True

    @property
    def channels(self) -> int:
        """Number of channels of every image: 1 grey, 3 colour."""
        return self.train.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]


@dataclass(frozen=True)
class Choices:
    """How a data set is cut: the arguments of `load` that do not say where the data is.

    Args:
        seed: chooses the validation images, an integer in [0, 2**63).
        validation: fraction of the training images carved off, in (0, 1).
        limit: at most this many training and test images, or None for all.
    """

    seed: int
    validation: float
    limit: int | None

    def __post_init__(self) -> None:
        if not _whole(self.seed) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, not {self.seed!r}")
        number = isinstance(self.validation, int | float) and not isinstance(self.validation, bool)
        if not number or not math.isfinite(self.validation) or not 0 < self.validation < 1:
            raise InputError(
                "validation must be the fraction of training images to hold out, above 0 and below 1,"
                f" not {self.validation!r}"
            )
        if self.limit is not None and (not _whole(self.limit) or self.limit < _SMALLEST_LIMIT):
            raise InputError(
                f"limit must be a whole number of images, at least {_SMALLEST_LIMIT}, or None for all,"
                f" not {self.limit!r}"
            )


def assemble(name: str, parts: StoredParts, choices: Choices, *, augment: str = "none") -> Dataset:
    """Cut stored parts into training, validation and test images and take their statistics.

    Args:
        name: what the data set is to be called.
        parts: what a reader found; without a test part every fifth training example becomes test.
        choices: seed, validation fraction and limit.
        augment: "crop-flip" or "none".
    """
    parts = carve_test(parts)
    assert parts.test is not None
    classes = check_labels(parts)
    _check_limit(choices.limit, len(parts.train), classes, parts.train.where)
    train = _limited(parts.train, choices.limit)
    carved = parts.validation is None
    if parts.validation is None:
        train, validation = _carve_validation(train, choices)
    else:
        validation = _limited(parts.validation, choices.limit)
    test = _limited(parts.test, choices.limit)
    for what, split in (("validation", validation), ("test", test)):
        if split.images.shape[1:] != train.images.shape[1:]:
            raise InputError(
                f"{name}: training images are {_shape(train)} but {what} images are {_shape(split)}"
                " (channels×height×width): convert all parts to one shape"
            )
    mean, std = statistics(train.images)
    digest = _fingerprint(train, validation, test)
    return Dataset(name, train, validation, test, classes, mean, std, augment, digest, carved)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, with pixels scaled to [0, 1].

    The sums are taken in integers over a histogram of the 256 values, so they are exact and do not depend on
    order or thread count.

    Args:
        images: uint8 (N, C, H, W), not empty.
    """
    values = list(range(256))
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).tolist()
        total = sum(counts)
        first = sum(count * value for count, value in zip(counts, values, strict=True))
        second = sum(count * value**2 for count, value in zip(counts, values, strict=True))
        means.append(first / total / 255)
        deviations.append(math.sqrt(second * total - first**2) / total / 255 or 1.0)
    return tuple(means), tuple(deviations)


def stem(path: Path) -> str:
    """The name of a data set read from a path: the last component, without the suffix of a file."""
    resolved = path.resolve()
    return (resolved.stem if resolved.is_file() else resolved.name) or str(path)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape(split: Split) -> str:
    return "×".join(str(length) for length in split.images.shape[1:])


def _check_limit(limit: int | None, available: int, classes: int, where: str) -> None:
    if limit is None:
        return
    if limit > available:
        raise InputError(
            f"limit is {limit} but {where} holds {available} training images: give a limit of at most"
            f" {available}, or none"
        )
    if limit < 2 * classes:
        raise InputError(
            f"limit is {limit} but there are {classes} classes: give at least two images a class, {2 * classes}"
        )


def _limited(part: StoredPart, limit: int | None) -> Split:
    """The whole part, or the first `limit` rows of a fixed permutation, put back in stored order."""
    count = len(part)
    rows = torch.arange(count)
    if limit is not None and limit < count:
        shuffle = torch.Generator().manual_seed(_LIMIT_SEED)
        rows = torch.randperm(count, generator=shuffle)[:limit].sort().values
    return Split(part.take(rows).contiguous(), part.labels[rows])


def _carve_validation(train: Split, choices: Choices) -> tuple[Split, Split]:
    """What is left to train on, and the validation split: at least one example each."""
    count = len(train)
    held_out = min(max(round(count * choices.validation), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(choices.seed))
    rows, kept = order[:held_out].sort().values, order[held_out:].sort().values
    return Split(train.images[kept], train.labels[kept]), Split(train.images[rows], train.labels[rows])


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.reshape(-1).numpy().data)
        digest.update(split.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
