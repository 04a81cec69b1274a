"""Every example in a docstring of the integrations runs, in the environment that has their libraries."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "guards"))
from docstrings import OF_EXTRAS, run_examples, undocumented


@pytest.mark.parametrize("name", OF_EXTRAS)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, said = run_examples(name)
    assert not said, said
    assert undocumented(name) == []
