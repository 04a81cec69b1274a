"""Which tensors can be pruned, in which order the forward pass runs the layers, and which are neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from incop import batches as batches_room
from incop.batches import Batch
from incop.errors import InputError, unknown
from incop.wrappers import unwrapped

__all__ = ["LAYERS", "Call", "calls", "chain", "left_out", "module_of", "prunable"]

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def prunable(
    model: nn.Module, *, skip: Iterable[str | type[nn.Module]] = (), frozen: bool = False
) -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned, by parameter name, in the order the model declares them.

    These are the weights of linear, convolution and transposed-convolution modules. Biases, normalisation,
    embeddings (also when a linear layer shares their weight) and frozen weights stay whole. A weight shared
    by several modules appears once, under its first name. Names are those of the model within `torch.compile` or
    `DistributedDataParallel`.

    Args:
        model: any module.
        skip: layers to leave out: a module's name, a pattern ("encoder.*"), a module class or its name, or any of
            these for a module that holds them ("encoder").
        frozen: take the weights that training leaves as they are (`requires_grad` is off) too.

    Raises:
        InputError: a weight cannot be pruned in place (a parametrization, `torch.nn.utils.prune`, a lazy
            module that has not run, the meta device), an entry of `skip` matches nothing, or nothing prunable is left.

    Example:
        >>> from torch import nn
        >>> from incop.layers import prunable
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(prunable(net)), list(prunable(net, skip=["2"]))
        (['0.weight', '2.weight'], ['0.weight'])
    """
    model, skip = unwrapped(model), _entries(skip)
    out = left_out(model, skip)
    taken = {id(p) for m in model.modules() if isinstance(m, EMBEDDINGS) for p in m.parameters(recurse=False)}
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LAYERS) or name in out:
            continue
        weight = _plain_weight(name, module)
        if (frozen or weight.requires_grad) and id(weight) not in taken:
            taken.add(id(weight))
            found[f"{name}.weight" if name else "weight"] = weight
    if not found:
        still = not frozen and any(isinstance(m, LAYERS) for m in model.modules()) and not out
        raise InputError(
            f"{type(model).__name__} has no prunable weights: incop prunes the trainable weights of Linear, Conv and "
            "ConvTranspose modules"
            + (f", and skip={list(skip)!r} leaves none of them" if out else "")
            + ("; its weights are frozen (requires_grad is off): frozen=True prunes them" if still else "")
        )
    return found


def left_out(model: nn.Module, skip: Iterable[str | type[nn.Module]]) -> frozenset[str]:
    """Return the names of the layers that `skip` leaves out of pruning.

    Raises:
        InputError: an entry matches no module of the model.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, LAYERS)]
    out: set[str] = set()
    for entry in _entries(skip):
        hit = {name for name in names if any(_matches(part, modules[part], entry) for part in _holders(name))}
        if not hit:
            raise unknown("layer to skip", entry if isinstance(entry, str) else entry.__name__, names)
        out |= hit
    return frozenset(out)


def _entries(skip: Any) -> tuple[str | type[nn.Module], ...]:
    entries = (skip,) if isinstance(skip, str | type) else tuple(skip)
    for entry in entries:
        if not isinstance(entry, str | type):
            raise InputError(f"skip holds {entry!r}: give names, patterns or classes of modules")
    return entries


def _holders(name: str) -> list[str]:
    """Return a module's name and those of the modules that hold it, but the model: "a.b" → ["a", "a.b"]."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _matches(name: str, module: nn.Module, entry: str | type[nn.Module]) -> bool:
    if isinstance(entry, type):
        return isinstance(module, entry)
    return fnmatchcase(name, entry) or type(module).__name__ == entry


def _plain_weight(name: str, module: nn.Module) -> nn.Parameter:
    where = f"layer {name or type(module).__name__!r}"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise InputError(f"{where} is lazy and has no weight yet: run one batch through the model first")
    weight = module._parameters.get("weight")
    if weight is None:
        raise InputError(
            f"{where} has no plain weight (a parametrization, weight norm or torch.nn.utils.prune stands in its "
            "place): remove it first (torch.nn.utils.parametrize.remove_parametrizations or "
            "torch.nn.utils.prune.remove), or leave the layer out with skip"
        )
    if weight.is_meta:
        raise InputError(
            f"{where} is on the meta device, where weights have no values: move the model to a device with "
            "model.to_empty(device=…) and load its weights first"
        )
    return weight


@dataclass(eq=False)
class Call:
    """One run of one layer within a forward pass.

    Args:
        name: the module's name; "fc#2" for its second run within the pass.
        sources: names of the calls, of the embeddings and of the model's inputs ("<0>", "<1>", …) that reach its
            input without passing another layer.
        rows: length of its output's first dimension, which should be the samples.
        sides: for every addition on the way to its input, the sources that reach each summand.
    """

    name: str
    sources: frozenset[str]
    rows: int = 0
    sides: tuple[tuple[frozenset[str], ...], ...] = field(default=(), repr=False)


def module_of(call: str) -> str:
    """Return the module's name of a call: "fc#2" is a run of "fc"."""
    return call.partition("#")[0]


def chain(
    model: nn.Module,
    batch: Batch,
    *,
    given: Sequence[str] | None = None,
    forward: Callable[[Batch], Any] | None = None,
    each_sample: bool = False,
) -> tuple[str, ...]:
    """Return the layers whose neighbours a flow pairs, in the order in which the forward pass runs them.

    All linear and convolution layers that run, less the projections of residual shortcuts. A layer that
    runs twice is two steps ("fc", "fc#2"); one that does not run is none.

    Args:
        model: the model, in the mode in which it is to be measured.
        batch: one batch; the first two samples are enough.
        given: the chain by hand, as module names: any modules with tensor outputs, in any order.
        forward: how to run the model on a batch, when it is not by calling it.
        each_sample: refuse a layer whose output does not have one row per sample.

    Raises:
        InputError: fewer than two layers run, a given name is no module of the model, or the rows of a layer's
            output are not the samples.
    """
    if given is not None:
        modules = dict(model.named_modules())
        for name in given:
            if module_of(name) not in modules:
                raise unknown("layer in the chain", name, [n for n in modules if n])
        if len(given) < 2 or len(set(given)) < len(given):
            raise InputError(f"a chain needs at least two different layers, not {list(given)!r}")
        return tuple(given)
    run = calls(model, batch, forward)
    shortcuts = _shortcuts(run)
    steps = tuple(call.name for call in run if call.name and call.name not in shortcuts)
    if len(steps) < 2:
        raise InputError(
            f"a flow needs at least two Linear, Conv or ConvTranspose layers that run, and {type(model).__name__} runs "
            f"{len(steps)}{f' ({steps[0]})' if steps else ''}: name the modules to pair with chain=[…]"
        )
    if each_sample:
        for call in run:
            if call.name in steps and call.rows != batch.samples:
                raise folded(call.name, call.rows, batch.samples)
    return steps


def folded(call: str, rows: int, samples: int) -> InputError:
    """An error for a layer whose output's first dimension is not the samples."""
    return InputError(
        f"layer {call!r} returned {rows} rows for {samples} samples (is another dimension folded into the batch, or "
        "the batch not the first dimension?): pass chain=[…] without it"
    )


def calls(model: nn.Module, batch: Batch, forward: Callable[[Batch], Any] | None = None) -> list[Call]:
    """Run the model on a batch and return the layers that ran, with where their inputs came from; "" is its output.

    Each layer's output is cut from the graph and marked, so walking back from a layer's input ends at the
    outputs that feed it: what feeds what is read off autograd's graph, not guessed from names. Parts that the
    model runs under `no_grad` are read too; what it detaches is not followed.

    Raises:
        InputError: the model uses reentrant gradient checkpointing, which hides its layers from autograd.
    """
    run: list[Call] = []
    owners: dict[int, str] = {}
    kept: list[Any] = []  # marked outputs and inputs, alive until the graph has been read: ids must not be reused
    counts: dict[str, int] = {}

    def marked(t: Tensor, owner: str) -> Tensor:
        if not t.is_floating_point():
            return t
        leaf = t.detach().requires_grad_()
        owners[id(leaf)] = owner
        kept.append(leaf)
        return leaf.clone()  # a leaf itself could not be changed in place by a following ReLU(inplace=True)

    def hook(name: str) -> Any:
        def mark(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not isinstance(module, LAYERS):
                return batches_room.mapped(output, lambda t: marked(t, f"<{name}>"))
            counts[name] = counts.get(name, 0) + 1
            call = name if counts[name] == 1 else f"{name}#{counts[name]}"
            kept.append((args, kwargs))
            sources, sides = _origins(batches_room.walk((args, kwargs)), owners)
            first = next(batches_room.walk(output), None)
            run.append(Call(call, sources, 0 if first is None or not first.dim() else first.shape[0], sides))
            return batches_room.mapped(output, lambda t: marked(t, call))

        return mark

    def mark_input(t: Tensor) -> Tensor:
        return marked(t, f"<{len(kept)}>")

    batch = replace(
        batch,
        args=batches_room.mapped(batch.args, mark_input),
        kwargs=batches_room.mapped(dict(batch.kwargs), mark_input),
    )
    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS + EMBEDDINGS)
    ]
    try:
        with warnings.catch_warnings(), torch.enable_grad(), _GradientsStayOn():
            warnings.simplefilter("ignore")  # autograd warns of what the user's own forward pass may do without it
            output = forward(batch) if forward else batches_room.call(model, batch)
        sources, sides = _origins(batches_room.walk(output), owners)
        run.append(Call("", sources, 0, sides))
    finally:
        for handle in handles:
            handle.remove()
    return run


class _GradientsStayOn(TorchFunctionMode):
    """While this is entered, a model's own `no_grad` does nothing: what it runs in there can be followed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is getattr(torch._C, "_set_grad_enabled", None):
            return None
        return func(*args, **(kwargs or {}))


def _origins(
    tensors: Iterable[Tensor], owners: dict[int, str]
) -> tuple[frozenset[str], tuple[tuple[frozenset[str], ...], ...]]:
    roots = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen: dict[Any, frozenset[str]] = {}
    sides: list[tuple[frozenset[str], ...]] = []
    stack: list[Any] = list(roots)
    while stack:  # depth first without recursion: an identity path may be thousands of nodes long
        node = stack[-1]
        if node in seen:
            stack.pop()
            continue
        below = [n for n, _ in node.next_functions if n is not None]
        if waiting := [n for n in below if n not in seen]:
            stack.extend(waiting)
            continue
        stack.pop()
        if "CheckpointFunction" in type(node).__name__:
            raise reentrant()
        owner = owners.get(id(node.variable)) if hasattr(node, "variable") else None
        seen[node] = frozenset([owner]) if owner else frozenset().union(*(seen[n] for n in below))
        if type(node).__name__.startswith("AddBackward") and len(below) == 2:
            sides.append((seen[below[0]], seen[below[1]]))
    return frozenset().union(*(seen[r] for r in roots)), tuple(sides)


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


def _shortcuts(run: list[Call]) -> frozenset[str]:
    """Return the calls that project a residual shortcut.

    Such a layer is alone on one side of an addition, and the other side holds the end of a longer path that
    began at the same place. A layer whose input cannot be traced to anything (the model detached it) is none.
    """
    sources = {call.name: call.sources for call in run}
    above: dict[str, frozenset[str]] = {}
    for call in run:
        above[call.name] = call.sources.union(*(above.get(s, frozenset()) for s in call.sources))
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
