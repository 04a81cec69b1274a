"""Every public name is documented with an example, and every block of Python in the documents runs.

Blocks of pages that need an extra run in the extras' environment: `tests/extras/test_documents_extras.py`. Links, commands
and the site's navigation have tests of their own: `test_links.py`, `test_commands.py`, `test_site.py`.
"""

import importlib
import inspect
import tomllib

import pytest
from documents import ROOT, blocks, extras_of, pages, run_block

import incop

PLAIN = {"IncopError", "InputError", "TrainingError", "MissingExtra"}  # an error is shown where it is raised
RECORDS = {f"records.{name}" for name in ("Check", "History", "Level", "Run", "Spent", "Verdict")}
MADE = RECORDS | {"Ticket", "RewindPoint"}  # by incop, not called


def public():
    names = [name for name in incop.__all__ if name not in ("__version__", "flow", "pruning", "stopping")]
    found = {name: getattr(incop, name) for name in names}
    for room in ("records", "flow", "pruning", "stopping"):
        module = importlib.import_module(f"incop.{room}")
        found |= {f"{room}.{name}": getattr(module, name) for name in module.__all__ if not name.isupper()}
    return found


def lacking(name, thing):
    """What the documentation of a public name lacks, or nothing."""
    text = inspect.getdoc(thing) or ""
    protocol = getattr(thing, "_is_protocol", False)
    joined = name in ("stopping.Rule", "stopping.Either", "stopping.Both", "pruning.Competition")
    if len(text) <= 20:
        return "a description"
    return "" if ">>>" in text or name in PLAIN | MADE or protocol or joined else "an example"


def test_public_names_are_documented():
    assert {name: what for name, thing in public().items() if (what := lacking(name, thing))} == {}


def test_the_face_offers_what_it_imports():
    assert set(incop.__all__) == {"__version__", *incop._HOMES, *incop._ROOMS}


@pytest.mark.parametrize("block", blocks(pages(of_extras=False)))
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_block(block)


def test_pages_of_extras_name_extras_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for document in pages(of_extras=True):
        assert set(extras_of(document)) <= set(extras), f"{document.name} needs an extra that is not in pyproject.toml"


def test_only_the_first_lines_make_a_page_one_of_extras(tmp_path):
    page = tmp_path / "page.md"
    line = "This page needs `pip install 'incop[lightning, metrics]'`.\n"
    page.write_text(f"# Page\n\n{line}")
    assert extras_of(page) == ["lightning", "metrics"]
    page.write_text("# Page\n" + "\n" * 20 + line)
    assert extras_of(page) == []


def test_readme_is_no_page_of_extras():
    assert not extras_of(ROOT / "README.md")
