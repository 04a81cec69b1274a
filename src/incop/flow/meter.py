"""What every meter offers, and `measure`, which runs one on a model and leaves no trace."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from incop import batches as batches_room
from incop import inspection, layers
from incop.batches import Batch
from incop.distributed import ALONE, Ranks, divides_itself
from incop.distributed import of as ranks_of
from incop.errors import IncopError, InputError
from incop.flow.taps import Paths, lengths
from incop.layers import Chain
from incop.records import Flow
from incop.wrappers import as_written, refuse_sharded, unwrapped


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


def measure(
    model: nn.Module,
    batches: Any,
    meter: Meter,
    *,
    masks: Mapping[str, Tensor] | None = None,
    together: bool = False,
) -> Flow:
    """Measure the flow of a model on a probe. The model is left as it was found, also when it throws.

    The model runs in evaluation mode: dropout is off and batch normalisation uses its running statistics,
    so the flow does not depend on how the probe is cut into batches.

    Args:
        model: any module; half-precision weights are measured through float32 copies, a compiled model as it was written.
        batches: the probe: a data loader, a list of batches, or one batch; see `incop.batches.unpack` for the
            forms a batch may have. Draw it from the training split.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`.
        masks: which weights are left (True), for meters of weights; names as in `model.named_parameters()`.
        together: of a `DistributedDataParallel` model: divide the probe among the processes that train it and merge what they
            find. All of them must then call this, with the same probe; by default each measures by itself.

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
    refuse_sharded(model)
    ranks = ranks_of(model) if together else ALONE
    model, started = unwrapped(model), time.perf_counter()
    with torch.inference_mode(False), inspection.undisturbed(model), plain_attention(model):
        statistics = ranks.together(lambda: _collected(model, batches, meter, masks, ranks))
    if not ranks.one:
        statistics = _merged(statistics, ranks)
    if statistics.samples < 2:
        raise InputError("a flow needs a probe of at least 2 samples; some hundreds make it steady")
    values = meter.flow(statistics)
    return Flow(values, meter=str(meter), samples=statistics.samples, seconds=time.perf_counter() - started)


def _collected(model: nn.Module, batches: Any, meter: Meter, masks: Mapping[str, Tensor] | None, ranks: Ranks) -> Any:
    """Return this process's statistics; those of no sample where its share of the probe is none."""
    if not ranks.one:
        torch.manual_seed(0)  # of a loader that shuffles, each process must see one order
    source = placed_batches(model, batches)
    first = next(source, None)
    if first is None:
        raise InputError("the probe is empty: pass at least one batch")
    with Paths(model) as paths:
        chain = meter.chain(model, first)  # of the whole batch, the same for all
        if ranks.one:
            return meter.collect(model, paths.same(itertools.chain([first], source)), chain, masks)
        source.close()
        torch.manual_seed(0)
        mine = placed_batches(model, batches, ranks)
        part = next(mine, None)
        if part is not None:
            return meter.collect(model, paths.same(itertools.chain([part], mine)), chain, masks)
        statistics = meter.collect(model, paths.same([batches_room.first_samples(first, 1)]), chain, masks)
        return statistics.none() if callable(getattr(statistics, "none", None)) else None


def _merged(statistics: Any, ranks: Ranks) -> Any:
    """Return the statistics of all processes, each of which has seen its share of the probe."""
    if callable(getattr(statistics, "across", None)):
        return statistics.across(ranks.total)
    whole: Any = None  # a meter of the user's: its statistics are sent as they are, and merged in the processes' order
    for part in ranks.all(statistics):
        whole = part if whole is None else whole if part is None else whole.merge(part)
    return whole


def placed_batches(model: nn.Module, batches: Any, ranks: Ranks = ALONE) -> Generator[Batch]:
    """Yield the probe's batches, unpacked, on the model's device, floating inputs in a half model's float32.

    Of several processes each is given its share of every batch, and of batches that cannot be divided every so-manieth.
    """
    device = inspection.device_of(model)
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if inspection.half_precision(model) else floating
    whole = ranks.one or divides_itself(batches)
    for number, batch in enumerate(map(batches_room.unpack, batches_room.reusable(batches))):
        part = batch if whole else _share(batch, number, ranks)
        if part is not None:
            yield batches_room.placed(part, device=device, dtype=dtype)


def _share(batch: Batch, number: int, ranks: Ranks) -> Batch | None:
    begin, end = ranks.share(batch.samples)
    part = None if batch.samples < ranks.size else batches_room.samples_between(batch, begin, end)
    return part if part is not None else batch if number % ranks.size == ranks.rank else None


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Have torch's own transformer layers run their parts one by one, as they do in training.

    Its fast path for evaluation runs a whole layer as one kernel, past its modules, on tokens without their padding.
    """
    switch = getattr(torch.backends, "mha", None)
    parts = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    if switch is None or not any(isinstance(module, parts) for module in model.modules()):
        yield
        return
    was = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(was)


Places = tuple[str | tuple[str, ...], ...]  # of a chain by hand; names in a tuple share one


def by_hand(chain: Sequence[str | Sequence[str]] | None) -> Places | None:
    """Return a chain given by hand, or None for the one that is found."""
    if isinstance(chain, str):
        raise InputError(f"chain={chain!r} is one name: give the layers as a list, chain=[{chain!r}, …]")
    return None if chain is None else tuple(place if isinstance(place, str) else tuple(place) for place in chain)


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

    Example:
        >>> import torch
        >>> from incop import flow
        >>> from incop.batches import unpack
        >>> tuple(flow.forward(torch.nn.Linear(3, 2), unpack(torch.zeros(4, 3))).shape)
        (4, 2)
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
        if weights or then or inspection.half_precision(model):
            return inspection.full_precision(model, batch, weights, then=then)
        return batches_room.call(model, batch)


def _shapes(batch: Batch) -> str:
    shapes = [str(tuple(t.shape)) for t in batches_room.walk((batch.args, batch.kwargs))]
    return f"input{'s' if len(shapes) > 1 else ''} of shape {', '.join(shapes)}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")


def trace(model: nn.Module, batch: Batch, given: Places | None, *, each_sample: bool = False, least: int = 2) -> Chain:
    """Return the chain of a model, found on the batch's first two samples (on all when two do not do).

    Raises:
        InputError: the model cannot be run, or its layers and their order cannot be found; see `layers.chain`.

    Example:
        >>> import torch
        >>> from incop import flow
        >>> from incop.batches import unpack
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> list(flow.trace(net, unpack(torch.zeros(4, 3)), None))
        ['0', '2']
    """

    def run(part: Batch) -> Any:
        return _run(model, part)

    small = batches_room.first_samples(batch, 2)
    for part in (small,) if small is batch else (small, batch):  # a model may insist on its batch size
        try:
            found = layers.chain(model, part, given=given, forward=run, each_sample=each_sample, least=least)
            return _masked(model, part, found) if each_sample else found
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


@torch.no_grad()
def _masked(model: nn.Module, batch: Batch, chain: Chain) -> Chain:
    """Find out which layers' tokens are those of a mask: the ones that become as many when the masked tokens do.

    One mask may say which words are real, another which words of the answer; pictures beside them have none.
    """
    real = batches_room.real_tokens(model, batch)
    if not real:
        return chain
    whole = lengths(model, chain, batch.samples, lambda: _run(model, batch))
    masks: dict[str, str] = {}
    for name, mask in real.items():
        tokens = mask.shape[1]
        fewer = (tokens + 1) // 2
        try:
            part = batches_room.shortened(model, batch, name, fewer)
            now = lengths(model, chain, batch.samples, lambda part=part: _run(model, part))  # type: ignore[misc]
        except (IncopError, torch.OutOfMemoryError):
            raise
        except Exception:  # the model insists on so many tokens: go by the length alone
            now = {call: fewer if length == tokens else min(length, 1) - 1 for call, length in whole.items()}
        for call, length in whole.items():
            if now.get(call, length) != length:
                masks[call] = name if (length, now[call]) == (tokens, fewer) else "?"
    return Chain(chain, chain.pairs, chain.units, chain.axes, masks)
