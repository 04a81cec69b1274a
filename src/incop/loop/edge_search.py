"""The search for the edge: walk the path, try stops by a short last level, finish the best one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from incop import distributed
from incop.errors import InputError
from incop.flow import Damage
from incop.loop.cutting import cut_at, first_of
from incop.loop.edge import Drop, Move, Stop, check_max_drop, paired_drop
from incop.loop.fitting import train_sparse
from incop.loop.progress import LevelProgress, SearchProgress
from incop.loop.settings import SearchSettings
from incop.loop.tickets import Ticket
from incop.masks import Masks
from incop.rewind_points import Snapshot
from incop.watch import Watch

PROBED = 256  # samples on which outputs are held against the dense network's: the standard error is about half a stop


def validate_max_drop(settings: SearchSettings) -> None:
    """Refuse what does not go with `max_drop`.

    Raises:
        InputError: the drop is no number of at least 0, a sparsity is asked for besides, there is no probe, or levels rewind to
            other weights.
    """
    if settings.max_drop is None:
        return
    check_max_drop(settings.max_drop)
    if settings.ends:
        name, value = settings.ends[0]
        raise InputError(
            f"max_drop={settings.max_drop!r} finds how sparse the network can be, and {name}={value!r} says it: give one of them"
        )
    if settings.probe is None:
        raise InputError("max_drop compares outputs on a probe: pass probe=batches of the training split")
    if settings.rewind.restores or settings.levels < 1:
        raise InputError(
            f"max_drop goes on from the weights of the level before, and rewind={str(settings.rewind)!r} with {settings.levels} "
            "levels does not: choose rewind='rate' and at least one level"
        )


def levels_to_edge(settings: SearchSettings, progress: SearchProgress) -> Iterator[Ticket]:
    """Yield a ticket for every level: those on the path, and those that tried or finished a stop."""
    edge = progress.edge
    assert edge is not None
    if "dense outcomes" not in progress.points and (outcomes := _outcomes(settings)) is not None:
        progress.points["dense outcomes"] = Snapshot({"right": outcomes})
    while progress.level.resume is not None or edge.next() is not None:
        if progress.level.resume is None:
            progress.level = _begun(settings, progress, edge.next())
        ticket = _walked(settings, progress) if progress.level.stop is None else _tried(settings, progress)
        if edge.chosen is not None and edge.chosen.level == ticket.level:
            _choose(progress, ticket)
        yield ticket
    if progress.chosen is not None:
        progress.points["chosen"].rewind(settings.model)


def _begun(settings: SearchSettings, progress: SearchProgress, move: Move | None) -> LevelProgress:
    assert move is not None
    kind, stop = move
    number, was = progress.level.number + 1, progress.level.stop
    if kind == "walk":
        if was is not None:  # the path goes on from where it was left
            _put_back(settings, progress, stop - 1)
        progress.cuts += 1
        level = cut_at(settings, progress, progress.cuts, at_most=None)
        level.number = number
        return level
    _put_back(settings, progress, stop)
    return LevelProgress(number, last=True, stop=stop, short=kind == "try")


def _put_back(settings: SearchSettings, progress: SearchProgress, stop: int) -> None:
    """Put the weights and masks of a stop back; -1 is the dense network."""
    if stop < 0:
        progress.masks = Masks.full(settings.model, skip=settings.skip, frozen=settings.frozen)
        progress.points["dense"].rewind(settings.model)
        return
    progress.masks = Masks(progress.points[f"stop {stop} masks"].tensors)
    packed = progress.points[f"stop {stop}"].tensors
    Snapshot(unpacked(packed, progress.masks)).rewind(settings.model, progress.masks)


def packed(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return a network's tensors with only the weights that are left, flat, where masks prune."""
    return {name: one[masks[name].to(one.device)] if name in masks else one for name, one in tensors.items()}


def unpacked(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return what `packed` was made of; pruned weights are zero."""
    found = dict(tensors)
    for name in masks:
        mask = masks[name].to(tensors[name].device)
        found[name] = torch.zeros(mask.shape, dtype=tensors[name].dtype, device=mask.device)
        found[name][mask] = tensors[name]
    return found


def _walked(settings: SearchSettings, progress: SearchProgress) -> Ticket:
    """Train a level of the path; remember its end where it is a stop."""
    edge = progress.edge
    assert edge is not None
    familiar = _dense_outputs(settings, progress)

    def ended(watch: Watch) -> dict[str, Any]:
        edge.path_ended = progress.cuts >= settings.levels or progress.path_is_over
        if not edge.remembers(progress.masks.sparsity) and not edge.path_ended:
            return {}
        samples, seconds = familiar.samples, familiar.seconds
        likeness = distributed.of(settings.model).once(lambda: list(familiar.kept().values())[-1])
        watch.charge(familiar.samples - samples, familiar.seconds - seconds)
        number = len(edge.stops)
        edge.stops.append(Stop(progress.level.number, progress.masks.sparsity, likeness))
        end = Snapshot.of(settings.model)
        progress.points[f"stop {number}"] = Snapshot(settings.offload.copy(packed(end.tensors, progress.masks)))
        progress.points[f"stop {number} masks"] = Snapshot(dict(progress.masks))
        return {"role": "path", "likeness": likeness}

    return train_sparse(settings, progress, ended)


def _tried(settings: SearchSettings, progress: SearchProgress) -> Ticket:
    """Give a stop a last level, short or in full, and note what was lost."""
    edge, level = progress.edge, progress.level
    assert edge is not None
    assert level.stop is not None
    drops = edge.tried if level.short else edge.finished
    stop = level.stop

    def ended(watch: Watch) -> dict[str, Any]:
        value = watch.checks[-1].metric_value
        if value is None:
            value = distributed.of(settings.model).mean(settings.trainer.evaluate(settings.model))
        drops[stop] = drop = _drop(settings, progress, watch, value)
        return {
            "role": "tried" if level.short else "finished",
            "drop": drop.value,
            "drop_low": drop.low,
            "drop_high": drop.high,
        }

    return train_sparse(settings, progress, ended)


def _drop(settings: SearchSettings, progress: SearchProgress, watch: Watch, value: float) -> Drop:
    """Return what the ticket has lost; the validation pass that this decision needs counts as probing."""
    sign = 1.0 if settings.metric.higher_is_better else -1.0
    assert progress.reference_value is not None
    differences, started = None, time.perf_counter()
    if (dense := progress.points.get("dense outcomes")) is not None and (now := _outcomes(settings)) is not None:
        differences = (dense.tensors["right"].double() - now.double()).tolist()
        watch.charge(len(differences), time.perf_counter() - started)
    return paired_drop(progress.level.number, sign * (progress.reference_value - value), differences)


def _outcomes(settings: SearchSettings) -> Tensor | None:
    """Return which validation samples are right, from a trainer that can say it."""
    outcomes = getattr(settings.trainer, "outcomes", None)
    return outcomes(settings.model) if callable(outcomes) else None


def _dense_outputs(settings: SearchSettings, progress: SearchProgress) -> Damage:
    """Return what holds outputs against the dense network's, made of it once."""
    if progress.familiar is None:
        now = Snapshot.of(settings.model)
        progress.points["dense"].rewind(settings.model)
        progress.familiar = Damage(settings.model, first_of(settings.probe, PROBED))
        now.rewind(settings.model)
    return progress.familiar


def _choose(progress: SearchProgress, ticket: Ticket) -> None:
    progress.chosen = ticket.record
    progress.points["chosen"] = Snapshot(ticket.weights)
    progress.points["chosen masks"] = Snapshot(dict(ticket.masks))


def chosen_ticket(progress: SearchProgress) -> Ticket | None:
    """Return the sparsest ticket that does the job; None where there is none."""
    if progress.chosen is None:
        return None
    masks = Masks(progress.points["chosen masks"].tensors)
    return Ticket(progress.chosen, masks, progress.points["chosen"].tensors)
