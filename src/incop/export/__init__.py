"""Export: a ticket in the form that its target can use, proven to answer as the masked network does."""

from __future__ import annotations

from incop.export.folded import folded
from incop.export.forms import FORMS, Form, form
from incop.export.reading import Exported, read
from incop.export.subject import Subject
from incop.export.writing import Written, write, write_all

__all__ = ["FORMS", "Exported", "Form", "Subject", "Written", "folded", "form", "read", "write", "write_all"]
