"""The command line: one command per file; torch is imported inside the command, so help answers at once."""

from __future__ import annotations

import atexit
import contextlib
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
    from incop import distributed
    from incop.cli.app import run  # after the setting above

    status = run(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None and distributed.launched():
        _leave(status)
    return status


def _leave(status: int) -> None:
    """End one of several processes without taking torch's communication apart.

    A thread of gloo may still let go of a tensor while the interpreter ends, and torch then aborts what is done: seen in 2 of 12
    searches whose gloo threads were given only idle time of the processor, and torchrun reports it as a failure.
    """
    with contextlib.suppress(OSError):  # whoever read the output may be gone
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
