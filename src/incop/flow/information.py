"""Information flow: how the outputs of neighbouring layers correlate over a probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from incop.batches import Batch, real_tokens
from incop.errors import InputError, TrainingError, unknown
from incop.flow import meter as meter_room
from incop.flow.moments import CoMoments, Rows
from incop.flow.taps import Taps
from incop.layers import Chain

Reduction = Literal["mean", "absolute", "square"]


@dataclass(frozen=True, init=False)
class InformationFlow:
    """The mean correlation of neighbouring layers' units, Δ_l = mean_ij ρ_l[i, j].

    With f_l(x) ∈ R^M the output of layer l before its activation, averaged over space or over its real tokens (those
    that an `attention_mask` in the batch marks), ρ_l[i, j] is the Pearson correlation of f_l,i and f_l+1,j over the probe.
    A unit that does not vary has ρ = 0. Which layers are neighbours is said by `layers.chain`.

    Args:
        reduction: "mean" of ρ (as published; linear in the widths), of |ρ| ("absolute") or of ρ² ("square").
            Signed correlations cancel: the mean is small (1e-3 … 1e-2), the other two are not.
        alive_only: take the mean over units that vary, instead of over all.
        chain: names of the modules to pair, in order, each with the next; several in a tuple share one place
            (["embed", ("query", "key"), "out"]). By default found from a forward pass, without the projections of
            residual shortcuts.

    Raises:
        InputError: the reduction is unknown.

    Example:
        >>> from incop.flow import InformationFlow
        >>> print(InformationFlow("absolute", alive_only=True))
        information flow (mean absolute correlation of living units)

    Source: arXiv 2501.15592, the information-flow criterion.
    """

    reduction: Reduction
    alive_only: bool
    layers: meter_room.Places | None

    def __init__(
        self,
        reduction: Reduction = "mean",
        *,
        alive_only: bool = False,
        chain: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        if reduction not in get_args(Reduction):
            raise unknown("reduction", str(reduction), get_args(Reduction))
        object.__setattr__(self, "reduction", reduction)
        object.__setattr__(self, "alive_only", bool(alive_only))
        object.__setattr__(self, "layers", meter_room.by_hand(chain))

    def __str__(self) -> str:
        """Name the statistic; flows of different statistics are never compared."""
        which = {"mean": "mean", "absolute": "mean absolute", "square": "mean square"}[self.reduction]
        return f"information flow ({which} correlation{' of living units' if self.alive_only else ''})"

    def chain(self, model: nn.Module, batch: Batch) -> Chain:
        """Return the layers whose neighbours are paired, in order.

        Raises:
            InputError: no layer feeds another.
        """
        found = meter_room.trace(model, batch, self.layers, each_sample=True)
        if not found.pairs:
            raise InputError(
                f"no layer of {type(model).__name__} feeds another ({', '.join(found)} run side by side): name the modules "
                "to pair with chain=[…]"
            )
        return found

    def collect(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        chain: tuple[str, ...],
        masks: Mapping[str, Tensor] | None = None,
    ) -> Rows | CoMoments:
        """Run the model once over the batches and keep the statistics of the layers' outputs."""
        pairs = list(Chain.of(chain).pairs)
        statistics: Rows | CoMoments = Rows([], pairs) if self.reduction == "mean" else CoMoments(pairs)
        with torch.no_grad(), Taps(model, chain) as taps:
            for batch in batches:
                taps.expect(batch.samples, real_tokens(model, batch))
                meter_room.forward(model, batch)
                statistics.update(taps.read(samples=batch.samples))
        return statistics

    def flow(self, statistics: Any) -> dict[str, float]:
        """Turn the statistics into Δ, by pair of layers ("conv1->conv2").

        Raises:
            TrainingError: an output was not finite.
        """
        pairs: list[tuple[str, str]] = statistics.pairs
        if isinstance(statistics, Rows):
            values = statistics.mean_correlations(alive_only=self.alive_only)
        else:
            values = [self._reduced(*statistics.correlations(pair)) for pair in range(len(pairs))]
        for (a, b), value in zip(pairs, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the outputs of layer {a!r} or {b!r} are not finite on the probe: the training diverged or the "
                    "probe holds NaN or infinite values; lower the learning rate, or check the data"
                )
        return {f"{a}->{b}": value for (a, b), value in zip(pairs, values, strict=True)}

    def _reduced(self, rho_MK: Tensor, alive_M: Tensor, alive_K: Tensor) -> float:
        values = rho_MK.abs() if self.reduction == "absolute" else rho_MK.square()
        if self.alive_only:
            return float(values.sum()) / max(int(alive_M.sum()) * int(alive_K.sum()), 1)
        return float(values.mean())
