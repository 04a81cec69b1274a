"""Every example that needs an extra runs as a new user would run it, and none of incop's own warnings is in what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "extras").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.stem)
def test_example_runs(example, tmp_path):
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(ROOT / "tests" / "extras" / "shim")) if path]
    run = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=250,
    )
    assert run.returncode == 0, run.stderr
    assert "level 1" in run.stdout
    assert "src/incop" not in run.stderr, run.stderr  # where a warning of incop's would be from
