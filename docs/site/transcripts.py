"""Real transcripts: a block marked ```console holds commands after `$ ` and what they printed, run one after the other.

`python docs/site/transcripts.py` runs the commands of every page anew, in an empty folder a page, and writes what they
printed into it. A test runs them too, and compares all but the numbers, which are of one machine and one day.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from faces import ROOT

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?")


def steps(block: str) -> list[tuple[str, str]]:
    """The commands of a block, each with what it printed."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def printed(command: str, folder: str | Path) -> str:
    """What one command prints on standard output, in a folder, on one thread and 120 columns."""
    program, *words = shlex.split(command)
    if program != "incop":
        raise SystemExit(f"a transcript shows {program!r}: only incop is run here")
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "incop", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"{command}: {run.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in run.stdout.splitlines())


def shape(said: str) -> list[str]:
    """The lines of an output without their numbers and without the widths of columns."""
    return [re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip() for line in said.strip().splitlines()]


def main() -> int:
    """Write all transcripts anew."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:

            def anew(found: re.Match[str], folder: str = folder) -> str:
                ran = [(command, printed(command, folder)) for command, _ in steps(found[1])]
                return "```console\n" + "".join(f"$ {command}\n{out}" for command, out in ran) + "```"

            page.write_text(BLOCK.sub(anew, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
