"""Every block of Python on a page that needs an extra runs, in the extras' environment; those of other pages run without.

A page is one of extras if its first lines say which it needs; `tests/guards/documents.py` reads them for both.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "guards"))
from documents import BLOCK, blocks, pages, run_block

PAGES = pages(of_extras=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_shows_something_that_runs(page):
    assert BLOCK.search(page.read_text()), f"{page.name} needs an extra and has no block of Python"


@pytest.mark.parametrize("block", blocks(PAGES))
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_block(block)
