"""Data of torchvision, from files that lie here already: nothing is fetched."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incop.errors import InputError, unknown
from incop.experiments.datasets.stored_parts import StoredPart, StoredParts, check_count, held
from incop.experiments.models.libraries import imported

PREFIX = "torchvision:"
# Which part is which, as each is told. Those of pictures of one size that fit in memory; CIFAR's files are pickles, which
# torchvision opens only when their MD5 is the published one.
KNOWN: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(
        ("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100"), ({"train": True}, {"train": False})
    ),
    **dict.fromkeys(("SVHN", "STL10"), ({"split": "train"}, {"split": "test"})),
    "FakeData": ({}, {}),
}
FAKE = ("size", "image_size", "num_classes")


def check(name: str) -> None:
    """Refuse a name that torchvision does not have or that is not read here."""
    if name.removeprefix(PREFIX) not in KNOWN:
        raise unknown("data set of torchvision", name.removeprefix(PREFIX), KNOWN)
    imported("torchvision", f"the data {name}")


def augmented(name: str) -> str:
    """Return how its training images are usually changed."""
    return "crop-flip" if name.removeprefix(PREFIX).startswith("CIFAR") else "none"


def needs_folder(name: str) -> bool:
    """Say whether it is read from files."""
    return name.removeprefix(PREFIX) != "FakeData"


def read(name: str, root: Path | None, arguments: Mapping[str, Any]) -> StoredParts:
    """The training and test part.

    Args:
        name: `torchvision:NAME`.
        root: the folder that torchvision looks in, as its own argument of that name; of FakeData none.
        arguments: of FakeData size, image_size and num_classes; of others none.
    """
    check(name)
    own = name.removeprefix(PREFIX)
    allowed = FAKE if own == "FakeData" else ()
    if strange := [key for key in arguments if key not in allowed]:
        raise unknown(f"argument of {name}", strange[0], allowed)
    kind = getattr(importlib.import_module("torchvision.datasets"), own)
    try:
        if root is None:
            first = kind(**arguments)
            both = [first, kind(**arguments, random_offset=len(first))]
            check_count(name, len(first))
            return StoredParts(
                *(_drawn(data, f"{name} ({what})") for data, what in zip(both, ("train", "test"), strict=True))
            )
        both = [kind(str(root), **which, download=False) for which in KNOWN[own]]
    except InputError:
        raise
    except Exception as error:  # RuntimeError where files are absent, anything where they are damaged
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} cannot be read from {root} ({type(error).__name__}: {said}): put torchvision's own files there, nothing is "
            "fetched"
        ) from error
    return StoredParts(*(_stored(data, f"{root} ({what})") for data, what in zip(both, ("train", "test"), strict=True)))


def _stored(data: Any, where: str) -> StoredPart:
    images = torch.as_tensor(np.asarray(data.data))
    labels = torch.as_tensor(np.asarray(data.targets if hasattr(data, "targets") else data.labels), dtype=torch.int64)
    if images.dtype != torch.uint8 or images.dim() not in (3, 4):
        raise InputError(f"{where} holds {images.dtype} of shape {tuple(images.shape)} and no pictures: it is damaged")
    return held(_channels_first(images), labels, where)


def _drawn(data: Any, where: str) -> StoredPart:
    """Pictures that are made up one by one."""
    found = [data[row] for row in range(len(data))]
    images = torch.stack([torch.from_numpy(np.array(image)) for image, _ in found])
    return held(_channels_first(images), torch.tensor([int(label) for _, label in found]), where)


def _channels_first(images: Tensor) -> Tensor:
    if images.dim() == 3:
        return images.unsqueeze(1).contiguous()
    return (images.permute(0, 3, 1, 2) if images.shape[-1] in (1, 3) else images).contiguous()
