"""Marked files: safetensors whose metadata says which tensors are stored in parts, as the forms `csr` and `2:4` write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from incop.checkpoints import MOST_HEADER
from incop.errors import InputError
from incop.rundir import is_file

__all__ = ["marked"]


def marked(file: Path, key: str, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors, and what its metadata says of those in parts.

    Args:
        file: the file.
        key: of the metadata.
        form: as it is called in sentences.

    Raises:
        InputError: the file is absent, is no safetensors file, or has no such metadata.
    """
    where = f"{str(file)!r} cannot be read as the {form} form"
    if not is_file(file):
        raise InputError(f"{where}: there is no such file")
    try:
        with file.open("rb") as stream:
            announced = int.from_bytes(stream.read(8), "little")
        if announced > MOST_HEADER:
            raise InputError(f"{where}: its header announces {announced} bytes, and at most {MOST_HEADER} are read")
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        shapes = json.loads(told[key])
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{where}: it does not say which of its tensors are {form}") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from error
    if not isinstance(shapes, dict):
        raise InputError(f"{where}: its shapes are damaged")
    return tensors, shapes
