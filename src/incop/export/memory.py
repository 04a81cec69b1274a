"""Memory: how much a process grows that holds a network and lets it answer, by the operating system's count."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HOW = (
    "growth of this process's resident memory: the network is loaded, freed memory is given back, then one batch is answered; "
    "the peak of that, less what was resident before loading (Linux)"
)
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(load: Callable[[], Callable[[], Any]]) -> int | None:
    """Return by how many bytes the process has grown at most while it answered; None where the system does not tell.

    What loading takes for a while and gives back does not count, what answering takes does. Steps are pages of 4 kB, and
    what an allocator keeps blurs some hundred kB: of a small network this says nothing.

    Args:
        load: makes the network and returns the call that lets it answer.
    """
    try:
        _give_back()
        before = _resident("VmRSS")
        answer = load()
        _give_back()
        RESET.write_text("5")  # the peak is what is resident now
        with torch.inference_mode():
            answer()
        return max(_resident("VmHWM") - before, 0)
    except (OSError, StopIteration, ValueError):
        return None


def _give_back() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
