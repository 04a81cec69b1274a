"""The command line: one command per file; torch is imported inside the command, so help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 bad input, 1 failure, 130 interrupted.

    Args:
        arguments: the words after `incop`; by default those the process was started with.
    """
    # Two OpenMP threads that spin while another job holds the cores make training up to 13 times slower;
    # passive waiting costs nothing on an idle machine. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from incop.cli.app import run  # after the setting above

    return run(list(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
