"""What every meter offers, and `measure`, which runs one on a model and leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from incop import batches as batches_room
from incop import layers, observing
from incop.batches import Batch
from incop.errors import InputError
from incop.records import Flow

__all__ = ["Meter", "State", "forward", "measure", "placed_batches"]


class State(Protocol):
    """Statistics of part of a probe; parts measured apart can be merged."""

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
        """Run the model over the batches and return their statistics, which have `merge` and `samples`."""

    def flow(self, statistics: Any) -> dict[str, float]:
        """Turn statistics into named floats."""


def measure(model: nn.Module, batches: Any, meter: Meter, *, masks: Mapping[str, Tensor] | None = None) -> Flow:
    """Measure the flow of a model on a probe. The model is left as it was found, also when it throws.

    The model runs in evaluation mode: dropout is off and batch normalisation uses its running statistics,
    so the flow does not depend on how the probe is cut into batches.

    Args:
        model: any module; half-precision weights are measured through float32 copies.
        batches: the probe: a data loader, a list of batches, or one batch; see `incop.batches.unpack` for the
            forms a batch may have. Draw it from the training split.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`.
        masks: which weights are left (True), for meters of weights; names as in `model.named_parameters()`.

    Returns:
        The flow: `.values` {name: float} in the order of the forward pass, `.samples`, `.seconds`.

    Raises:
        InputError: the model has no two layers to measure, the probe is empty or has an unusable form.
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
    started = time.perf_counter()
    with observing.undisturbed(model):
        source = placed_batches(model, batches)
        first = next(source, None)
        if first is None:
            raise InputError("the probe is empty: pass at least one batch")
        chain = meter.chain(model, first)
        statistics = meter.collect(model, _with_first(first, source), chain, masks)
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


def _with_first(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest


def forward(model: nn.Module, batch: Batch) -> Any:
    """Call the model, in float32 when its weights are of half precision."""
    if observing.half_precision(model):
        return observing.full_precision(model, batch)
    return batches_room.call(model, batch)


def trace(model: nn.Module, batch: Batch, given: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the chain of a model, found on the batch's first two samples (on all when two do not do)."""

    def run(part: Batch) -> Any:
        return forward(model, part)

    small = batches_room.first_samples(batch, 2)
    try:
        return layers.chain(model, small, given=given, forward=run)
    except InputError:
        raise
    except Exception:  # a model may insist on its batch size; the whole batch then says what is wrong, if anything
        if small is batch:
            raise
        return layers.chain(model, batch, given=given, forward=run)
