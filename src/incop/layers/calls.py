"""Calls: one forward pass, and which layer's output reaches which layer's input, read off autograd's graph."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from incop import batches as batches_room
from incop.batches import Batch
from incop.errors import InputError
from incop.layers.hooks import Hooks
from incop.layers.kinds import EMBEDDINGS, is_layer, units_axis

Edge = tuple[Any, int]  # a node of autograd's graph and the number of its output

# Nodes that only rearrange a tensor, and nodes that take a part of it. What a part holds is asked of the node itself.
REARRANGE = (
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Permute",
    "Transpose",
    "T",
    "Unsqueeze",
    "Squeeze",
    "Clone",
    "Alias",
)
TAKE_PART = ("Split", "SplitWithSizes", "Unbind", "Slice", "Select")


@dataclass(eq=False)
class Call:
    """One run of one layer within a forward pass.

    Args:
        name: the module's name; "fc#2" for its second run within the pass.
        sources: names of the calls, of the embeddings and of the model's inputs ("<0>", "<1>", …) that reach its
            input without passing another layer.
        shape: of its output.
        sides: for every addition on the way to its input, the sources that reach each summand.
        parts: where the model cuts its output into parts (a fused query, key and value), the units of each part, a
            boolean (M,) by the part's name ("qkv[q]"); empty where it does not.
        reads: its sources, with parts in place of the layers that have them.
    """

    name: str
    sources: frozenset[str]
    shape: tuple[int, ...] = ()
    sides: tuple[tuple[frozenset[str], ...], ...] = field(default=(), repr=False)
    parts: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    reads: frozenset[str] = field(default=frozenset(), repr=False)


class CallNames:
    """The names of the calls of one forward pass: "fc" for a module's first, "fc#2" for its second. `module_of` is the way back."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def of(self, module: str) -> str:
        """Return the name of a module's next call."""
        self._calls[module] += 1
        return module if self._calls[module] == 1 else f"{module}#{self._calls[module]}"


def module_of(call: str) -> str:
    """Return the module's name of a call or of a part: "fc#2" is a run of "fc", "qkv[q]" a part of "qkv"."""
    return call.partition("[")[0].partition("#")[0]


def calls(model: nn.Module, batch: Batch, forward: Callable[[Batch], Any] | None = None) -> list[Call]:
    """Run the model on a batch and return the layers that ran, with where their inputs came from; "" is its output.

    Each layer's output is cut from the graph and marked, so walking back from a layer's input ends at the
    outputs that feed it: what feeds what is read off autograd's graph, not guessed from names. Parts that the
    model runs under `no_grad` are read too; what it detaches is not followed.
    """
    run: list[Call] = []
    walks: list[_Walk] = []
    marks: dict[str, Tensor] = {}  # the first output of every call
    owners: dict[int, str] = {}
    kept: list[Any] = []  # marked outputs and inputs, alive until the graph has been read: ids must not be reused
    names = CallNames()

    def marked(t: Tensor, owner: str) -> Tensor:
        if not t.is_floating_point():
            return t
        leaf = t.detach().requires_grad_()
        owners[id(leaf)] = owner
        marks.setdefault(owner, leaf)
        kept.append(leaf)
        return leaf.clone()  # a leaf itself could not be changed in place by a following ReLU(inplace=True)

    def hook(name: str) -> Any:
        def mark(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not is_layer(module):
                return batches_room.mapped(output, lambda t: marked(t, f"<{name}>"))
            call = names.of(name)
            kept.append((args, kwargs))
            walks.append(walk := _Walk(batches_room.walk((args, kwargs)), owners))
            first = next(batches_room.walk(output), None)
            run.append(Call(call, walk.sources, () if first is None else tuple(first.shape), walk.sides))
            return batches_room.mapped(output, lambda t: marked(t, call))

        return mark

    def mark_input(t: Tensor) -> Tensor:
        return marked(t, f"<{len(kept)}>")

    batch = replace(
        batch,
        args=batches_room.mapped(batch.args, mark_input),
        kwargs=batches_room.mapped(dict(batch.kwargs), mark_input),
    )
    with Hooks() as hooks, warnings.catch_warnings(), torch.enable_grad(), _GradientsStayOn():
        for name, module in model.named_modules():
            if is_layer(module) or isinstance(module, EMBEDDINGS):
                hooks.after(module, hook(name), with_kwargs=True)
        warnings.simplefilter("ignore")  # autograd warns of what the user's own forward pass may do without it
        output = forward(batch) if forward else batches_room.call(model, batch)
    walks.append(walk := _Walk(batches_room.walk(output), owners))
    run.append(Call("", walk.sources, (), walk.sides))
    _find_parts(model, run, walks, marks)
    return run


class _GradientsStayOn(TorchFunctionMode):
    """While this is entered, a model's own `no_grad` does nothing: what it runs in there can be followed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is getattr(torch._C, "_set_grad_enabled", None):
            return None
        return func(*args, **(kwargs or {}))


class _Walk:
    """The way back from some tensors to the marked outputs that feed them.

    Args:
        tensors: where it begins.
        owners: names of the marked outputs, by id.
    """

    def __init__(self, tensors: Iterable[Tensor], owners: Mapping[int, str]) -> None:
        self._owners = owners
        self._seen: dict[Any, frozenset[str]] = {}
        self._plain: dict[Any, str] = {}  # nodes that only rearrange one marked output, and whose it is
        self._part: dict[Any, str] = {}  # nodes that take a part of one
        self._sides: list[tuple[frozenset[str], ...]] = []
        self.taken: dict[str, set[Edge | None]] = {}  # parts of a marked output on the way; None: all of it
        roots = [(t.grad_fn, t.output_nr) for t in tensors if t.grad_fn is not None]
        stack: list[Any] = [node for node, _ in roots]
        while stack:  # depth first without recursion: an identity path may be thousands of nodes long
            node = stack[-1]
            if node in self._seen:
                stack.pop()
                continue
            below = [n for n, _ in node.next_functions if n is not None]
            if waiting := [n for n in below if n not in self._seen]:
                stack.extend(waiting)
                continue
            stack.pop()
            self._arrive(node, below)
        for edge in roots:
            self._take(edge)
        self.sources = frozenset().union(*(self._seen[node] for node, _ in roots))
        self.sides = tuple(self._sides)

    def _arrive(self, node: Any, below: list[Any]) -> None:
        kind = type(node).__name__
        if "CheckpointFunction" in kind:
            raise reentrant()
        owner = self._owners.get(id(node.variable)) if hasattr(node, "variable") else None
        self._seen[node] = frozenset([owner]) if owner else frozenset().union(*(self._seen[n] for n in below))
        if kind.startswith("AddBackward") and len(below) == 2:
            self._sides.append((self._seen[below[0]], self._seen[below[1]]))
        operation = kind.partition("Backward")[0]
        beneath = self._plain.get(below[0]) if len(below) == 1 else None
        if owner:
            self._plain[node] = owner
        elif beneath and operation in REARRANGE:
            self._plain[node] = beneath
        elif beneath and operation in TAKE_PART:
            self._part[node] = beneath
        else:
            for edge in node.next_functions:
                self._take(edge)

    def _take(self, edge: Edge) -> None:
        node, _ = edge
        if node in self._part:
            self.taken.setdefault(self._part[node], set()).add(edge)
        elif node in self._plain:
            self.taken.setdefault(self._plain[node], set()).add(None)


def _find_parts(model: nn.Module, run: list[Call], walks: list[_Walk], marks: Mapping[str, Tensor]) -> None:
    """Note which layers' outputs the model cuts into parts, and which parts each layer reads."""
    names: dict[Edge, str] = {}
    split: dict[str, frozenset[str]] = {}
    for call in run[:-1]:
        edges = set().union(*(walk.taken.get(call.name, set()) for walk in walks))
        parts = _parts(model.get_submodule(module_of(call.name)), marks.get(call.name), edges)
        if not parts:
            continue
        ordered = sorted(parts, key=lambda edge: int(parts[edge].int().argmax()))
        attention = len(parts) == 3 and any(word in call.name.lower() for word in ("att", "qkv", "query_key_value"))
        labels = "qkv" if attention else [str(i) for i in range(len(parts))]
        for edge, label in zip(ordered, labels, strict=True):
            names[edge] = f"{call.name}[{label}]"
        call.parts = {names[edge]: parts[edge] for edge in ordered}
        split[call.name] = frozenset(call.parts)
    for call, walk in zip(run, walks, strict=True):
        edges = {edge for edges in walk.taken.values() for edge in edges}
        read = frozenset(names[edge] for edge in edges if edge in names)
        call.reads = frozenset(s for s in call.sources if s not in split) | read


def _parts(module: nn.Module, output: Tensor | None, edges: set[Any]) -> dict[Edge, Tensor]:
    """Return the units of every part of an output, (M,) booleans, when the parts are whole units and make up the whole."""
    if output is None or None in edges or len(edges) < 2:
        return {}
    found: dict[Edge, Tensor] = {}
    axis = units_axis(module, output.dim())
    try:
        for node, number in edges:
            touched_nM = _touched(node, number).movedim(axis, -1).flatten(0, -2) != 0
            if touched_nM.shape[-1] != output.shape[axis] or not bool((touched_nM.any(0) == touched_nM.all(0)).all()):
                return {}  # it takes some samples or some tokens, not some units
            found[node, number] = touched_nM.any(0)
    except (AttributeError, IndexError, RuntimeError, TypeError):  # a node that cannot be asked
        return {}
    return found if bool((torch.stack(list(found.values())).sum(0) == 1).all()) else {}


@torch.no_grad()
def _touched(node: Any, number: int) -> Tensor:
    """Return which numbers of a marked output one output of a node holds: their gradient is not 0."""
    gradients = [
        torch.full(part.shape, float(i == number), dtype=part.dtype, device=part.device)
        for i, part in enumerate(node._input_metadata)
    ]
    while True:
        answer = node(*gradients)
        found: Tensor = answer[0] if isinstance(answer, tuple) else answer
        node = node.next_functions[0][0]
        if hasattr(node, "variable"):
            return found
        gradients = [found]


def reentrant() -> InputError:
    """An error for a model with reentrant gradient checkpointing, which hides its layers from autograd."""
    return InputError(
        "the model uses gradient checkpointing with use_reentrant=True, which hides its layers and their gradients: "
        "use use_reentrant=False"
    )


def hides_layers(output: Tensor) -> bool:
    """Say whether a tensor was computed through reentrant gradient checkpointing."""
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if "CheckpointFunction" in type(node).__name__:
            return True
        seen.add(node)
        stack.extend(below for below, _ in node.next_functions)
    return False
