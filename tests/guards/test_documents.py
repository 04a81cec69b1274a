"""Every public name is documented with an example, and every block of Python in the documents runs."""

import inspect
import re
from pathlib import Path

import pytest

import incop

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLAIN = {"IncopError", "InputError", "TrainingError", "MissingExtra"}  # an error is shown where it is raised
RECORDS = {"Check", "History", "Level", "Run", "Spent", "Verdict", "Ticket", "RewindPoint"}  # made by incop, not called


def public():
    names = [name for name in incop.__all__ if name not in ("__version__", "flow", "pruning", "stopping")]
    found = {name: getattr(incop, name) for name in names}
    for room in ("flow", "pruning", "stopping"):
        module = getattr(incop, room)
        found |= {f"{room}.{name}": getattr(module, name) for name in module.__all__ if not name.isupper()}
    return found


@pytest.mark.parametrize("name", public())
def test_public_name_is_documented(name):
    thing = public()[name]
    text = inspect.getdoc(thing) or ""
    assert len(text) > 20
    protocol = getattr(thing, "_is_protocol", False)
    joined = name in ("stopping.Rule", "stopping.Either", "stopping.Both", "pruning.Competition")
    if name not in PLAIN | RECORDS and not protocol and not joined:
        assert ">>>" in text, f"{name} shows no example"


def test_all_is_sorted_and_complete():
    assert set(incop.__all__) == {"__version__", *incop._HOMES, *incop._ROOMS}


def blocks():
    return [
        pytest.param(block, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(BLOCK.findall(document.read_text()), 1)
    ]


@pytest.mark.parametrize("block", blocks())
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "document", "exec"), {"__name__": "__document__"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_inside_the_project_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"
