"""Falsify each statement of docs/theory.md, in the code or in its own words, and see whether its test turns red.

    python tests/campaigns/falsify_theory.py [--only TEXT] [--out tests/campaigns/results/DATE-falsify-theory]

The falsifications stand in `theory_falsifications.toml`. Each is one change of one place in a copy of the sources and of
`tests/theory`; the named test then runs there and must fail. Before, all tests run unchanged and must pass. Each run is a fork of
a process that has imported torch and pytest but not incop, some seconds on a free core. What was found stands in the result's
.json; with --only the chosen ones are run again and their rows replaced. INCOP_DATA adds MNIST.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import scipy.optimize  # noqa: F401
import sklearn.datasets  # noqa: F401  # imported once, for all forks
import torch

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("theory_falsifications.toml")
TESTS = "tests/theory"


class Falsification(NamedTuple):
    """One change, and the test that must turn red."""

    test: str
    says: str
    file: str
    old: str
    new: str

    @property
    def key(self) -> str:
        """What it is found by in a result: its sentence and its change."""
        return f"{self.test} · {self.says} · {hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"

    @property
    def path(self) -> str:
        """The changed file, from the project's root."""
        return self.file.replace("T/", f"{TESTS}/", 1) if self.file.startswith("T/") else self.file

    @property
    def node(self) -> str:
        """The test as pytest names it."""
        file, _, name = self.test.partition("::")
        return f"{TESTS}/{file}.py::{name}"


def falsifications() -> list[Falsification]:
    """Read the list."""
    return [Falsification(**row) for row in tomllib.loads(LIST.read_text(encoding="utf-8"))["falsification"]]


def run(root: Path, *nodes: str) -> tuple[str, str]:
    """Run tests of a copy in a fork; return "green", "red" or "broken", and the first line that says why."""
    said = root / "said.txt"
    child = os.fork()
    if child == 0:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.chdir(root)
            sys.path.insert(0, str(root / "src"))
            os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--durations=0", "-rf", *nodes])))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(encoding="utf-8")
    if status == 0 and re.search(r"^[.s]+ ", text, re.MULTILINE):
        return "green", ""
    why = next((line[1:].strip() for line in text.splitlines() if re.match(r"E\s+\w", line)), "")
    return ("red" if status == 1 and re.search(r"^FAILED ", text, re.MULTILINE) else "broken"), why


def copy(into: Path) -> Path:
    """Copy what the tests need."""
    for part in ("src", TESTS):
        shutil.copytree(ROOT / part, into / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", into)
    return into


def apply(falsification: Falsification, root: Path) -> str:
    """Make the change and return what the file held before."""
    file = root / falsification.path
    was = file.read_text(encoding="utf-8")
    if was.count(falsification.old) != 1:
        raise SystemExit(
            f"{falsification.path} holds {was.count(falsification.old)} times {falsification.old!r}, not once"
        )
    file.write_text(was.replace(falsification.old, falsification.new), encoding="utf-8")
    return was


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="only falsifications whose test or sentence holds this text")
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-falsify-theory"
    options.add_argument("--out", type=Path, default=dated)
    told = options.parse_args()
    chosen = [one for one in falsifications() if told.only in one.test or told.only in one.says]
    kept = told.out.with_suffix(".json")
    found = json.loads(kept.read_text(encoding="utf-8")) if told.only and kept.exists() else {}
    sys.dont_write_bytecode = True  # a change within a second would be missed
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = copy(Path(folder))
        found["unchanged"] = found.get("unchanged") or run(root, TESTS)
        print(f"unchanged: {found['unchanged'][0]}", flush=True)
        for one in chosen:
            was = apply(one, root)
            verdict, why = run(root, one.node)
            (root / one.path).write_text(was, encoding="utf-8")
            found[one.key] = verdict, why
            print(f"{verdict:6} {one.test} · {one.says} · {why}", flush=True)
    known = {"unchanged", *(one.key for one in falsifications())}
    found = {key: tuple(value) for key, value in found.items() if key in known}
    kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told.out.with_suffix(".md").write_text(page(found), encoding="utf-8")
    sys.exit(found["unchanged"][0] != "green" or any(found[one.key][0] != "red" for one in chosen))


def page(found: dict[str, tuple[str, str]]) -> str:
    """Return the result as a page."""
    rows = [(one, *found.get(one.key, ("not run", ""))) for one in falsifications()]
    count = Counter(verdict for _, verdict, _ in rows)
    tests = {one.test for one, _, _ in rows}
    mnist = "with MNIST" if os.environ.get("INCOP_DATA") else "without MNIST (INCOP_DATA not set)"
    lines = [
        f"# Each test of the theory under a falsification, {datetime.date.today()}\n",
        f"**{count['red']} of {len(rows)} falsifications turned their test red**; {len(tests)} tests, all of `{TESTS}`, which "
        f"unchanged are {found['unchanged'][0]}.\n",
        f"- command: `python tests/campaigns/falsify_theory.py`, {mnist}",
        f"- {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "- a falsification is one change of the code (named so) or of the statement; for a counterexample it is the tempting "
        "statement, or an example that is none",
        "- broken: the test could not run, or something other than itself failed\n",
        "| test | falsification | test turned | by |",
        "|---|---|---|---|",
    ]
    for one, verdict, why in rows:
        short = why if len(why) <= 90 else f"{why[:89]}…"
        cells = (cell.replace("|", "∣") for cell in (f"`{one.test}`", one.says, verdict, f"`{short}`"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
