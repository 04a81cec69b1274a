"""Export: a ticket in the form that its target can use, proven to answer as the masked network does."""

from __future__ import annotations

from incop.export.benchmark import bench
from incop.export.compacted import compacted
from incop.export.csr_choice import Choice, csr_choices, with_csr
from incop.export.csr_form import read_csr
from incop.export.csr_layers import CSRLinear
from incop.export.folded import folded
from incop.export.forms import FORMS, form
from incop.export.reader import Exported, read
from incop.export.resizing import resized
from incop.export.subject import Form, Subject
from incop.export.writing import Written, write, write_all

__all__ = [
    "FORMS",
    "CSRLinear",
    "Choice",
    "Exported",
    "Form",
    "Subject",
    "Written",
    "bench",
    "compacted",
    "csr_choices",
    "folded",
    "form",
    "read",
    "read_csr",
    "resized",
    "with_csr",
    "write",
    "write_all",
]
