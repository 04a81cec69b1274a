"""Few dependencies, named extras, and an import that brings nothing heavy. How long it takes: benchmarks/import_time.py."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_SMALL = 6
HEAVY = {  # nothing of these until a command or a function needs it
    *("torch", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "PIL", "safetensors", "jinja2"),
    *("lightning", "transformers", "accelerate", "datasets", "timm", "torchvision", "torchmetrics"),
    *("tensorboard", "mlflow", "wandb", "trackio"),
    *("ray", "submitit"),
}


def library(requirement):
    return re.match(r"[\w-]+", requirement)[0].lower()


def test_installing_incop_pulls_torch_numpy_and_at_most_six_small_libraries():
    needed = {library(one) for one in PROJECT["dependencies"]}
    assert {"torch", "numpy"} <= needed
    assert len(needed - {"torch", "numpy"}) <= MAX_SMALL
    assert not needed & (HEAVY - {"torch", "numpy", "safetensors"})


def new_modules(module):
    code = f"import json, sys; before = set(sys.modules); import {module}; print(json.dumps(sorted(set(sys.modules) - before)))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def test_import_incop_brings_itself_alone():
    found = [name for name in new_modules("incop") if name.partition(".")[0] not in sys.stdlib_module_names]
    assert found == ["incop"]


@pytest.mark.parametrize("module", ["incop", "incop.cli", "incop.cli.app", "incop.reports", "incop.stopping"])
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    assert not {name.partition(".")[0] for name in new_modules(module)} & HEAVY


def test_the_command_line_brings_only_what_installing_incop_pulls():
    allowed = {library(one).replace("-", "_") for one in PROJECT["dependencies"]}
    theirs = {"attr", "attrs", "docstring_parser", "rich_rst", "markdown_it", "mdurl", "pygments", "docutils"}
    found = {name.partition(".")[0] for name in new_modules("incop.cli.app")}
    assert found - sys.stdlib_module_names - {"incop"} <= allowed | theirs


def text_of(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def extras_named(source):
    """Return the extras that a file's errors may name: `MissingExtra(…, "data", …)` and `load(…, extra="data")`.

    A row of a table that stands in the file, `EXTRAS[…]`, may name each of the table's. None stands for one that is not
    written where it is used, unless it is the `extra` of the function around it.
    """
    found, tree = [], ast.parse(source)
    tables = {
        node.targets[0].id: [text_of(value) for value in node.value.values]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        keys = {key.arg: key.value for key in node.keywords}
        given = keys.get("extra", node.args[1] if name == "MissingExtra" and len(node.args) > 1 else None)
        if isinstance(given, ast.Subscript) and isinstance(given.value, ast.Name) and given.value.id in tables:
            found += tables[given.value.id]
        elif given is not None and not (isinstance(given, ast.Name) and given.id == "extra"):
            found.append(text_of(given))
    return found


def test_every_extra_an_error_names_is_there():
    named = {str(file.relative_to(ROOT)): set(extras_named(file.read_text())) for file in SOURCES}
    assert {file: unknown for file, names in named.items() if (unknown := names - set(EXTRAS))} == {}


def test_the_guard_sees_extras():
    source = 'MissingExtra("a", "b", "c"); load("x", extra="d"); load("x", extra=extra); MissingExtra("a", f(x), "c")'
    assert extras_named(source) == ["b", "d", None]
    assert extras_named('T = {"x": "e", "y": "f"}; MissingExtra("a", T[n], "c"); MissingExtra("a", U[n], "c")') == [
        "e",
        "f",
        None,
    ]
    assert {"data", "report", "stats", "tensorboard", "mlflow", "wandb", "trackio"} <= {
        one for file in SOURCES for one in extras_named(file.read_text())
    }


def test_every_extra_is_explained_and_no_other():
    page = (ROOT / "docs" / "install.md").read_text()
    assert set(re.findall(r"^\| `([\w]+)` \|", page, re.MULTILINE)) == set(EXTRAS)


def test_every_extra_that_a_page_names_is_there():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named = {
            name.strip() for found in re.findall(r"incop\[([\w, ]+)\]'", page.read_text()) for name in found.split(",")
        }
        assert named <= set(EXTRAS), page.name
