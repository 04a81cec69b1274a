"""Rules for layers with weights: what sums over units, and what scales each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from incop.export.compaction.analysis import Reader, UnitAnalysis, argument, operator_name, owned, shape_of
from incop.export.compaction.tracing import Held
from incop.export.compaction.unit_sets import AxisUnits, Floats, Ints, Labels, unknown

NORMALIZES = "aten::_native_batch_norm_legit_no_training"


def linear(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """Follow y = x Wᵀ + b, a linear layer."""
    return _matrix(run, node, node.args[0], run.held(node.args[1]), argument(node, 2), (0, 1))


def addmm(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """Make b + x W, as some transformers write a linear layer."""
    plain = argument(node, 3, 1) == 1 and argument(node, 4, 1) == 1 and not node.kwargs
    return _matrix(run, node, node.args[1], run.held(node.args[2]), node.args[0], (1, 0)) if plain else None


def _matrix(
    run: UnitAnalysis, node: fx.Node, x: Any, held: Held | None, bias: Any, axes: tuple[int, int]
) -> Labels | None:
    if held is None or not owned(held) or held.value.dim() != 2:
        return None
    in_axis = axes[1]
    last = len(shape_of(x)) - 1
    labels = dict(run.of(x))
    found = labels.pop(last, None) or run.stiff(held.value.shape[in_axis])
    weights = held.value if axes == (0, 1) else held.value.T
    outs = _summed(run, node, held, weights[..., None], bias, axes, found.ids, found.constant, last)
    return {**{axis: units.varying() for axis, units in labels.items()}, last: outs}


def convolution(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """A convolution of all channels with all, or of each channel with its own kernel."""
    held = run.held(node.args[1])
    if held is None or not owned(held):
        return None
    weights = held.value.flatten(2)  # (out, in of a group, kernel)
    axis = len(shape_of(node.args[0])) - (held.value.dim() - 2) - 1
    labels = dict(run.of(node.args[0]))
    found = labels.pop(axis, None) or run.stiff(shape_of(node.args[0])[axis])
    run.pin(labels)  # units along what is convolved
    groups = argument(node, 6, 1)
    padding = argument(node, 4, 0)
    padded = padding == "same" if isinstance(padding, str) else bool(np.any(np.asarray(padding) != 0))
    if padding == "same" and weights.shape[2] == 1:
        padded = False
    seen = np.where(found.constant == 0, 0.0, np.nan) if padded else found.constant  # in the border there are zeros
    if groups == 1:
        return {axis: _summed(run, node, held, weights, argument(node, 2), (0, 1), found.ids, seen, axis)}
    if groups == len(found.ids) == len(weights):
        return {axis: _each(run, node, held, weights[:, 0], found, seen)}
    return None


def transposed_convolution(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """A transposed convolution of all channels with all: a constant other than 0 shows where kernels overlap."""
    held = run.held(node.args[1])
    if held is None or not owned(held) or argument(node, 6, 1) != 1:
        return None
    weights = held.value.flatten(2).transpose(0, 1)  # (out, in, kernel)
    axis = len(shape_of(node.args[0])) - (held.value.dim() - 2) - 1
    labels = dict(run.of(node.args[0]))
    found = labels.pop(axis, None) or run.stiff(shape_of(node.args[0])[axis])
    run.pin(labels)
    seen = np.where(found.constant == 0, 0.0, np.nan)
    return {axis: _summed(run, node, held, weights, argument(node, 2), (1, 0), found.ids, seen, axis)}


def _summed(
    run: UnitAnalysis,
    node: fx.Node,
    held: Held,
    weights: Tensor,
    bias: Any,
    axes: tuple[int, int],
    ins: Ints,
    seen: Floats,
    axis: int,
) -> AxisUnits:
    """Note a layer that sums over units, and return the units that it makes, along `axis` of its output.

    The weights come as (out, in, kernel); `axes` are those of outputs and inputs as the model holds them. `seen` is what
    constants the layer sees, wherever it looks.
    """
    outs = run.sets.fresh(weights.shape[0])
    run.hold(held, axes[0], outs)
    run.hold(held, axes[1], ins)
    reads = (weights != 0).any(2).numpy()
    sums = weights.sum(2).numpy()
    offset = _offset(run, bias, outs)
    known = ~np.isnan(seen)
    total = sums @ np.where(known, seen, 0.0) + offset
    dead = ~(reads & ~known[None]).any(1) & np.isfinite(total)
    constant = np.where(dead, total, np.nan)
    sink = _sink(run, node, bias, axis)
    run.readers.append(Reader(held.name, axes[1], outs, ins, sums, reads, seen, sink))
    return AxisUnits(outs, constant)


def _each(run: UnitAnalysis, node: fx.Node, held: Held, weights: Tensor, found: AxisUnits, seen: Floats) -> AxisUnits:
    """Return the units of a convolution of each channel with its own kernel (out, kernel)."""
    run.hold(held, 0, found.ids)
    offset = _offset(run, argument(node, 2), found.ids)
    still = ~(weights != 0).any(1).numpy()
    total = np.where(still, 0.0, weights.sum(1).numpy() * seen) + offset
    return found.with_constant(np.where(np.isfinite(total), total, np.nan))


def _offset(run: UnitAnalysis, bias: Any, outs: Ints) -> Floats:
    if bias is None:
        return np.zeros(len(outs))
    held = run.held(bias)
    if held is None or held.value.dim() != 1:  # computed: of unknown value and size
        run.pin(bias)
        run.sets.pin(outs)
        return unknown(len(outs))
    run.hold(held, 0, outs)
    return held.value.numpy()


def _sink(run: UnitAnalysis, node: fx.Node, bias: Any, axis: int) -> tuple[str, int] | None:
    """Return what takes up a constant: the layer's bias, else the mean of the normalization that alone reads it."""
    if bias is not None:
        held = run.held(bias)
        return (held.name, 1) if held is not None and held.free else None
    users = list(node.users)
    if len(users) != 1 or operator_name(users[0]) != NORMALIZES or axis != 1 or users[0].args[0] is not node:
        return None
    mean = run.held(users[0].args[3])
    return (mean.name, -1) if mean is not None and mean.free else None


def batch_norm(run: UnitAnalysis, node: fx.Node) -> list[Labels] | None:
    """Make (x − mean) / √(var + eps) · w + b, by channel, with the means of training."""
    weight, bias, mean, var = (run.held(part) for part in node.args[1:5])
    if mean is None or var is None or any(part is not None and run.held(part) is None for part in node.args[1:3]):
        return None
    labels = dict(run.of(node.args[0]))
    if 1 not in labels:
        return None
    found = labels.pop(1)
    for part in (weight, bias, mean, var):
        if part is not None:
            run.hold(part, 0, found.ids)
    scale = torch.ones_like(mean.value) if weight is None else weight.value
    shift = torch.zeros_like(mean.value) if bias is None else bias.value
    constant = (torch.from_numpy(found.constant) - mean.value) * torch.rsqrt(
        var.value + argument(node, 6)
    ) * scale + shift
    constant = torch.where(scale == 0, shift, constant)
    made = found.with_constant(np.where(np.isfinite(constant.numpy()), constant.numpy(), np.nan))
    others = {axis: units.varying() for axis, units in labels.items()}
    return [{**others, 1: made}, {}, {}]


def instance_norm(run: UnitAnalysis, node: fx.Node) -> Labels | None:
    """Normalize each channel of each sample by itself; a constant's variance is rounding, and left alone."""
    labels = run.of(node.args[0])
    parts = [part for part in node.args[1:5] if part is not None]
    if set(labels) != {1} or any(run.held(part) is None for part in parts):
        return None
    for part in parts:
        run.hold(run.trace.held[part], 0, labels[1].ids)  # type: ignore[index]
    return {1: labels[1].varying()}
