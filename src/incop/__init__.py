"""incop: sparse networks by iterative pruning, guided by the flow of information between their layers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from incop import flow, pruning, stopping
    from incop.errors import IncopError, InputError, MissingExtra, TrainingError
    from incop.flow.meter import measure
    from incop.loop import Ticket, search
    from incop.masks import Masks, hold
    from incop.pruning.cut import prune
    from incop.rewind_points import RewindPoint, Snapshot
    from incop.training import Trainer
    from incop.watch import Watch

# Public name → the room it lives in. Rooms are imported at first use, so `import incop` does not import torch.
_HOMES = {
    "IncopError": "incop.errors",
    "InputError": "incop.errors",
    "Masks": "incop.masks",
    "MissingExtra": "incop.errors",
    "RewindPoint": "incop.rewind_points",
    "Snapshot": "incop.rewind_points",
    "Ticket": "incop.loop",
    "Trainer": "incop.training",
    "TrainingError": "incop.errors",
    "Watch": "incop.watch",
    "hold": "incop.masks",
    "measure": "incop.flow.meter",
    "prune": "incop.pruning.cut",
    "search": "incop.loop",
}
_ROOMS = ("flow", "pruning", "stopping")

__all__ = [
    "IncopError",
    "InputError",
    "Masks",
    "MissingExtra",
    "RewindPoint",
    "Snapshot",
    "Ticket",
    "Trainer",
    "TrainingError",
    "Watch",
    "__version__",
    "flow",
    "hold",
    "measure",
    "prune",
    "pruning",
    "search",
    "stopping",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"incop.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'incop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
