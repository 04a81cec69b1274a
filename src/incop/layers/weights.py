"""Weights: which tensors of a model may be pruned, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from incop.errors import InputError, unknown
from incop.layers.kinds import EMBEDDINGS, weight_names
from incop.wrappers import refuse_sharded, unwrapped


def prunable(
    model: nn.Module, *, skip: Iterable[str | type[nn.Module]] = (), frozen: bool = False
) -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned, by parameter name, in the order the model declares them.

    These are the weights of linear, convolution and transposed-convolution modules (transformers' `Conv1D` is a linear
    one), of recurrent modules (`weight_ih_l0`, `weight_hh_l0`, …) and of torch's attention (`in_proj_weight`,
    `out_proj.weight`). Biases, normalisation, embeddings (also when a linear layer shares their weight) and frozen weights
    stay whole. A weight shared by several modules appears once, under its first name. Names are those of the model within
    `torch.compile` or `DistributedDataParallel`.

    Args:
        model: any module.
        skip: layers to leave out: a module's name, a pattern ("encoder.*"), a module class or its name, or any of
            these for a module that holds them ("encoder").
        frozen: take the weights that training leaves as they are (`requires_grad` is off) too.
    """
    refuse_sharded(model)
    model, skip = unwrapped(model), _entries(skip)
    out = left_out(model, skip)
    taken = {id(p) for m in model.modules() if isinstance(m, EMBEDDINGS) for p in m.parameters(recurse=False)}
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        for weight_name in () if name in out else weight_names(module):
            weight = _plain_weight(name, module, weight_name)
            if (frozen or weight.requires_grad) and id(weight) not in taken:
                taken.add(id(weight))
                found[f"{name}.{weight_name}" if name else weight_name] = weight
    bare = {name: weight for name, weight in _bare(model, out) if id(weight) not in taken}
    if not found:
        still = not frozen and any(weight_names(module) for module in model.modules()) and not out
        raise InputError(
            f"{type(model).__name__} has no prunable weights: incop prunes the trainable weights of Linear, Conv, "
            "ConvTranspose, recurrent and MultiheadAttention modules"
            + (f", and skip={list(skip)!r} leaves none of them" if skip else "")
            + (f"; its bare parameters ({', '.join(bare)}) belong to no such module" if bare else "")
            + ("; its weights are frozen (requires_grad is off): frozen=True prunes them" if still else "")
        )
    if sum(w.numel() for w in bare.values()) > sum(w.numel() for w in found.values()):
        most = max(bare, key=lambda name: bare[name].numel())
        raise InputError(
            f"most weights of {type(model).__name__} are bare parameters that incop would not prune, such as {most!r} of shape "
            f"{tuple(bare[most].shape)}: use nn.Linear or nn.Conv modules for them, or leave them whole with "
            f"skip=[{most.rpartition('.')[0] or most!r}]"
        )
    return found


def left_out(model: nn.Module, skip: Iterable[str | type[nn.Module]]) -> frozenset[str]:
    """Return the names of the layers (and of bare parameters) that `skip` leaves out of pruning."""
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if weight_names(module)]
    bare = [name for name, _ in _bare(model, frozenset())]
    out: set[str] = set()
    for entry in _entries(skip):
        hit = {
            name for name in (*names, *bare) if any(_matches(part, modules.get(part), entry) for part in _holders(name))
        }
        if not hit:
            raise unknown("layer to skip", entry if isinstance(entry, str) else entry.__name__, names)
        out |= hit
    return frozenset(out)


def _bare(model: nn.Module, out: frozenset[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable matrices that a module of no known kind holds itself.

    torch's own modules are known: what they hold besides layers' weights (normalisation, embeddings) stays whole.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.") or isinstance(module, EMBEDDINGS):
            continue
        known = weight_names(module)
        for own, weight in module.named_parameters(recurse=False):
            whole = f"{name}.{own}" if name else own
            matrix = sum(length > 1 for length in weight.shape) > 1
            if matrix and weight.requires_grad and own not in known and not {whole, name} & out:
                yield whole, weight


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


def _matches(name: str, module: nn.Module | None, entry: str | type[nn.Module]) -> bool:
    if isinstance(entry, type):
        return isinstance(module, entry)
    return fnmatchcase(name, entry) or (module is not None and type(module).__name__ == entry)


def _plain_weight(name: str, module: nn.Module, weight_name: str) -> nn.Parameter:
    where = f"layer {name or type(module).__name__!r}"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise InputError(f"{where} is lazy and has no weight yet: run one batch through the model first")
    weight = module._parameters.get(weight_name)
    if weight is None:
        raise InputError(
            f"{where} has no plain {weight_name} (a parametrization, weight norm or torch.nn.utils.prune stands in its "
            "place): remove it first (torch.nn.utils.parametrize.remove_parametrizations or "
            "torch.nn.utils.prune.remove), or leave the layer out with skip"
        )
    if weight.is_meta:
        raise InputError(
            f"{where} is on the meta device, where weights have no values: move the model to a device with "
            "model.to_empty(device=…) and load its weights first"
        )
    return weight
