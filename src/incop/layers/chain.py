"""The chain of a flow: which layers are its steps, and which of them are neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Self

from torch import Tensor, nn

from incop.batches import Batch
from incop.errors import InputError, unknown
from incop.layers.calls import Call, calls, module_of
from incop.layers.kinds import units_axis


class Chain(tuple[str, ...]):
    """The names of a flow's layers, in the order in which the forward pass runs them, and what belongs to them.

    Args:
        names: the layers: "fc", "fc#2" for a second run within the pass, "qkv[q]" for a part of one.
        pairs: neighbours, each (from, to); by default every layer and the next.
        units: the units of each part, a boolean (M,) over those of its layer.
        axes: the dimension of a layer's output that holds the samples, where it is not the first; None: nobody looked.
        masks: whose real tokens a layer's output has, as `batches.real_tokens` names them; "?" where its tokens are made of
            masked ones, but are not those; nothing for a layer whose tokens are none of the masked ones. None: nobody looked.
    """

    pairs: tuple[tuple[str, str], ...]
    units: Mapping[str, Tensor]
    axes: Mapping[str, int] | None
    masks: Mapping[str, str] | None

    def __new__(
        cls,
        names: Iterable[str],
        pairs: Iterable[tuple[str, str]] | None = None,
        units: Mapping[str, Tensor] | None = None,
        axes: Mapping[str, int] | None = None,
        masks: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a chain of these names."""
        made = super().__new__(cls, names)
        made.pairs = tuple(pairwise(made)) if pairs is None else tuple(pairs)
        made.units = units or {}
        made.axes = axes
        made.masks = masks
        return made

    @classmethod
    def of(cls, names: Sequence[str]) -> Chain:
        """Return a chain as it is, or that of plain names."""
        return names if isinstance(names, Chain) else Chain(names)


def chain(
    model: nn.Module,
    batch: Batch,
    *,
    given: Sequence[str | Sequence[str]] | None = None,
    forward: Callable[[Batch], Any] | None = None,
    each_sample: bool = False,
    least: int = 2,
) -> Chain:
    """Return the layers of a flow, in the order in which the forward pass runs them, and which are neighbours.

    All linear, convolution, recurrent and attention layers that run, less the projections of residual shortcuts. A layer
    that runs twice is two steps ("fc", "fc#2"); one that does not run is none; one whose output the model cuts into parts
    (a fused query, key and value) is as many. Two layers are neighbours when one feeds the other and nothing that the
    first feeds lies between: in a row of layers each and the next; query, key and value each with the layer before them and
    with the one behind, never with each other. A layer whose input cannot be traced is a neighbour of the one that ran before.

    Args:
        model: the model, in the mode in which it is to be measured.
        batch: one batch; the first two samples are enough.
        given: the chain by hand, as module names: any modules with tensor outputs, in any order, each a neighbour of the
            next. Several names in a tuple are one place of the chain.
        forward: how to run the model on a batch, when it is not by calling it.
        each_sample: refuse a layer whose output does not have one row per sample.
        least: how many layers must run, 1 or 2.
    """
    if given is not None:
        return _given(model, batch, given, forward)
    run = calls(model, batch, forward)
    shortcuts = _shortcuts(run)
    steps = [call for call in run if call.name and call.name not in shortcuts]
    if len(steps) < least:
        number, run_in = ("two", "layers that run") if least > 1 else ("one", "layer that runs within the model")
        raise InputError(
            f"a flow needs at least {number} Linear, Conv, ConvTranspose, recurrent or attention {run_in}, and "
            f"{type(model).__name__} runs {len(steps)}{f' ({steps[0].name})' if steps else ''}: name the modules to pair "
            "with chain=[…]"
        )
    units = {name: part for call in steps for name, part in call.parts.items()}
    axes = _axes(model, steps, batch.samples, strict=each_sample)
    return Chain([name for call in steps for name in (call.parts or [call.name])], _pairs(run, steps), units, axes)


def _given(
    model: nn.Module, batch: Batch, given: Sequence[str | Sequence[str]], forward: Callable[[Batch], Any] | None
) -> Chain:
    places = [(place,) if isinstance(place, str) else tuple(place) for place in given]
    names = [name for place in places for name in place]
    modules = dict(model.named_modules())
    for name in names:
        if module_of(name) not in modules:
            raise unknown("layer in the chain", name, [n for n in modules if n])
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"a chain needs at least two different layers, not {list(given)!r}")
    units: dict[str, Tensor] = {}
    if any("[" in name for name in names):
        units = {name: part for call in calls(model, batch, forward) for name, part in call.parts.items()}
        for name in names:
            if "[" in name and name not in units:
                raise unknown("part of a layer in the chain", name, units)
    pairs = [pair for a, b in pairwise(places) for pair in product(a, b)]
    return Chain(names, pairs, {name: units[name] for name in names if name in units})


def _pairs(run: list[Call], steps: list[Call]) -> list[tuple[str, str]]:
    """Return the neighbours: for every step, the last steps on each way to it."""
    above = _above(run)
    names = {name: call.name for call in steps for name in (call.parts or [call.name])}
    pairs = []
    before: list[str] = []
    for call in steps:
        own = list(call.parts or [call.name])
        feeds = [name for name in names if name in call.reads]
        last: list[str] = []
        covered: set[str] = set()
        for name in reversed(feeds):
            if names[name] not in covered:
                last.insert(0, name)
                covered |= above[names[name]]
        if not call.sources and before:  # its input was detached, or left torch
            last = before
        pairs += [(a, b) for b in own for a in last]
        before = own
    return pairs


def _axes(model: nn.Module, steps: list[Call], samples: int, *, strict: bool) -> dict[str, int]:
    """Return which dimension holds the samples, where it is not the first."""
    axes: dict[str, int] = {}
    unsure = []
    for call in steps:
        module = model.get_submodule(module_of(call.name))
        axis = sample_axis(module, call.shape, samples)
        rows = call.shape[axis] if call.shape else 0
        packed = isinstance(module, nn.RNNBase) and len(call.shape) == 2  # a PackedSequence, which knows its samples
        if strict and rows != samples and not packed:
            raise folded(call.name, rows, samples)
        if axis:
            axes.update(dict.fromkeys([call.name, *call.parts], axis))
        elif len(call.shape) > 2 and call.shape[1] == samples and units_axis(module, len(call.shape)) != 1:
            unsure.append(call.name)
    if strict and axes and (doubtful := [name for name in unsure if _batch_first(model, name) is None]):
        raise InputError(
            f"the output of layer {doubtful[0]!r} has {samples} rows both ways, and some layers of this model have their "
            "samples along the second dimension: give batches with another number of samples than tokens"
        )
    return axes


def _batch_first(model: nn.Module, name: str) -> bool | None:
    first = getattr(model.get_submodule(module_of(name)), "batch_first", None)
    return first if isinstance(first, bool) else None


def sample_axis(module: nn.Module, shape: Sequence[int], samples: int) -> int:
    """Return the dimension of a layer's output that holds the samples: the first, or the second of (tokens, samples, units).

    Recurrent modules and torch's attention say so themselves (`batch_first`); of others, only a second dimension that is as
    long as there are samples is taken for it, where the first is not.
    """
    if len(shape) < 3 or units_axis(module, len(shape)) == 1:
        return 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return 0 if module.batch_first else 1
    return int(shape[0] != samples and shape[1] == samples)


def folded(call: str, rows: int, samples: int) -> InputError:
    """An error for a layer whose output's first dimension is not the samples."""
    return InputError(
        f"layer {call!r} returned {rows} rows for {samples} samples (is another dimension folded into the batch, or "
        "the batch not the first dimension?): pass chain=[…] without it"
    )


def _above(run: list[Call]) -> dict[str, frozenset[str]]:
    """Return every call with all that it depends on, however far back."""
    above: dict[str, frozenset[str]] = {}
    for call in run:
        above[call.name] = call.sources.union(*(above.get(s, frozenset()) for s in call.sources))
    return above


def _shortcuts(run: list[Call]) -> frozenset[str]:
    """Return the calls that project a residual shortcut.

    Such a layer is alone on one side of an addition, and the other side holds the end of a longer path that
    began at the same place. A layer whose input cannot be traced to anything (the model detached it) is none.
    """
    sources = {call.name: call.sources for call in run}
    above = _above(run)
    found = set()
    for sides in {pair for call in run for pair in call.sides}:
        for alone, other in (sides, sides[::-1]):
            if len(alone) != 1:
                continue
            (s,) = alone
            if not sources.get(s):
                continue
            beside = {c for c in sources if c not in (s, "") and sources[c] == sources[s] and s not in above[c]}
            longer = (t for t in other if t != s and t in above and s not in above[t])
            if any(beside & above[t] for t in longer):
                found.add(s)
    return frozenset(found)
