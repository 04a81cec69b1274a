"""Every example in a docstring runs, of every module, and every exported name says what it is."""

import importlib.util

from docstrings import MODULES, OF_EXTRAS, run_examples, undocumented

CORE = [name for name in MODULES if name not in OF_EXTRAS]


def test_examples_run():
    found = {name: run_examples(name) for name in CORE}
    assert {name: said for name, (_, said) in found.items() if said} == {}
    assert [name for name, (count, _) in found.items() if not count and ">>>" in source(name)] == []


def source(name):
    return importlib.util.find_spec(name).loader.get_source(name) or ""


def test_exported_names_are_documented():
    assert {name: found for name in CORE if (found := undocumented(name))} == {}


def test_the_guard_sees_a_wrong_example_and_all_modules(monkeypatch):
    import incop.errors

    monkeypatch.setattr(incop.errors.quoted, "__doc__", "A line.\n\n>>> 1 + 1\n3\n")
    count, said = run_examples("incop.errors")
    assert count
    assert "Expected:\n    3" in said
    assert {"incop.methods", "incop.stopping.rules", "incop.reports.page", "incop"} <= set(MODULES)
