"""The documents' pages, their blocks of Python, and the extras a page says that it needs.

A page whose first lines say "needs `pip install 'incop[lightning]'`" is a page of extras: its blocks run in the extras'
environment (`tests/extras/test_documents_extras.py`), those of every other page without any extra (`test_documents.py`).
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIRST_LINES = 8
NEEDS = re.compile(r"needs\s+`pip install 'incop\[([\w, -]+)\]'`")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def extras_of(document):
    """Names of the extras that a page says it needs in its first lines; none for a page of the core."""
    found = NEEDS.search("\n".join(document.read_text().splitlines()[:FIRST_LINES]))
    return [name.strip() for name in found[1].split(",")] if found else []


def pages(*, of_extras):
    return [document for document in DOCUMENTS if bool(extras_of(document)) == of_extras]


def blocks(documents):
    return [
        pytest.param(block, id=f"{document.name}-{number}")
        for document in documents
        for number, block in enumerate(BLOCK.findall(document.read_text()), 1)
    ]


def run_block(block):
    exec(compile(block, "document", "exec"), {"__name__": "__document__"})
