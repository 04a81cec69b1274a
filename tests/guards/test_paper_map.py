"""Every function, test, figure and file that the paper map names is there, and nothing it must name is missing.

So too for the theory page: its tests are there, all of them are on it, and each has a falsification that still fits the sources.
"""

import ast
import importlib
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from docstrings import MODULES, OF_EXTRAS

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
FALSE = tomllib.loads((ROOT / "tests" / "campaigns" / "theory_falsifications.toml").read_text(encoding="utf-8"))[
    "falsification"
]
PAPER = "arXiv 2501.15592"


def rows(page):
    """Rows of the tables, without their heads: four cells each."""
    found = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| ")
    ]
    return [row for row in found if row[1] != "function"]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def there(name):
    """The object of a dotted name, a module's or a class's."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@cache
def functions_in(file):
    return {
        node.name
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


ROWS = rows(MAP)


def test_every_row_has_a_function_a_test_and_a_result():
    assert len(ROWS) > 60
    for row in ROWS:
        assert len(row) == 4, row
        what, functions, tests, result = row
        assert what, row
        assert named(functions), row
        assert named(tests), row
        assert re.search(r"\]\([^)]+\)", result), row
        assert any(word.startswith(("python benchmarks/", "python tests/campaigns/")) for word in named(result)), row


def in_column(column):
    """All that the rows name in a column, each once."""
    return sorted({name for row in ROWS for name in named(row[column])})


def is_there(name):
    """Whether a dotted name of incop leads to an object."""
    try:
        return name.startswith("incop.") and there(name) is not None
    except (AttributeError, ModuleNotFoundError):
        return False


def has_test(name):
    """Whether the file of `file::test` has that test."""
    file, _, test = name.partition("::")
    return (ROOT / file).is_file() and test in functions_in(file)


def test_the_named_functions_are_there():
    assert [name for name in in_column(1) if not is_there(name)] == []


def test_the_named_tests_are_there():
    assert [name for name in in_column(2) if not has_test(name)] == []


def test_the_named_commands_figures_and_results_are_there():
    assert [one for one in in_column(3) if not (ROOT / one.removeprefix("python ")).is_file()] == []
    targets = {target for row in ROWS for target in re.findall(r"\]\(([^)#]+)", row[3])}
    assert [target for target in sorted(targets) if not (ROOT / "docs" / target).exists()] == []


def test_every_statement_of_the_theory_is_mapped():
    statements = set(re.findall(r"^\*\*(\d\.\d)\b", THEORY, re.MULTILINE))
    assert len(statements) > 35
    assert {number[0] for number in statements} == set("1234567")
    mapped = {match[0] for row in ROWS if (match := re.match(r"\d\.\d", row[0]))}
    assert statements == mapped


def test_whatever_names_the_paper_is_mapped():
    """Objects whose docstring gives it as the source, by the objects that the map names."""
    mapped = {id(there(name)) for row in ROWS for name in named(row[1])}
    found = []
    for module in (importlib.import_module(name) for name in MODULES if name not in OF_EXTRAS):
        for thing in vars(module).values():
            if getattr(thing, "__module__", None) != module.__name__:
                continue
            for one in (thing, *(vars(thing).values() if inspect.isclass(thing) else ())):
                if (inspect.isfunction(one) or inspect.isclass(one)) and PAPER in (one.__doc__ or ""):
                    found.append(one)
    assert len(found) >= 5
    assert [one for one in found if id(one) not in mapped] == []


THEORY_TESTS = {
    f"{file.stem}::{test}"
    for file in sorted((ROOT / "tests" / "theory").glob("test_*.py"))
    for test in functions_in(file)
    if test.startswith("test_")
}


def test_the_theory_page_names_all_its_tests_and_no_others():
    known = {one.partition("::")[2] for one in THEORY_TESTS}
    assert set(re.findall(r"`(?:test_\w+\.py::)?(test_\w+)`", THEORY)) == known
    for file, test in re.findall(r"`(test_\w+)\.py::(test_\w+)`", THEORY):
        assert f"{file}::{test}" in THEORY_TESTS


def test_every_test_of_the_theory_has_a_falsification():
    assert {one["test"] for one in FALSE} == THEORY_TESTS


def fits(one):
    """Whether a falsification's old text stands once in its file, and is another than the new one."""
    file = ROOT / one["file"].replace("T/", "tests/theory/", 1)
    return file.is_file() and file.read_text(encoding="utf-8").count(one["old"]) == 1 and one["new"] != one["old"]


def test_every_falsification_still_fits():
    assert [(one["test"], one["file"], one["old"]) for one in FALSE if not fits(one)] == []


def test_the_guard_sees_what_is_missing():
    assert not is_there("incop.flow.NoMeter")
    assert not is_there("nocop.flow")
    assert not is_there("os.path")
    assert has_test("tests/guards/test_paper_map.py::test_the_guard_sees_what_is_missing")
    assert not has_test("tests/guards/test_paper_map.py::test_nothing")
    assert not has_test("tests/guards/test_no_file.py::test_nothing")
    assert not fits({"file": "src/incop/flow/moments.py", "old": "no such line", "new": "x"})
    assert not fits({"file": "src/incop/no_file.py", "old": "x", "new": "y"})
    with pytest.raises(AttributeError):
        there("incop.flow.NoMeter")
    with pytest.raises(ModuleNotFoundError):
        there("nocop.flow")
    assert rows("| what | function | test | figure or result |\n|---|---|---|---|\n| a | `b` | `c` | d |") == [
        ["a", "`b`", "`c`", "d"]
    ]
