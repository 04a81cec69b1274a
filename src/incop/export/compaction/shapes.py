"""Rules for operators that move numbers about: views, permutations, parts, and tensors put together."""

from __future__ import annotations

import numpy as np
from torch import fx

from incop.export.compaction.analysis import (
    UnitAnalysis,
    argument,
    free_axes,
    operator_name,
    regrouped,
    shape_of,
    tensors_in,
)
from incop.export.compaction.unit_sets import AxisUnits, Labels


def reshape(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """View, flatten, squeeze: an axis may be merged with others, but not cut up."""
    before, after, free = shape_of(node.args[0]), shape_of(node), free_axes(node)
    made: Labels = {}
    for axis, units in run.labelled(node.args[0]).items():
        found = regrouped(before, after, axis)
        if found is None or found[0] in made or (free[found[0]] and found[1:] != (1, 1)):
            return None
        new, times, each = found
        made[new] = AxisUnits(
            np.tile(np.repeat(units.ids, each), times), np.tile(np.repeat(units.constant, each), times)
        )
    return made


def permute(run: UnitAnalysis, node: fx.Node) -> Labels:
    """Axes in another order."""
    rank = len(shape_of(node.args[0]))
    order = list(range(rank))
    if operator_name(node) == "aten::permute":
        order = [d % rank for d in argument(node, 1)]
    elif rank > 1:
        a, b = (argument(node, 1, 0) % rank, argument(node, 2, 1) % rank)
        order[a], order[b] = order[b], order[a]
    labels = run.labelled(node.args[0])
    return {new: labels[old] for new, old in enumerate(order) if old in labels}


def expand(run: UnitAnalysis, node: fx.Node) -> Labels:
    """Axes of one made longer; labelled ones stay as they are."""
    more = len(shape_of(node)) - len(shape_of(node.args[0]))
    return {axis + more: units for axis, units in run.labelled(node.args[0]).items()}


def cut(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """Take a part of an axis, of a labelled one only the whole."""
    shape = shape_of(node.args[0])
    dim = argument(node, 1, 0) % len(shape)
    labels = run.labelled(node.args[0])
    start, end, step = argument(node, 2, 0) or 0, argument(node, 3), argument(node, 4, 1)
    whole = start == 0 and step == 1 and (end is None or (isinstance(end, int) and end >= shape[dim]))
    return labels if dim not in labels or whole else None


def select(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """Take one along an axis, which goes with it."""
    dim = argument(node, 1) % len(shape_of(node.args[0]))
    labels = run.of(node.args[0])
    return None if dim in labels else {axis - (axis > dim): units for axis, units in labels.items()}


def cat(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """Tensors one after the other along an axis, labelled or not."""
    parts = list(tensors_in(node.args[0]))
    rank = len(shape_of(node))
    if any(len(shape_of(x)) != rank for x in parts):
        return None
    return _together(run, parts, argument(node, 1, 0) % rank)


def _together(run: UnitAnalysis, parts: list[fx.Node], dim: int) -> Labels:
    made: Labels = {}
    for axis in {axis for x in parts for axis in run.of(x)}:
        units = [run.of(x).get(axis) or run.stiff(shape_of(x)[axis]) for x in parts]
        if axis == dim:
            made[axis] = AxisUnits(np.concatenate([u.ids for u in units]), np.concatenate([u.constant for u in units]))
        else:
            constant = units[0].constant
            for other in units[1:]:
                constant = np.where(constant == other.constant, constant, np.nan)
            made[axis] = AxisUnits(run.joined(units), constant)
    return made


def stack(run: UnitAnalysis, node: fx.Node) -> Labels:
    """Tensors side by side along a new axis."""
    dim = argument(node, 1, 0) % len(shape_of(node))
    together = _together(run, list(tensors_in(node.args[0])), -1)
    return {axis + (axis >= dim): units for axis, units in together.items()}


def pad(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """A border: of zeros or another number, or of what is there; new channels stay."""
    widths = list(node.args[1])  # type: ignore[arg-type]
    named = operator_name(node) == "aten::pad"
    mode = argument(node, 2, "constant") if named else "constant"
    value = argument(node, 3 if named else 2, 0) or 0
    rank = len(shape_of(node.args[0]))
    if not all(isinstance(w, int) for w in widths):
        return None
    pairs = {rank - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
    made: Labels = {}
    for axis, units in run.of(node.args[0]).items():
        low, high = pairs.get(axis, (0, 0))
        if low < 0 or high < 0 or ((low or high) and mode != "constant"):
            return None
        bordered = any(w != (0, 0) for a, w in pairs.items() if a != axis) and mode == "constant"
        constant = np.where(units.constant == value, units.constant, np.nan) if bordered else units.constant
        around = [AxisUnits(run.sets.fresh(n, pinned=True), np.full(n, float(value))) for n in (low, high)]
        made[axis] = AxisUnits(
            np.concatenate([around[0].ids, units.ids, around[1].ids]),
            np.concatenate([around[0].constant, constant, around[1].constant]),
        )
    return made


def item(run: UnitAnalysis, node: fx.Node) -> Labels:
    """One of several outputs."""
    several = run.labels.get(node.args[0])
    return several[node.args[1]] if isinstance(several, list) and isinstance(node.args[1], int) else {}
