"""States: what a search can be gone on from, taken and put back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from incop import ranks, schema_1
from incop.loop.parts import Search, Standing
from incop.masks import Masks
from incop.pruning import EvenDamage, Path
from incop.pruning.saliency import Gathers
from incop.records import Flow
from incop.snapshots import Snapshot
from incop.states import State, part, random_states, restoring, under
from incop.watch import Watch

__all__ = ["beginning_of", "offer", "place_of", "random_of", "restored"]


def offer(parts: Search, at: Standing, watch: Watch) -> None:
    """Offer the search's state where it can be gone on from: within a level only with a trainer that can, too."""
    able = all(callable(getattr(parts.trainer, name, None)) for name in ("state", "restore"))
    why = getattr(parts.trainer, "inexact", None)
    able = able and why is None
    if why is not None and parts.on_state is not None and at.number == watch.step == 0:
        at.notices.append(str(why))
    if parts.on_state is not None and (able or watch.step == 0):
        parts.on_state(lambda: _state(parts, at, watch))


def _state(parts: Search, at: Standing, watch: Watch) -> State:
    take = getattr(parts.trainer, "state", dict)
    points = {place_of(parts, name): point.tensors for name, point in parts.points.items()}
    stopped = {} if at.stopped is None else {"stopped": at.stopped.tensors}
    groups: dict[str, Any] = {
        "model": Snapshot.of(parts.model).tensors,
        "masks": parts.masks,
        **points,
        **stopped,
        **{random_of(rank): one for rank, one in enumerate(ranks.of(parts.model).all(random_states()))},
        "watch": watch.state(),
        "trainer": take(),
        "score": _gathered(parts),
    }
    for (
        name,
        value,
    ) in at.beginning.items():  # its tensors never change, and are written once as those of a rewind point
        groups.setdefault(f"points/beginning {at.number}" if isinstance(value, Tensor) else "beginning", {})[name] = (
            value
        )
    return {
        "level": at.number,
        "notices": list(at.notices),
        "last": at.last,
        "report": at.report,
        "points": {name: point.epoch for name, point in parts.points.items()},
        "path": list(parts.amount.sparsities) if isinstance(parts.amount, Path) else None,
        "reference": None if parts.reference is None else parts.reference.to_json(),
        "reference_value": parts.reference_value,
        "lr_share": parts.lr_share,
        "retaken": parts.retaken,
        **{key: value for name, group in groups.items() for key, value in under(name, group).items()},
    }


def _gathered(parts: Search) -> State:
    return parts.score.state() if isinstance(parts.score, Gathers) else {}


def restored(parts: Search, state: State) -> Standing:
    """Put everything of the search back that does not belong to its watch or its trainer.

    Raises:
        InputError: the state is of another search, or incomplete.
    """
    with restoring("search"):
        at = Standing(int(state["level"]), list(map(str, state["notices"])), bool(state["last"]), bool(state["report"]))
        Snapshot(part("model", state)).rewind(parts.model)
        parts.masks = Masks(part("masks", state))
        weights = parts.masks.weights(parts.model)
        if isinstance(parts.score, Gathers):
            parts.score.restore(part("score", state), weights)
        parts.lr_share, parts.retaken = float(state.get("lr_share", 1.0)), int(state.get("retaken", 0))
        at.beginning = part("beginning", state) | part(f"points/beginning {at.number}", state)
        parts.points = {
            name: Snapshot(parts.offload.copy(part(place_of(parts, name), state)), epoch)
            for name, epoch in state["points"].items()
        }
        stopped = part("stopped", state)
        at.stopped = Snapshot(stopped) if stopped else None
        if isinstance(parts.amount, EvenDamage) and state["path"] is not None:
            parts.amount = Path(tuple(state["path"]))
        parts.reference = None if state["reference"] is None else Flow.from_json(state["reference"])
        value = schema_1.reference_value(state)
        parts.reference_value = None if value is None else float(value)
    return at


def beginning_of(parts: Search, at: Standing) -> State:
    """Return what a level's beginning is put back from."""
    take = getattr(parts.trainer, "state", dict)
    groups = {
        "model": Snapshot.of(parts.model).tensors,
        "random": at.random,
        "trainer": take(),
        "score": _gathered(parts),
    }
    return {"notices": list(at.notices)} | {
        key: value for name, group in groups.items() for key, value in under(name, group).items()
    }


def random_of(rank: int) -> str:
    """Return under which name a state holds the random states of a process."""
    return "random" if rank == 0 else f"random of {rank}"


def place_of(parts: Search, point: str) -> str:
    """Return where a rewind point stands in a state: under another name when it was taken anew, since files hold it by name."""
    return f"points/{point}" if not parts.retaken or point == "init" else f"points/{point} again {parts.retaken}"
