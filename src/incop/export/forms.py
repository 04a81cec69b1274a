"""Forms: what a ticket can be written as, by name. A form is imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from incop.errors import unknown
from incop.export.subject import Outputs, Subject

__all__ = ["FORMS", "Form", "form"]


class Form(Protocol):
    """Writes a subject into files, and makes of them again what answers a batch.

    Attributes:
        name: the word for it.
        tolerance: how far its answers may be from the masked network's, relative to the largest of them; 0: the same bits.
    """

    name: str
    tolerance: float

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write the form's files into an empty folder and return them, the main one first.

        Raises:
            InputError: this network cannot have this form; the sentence names the layer or operator.
            MissingExtra: a library is absent.
        """

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the function from a batch to the answers of what the main file holds, as `Subject.outputs` gives them."""


# word → (module of this room, class); the words are those of `incop export --to`
FORMS = {
    "folded": ("folded", "FoldedForm"),
    "compacted": ("compacted", "CompactedForm"),
}


def form(name: str) -> Form:
    """Return a form by its word.

    Raises:
        InputError: there is no such form; the nearest is suggested.

    Example:
        >>> from incop.export import form
        >>> form("folded").tolerance
        0.0
    """
    if name not in FORMS:
        raise unknown("form", name, list(FORMS))
    module, kind = FORMS[name]
    return cast(Form, getattr(importlib.import_module(f"incop.export.{module}"), kind)())
