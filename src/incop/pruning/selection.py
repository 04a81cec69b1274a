"""Selection: who competes with whom, and which go when so many must: exact counts, ties by position."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from incop.errors import InputError, TrainingError, nearest, unknown
from incop.layers import is_conv1d
from incop.pruning.units import Units
from incop.records import shortest


class Selection(Protocol):
    """Splits the weights into groups that compete among themselves."""

    def groups(self, names: list[str]) -> list[tuple[list[str], float]]:
        """Return groups of parameter names, each with the share of the amount it gives up."""


class Lined(Selection, Protocol):
    """A selection in which weights do not go one by one, the lowest first, but as it lines them up: some go together.

    Attributes:
        by_amount: whether the amount says how many go: the fewest whole places of the line, from its beginning, that hold
            at least as many weights. If not, all that stand in the line go.
    """

    by_amount: bool

    def line(self, model: nn.Module, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the place of every weight that is left: 0 goes first, equal places go together, −1 stays in any case.

        Args:
            model: the model within its wrappers.
            scores: a number for every weight, by parameter name; no NaN among them.
            masks: which weights are left, on the devices of the scores.

        Returns:
            Whole numbers of each weight's shape, by parameter name; those of weights that are gone say nothing.
        """


def foremost(places: Tensor, count: int) -> Tensor:
    """Say which weights go when at least `count` must: those of the fewest whole places that do, or all in line. (d,) → bool."""
    waiting = places >= 0
    if count <= 0 or not bool(waiting.any()):
        return torch.zeros_like(waiting)
    through = places[waiting].long().cpu().bincount().cumsum(0)
    last = int(torch.searchsorted(through, min(count, int(through[-1]))))
    return waiting & (places <= last)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Say which are the `count` lowest scores; among equals the first positions go. Shapes (d,) → bool (d,)."""
    d = scores.numel()
    if count <= 0 or count >= d:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    # On a GPU kthvalue is refused where deterministic algorithms are asked for; sort is not.
    threshold = scores.kthvalue(count).values if scores.device.type == "cpu" else scores.sort().values[count - 1]
    chosen = scores < threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


@dataclass(frozen=True)
class Global:
    """All weights of the network compete with each other.

    Example:
        >>> from incop.pruning import Global
        >>> Global().groups(["a.weight", "b.weight"])
        [(['a.weight', 'b.weight'], 1.0)]
    """

    def groups(self, names: list[str]) -> list[tuple[list[str], float]]:
        """Return one group."""
        return [(names, 1.0)]

    def __str__(self) -> str:
        return "global"


@dataclass(frozen=True)
class Layerwise:
    """Every layer's weights compete among themselves, so that each layer gives up the amount.

    Args:
        rates: what share of the amount a layer gives up, by parameter or layer name, at least 0; others give up all of
            it (1). The amount is rounded to a count, and its share again.
        output: the share of the last layer; the lottery-ticket paper prunes it at half the rate (0.5).

    Raises:
        InputError: a rate is negative, or names no layer of the network.

    Example:
        >>> from incop.pruning import Layerwise
        >>> Layerwise(output=0.5).groups(["a.weight", "b.weight"])
        [(['a.weight'], 1.0), (['b.weight'], 0.5)]

    Source: Frankle & Carbin 2019, section 2 and appendix ("the output layer at half the rate").
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    output: float = 1.0

    def __post_init__(self) -> None:
        for name, rate in {**self.rates, "output": self.output}.items():
            if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < float("inf"):
                raise InputError(f"Layerwise: the rate of {name!r} is {rate!r}; it must be a number of at least 0")

    def groups(self, names: list[str]) -> list[tuple[list[str], float]]:
        """Return one group a layer."""
        rates = dict.fromkeys(names, 1.0)
        rates[names[-1]] = self.output
        for given, rate in self.rates.items():
            name = given if given in rates else f"{given}.weight"
            if name not in rates:
                raise unknown("layer with a rate", given, names)
            rates[name] = rate
        return [([name], rate) for name, rate in rates.items()]

    def __str__(self) -> str:
        return "layer" if self.output == 1.0 else f"layer:{shortest(self.output)}"


@dataclass(frozen=True)
class NofM:
    """Of every M weights in a row along a layer's inputs, N stay: the pattern sparse tensor cores want (2 of 4).

    The pattern fixes the count, so the amount has no say. A row (dimension 0, flattened) may end in a tail of less than
    M weights, which stays whole, and so does a group that has no more than N left.

    Args:
        n: how many stay, at least 1.
        m: out of how many, more than n.

    Raises:
        InputError: not 1 ≤ n < m.

    Example:
        >>> import torch
        >>> from incop.pruning import NofM
        >>> NofM(2, 4).cut(torch.tensor([[4.0, 3.0, 2.0, 1.0, 9.0]]), torch.ones(1, 5, dtype=torch.bool))
        tensor([[ True,  True, False, False,  True]])

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3.
    """

    n: int = 2
    m: int = 4
    by_amount: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (self.n, self.m))
        if not whole or not 1 <= self.n < self.m:
            raise InputError(f"NofM({self.n!r}, {self.m!r}): n of m weights stay, with 1 ≤ n < m, such as 2 of 4")

    def groups(self, names: list[str]) -> list[tuple[list[str], float]]:
        """Return one group a layer."""
        return [([name], 1.0) for name in names]

    def line(self, model: nn.Module, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return place 0 for what the pattern cuts; rows are units, also where a weight is (inputs, units)."""
        turned = {f"{name}.weight" if name else "weight" for name, module in model.named_modules() if is_conv1d(module)}
        places = {}
        for name, score in scores.items():
            stays = self.cut(score.T, masks[name].T).T if name in turned else self.cut(score, masks[name])
            places[name] = -stays.to(torch.int32)
        return places

    def cut(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return the mask of one layer after the cut, of the same shape; rows are dimension 0."""
        rows = scores.flatten(1)
        left = mask.reshape(rows.shape)
        groups = rows.shape[1] // self.m
        whole = groups * self.m
        s_RGM = rows[:, :whole].reshape(rows.shape[0], groups, self.m)
        k_RGM = left[:, :whole].reshape(s_RGM.shape)
        s_RGM = s_RGM.double().masked_fill(~k_RGM, -torch.inf)
        order = s_RGM.flip(-1).argsort(dim=-1, descending=True, stable=True)[..., : self.n]  # equals: the last stay
        stay_RGM = torch.zeros_like(k_RGM).scatter_(-1, self.m - 1 - order, True) & k_RGM
        new = left.clone()
        new[:, :whole] = stay_RGM.reshape(rows.shape[0], whole)
        return new.reshape(mask.shape)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def checked(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores of these weights, when they can be ranked."""
    for name, weight in weights.items():
        if name not in scores:
            raise InputError(f"the score says nothing of {name!r}: it must give every weight a number")
        if scores[name].shape != weight.shape:
            shapes = f"{tuple(scores[name].shape)} for {name!r} of shape {tuple(weight.shape)}"
            raise InputError(f"the score has shape {shapes}: it must give every weight a number")
        if not bool(weight.isfinite().all()) or bool(scores[name].isnan().any()):
            raise TrainingError(
                f"weights of {name!r} or their scores are not finite (NaN or infinite), so none can be chosen: "
                "the training diverged; lower the learning rate"
            )
    return {name: scores[name].detach() for name in weights}


# How a selection is read, how it is shown, who competes, what it makes.
SELECTIONS: tuple[tuple[str, str, str, Callable[[re.Match[str]], Selection]], ...] = (
    (r"global", "global", "all weights of the network compete with each other", lambda m: Global()),
    (
        r"layer(?::(\S+))?",
        "layer",
        "each layer gives up the amount; layer:0.5 the output layer at half the rate",
        lambda m: Layerwise(output=float(m[1] or 1.0)),
    ),
    (
        r"units",
        "units",
        "whole rows of linear layers and filters of convolutions go, with the weights that read them; all compete",
        lambda m: Units(None),
    ),
    (
        r"units:layer",
        "units:layer",
        "the same, each layer giving up the same share of its units",
        lambda m: Units(None, each_layer=True),
    ),
    (
        r"(\d+):(\d+)",
        "2:4",
        "of every 4 weights in a row 2 stay, or n:m; the amount has no say",
        lambda m: NofM(int(m[1]), int(m[2])),
    ),
)


def parse_selection(text: str) -> Selection:
    """Read a selection in words, as `str(selection)` writes it.

    Args:
        text: "global", "layer", "layer:0.5" (the output layer at half the rate), "units", "units:layer" or "2:4".

    Returns:
        The selection; `Units` still need an example of the network's inputs, which `with_data` gives them.

    Raises:
        InputError: it is none of these, or out of range.

    Example:
        >>> from incop import pruning
        >>> pruning.parse_selection("2:4")
        NofM(n=2, m=4)
    """
    try:
        return next(make(match) for pattern, _, _, make in SELECTIONS if (match := re.fullmatch(pattern, text)))
    except InputError:
        raise
    except (ValueError, StopIteration):
        hint = nearest(text, [form for _, form, _, _ in SELECTIONS[:-1]])
        raise InputError(
            f"the selection {text!r} cannot be read: {hint}use global, layer, layer:0.5, units, units:layer or n:m such as 2:4"
        ) from None
