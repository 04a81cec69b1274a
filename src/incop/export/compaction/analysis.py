"""Analysis: follow the units of every layer through a forward pass, to where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

from incop.export.compaction.tracing import Held, Trace
from incop.export.compaction.unit_sets import AxisUnits, Floats, Ints, Labels, UnitSets, unknown

Rule = Callable[["UnitAnalysis", fx.Node], "Labels | list[Labels] | None"]


@dataclass(frozen=True)
class Reader:
    """A layer that sums over units.

    Args:
        weight: its weight's name.
        in_axis: the weight's axis of what it reads.
        outs: ids of the units that it makes, (O).
        ins: ids of the units that it reads, (I).
        sums: the weights, summed over the kernel, (O, I).
        reads: whether any weight of the kernel is not zero, (O, I).
        constant: what is read, where it is one number wherever the layer looks, padding included, (I).
        sink: name of the tensor, one number an output, that takes up a constant, and with what sign; None if there is none.
    """

    weight: str
    in_axis: int
    outs: Ints
    ins: Ints
    sums: Floats
    reads: npt.NDArray[np.bool_]
    constant: Floats
    sink: tuple[str, int] | None


class UnitAnalysis:
    """What is known of every tensor of a trace. Rules write to it, one operator after the other.

    Attributes:
        sets: which units go together.
        axes: ids of the units along the axes of parameters and buffers, by (name, axis).
        readers: the layers that sum over units.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.sets = UnitSets()
        self.axes: dict[tuple[str, int], Ints] = {}
        self.readers: list[Reader] = []
        self.labels: dict[Any, Any] = {}  # node → Labels, or a list of them

    # ---- what a rule asks

    def of(self, node: Any) -> Labels:
        """Return the labels of one tensor; none for anything else."""
        found = self.labels.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, dict) else {}

    def held(self, node: Any) -> Held | None:
        """Return what of the model a node stands for, if it does."""
        return self.trace.held.get(node) if isinstance(node, fx.Node) else None

    def labelled(self, node: Any) -> Labels:
        """Return the labels of one tensor; a parameter or buffer that no layer owns is given labels now, if it may change."""
        held = self.held(node)
        if held is not None and held.free and node not in self.labels and not owned(held):
            self.labels[node] = {}
            for axis, count in enumerate(held.value.shape):
                if count > 1:
                    rows = held.value.movedim(axis, 0).reshape(count, -1).numpy()
                    constant = np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan)
                    units = AxisUnits(self.sets.fresh(count), constant)
                    self.hold(held, axis, units.ids)
                    self.labels[node][axis] = units
        return self.of(node)

    # ---- what a rule says

    def pin(self, value: Any) -> None:
        """Say that all units of a node, of labels, or of what is nested in an operator's arguments, stay."""
        if isinstance(value, AxisUnits):
            self.sets.pin(value.ids)
        elif isinstance(value, fx.Node):
            self.pin(self.labels.get(value, {}))
        elif isinstance(value, dict):
            self.pin(list(value.values()))
        elif isinstance(value, list | tuple):
            for part in value:
                self.pin(part)

    def hold(self, held: Held, axis: int, ids: Ints) -> None:
        """Say that a parameter's or buffer's axis holds these units."""
        known = self.axes.setdefault((held.name, axis), ids)
        self.sets.join(known, ids)
        if not held.free:
            self.sets.pin(ids)

    def stiff(self, count: int) -> AxisUnits:
        """Return so many units of which nothing is known, and that stay."""
        return AxisUnits(self.sets.fresh(count, pinned=True), unknown(count))

    def joined(self, units: list[AxisUnits]) -> Ints:
        """Say that the units of several axes go together, and return their ids."""
        for other in units[1:]:
            self.sets.join(units[0].ids, other.ids)
        return units[0].ids


def analysed(trace: Trace, rules: Callable[[Any], Rule | None]) -> UnitAnalysis:
    """Follow all units of a trace. What no rule is known for keeps all units that reach it.

    Args:
        trace: the operators.
        rules: from an operator to its rule, None where there is none.
    """
    run = UnitAnalysis(trace)
    for node in trace.graph.nodes:
        if node.op == "output":
            run.pin(list(node.args))
        elif node.op == "call_function":
            rule = rules(node.target)
            labels = rule(run, node) if rule else None
            if labels is None or not _fits(labels, node):
                run.pin([list(node.args), list(node.kwargs.values())])
                run.pin(labels)
                labels = {}
            run.labels[node] = labels
            if _hooked(node, trace):
                run.pin([labels, list(node.args), list(node.kwargs.values())])
    if trace.hooked - {str(path) for node in trace.graph.nodes for path, _ in _stack(node)}:
        run.pin(list(run.labels.values()))  # a hook sees what no operator tells of, an Identity's input perhaps
    return run


def owned(held: Held | None) -> bool:
    """Say whether a tensor is the weight of a layer whose sizes are known to follow from it."""
    return held is not None and held.name.rpartition(".")[2] == "weight" and owned_by(held.owner)


def owned_by(module: nn.Module) -> bool:
    """Say whether a module is a layer whose sizes follow from its weight: linear, convolution, or transformers' Conv1D."""
    plain = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    return plain or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the sizes of a node's tensor; a free one by the number it was followed with."""
    value = node.meta["val"]
    return tuple(_size(size) for size in value.shape)


def free_axes(node: Any) -> list[bool]:
    """Say of each axis of a node's tensor whether its size is free."""
    return [not isinstance(size, int) for size in node.meta["val"].shape]


def is_tensor(node: Any) -> bool:
    """Say whether a node stands for one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def tensors_in(value: Any) -> Iterator[fx.Node]:
    """Yield the nodes of tensors in an operator's arguments, lists among them."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif is_tensor(value):
        yield value


def argument(node: fx.Node, place: int, default: Any = None) -> Any:
    """Return an operator's argument by its place in the schema, however it was given."""
    if place < len(node.args):
        return node.args[place]
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    if place >= len(schema):
        return default
    return node.kwargs.get(schema[place].name, default)


def operator_name(node: fx.Node) -> str:
    """Return the name of a node's operator, such as "aten::mul"; nothing for what is none of ATen's."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else ""


def regrouped(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> tuple[int, int, int] | None:
    """Return where an axis goes when a tensor is viewed in another shape: (axis, times, each), or None if it is cut up.

    Along the new axis the old one's units stand `each` times in a row, and all of that `times` times.
    """
    count, outer, inner = before[axis], prod(before[:axis]), prod(before[axis + 1 :])
    for new, size in enumerate(after):
        to_left, to_right = prod(after[:new]), prod(after[new + 1 :])
        if not to_left or not to_right or outer % to_left or inner % to_right:
            continue
        times, each = outer // to_left, inner // to_right
        if size == times * count * each and count > 1:
            return new, times, each
    return None


def _size(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _fits(labels: Labels | list[Labels], node: fx.Node) -> bool:
    if isinstance(labels, list):
        return True
    if not labels:
        return True
    if not is_tensor(node):
        return False
    shape = shape_of(node)
    return all(axis < len(shape) and len(units.ids) == shape[axis] for axis, units in labels.items())


def _hooked(node: fx.Node, trace: Trace) -> bool:
    return any(str(path) in trace.hooked for path, _ in _stack(node))


def _stack(node: fx.Node) -> list[tuple[Any, Any]]:
    return list((node.meta.get("nn_module_stack") or {}).values())
