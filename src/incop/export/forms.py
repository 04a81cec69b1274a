"""Forms: what a ticket can be written as, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from incop.errors import InputError, quoted, unknown
from incop.export.combined import CombinedForm
from incop.export.compacted import CompactedForm
from incop.export.csr_form import CSRForm
from incop.export.folded import FoldedForm
from incop.export.lossless import SafetensorsForm, SparseForm
from incop.export.onnx import OnnxForm
from incop.export.subject import Form

# The words are those of `incop export --to`.
FORMS: Mapping[str, Callable[[], Form]] = {
    "folded": FoldedForm,
    "safetensors": SafetensorsForm,
    "sparse": SparseForm,
    "compacted": CompactedForm,
    "onnx": OnnxForm,
    "csr": CSRForm,
}
COMPACTED_FIRST, CSR_AT = "compacted+", "csr@"


def batch_sizes(text: str) -> tuple[int, ...]:
    """Read batch sizes with commas between them."""
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
    if name.startswith(COMPACTED_FIRST):
        return CombinedForm(form(name.removeprefix(COMPACTED_FIRST)))
    if name.startswith(CSR_AT):
        return CSRForm(batch_sizes(name.removeprefix(CSR_AT).replace("/", ",")))
    if name == "2:4":
        raise InputError(
            "the form '2:4' is gone, the masks of --selection 2:4 are not: export 'safetensors' and convert its linear layers by "
            "torch.sparse.to_sparse_semi_structured, or prune whole units (--selection units) and export 'compacted'"
        )
    if name not in FORMS:
        raise unknown("form", name, list(FORMS))
    return FORMS[name]()
