"""The optional packages of this room, loaded when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from incop.errors import MissingExtra


def load(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra of this package that brings it.
        purpose: what it is needed for, the subject of a sentence.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(module.partition(".")[0], extra, purpose) from error
