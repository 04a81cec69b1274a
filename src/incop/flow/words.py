"""Meters in words: what `str(meter)` writes, and the shorter words of plans, are read back as the same meter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor
from torch.nn import functional

from incop.errors import unknown
from incop.flow.gradient import GradientFlow, Statistic
from incop.flow.information import InformationFlow, Reduction
from incop.flow.meter import Meter


def parse_meter(
    text: str, *, alive_only: bool = False, loss: Callable[[Any, Any], Tensor] = functional.cross_entropy
) -> Meter | None:
    """Read a meter in words.

    Args:
        text: "information[:mean|absolute|square]", "gradient[:norm|mean_abs]", "none", or what `str(meter)` writes.
        alive_only: of an information flow: average over living units only.
        loss: of a gradient flow, the mean over a batch.

    Returns:
        The meter, None for "none".

    Raises:
        InputError: it is none of these.

    Example:
        >>> from incop import flow
        >>> print(flow.parse_meter("information:absolute"))
        information flow (mean absolute correlation)
    """
    known: list[Meter] = [
        InformationFlow(one, alive_only=alive) for one in get_args(Reduction) for alive in (False, True)
    ]
    known += [GradientFlow(loss, one) for one in get_args(Statistic)]
    for meter in known:
        if text == str(meter):
            return meter
    kind, _, statistic = text.partition(":")
    if kind == "none":
        return None
    if kind == "information":
        return InformationFlow(statistic or "mean", alive_only=alive_only)  # type: ignore[arg-type]  # it checks the word
    if kind == "gradient":
        return GradientFlow(loss, statistic or "norm")  # type: ignore[arg-type]  # it checks the word
    raise unknown("meter", kind, ["information", "gradient", "none"])
