"""What a fit would change around it: the module's place and modes, random states, logs, the answer to Ctrl+C."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from incop import inspection

# Hints on speed for a fit of its own, which a search would repeat for every level; and Lightning's own use of an older torch.
HINTS = (r".*does not have many workers", r".*smaller than the logging interval", r".*treespec, LeafSpec.*deprecated")


@contextlib.contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Leave the modules' modes, the device and the Trainer the module belongs to as they were."""
    modes = [(module, module.training) for module in model.modules()]
    device, belongs_to = inspection.device_of(model), vars(model).get("_trainer")
    try:
        yield
    finally:
        model.trainer = belongs_to  # type: ignore[assignment]
        if inspection.device_of(model) != device:
            model.to(device)
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators; the caller's random states come back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep back what Lightning tells at every fit and what is only about speed; its other warnings pass."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    telling = [log for log in map(logging.getLogger, names) if log.level == logging.INFO]
    for log in telling:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for hint in HINTS:
                warnings.filterwarnings("ignore", hint)
            yield
    finally:
        for log in telling:
            log.setLevel(logging.INFO)


@contextlib.contextmanager
def interruptible(trainer: Any) -> Iterator[None]:
    """Let Ctrl+C end the search: Lightning ends the process, or as an older one only the fit, and then ignores the next."""
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt
