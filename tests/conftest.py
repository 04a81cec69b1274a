"""What all tests share: how signals are taken, and two savings that hide no fault."""

import gc
import os
import signal


def pytest_configure():
    """Take SIGINT as Python does by itself: tests interrupt processes, and children inherit what a background shell ignores.

    Files are not waited for until they are on the disk: no test cuts the power, and what a killed process wrote stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.fsync = open_file


def open_file(file):
    """Stand for `os.fsync`: refuse what is no open file, and return at once."""
    os.fstat(file if isinstance(file, int) else file.fileno())


def pytest_collection_finish():
    """Leave what was imported and collected out of every later garbage collection: there is nothing to find in it."""
    gc.collect()
    gc.freeze()
