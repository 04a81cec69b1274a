"""Sampling: how far a flow would be off on another probe, and how large a probe must be."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from incop import inspection
from incop.batches import Batch, parts, reusable, unpack
from incop.errors import InputError
from incop.flow.meter import Meter, placed_batches, plain_attention
from incop.flow.taps import Paths
from incop.wrappers import unwrapped


@dataclass(frozen=True)
class SamplingError:
    """How far the values of a flow would be off if the probe were drawn again; made by `sampling_error`.

    Args:
        values: the standard error of each value, by its name in the flow.
        bias: how much each value is expected to lie above that of an endless probe; mean absolute and mean square
            correlations do, because chance correlations do not cancel in them.
        samples: size of the probe it was found on.

    Example:
        >>> from incop.flow import SamplingError
        >>> error = SamplingError({"a->b": 0.03, "b->c": 0.04}, {"a->b": 0.0, "b->c": 0.0}, samples=100)
        >>> error.total, error.samples_for(0.01)
        (0.05, 2500)
    """

    values: Mapping[str, float]
    bias: Mapping[str, float]
    samples: int

    @property
    def total(self) -> float:
        """The root mean square distance of a flow on another such probe from its mean, (Σ error²)^½.

        A tolerance (`FlowRestored(within=…)`) below it asks for what this probe cannot show: a flow that is back would be
        seen that far off.
        """
        return math.hypot(*self.values.values())

    def samples_for(self, resolution: float) -> int:
        """Return how many samples a probe needs for a `total` of at most `resolution`: ⌈n (total / resolution)²⌉.

        Raises:
            InputError: the resolution is not a positive number.
        """
        if not isinstance(resolution, int | float) or isinstance(resolution, bool) or not 0 < resolution < math.inf:
            raise InputError(f"samples_for({resolution!r}): the resolution must be a number above 0")
        wanted = self.samples * (self.total / resolution) ** 2
        return max(math.ceil(wanted - 1e-9 * wanted), 2)  # 1e-9: a count that is whole must not round up past it


def sampling_error(
    model: nn.Module,
    batches: Any,
    meter: Meter,
    *,
    reference: nn.Module | None = None,
    masks: Mapping[str, Tensor] | None = None,
    reference_masks: Mapping[str, Tensor] | None = None,
    groups: int = 20,
) -> SamplingError:
    """Return the standard errors of a flow, for a probe of independent samples: how large must my probe be?

    The probe is divided into k groups, the flow is measured k times without one of them, θ_1 … θ_k, and with their mean θ̄
    the squared error is (k − 1)/k · Σ (θ_j − θ̄)² (the jackknife). It costs one pass over the probe and works with every
    meter whose statistics merge. Of k groups the error itself is uncertain by about 1/√(2 (k − 1)), a sixth of 20.

    With `reference` it is the error of the difference Δ − Δ_ref of two networks on one probe, which is what `FlowRestored`
    compares with `within`; it is smaller than either's own, because chance moves both alike.

    Args:
        model: the network.
        batches: the probe, as for `incop.measure`; sample after sample drawn alike, not sorted.
        meter: what is measured.
        reference: the dense network.
        masks: which weights of the model are left, for meters of weights.
        reference_masks: the same of the reference.
        groups: k, at least 2; as many samples at least must be in the probe.

    Raises:
        InputError: fewer samples than groups, or what `incop.measure` refuses.

    Example:
        >>> import torch
        >>> from incop import flow
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> error = flow.sampling_error(net, torch.randn(200, 4), flow.InformationFlow("square"))
        >>> error.samples, error.samples_for(error.total / 2)
        (200, 800)

    Source: Efron & Tibshirani 1993, chapter 11 (the jackknife, by groups).
    """
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 2:
        raise InputError(f"sampling_error(groups={groups!r}): it must be a whole number of at least 2")
    probe = [
        unpack(batch) for batch in reusable(batches)
    ]  # once: a loader may shuffle, and both must see the same groups
    now = _without_each(model, probe, meter, masks, groups)
    then = None if reference is None else _without_each(reference, probe, meter, reference_masks, groups)
    if then is not None and set(then.whole) != set(now.whole):
        raise InputError("the two networks have flows of other layers: give the meter the chain by hand")
    errors, bias = {}, {}
    for name in now.whole:
        left = [flow[name] - (then.each[j][name] if then else 0.0) for j, flow in enumerate(now.each)]
        mean = math.fsum(left) / groups
        errors[name] = math.sqrt((groups - 1) / groups * math.fsum((value - mean) ** 2 for value in left))
        bias[name] = (groups - 1) * (mean - (now.whole[name] - (then.whole[name] if then else 0.0)))
    return SamplingError(errors, bias, now.samples)


@dataclass(frozen=True)
class _Flows:
    """The flow on a whole probe, and without each of its groups."""

    whole: dict[str, float]
    each: list[dict[str, float]]
    samples: int


def _without_each(
    model: nn.Module, probe: list[Batch], meter: Meter, masks: Mapping[str, Tensor] | None, groups: int
) -> _Flows:
    model = unwrapped(model)
    with torch.inference_mode(False), inspection.undisturbed(model), plain_attention(model), Paths(model) as paths:
        batches = list(placed_batches(model, probe))
        if not batches:
            raise InputError("the probe is empty: pass at least one batch")
        chain = meter.chain(model, batches[0])
        states = [meter.collect(model, paths.same(iter(group)), chain, masks) for group in _groups(batches, groups)]

    def flow(some: list[Any]) -> dict[str, float]:
        return meter.flow(functools.reduce(lambda a, b: a.merge(b), some))

    each = [flow(states[:j] + states[j + 1 :]) for j in range(groups)]
    return _Flows(flow(states), each, sum(state.samples for state in states))


def _groups(batches: list[Batch], count: int) -> list[list[Batch]]:
    """Deal the probe out: whole batches where there are enough, else parts of them."""
    samples = sum(batch.samples for batch in batches)
    if samples < count:
        raise InputError(f"the probe has {samples} samples for {count} groups: pass more samples, or fewer groups=")
    if len(batches) < count:
        batches = [part for batch in batches for part in parts(batch, count)]
    if len(batches) < count:
        raise InputError(
            f"the probe is {len(batches)} batches that cannot be divided, for {count} groups: pass it in more batches"
        )
    dealt: list[list[Batch]] = [[] for _ in range(count)]
    for batch in sorted(batches, key=lambda b: -b.samples):  # the largest first, each to the smallest group
        min(dealt, key=lambda group: sum(b.samples for b in group)).append(batch)
    return dealt
