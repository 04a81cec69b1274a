"""Removal: which units nobody needs, and the network without them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from incop.export.compaction.analysis import Reader, UnitAnalysis, owned_by
from incop.export.compaction.unit_sets import Ints

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Removal:
    """What goes, and what takes it up.

    Args:
        kept: indices that stay, by name of the tensor and axis; axes that lose nothing are not in it.
        added: what is added to tensors for the constants that go, by name, before anything is cut.
        blanked: columns of weights that are set to zero because what they read stands for nothing any more, by
            (name, axis).
    """

    kept: Mapping[str, Mapping[int, Ints]] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    blanked: Mapping[tuple[str, int], Ints] = field(default_factory=dict)


def groups(run: UnitAnalysis) -> list[frozenset[int]]:
    """Return sets of units whose axes hang together: a layer's outputs and all that reads them."""
    above: dict[int, int] = {}

    def root(x: int) -> int:
        while above.setdefault(x, x) != x:
            x = above[x]
        return x

    for ids in run.axes.values():
        roots = np.unique(run.sets.roots(ids)).tolist()
        for one in roots[1:]:
            above[root(one)] = root(roots[0])
        if roots:
            root(roots[0])
    found: dict[int, set[int]] = {}
    for x in above:
        found.setdefault(root(x), set()).add(x)
    return [frozenset(found[key]) for key in sorted(found)]


def removal(run: UnitAnalysis, allowed: Collection[int] | None = None) -> Removal:
    """Decide what goes: every unit that nothing needs.

    A unit is needed if it is pinned, or if a layer that makes a needed unit reads it with a weight that is not zero; but not
    where it is a constant that the layer's bias can take up. This is the least such set, so that units which only
    feed each other go as well.

    Args:
        run: the analysis.
        allowed: sets of units that may go; by default all.
    """
    every = len(run.sets)
    roots = run.sets.roots(np.arange(every))
    needed = run.sets.pinned(np.arange(every)) & (roots == np.arange(every))
    if allowed is not None:
        stays = np.ones(every, dtype=bool)
        stays[list(allowed)] = False
        needed |= stays & (roots == np.arange(every))
    readers = [(r, roots[r.outs], roots[r.ins], _reads(r)) for r in run.readers]
    grows = True
    while grows:
        grows = False
        for _, outs, ins, reads in readers:
            wanted = ins[reads[needed[outs]].any(0)]
            if not needed[wanted].all():
                needed[wanted] = True
                grows = True
    stays = needed.copy()
    for ids in run.axes.values():
        if len(ids) and not stays[roots[ids]].any():
            stays[roots[ids[0]]] = True  # a layer without any unit is none: one stands for the rest
    kept: dict[str, dict[int, Ints]] = {}
    for (name, axis), ids in run.axes.items():
        keeps = stays[roots[ids]]
        if not keeps.all():
            kept.setdefault(name, {})[axis] = np.flatnonzero(keeps)
    added: dict[str, Tensor] = {}
    blanked: dict[tuple[str, int], Ints] = {}
    for reader, outs, ins, _ in readers:
        gone = ~needed[ins] & ~np.isnan(reader.constant)
        _fold(reader, gone, needed[outs], added)
        empty = ~needed[ins] & stays[ins]
        if empty.any():
            blanked[reader.weight, reader.in_axis] = np.flatnonzero(empty)
    return Removal(kept, added, blanked)


def _reads(reader: Reader) -> Bools:
    """Return which weights really need what they read: not zero, and not a constant that can be taken up."""
    constant = reader.constant
    known = ~np.isnan(constant)
    spared = known & ((constant == 0) | (reader.sink is not None))
    found: Bools = reader.reads & ~spared[None]
    return found


def _fold(reader: Reader, gone: Bools, rows: Bools, added: dict[str, Tensor]) -> None:
    total = reader.sums[:, gone] @ reader.constant[gone]
    total = np.where(rows, total, 0.0)  # what nobody needs may answer anything
    if total.any() and reader.sink is not None:
        name, sign = reader.sink
        added[name] = added.get(name, torch.zeros(len(total), dtype=torch.float64)) + sign * torch.from_numpy(total)


@torch.no_grad()
def removed(model: nn.Module, what: Removal) -> nn.Module:
    """Return a copy of the model without the units that go."""
    small = copy.deepcopy(model)
    for (name, axis), columns in what.blanked.items():
        _tensor(small, name).data.index_fill_(axis, torch.from_numpy(columns), 0.0)
    for name, more in what.added.items():
        tensor = _tensor(small, name)
        tensor.data = (tensor.data.double() + more).to(tensor.dtype)
    for name, axes in what.kept.items():
        tensor = _tensor(small, name)
        value = tensor.data
        for axis, kept in axes.items():
            value = value.index_select(axis, torch.from_numpy(kept))
        _put(small, name, value.contiguous())
    touched = {name.rpartition(".")[0] for name in what.kept}
    for name in touched:
        fit(small.get_submodule(name))
    return small


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        old = module._parameters[leaf]
        module._parameters[leaf] = nn.Parameter(value, requires_grad=bool(old is not None and old.requires_grad))
    else:
        module._buffers[leaf] = value


def sizes(module: nn.Module) -> dict[str, int]:
    """Return what a module says of its sizes, by the names of its attributes, as its tensors' shapes have it."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        mean = module.running_mean if module.running_mean is not None else weight
        return {} if mean is None else {"num_features": len(mean)}
    if not isinstance(weight, Tensor) or weight.dim() == 0:
        return {}
    if isinstance(module, nn.modules.conv._ConvNd):
        return _channels(module, weight)
    if isinstance(module, nn.PReLU):
        return {"num_parameters": len(weight)}
    named = {"out_features": 0, "in_features": 1} if isinstance(module, nn.Linear) else {"nf": 1, "nx": 0}
    return {name: weight.shape[axis] for name, axis in named.items() if owned_by(module)}


def _channels(module: nn.modules.conv._ConvNd, weight: Tensor) -> dict[str, int]:
    first, second = weight.shape[:2]
    if 1 < module.groups == module.in_channels == module.out_channels:  # each channel by itself
        return {"in_channels": first, "out_channels": first, "groups": first}
    if module.transposed:
        return {"in_channels": first, "out_channels": second * module.groups}
    return {"in_channels": second * module.groups, "out_channels": first}


def fit(module: nn.Module) -> None:
    """Make what a module says of its sizes what they are."""
    for name, size in sizes(module).items():
        if hasattr(module, name):
            setattr(module, name, size)
