"""Compacting: analyse, decide, cut, prove; where the proof fails, find out with which layers it holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from incop.batches import Batch, call, first_samples
from incop.export.compaction.analysis import UnitAnalysis, analysed
from incop.export.compaction.operators import rule_of
from incop.export.compaction.proof import Proof
from incop.export.compaction.removal import Removal, groups, removal, removed, sizes
from incop.export.compaction.tracing import traced
from incop.export.subject import Subject


@dataclass(frozen=True)
class Change:
    """What became of one layer.

    Args:
        layer: its name.
        kind: its class.
        units: before and after, of what it makes.
        inputs: before and after, of what it reads.
        parameters: before and after.
    """

    layer: str
    kind: str
    units: tuple[int, int]
    inputs: tuple[int, int]
    parameters: tuple[int, int]


@dataclass(frozen=True)
class Compaction:
    """A network without the units that nobody needs.

    Args:
        model: the small network, of the user's own class.
        removal: what went.
        layers: the layers that became smaller, in the model's order.
        parameters: of the whole network, before and after.
        macs: multiplications of one sample, before and after; None where they cannot be counted.
        held_back: layers of which something seemed to be able to go, but the answers differed without it.
    """

    model: nn.Module
    removal: Removal
    layers: tuple[Change, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    held_back: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """AxisUnits and channels that went: every one once, at the layer that makes it."""
        return sum(change.units[0] - change.units[1] for change in self.layers)


def compact(subject: Subject) -> Compaction:
    """Take the units that nobody needs out of a network.

    Args:
        subject: the masked network and an example to follow it with.
    """
    example = subject.needed_example("the compacted form")
    model = subject.model
    run = analysed(traced(model, example), rule_of)
    what, held_back = _proven(run, Proof(model, example))
    small = removed(model, what)
    return Compaction(
        small,
        what,
        _changes(model, small),
        (_count(model), _count(small)),
        _macs(model, small, example),
        held_back,
    )


def _proven(run: UnitAnalysis, proof: Proof) -> tuple[Removal, tuple[str, ...]]:
    """Return what can go with the answers proven, and the layers at which this was less than what seemed to be able to."""
    whole = removal(run)
    if not whole.kept:
        return Removal(), ()
    if proof.holds(whole):
        return whole, ()
    what, allowed = Removal(), set[int]()
    for group in groups(run):
        one = removal(run, allowed | group)
        if not _same(one, what) and proof.holds(one):
            what, allowed = one, allowed | group
    lost = [name for (name, axis), ids in run.axes.items() if axis == 0 and _less(whole, what, name, axis)]
    return what, tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in lost))


def _less(whole: Removal, what: Removal, name: str, axis: int) -> bool:
    """Say whether less goes from a tensor than would have."""
    wanted, found = (one.kept.get(name, {}).get(axis) for one in (whole, what))
    return wanted is not None and (found is None or len(found) > len(wanted))


def _same(a: Removal, b: Removal) -> bool:
    """Say whether the same units stay."""

    def indices(one: Removal) -> dict[tuple[str, int], list[int]]:
        return {(name, axis): kept.tolist() for name, axes in one.kept.items() for axis, kept in axes.items()}

    return indices(a) == indices(b)


def _changes(model: nn.Module, small: nn.Module) -> tuple[Change, ...]:
    after = dict(small.named_modules())
    found = []
    for name, module in model.named_modules():
        own, new = _own(module), _own(after[name])
        if own == new:
            continue
        before, now = _widths(sizes(module)), _widths(sizes(after[name]))
        found.append(Change(name, type(module).__name__, (before[0], now[0]), (before[1], now[1]), (own, new)))
    return tuple(found)


def _widths(said: Mapping[str, int]) -> tuple[int, int]:
    units = next((said[k] for k in ("out_features", "out_channels", "nf") if k in said), 0)
    return units, next((said[k] for k in ("in_features", "in_channels", "nx") if k in said), 0)


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _macs(model: nn.Module, small: nn.Module, example: Batch) -> tuple[int, int] | None:
    try:
        return _flops(model, example) // 2, _flops(small, example) // 2
    except Exception:  # a model may not run under a counter
        return None


def _flops(model: nn.Module, example: Batch) -> int:
    one = first_samples(example, 1)
    with (
        torch.enable_grad(),
        FlopCounterMode(display=False) as counter,
    ):  # with gradients no fused transformer layer is taken
        call(copy.deepcopy(model), one)
    return int(counter.get_total_flops()) // max(one.samples, 1)
