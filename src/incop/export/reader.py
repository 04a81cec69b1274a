"""Reading: what a file of any form on disk holds. Needs torch, NumPy and safetensors; for the form `sparse` zstandard too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from incop.errors import InputError
from incop.export import dense_file
from incop.masks import Masks
from incop.rundir import is_file

START = b"incopsp"  # of a sparse file; said here so that other files are read without zstd


@dataclass(frozen=True)
class Exported:
    """What an exported file holds.

    Args:
        weights: parameters and buffers, in the order of the model's state dict; those that were one tensor are one.
        masks: which weights are left; empty for a file that keeps none.
        about: what was said about the ticket.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    about: Mapping[str, Any]


def read(file: str | Path, *, most: int | None = None) -> Exported:
    """Read a file that `write` made, of the forms `safetensors`, `sparse` and `folded`; any safetensors file is read as the last.

    `model.load_state_dict(read(file).weights)` puts it into a network.

    Args:
        file: the file.
        most: bytes that a sparse file may unpack to; by default 1,000 times its own size, and 256 MiB always.

    Raises:
        InputError: the file is absent, damaged, or unpacks to more than it may.
        MissingExtra: it is sparse and zstandard is not installed.

    Example:
        >>> import tempfile, torch
        >>> from incop import Masks, export
        >>> net = torch.nn.Linear(2, 2)
        >>> subject = export.Subject.of(net, Masks({"weight": torch.eye(2) > 0}), about={"by": "me"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = export.read(export.write(subject, "sparse", folder).files[0])
        >>> list(found.weights), found.masks.remaining, found.about["by"]
        (['weight', 'bias'], 2, 'me')
    """
    path = Path(file)
    if not is_file(path):
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with path.open("rb") as stream:
            start = stream.read(len(START))
            if start == START:
                from incop.export import sparse_file

                weights, masks, about = sparse_file.unpack(start + stream.read(), most)
                return Exported(weights, Masks(masks), about)
        return Exported(*dense_file.unpack(path))
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read, or is damaged: {error}") from error
