"""Rules for operators that compute without weights, and the table of all rules: which units come out, and with what constant."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from incop.export.compaction import layers, shapes
from incop.export.compaction.analysis import (
    Rule,
    UnitAnalysis,
    argument,
    is_tensor,
    operator_name,
    shape_of,
    tensors_in,
)
from incop.export.compaction.unit_sets import AxisUnits, Floats, Labels, unknown

ConstantMap = Callable[[Floats], Floats]


def _same(constant: Floats) -> Floats:
    return constant


def _varies(constant: Floats) -> Floats:
    return unknown(len(constant))


def _zero_only(constant: Floats) -> Floats:
    return np.where(constant == 0, 0.0, np.nan)


# ---- element by element


def pointwise(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """An operator of which each number of the output follows from the numbers in the same place of the inputs."""
    operands = list(tensors_in([list(node.args), list(node.kwargs.values())]))
    shape = shape_of(node)
    made: Labels = {}
    labels = {x: run.labelled(x) for x in operands}
    for axis, size in enumerate(shape):
        here = {x: axis - len(shape) + len(shape_of(x)) for x in operands}  # aligned from the right
        whole = {x: at for x, at in here.items() if at >= 0 and shape_of(x)[at] == size}
        if not any(at in labels[x] for x, at in whole.items()):
            continue
        ids = run.joined([labels[x][at] for x, at in whole.items() if at in labels[x]])
        if size == 1 or any(at not in labels[x] for x, at in whole.items()):
            run.sets.pin(ids)
        for x, at in here.items():
            if x not in whole and at in labels[x]:  # one unit, broadcast
                run.pin(labels[x][at])
        made[axis] = AxisUnits(ids, _constants(run, node, here, len(ids)))
    return made


def _constants(run: UnitAnalysis, node: fx.Node, here: dict[fx.Node, int], count: int) -> Floats:
    """Return what the operator makes of constants, unit by unit."""
    floats = all(x.meta["val"].is_floating_point() for x in (node, *here))
    if not floats or node.meta["val"].dtype.itemsize < min(x.meta["val"].dtype.itemsize for x in here):
        return unknown(count)  # comparisons of constants, and roundings, are left alone
    known = np.ones(count, dtype=bool)
    zero = np.zeros(count, dtype=bool)

    def value(x: Any) -> Any:
        if not is_tensor(x):
            known[:] = False  # a number that the trace leaves open
            return 1
        constant = _along(run, x, here[x], count)
        nonlocal zero
        zero = zero | (constant == 0)
        known[:] &= ~np.isnan(constant)
        return torch.from_numpy(np.nan_to_num(constant))

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
    try:
        found = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:
        return unknown(count)
    if not isinstance(found, Tensor) or found.numel() not in (1, count):
        return unknown(count)
    result = np.broadcast_to(found.detach().double().numpy().reshape(-1), (count,))
    result = np.where(known & np.isfinite(result), result, np.nan)
    return np.where(zero, 0.0, result) if operator_name(node) == "aten::mul" else result


def _along(run: UnitAnalysis, x: fx.Node, axis: int, count: int) -> Floats:
    units, held = run.of(x).get(axis), run.held(x)
    if units is not None and len(units.ids) == count:
        return units.constant
    if held is not None and held.value.numel() == 1:
        return np.full(count, float(held.value.reshape(())))
    return unknown(count)


def prelu(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """A slope for negative values, one for all or one a channel."""
    held = run.held(node.args[1])
    labels = dict(run.of(node.args[0]))
    if held is None:
        return None
    each = held.value.numel() > 1
    for axis, units in labels.items():
        if each and axis == 1:
            run.hold(held, 0, units.ids)
        c = units.constant
        slope = held.value.numpy() if each and axis == 1 else held.value.numpy()[:1] if not each else np.nan
        labels[axis] = units.with_constant(np.where(c >= 0, c, c * slope))
    if each and 1 not in labels:
        return None
    return labels


# ---- along some axes, and each unit by itself


def window(spatial: int, change: Callable[[fx.Node], ConstantMap], outputs: int = 1) -> Rule:
    """An operator along the last so many axes."""

    def rule(run: UnitAnalysis, node: fx.Node) -> Labels | list[Labels] | None:
        x = node.args[0]
        first = len(shape_of(x)) - spatial
        labels = run.of(x)
        if any(axis >= first for axis in labels):
            return None
        made = {axis: units.with_constant(change(node)(units.constant)) for axis, units in labels.items()}
        others = [{axis: units.varying() for axis, units in labels.items()}] * (outputs - 1)
        return made if outputs == 1 else [made, *others]

    return rule


def _averaged(node: fx.Node) -> ConstantMap:
    """avg_pool(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor)."""
    one = operator_name(node) == "aten::avg_pool1d"
    padding, ceil, counts = (argument(node, 3, 0), argument(node, 4, False), argument(node, 5, True))
    padded = bool(np.any(np.asarray(padding) != 0))
    divided = None if one else argument(node, 6)
    return _zero_only if (padded and counts) or (ceil and counts and padded) or divided is not None else _same


def along(place: int, change: ConstantMap) -> Rule:
    """An operator along given axes that keeps the shape."""

    def rule(run: UnitAnalysis, node: fx.Node) -> Labels | None:
        rank = len(shape_of(node.args[0]))
        dims = argument(node, place)
        if dims is None:
            return None
        taken = {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])}
        labels = run.of(node.args[0])
        if taken & set(labels):
            return None
        return {axis: units.with_constant(change(units.constant)) for axis, units in labels.items()}

    return rule


def reduction(change: ConstantMap, *, place: int = 1, keep: int = 2, outputs: int = 1) -> Rule:
    """An operator that makes one number of what lies along some axes."""

    def rule(run: UnitAnalysis, node: fx.Node) -> Labels | list[Labels] | None:
        x = node.args[0]
        rank = len(shape_of(x))
        dims = argument(node, place)
        taken = (
            {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])}
            if dims not in (None, [])
            else set()
        )
        if not taken or taken & set(run.of(x)):
            return None
        kept = bool(argument(node, keep, False))
        made: Labels = {}
        for axis, units in run.of(x).items():
            made[axis if kept else axis - sum(d < axis for d in taken)] = units.with_constant(change(units.constant))
        return made if outputs == 1 else [made, {axis: units.varying() for axis, units in made.items()}]

    return rule


def variance(run: UnitAnalysis, node: fx.Node) -> Labels | list[Labels] | None:
    """var(x, dims, correction, keepdim), whose last argument is often given by name."""
    rank = len(shape_of(node.args[0]))
    return reduction(_varies, keep=99)(run, node) if len(shape_of(node)) < rank else along(1, _varies)(run, node)


def normalized(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """layer_norm(x, shape, …): over the last axes."""
    run.pin(list(node.args[2:]))
    first = len(shape_of(node.args[0])) - len(node.args[1])  # type: ignore[arg-type]
    labels = run.of(node.args[0])
    return None if any(axis >= first for axis in labels) else {a: u.varying() for a, u in labels.items()}


def nothing(run: UnitAnalysis, node: fx.Node) -> Labels:
    """An operator that reads no values: a size, an assertion about types, a tensor of a given shape."""
    return {}


RULES: dict[str, Rule] = {
    "linear": layers.linear,
    "addmm": layers.addmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), layers.convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), layers.transposed_convolution),
    "_native_batch_norm_legit_no_training": layers.batch_norm,
    "instance_norm": layers.instance_norm,
    "prelu": prelu,
    **dict.fromkeys(("hardswish", "where", "_to_copy", "clone", "alias", "detach", "lift_fresh_copy"), pointwise),
    **{f"max_pool{n}d": window(n, lambda node: _same) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": window(n, lambda node: _same, 2) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": window(n, lambda node: _same, 2) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": window(n, lambda node: _same) for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": window(n, lambda node: _same) for n in (2, 3)},
    **{f"avg_pool{n}d": window(n, _averaged) for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": window(n, lambda node: _same) for n in (1, 2, 3)},
    **{f"{kind}_pad{n}d": window(n, lambda node: _same) for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "upsample_bilinear2d": window(2, lambda node: _same),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"), along(1, _varies)),
    **dict.fromkeys(("flip",), along(1, _same)),
    **dict.fromkeys(("mean", "amax", "amin"), reduction(_same)),
    "sum": reduction(_zero_only),
    **dict.fromkeys(("max", "min"), reduction(_same, outputs=2)),
    "linalg_vector_norm": reduction(_varies, place=2, keep=3),
    "var": variance,
    "layer_norm": normalized,
    "rms_norm": normalized,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze"), shapes.reshape),
    "squeeze": shapes.reshape,
    **dict.fromkeys(("permute", "transpose", "t"), shapes.permute),
    "expand": shapes.expand,
    "slice": shapes.cut,
    "select": shapes.select,
    "cat": shapes.cat,
    "stack": shapes.stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), shapes.pad),
    **dict.fromkeys(("sym_size", "_assert_tensor_metadata", "zeros", "ones", "full", "arange", "empty"), nothing),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like"), nothing),
}


OF_ALL = ("squeeze", "mean", "sum", "max", "min")  # without a dimension: whatever happens to be one, or all numbers


def rule_of(target: Any) -> Rule | None:
    """Return the rule of an operator, None where it has none."""
    if target is operator.getitem:
        return shapes.item
    if not isinstance(target, torch._ops.OpOverload):  # arithmetic of sizes
        return nothing if getattr(target, "__module__", "") in ("_operator", "math", "torch") else None
    space, _, name = target._schema.name.partition("::")
    over_all = name in OF_ALL and target._overloadname == "default"
    if space != "aten" or over_all or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    if torch.Tag.pointwise in target.tags:
        return pointwise
    return RULES.get(name)
