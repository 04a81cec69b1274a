"""Export: a ticket in the form that its target can use, proven to answer as the masked network does."""

from __future__ import annotations

from incop.export.compacted import compacted
from incop.export.folded import folded
from incop.export.forms import FORMS, Form, form
from incop.export.resizing import resized
from incop.export.subject import Subject
from incop.export.writing import Written, write

__all__ = ["FORMS", "Form", "Subject", "Written", "compacted", "folded", "form", "resized", "write"]
