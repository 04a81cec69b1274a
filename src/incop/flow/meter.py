"""What every meter offers, and `measure`, which runs one on a model and leaves no trace."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from incop import batches as batches_room
from incop import layers, observing
from incop.batches import Batch
from incop.errors import IncopError, InputError
from incop.flow.taps import Paths
from incop.records import Flow
from incop.wrappers import as_written, unwrapped

__all__ = ["Meter", "State", "by_hand", "forward", "measure", "placed_batches", "trace"]


class State(Protocol):
    """Statistics of part of a probe; parts measured apart can be merged."""

    @property
    def samples(self) -> int:
        """Number of samples seen."""

    def merge(self, other: Any) -> Any:
        """Return the statistics of both parts together."""


class Meter(Protocol):
    """Measures one kind of flow. To add one: collect statistics of a probe, and turn them into named floats."""

    def chain(self, model: nn.Module, batch: Batch) -> tuple[str, ...]:
        """Return the layers it measures, in order."""

    def collect(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        chain: tuple[str, ...],
        masks: Mapping[str, Tensor] | None,
    ) -> Any:
        """Run the model once over the batches and return their statistics, a `State`."""

    def flow(self, statistics: Any) -> dict[str, float]:
        """Turn statistics into named floats."""


def measure(model: nn.Module, batches: Any, meter: Meter, *, masks: Mapping[str, Tensor] | None = None) -> Flow:
    """Measure the flow of a model on a probe. The model is left as it was found, also when it throws.

    The model runs in evaluation mode: dropout is off and batch normalisation uses its running statistics,
    so the flow does not depend on how the probe is cut into batches.

    Args:
        model: any module; half-precision weights are measured through float32 copies, a compiled model as it was written.
        batches: the probe: a data loader, a list of batches, or one batch; see `incop.batches.unpack` for the
            forms a batch may have. Draw it from the training split.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`.
        masks: which weights are left (True), for meters of weights; names as in `model.named_parameters()`.

    Returns:
        The flow: `.values` {name: float} in the order of the forward pass, `.samples`, `.seconds`.

    Raises:
        InputError: the model has no two layers to measure, takes other paths for other inputs or cannot be run on
            the probe, or the probe is empty or has an unusable form.
        TrainingError: the flow is not finite, for instance after a diverged training.

    Example:
        >>> import torch
        >>> import incop
        >>> from incop import flow
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> found = incop.measure(net, torch.randn(64, 4), flow.InformationFlow(reduction="square"))
        >>> list(found.values), found.samples
        (['0->2'], 64)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}, not a torch.nn.Module: pass the module itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a ScriptModule, which hides its layers: pass the module it was made of")
    model, started = unwrapped(model), time.perf_counter()
    with torch.inference_mode(False), observing.undisturbed(model), Paths(model) as paths:
        source = placed_batches(model, batches)
        first = next(source, None)
        if first is None:
            raise InputError("the probe is empty: pass at least one batch")
        chain = meter.chain(model, first)
        statistics = meter.collect(model, paths.same(itertools.chain([first], source)), chain, masks)
    if statistics.samples < 2:
        raise InputError("a flow needs a probe of at least 2 samples; some hundreds make it steady")
    values = meter.flow(statistics)
    return Flow(values, meter=str(meter), samples=statistics.samples, seconds=time.perf_counter() - started)


def placed_batches(model: nn.Module, batches: Any) -> Iterator[Batch]:
    """Yield the probe's batches, unpacked, on the model's device, floating inputs in a half model's float32."""
    device = observing.device_of(model)
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if observing.half_precision(model) else floating
    for batch in batches_room.reusable(batches):
        yield batches_room.placed(batches_room.unpack(batch), device=device, dtype=dtype)


def by_hand(chain: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a chain given by hand, or None for the one that is found.

    Raises:
        InputError: it is one string instead of several.
    """
    if isinstance(chain, str):
        raise InputError(f"chain={chain!r} is one name: give the layers as a list, chain=[{chain!r}, …]")
    return None if chain is None else tuple(chain)


def forward(
    model: nn.Module,
    batch: Batch,
    weights: Mapping[str, Tensor] | None = None,
    then: Callable[[Any], Any] | None = None,
) -> Any:
    """Call the model, in float32 when its weights are of half precision.

    Args:
        model: the model.
        batch: what it is called with.
        weights: parameters to put in place of its own, by name.
        then: what to return of the output instead of itself; called while `weights` are still in place.

    Raises:
        InputError: the model throws on this batch.
    """
    try:
        return _run(model, batch, weights, then)
    except (IncopError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be run on a batch of the probe, {_shapes(batch)} ({_said(error)}): give "
            "batches as the model is called with them, see incop.batches.unpack"
        ) from error


def _run(
    model: nn.Module,
    batch: Batch,
    weights: Mapping[str, Tensor] | None = None,
    then: Callable[[Any], Any] | None = None,
) -> Any:
    with as_written():
        if weights or then or observing.half_precision(model):
            return observing.full_precision(model, batch, weights, then=then)
        return batches_room.call(model, batch)


def _shapes(batch: Batch) -> str:
    shapes = [str(tuple(t.shape)) for t in batches_room.walk((batch.args, batch.kwargs))]
    return f"input{'s' if len(shapes) > 1 else ''} of shape {', '.join(shapes)}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")


def trace(
    model: nn.Module, batch: Batch, given: tuple[str, ...] | None, *, each_sample: bool = False
) -> tuple[str, ...]:
    """Return the chain of a model, found on the batch's first two samples (on all when two do not do).

    Raises:
        InputError: the model cannot be run, or its layers and their order cannot be found; see `layers.chain`.
    """

    def run(part: Batch) -> Any:
        return _run(model, part)

    small = batches_room.first_samples(batch, 2)
    for part in (small,) if small is batch else (small, batch):  # a model may insist on its batch size
        try:
            return layers.chain(model, part, given=given, forward=run, each_sample=each_sample)
        except (IncopError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            failed = error
    with torch.no_grad():
        forward(model, batch)  # when the model itself is at fault, this says so
    raise InputError(
        f"the order of the layers cannot be read off {type(model).__name__}, whose forward pass runs alone but not "
        f"under autograd ({_said(failed)}): name the layers with chain=[…]"
    ) from failed
