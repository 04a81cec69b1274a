"""Forms: what a ticket can be written as, by name. A form is imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from incop.errors import InputError, quoted, unknown
from incop.export.subject import Outputs, Subject

__all__ = ["FORMS", "Form", "form"]


class Form(Protocol):
    """Writes a subject into files, and makes of them again what answers a batch.

    Attributes:
        name: the word for it.
        again: optional; names of files that hold the same once more for another reader, and are not counted in its size.
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
    "safetensors": ("stored", "DenseForm"),
    "sparse": ("stored", "SparseForm"),
    "compacted": ("compacted", "CompactedForm"),
    "onnx": ("onnx", "OnnxForm"),
    "csr": ("csr_form", "CSRForm"),
    "2:4": ("two_of_four", "SemiStructuredForm"),
}

ON_TOP, CSR_AT = "compacted+", "csr@"


def batch_sizes(text: str) -> tuple[int, ...]:
    """Read batch sizes with commas between them.

    Raises:
        InputError: one is no whole number of at least 1, or there is none.

    Example:
        >>> from incop.export.forms import batch_sizes
        >>> batch_sizes("1,64")
        (1, 64)
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 7 and int(word) > 0 for word in words):
        raise InputError(
            f"{quoted(text)} are no batch sizes: give whole numbers of at least 1 with commas between, as 1,64"
        )
    return tuple(dict.fromkeys(map(int, words)))


def form(name: str) -> Form:
    """Return a form by its word.

    `compacted+WORD` is that form of the compacted network; `csr@64` chooses CSR layers by batches of 64 alone, `csr@1/64`
    (which is `csr`) by both.

    Raises:
        InputError: there is no such form; the nearest is suggested.

    Example:
        >>> from incop.export import form
        >>> form("folded").tolerance
        0.0
    """
    if name.startswith(ON_TOP):
        from incop.export.stacked import Stacked

        return Stacked(form(name.removeprefix(ON_TOP)))
    if name.startswith(CSR_AT):
        from incop.export.csr_form import CSRForm

        return CSRForm(batch_sizes(name.removeprefix(CSR_AT).replace("/", ",")))
    if name not in FORMS:
        raise unknown("form", name, list(FORMS))
    module, kind = FORMS[name]
    return cast(Form, getattr(importlib.import_module(f"incop.export.{module}"), kind)())
