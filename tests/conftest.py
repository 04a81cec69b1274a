"""What all tests share: SIGINT interrupts, also where a shell that started them in the background had it ignored."""

import gc
import signal


def pytest_configure():
    """Take SIGINT as Python does by itself: tests interrupt processes, and children inherit what is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Leave what was imported and collected out of every later garbage collection: there is nothing to find in it."""
    gc.collect()
    gc.freeze()
