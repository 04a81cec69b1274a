"""Export: a ticket in the form that its target can use, proven to answer as the masked network does."""

from __future__ import annotations

from incop.export.benching import bench
from incop.export.choosing import Choice, csr_choices, with_csr
from incop.export.compacted import compacted
from incop.export.csr import CSRLinear
from incop.export.csr_form import read_csr
from incop.export.folded import folded
from incop.export.forms import FORMS, Form, form
from incop.export.reading import Exported, read
from incop.export.resizing import resized
from incop.export.subject import Subject
from incop.export.two_of_four import read_semi_structured, semi_structured
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
    "read_semi_structured",
    "resized",
    "semi_structured",
    "with_csr",
    "write",
    "write_all",
]
