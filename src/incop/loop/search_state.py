"""States: what a search can be gone on from, taken and put back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from incop import distributed, schema_1
from incop.flat_state import State, part, random_states, restoring, under
from incop.loop.progress import LevelProgress, SearchProgress
from incop.loop.settings import SearchSettings
from incop.masks import Masks
from incop.pruning import Planned, SparsityPath
from incop.pruning.saliency import Gathers
from incop.records import Flow, Level
from incop.rewind_points import Snapshot
from incop.watch import Watch


def offer(settings: SearchSettings, progress: SearchProgress, watch: Watch) -> None:
    """Offer the search's state where it can be gone on from: within a level only with a trainer that can, too."""
    able = all(callable(getattr(settings.trainer, name, None)) for name in ("state", "restore"))
    why = getattr(settings.trainer, "inexact", None)
    able = able and why is None
    if why is not None and settings.on_state is not None and progress.level.number == watch.step == 0:
        progress.level.notices.append(str(why))
    if settings.on_state is not None and (able or watch.step == 0):
        settings.on_state(lambda: _state(settings, progress, watch))


def _state(settings: SearchSettings, progress: SearchProgress, watch: Watch) -> State:
    level = progress.level
    take = getattr(settings.trainer, "state", dict)
    points = {place_of(progress, name): point.tensors for name, point in progress.points.items()}
    stopped = {} if level.stopped is None else {"stopped": level.stopped.tensors}
    groups: dict[str, Any] = {
        "model": Snapshot.of(settings.model).tensors,
        "masks": progress.masks,
        **points,
        **stopped,
        **{random_of(rank): one for rank, one in enumerate(distributed.of(settings.model).all(random_states()))},
        "watch": watch.state(),
        "trainer": take(),
        "score": _gathered(progress),
    }
    for name, value in level.beginning.items():
        # its tensors never change, and are written once as those of a rewind point
        group = f"points/beginning {level.number}" if isinstance(value, Tensor) else "beginning"
        groups.setdefault(group, {})[name] = value
    return {
        "level": level.number,
        "notices": list(level.notices),
        "last": level.last,
        "report": level.report,
        "points": {name: point.epoch for name, point in progress.points.items()},
        "path": None if progress.path is None else list(progress.path.sparsities),
        "reference": None if progress.reference is None else progress.reference.to_json(),
        "reference_value": progress.reference_value,
        "lr_share": progress.lr_share,
        **_edge(progress),
        "retaken": progress.retaken,
        **{key: value for name, group in groups.items() for key, value in under(name, group).items()},
    }


def _edge(progress: SearchProgress) -> State:
    """Return what a search for the edge goes on from, beside its points."""
    if progress.edge is None:
        return {}
    chosen = None if progress.chosen is None else progress.chosen.to_json()
    level = progress.level
    return {
        "edge": progress.edge.state(),
        "cuts": progress.cuts,
        "chosen": chosen,
        "stop": level.stop,
        "short": level.short,
    }


def _gathered(progress: SearchProgress) -> State:
    return progress.score.state() if isinstance(progress.score, Gathers) else {}


def restore(settings: SearchSettings, progress: SearchProgress, state: State) -> None:
    """Put everything of the search back that does not belong to its watch or its trainer."""
    with restoring("search"):
        progress.level = level = LevelProgress(
            int(state["level"]),
            list(map(str, state["notices"])),
            bool(state["last"]),
            bool(state["report"]),
            resume=state,
        )
        Snapshot(part("model", state)).rewind(settings.model)
        progress.masks = Masks(part("masks", state))
        weights = progress.masks.weights(settings.model)
        if isinstance(progress.score, Gathers):
            progress.score.restore(part("score", state), weights)
        progress.lr_share, progress.retaken = float(state.get("lr_share", 1.0)), int(state.get("retaken", 0))
        level.beginning = part("beginning", state) | part(f"points/beginning {level.number}", state)
        progress.points = {
            name: Snapshot(settings.offload.copy(part(place_of(progress, name), state)), epoch)
            for name, epoch in state["points"].items()
        }
        stopped = part("stopped", state)
        level.stopped = Snapshot(stopped) if stopped else None
        if isinstance(settings.amount, Planned) and state["path"] is not None:
            progress.path = SparsityPath(tuple(state["path"]))
        if progress.edge is not None:
            progress.edge.restore(state["edge"])
            progress.cuts, level.stop, level.short = int(state["cuts"]), state["stop"], bool(state["short"])
            progress.chosen = None if state["chosen"] is None else Level.from_json(state["chosen"])
        progress.reference = None if state["reference"] is None else Flow.from_json(state["reference"])
        value = schema_1.reference_value(state)
        progress.reference_value = None if value is None else float(value)


def beginning_of(settings: SearchSettings, progress: SearchProgress) -> State:
    """Return what a level's beginning is put back from."""
    take = getattr(settings.trainer, "state", dict)
    groups = {
        "model": Snapshot.of(settings.model).tensors,
        "random": progress.level.random,
        "trainer": take(),
        "score": _gathered(progress),
    }
    return {"notices": list(progress.level.notices)} | {
        key: value for name, group in groups.items() for key, value in under(name, group).items()
    }


def random_of(rank: int) -> str:
    """Return under which name a state holds the random states of a process."""
    return "random" if rank == 0 else f"random of {rank}"


def place_of(progress: SearchProgress, point: str) -> str:
    """Return where a rewind point stands in a state: under another name when it was taken anew, since files hold it by name."""
    return f"points/{point}" if not progress.retaken or point == "init" else f"points/{point} again {progress.retaken}"
