"""Tracing: a forward pass as the list of its operators, with what it reads of the model by name."""

from __future__ import annotations

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from incop.batches import Batch, first_samples, mapped, walk
from incop.errors import InputError
from incop.export.exporters import DEPENDS_ON_VALUES, depends_on_values, quiet

SAMPLES = 3  # enough that one sample does not pass for all; a prime that is seldom a width


@dataclass
class Held:
    """A parameter or buffer that the forward pass reads.

    Args:
        name: under which the state dict has it.
        value: in float64.
        owner: the module that holds it.
        free: whether it may get another shape: read once, in the state dict, and not under a second name.
    """

    name: str
    value: Tensor
    owner: nn.Module
    free: bool


@dataclass
class Trace:
    """The operators of a forward pass, in order and without side effects.

    Args:
        graph: in ATen's operators.
        held: what of the model the graph's placeholders stand for; inputs are not in it.
        hooked: modules with hooks of the user's own, as the graph's nodes name them.
    """

    graph: fx.Graph
    held: Mapping[fx.Node, Held]
    hooked: frozenset[str]


INSIDE = "model."


class Answering(nn.Module):
    """A copy of a model that answers with what a function makes of its answers, under the model's own signature."""

    def __init__(self, model: nn.Module, of: Callable[[Any], Any]) -> None:
        super().__init__()
        own = self.model = copy.deepcopy(model)  # tracing leaves its tensors where the forward pass sets attributes

        @functools.wraps(own.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return of(own(*args, **kwargs))

        self.forward = forward


def traced(model: nn.Module, batch: Batch) -> Trace:
    """Follow one forward pass of a model in evaluation mode."""
    try:
        with quiet():
            program = exported(Answering(model, lambda found: tuple(walk(found))), batch).run_decompositions({})
    except Exception as error:
        why, at = _where(error)
        if depends_on_values(error):
            raise InputError(f"{type(model).__name__} cannot be followed{at}: {DEPENDS_ON_VALUES}") from error
        raise InputError(
            f"{type(model).__name__} cannot be followed ({why}{at}): a compacted form is made from the list of its "
            "operators, which must be the same for all inputs"
        ) from error
    names = _names(model)
    held = {}
    specs = program.graph_signature.input_specs
    for node, spec in zip((n for n in program.graph.nodes if n.op == "placeholder"), specs, strict=True):
        name = (spec.target or "").removeprefix(INSIDE)
        if name not in names:
            continue
        tensor = names[name]
        free = len(node.users) == 1 and spec.persistent is not False and name in model.state_dict()
        owner = model.get_submodule(name.rpartition(".")[0])
        held[node] = Held(name, tensor.detach().double(), owner, free and not _shared(tensor, names))
    hooks = ((name, module._forward_hooks or module._forward_pre_hooks) for name, module in model.named_modules())
    hooked = frozenset(f"{INSIDE}{name}".rstrip(".") for name, some in hooks if some)
    return Trace(program.graph, held, hooked)


def exported(model: nn.Module, batch: Batch, samples: int = SAMPLES) -> Any:
    """Return the program that torch.export makes of a model, its first dimension free where the model leaves it so."""
    few = several(batch, samples)
    shapes: Any = torch.export.ShapesCollection()
    for tensor in walk((few.args, few.kwargs)):
        if tensor.dim() and tensor.shape[0] == few.samples:
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    with torch.enable_grad():  # else torch's transformer layers take a way of their own, in one operator
        return torch.export.export(model, few.args, dict(few.kwargs), dynamic_shapes=shapes, strict=False)


def several(batch: Batch, samples: int) -> Batch:
    """Return a batch of at most so many samples and at least two, each tensor an object of its own."""
    few = first_samples(batch, samples)

    def own(t: Tensor) -> Tensor:
        double = few.samples == 1 and t.dim() and t.shape[0] == 1
        return torch.cat([t, t]) if double else t.clone()

    args, kwargs = mapped(few.args, own), mapped(dict(few.kwargs), own)
    return Batch(args, kwargs, None, max(few.samples, 2))


def _names(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _shared(tensor: Tensor, names: Mapping[str, Tensor]) -> bool:
    storage = tensor.untyped_storage().data_ptr()
    return sum(other.untyped_storage().data_ptr() == storage for other in names.values()) > 1


def _where(error: Exception) -> tuple[str, str]:
    """Return an error's first line, and the line of the user's code that it came from, if it is known."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    own = Path(inspect.getfile(torch)).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if own not in Path(f.filename).parents]
    frames = [f for f in frames if Path(f.filename) != Path(__file__)]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}, `{frames[-1].line}`" if frames else ""
    return lines[0], at
