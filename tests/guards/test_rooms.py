"""Imports go one way, and what needs no torch imports none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "incop"

# From the top down; a room may import from its own line and from those below it.
ORDER = [
    {"cli"},
    {"experiments", "reports", "export", "integrations"},
    {"training", "training_state", "objective", "distillation", "checkpoint_files"},
    {"loop"},
    {"watch", "ledger"},
    {"flow", "pruning", "stopping", "rewind_points"},
    {"masks"},
    {"inspection"},
    {"layers", "batches", "flat_state", "wrappers", "loaders", "tensor_split", "validation_metric", "offload"},
    {"rundir"},
    {"records", "recipe", "methods", "record_json", "schema_1", "locks", "distributed"},
    {"errors"},
]
HEIGHT = {room: len(ORDER) - position for position, rooms in enumerate(ORDER) for room in rooms}
WITHOUT_TORCH = [
    "errors",
    "records",
    "record_json",
    "schema_1",
    "locks",
    "rundir",
    "stopping",
    "experiments.plan",
    "experiments.engines",
    "experiments.engines.worker",
    "experiments.dispatch",
    "experiments.replays",
    "cli",
    "cli.app",
]


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("incop."))
        elif isinstance(node, ast.ImportFrom) and node.module == "incop":
            yield from (f"incop.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("incop."):
            yield node.module


def files():
    return sorted(file for file in SOURCE.rglob("*.py") if file.parent != SOURCE or not file.stem.startswith("__"))


def upward(file: Path):
    """Say which of a file's imports go up."""
    home = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if home not in HEIGHT:
        return [f"{home} is no room of the design: give it a place in ORDER"]
    rooms = {module: room_of(module) for module in imported(file)}  # names of the public face (incop.measure) are none
    above = [module for module, room in rooms.items() if HEIGHT.get(room, 0) > HEIGHT[home]]
    return [f"{file.relative_to(SOURCE)} imports {module}, which lies above {home}" for module in above]


def test_imports_go_down():
    assert [fault for file in files() for fault in upward(file)] == []


def test_there_is_no_room_for_odds_and_ends():
    assert not [file for file in files() if file.stem in ("utils", "common", "helpers", "misc")]


def test_only_one_file_puts_hooks_on_modules():
    assert [str(file.relative_to(SOURCE)) for file in files() if "register_forward_" in file.read_text()] == [
        "layers/hooks.py"
    ]


def test_reports_need_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, incop.reports; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_room_needs_no_torch(room):
    code = f"import sys, incop.{room}; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_incop_imports_no_torch():
    code = "import sys, incop; assert 'torch' not in sys.modules; assert 'search' in dir(incop)"
    subprocess.run([sys.executable, "-c", code], check=True)
