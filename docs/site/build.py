"""Build the site into build/docs/site and check it: `make docs`. No network, no torch; any warning is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import finish
import stage

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
WARNINGS = ("Warning:", "griffe:", "mkdocstrings:", "WARNING")


def main() -> int:
    """Gather, build, finish; return 0 if nothing was found."""
    stage.main()
    zensical = Path(sys.executable).with_name("zensical")
    run = subprocess.run(
        [zensical, "build", "--strict", "--config-file", "mkdocs.yml"],
        cwd=stage.BUILD,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = COLOUR.sub("", run.stdout)
    if run.returncode or any(line.strip().startswith(WARNINGS) for line in said.splitlines()):
        print(said, file=sys.stderr)
        return 1
    status = finish.main()
    print(f"{finish.SITE / 'index.html'} (its search needs a server: python -m http.server --directory {finish.SITE})")
    return status


if __name__ == "__main__":
    sys.exit(main())
