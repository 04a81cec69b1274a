"""Methods: a table of arguments, and the words that name amounts, selections, scores and meters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from incop import stopping
from incop.errors import InputError, nearest, unknown
from incop.flow import GradientFlow, InformationFlow, Meter
from incop.pruning import (
    Amount,
    EvenDamage,
    Fraction,
    Global,
    GradientTimesWeight,
    Layerwise,
    Magnitude,
    NofM,
    PQIndex,
    Random,
    Saliency,
    Score,
    Selection,
    Target,
    Units,
)

__all__ = [
    "METHODS",
    "PLANNED",
    "SELECTIONS",
    "amount",
    "cuts",
    "describe",
    "fifths",
    "is_planned",
    "meter",
    "method",
    "planned",
    "planned_amount",
    "rule",
    "score",
    "selection",
]

PLANNED = "planned"  # a key that follows from the sparsity and the budget; see `planned`
FIFTH = 0.2  # what the field prunes a level
SEARCH_SHARE = (
    1 / 36
)  # of what levels of a fifth would train; with its trial cuts under a thirtieth, except on tiny data
CUTS_PER_FIFTH = 2.5
BATCH_SHARE = 3  # the search's batches are a third of the recipe's: at as many samples, three times the steps

PLANNED_ROW: Mapping[str, Any] = {
    "meter": "none",
    "rule": PLANNED,
    "amount": PLANNED,
    "selection": "global",
    "rewind": "rate",
    "check_every": PLANNED,
    "search_batch_size": PLANNED,
    "search_lr": 2.0,
    "keep_optimizer": True,
    "test_levels": False,
}

# A method is a row. Every argument can be overridden, so that a comparison changes one thing.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "dense": {
        "about": "the dense network alone, no pruning",
        "levels": 0,
        "meter": "none",
        "rule": "none",
        "amount": "0.2",
        "selection": "global",
        "rewind": "none",
        "check_every": "1",
    },
    "lth": {
        "about": "lottery tickets: a fifth per level, layer by layer, output layer half; every level in full",
        "meter": "none",
        "rule": "none",
        "amount": "0.2",
        "selection": "layer:0.5",
        "rewind": "init",
        "check_every": "1",
    },
    "sap": {
        "about": "sparsity-aware pruning: amount from the PQ index, global; every level in full",
        "meter": "none",
        "rule": "none",
        "amount": "pq:1,2",
        "selection": "global",
        "rewind": "init",
        "check_every": "1",
    },
    "lth-early": {
        "about": "lottery tickets rewound to the end of the first epoch: a fifth per level, global; every level in full",
        "meter": "none",
        "rule": "none",
        "amount": "0.2",
        "selection": "global",
        "rewind": "early:1",
        "check_every": "1",
    },
    "lth-rate": {
        "about": "learning-rate rewinding: weights stay; a fifth per level, global; every level in full",
        "meter": "none",
        "rule": "none",
        "amount": "0.2",
        "selection": "global",
        "rewind": "rate",
        "check_every": "1",
    },
    "incop": {
        "about": "many cuts, each as harmful to the flow as the next, with a little training after each; last level in full",
        **PLANNED_ROW,
        "score": "saliency",
    },
    "incop-magnitude": {
        "about": "incop with the smallest weights cut, whatever their gradients: no label is read in any decision",
        **PLANNED_ROW,
        "score": "magnitude",
    },
    "incop-if": {
        "about": "InCoP as published: a level ends when the information flow is within 0.11, or accuracy is back",
        "meter": "information:mean",
        "rule": "flow within 0.11 or accuracy restored",
        "amount": "pq:1,2",
        "selection": "global",
        "rewind": "init",
        "check_every": "2",
    },
    "incop-gf": {
        "about": "InCoP as published: a level ends when the gradient flow is within 0.5, or accuracy is back",
        "meter": "gradient:norm",
        "rule": "flow within 0.5 or accuracy restored",
        "amount": "pq:1,2",
        "selection": "global",
        "rewind": "init",
        "check_every": "2",
    },
}


SELECTIONS: Mapping[str, str] = {
    "global": "all weights of the network compete with each other",
    "layer": "each layer gives up the amount; layer:0.5 the output layer at half the rate",
    "units": "whole rows of linear layers and filters of convolutions go, with the weights that read them; all compete",
    "units:layer": "the same, each layer giving up the same share of its units",
    "2:4": "of every 4 weights in a row 2 stay, or n:m; the amount has no say",
}


def method(name: str) -> dict[str, Any]:
    """Return a method's arguments.

    Raises:
        InputError: there is no such method; the nearest is suggested.

    Example:
        >>> from incop.experiments import methods
        >>> methods.method("incop-if")["check_every"]
        '2'
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return {key: value for key, value in METHODS[name].items() if key != "about"}


def is_planned(name: str) -> bool:
    """Say whether a method's cuts and stretches of training follow from the sparsity and the budget."""
    return bool(METHODS[name]["amount"] == PLANNED)


def fifths(sparsity: float) -> float:
    """Return how many levels of a fifth lead to a sparsity: ln(1 − s) / ln 0.8.

    Example:
        >>> from incop.experiments import methods
        >>> round(methods.fifths(0.9), 2)
        10.32
    """
    return math.log(1.0 - sparsity) / math.log(1.0 - FIFTH)


def cuts(sparsity: float) -> int:
    """Return how many cuts a planned method makes on the way to a sparsity: 2.5 for every level of a fifth."""
    return max(round(CUTS_PER_FIFTH * fifths(sparsity)), 2)


def planned(sparsity: float, epochs: float, batch_size: int, levels: int | None = None) -> dict[str, Any]:
    """Return the keys of a planned row: the search trains a thirty-sixth of what levels of a fifth would, evenly over its cuts.

    Args:
        sparsity: to be reached, in (0, 1).
        epochs: the budget of a level trained in full.
        batch_size: samples a step of such a level.
        levels: how many cuts; by default 2.5 for every level of a fifth.

    Example:
        >>> from incop.experiments import methods
        >>> methods.planned(0.9, epochs=10, batch_size=60)["rule"]
        'after 0.1102 epochs'
    """
    number = levels if levels is not None else cuts(sparsity)
    stretch = f"{fifths(sparsity) * epochs * SEARCH_SHARE / number:.4g}"
    return {
        "levels": number,
        "amount": planned_amount(sparsity, number),
        "rule": f"after {stretch} epochs",
        "check_every": stretch,
        "search_batch_size": max(batch_size // BATCH_SHARE, 1),
    }


def planned_amount(sparsity: float, levels: int) -> str:
    """Return the words of a planned method's amount."""
    return f"flow to {sparsity!r} in {levels}"


def describe() -> dict[str, str]:
    """Return one line about every method."""
    return {name: row["about"] for name, row in METHODS.items()}


def rule(text: str) -> stopping.Rule | None:
    """Read a stop rule in words; "none" trains every level in full.

    Raises:
        InputError: it cannot be read.
    """
    return None if text == "none" else stopping.parse(text)


def amount(text: str) -> Amount:
    """Read an amount: "0.2", "pq:1,2" (p,q[,eta,gamma,beta]), "to 0.98 in 10", "cubic to 0.98 in 10" or "flow to 0.98 in 40".

    Raises:
        InputError: it is none of these, or out of range.

    Example:
        >>> from incop.experiments import methods
        >>> methods.amount("pq:0.5,1").q
        1.0
    """
    try:
        if text.startswith("pq:"):
            p, q, *rest = (float(part) for part in text[3:].split(","))
            return PQIndex(p, q, *rest)
        if match := re.fullmatch(r"flow to (\S+) in (\d+)", text):
            return EvenDamage(float(match[1]), int(match[2]))
        if match := re.fullmatch(r"(cubic )?to (\S+) in (\d+)", text):
            return Target(float(match[2]), int(match[3]), "cubic" if match[1] else "even")
        return Fraction(float(text))
    except InputError:
        raise
    except (ValueError, TypeError):
        raise InputError(
            f"the amount {text!r} cannot be read: give a fraction of what is left (0.2), pq:p,q (pq:1,2), "
            "'to 0.98 in 10' (a sparsity and a number of levels), or 'flow to 0.98 in 40' (the flow chooses the cuts)"
        ) from None


def selection(text: str, *, batches: Any = None) -> Selection:
    """Read a selection: "global", "layer", "layer:0.5" (the output layer at half the rate), "units", "units:layer" or "2:4".

    Args:
        text: its words.
        batches: of which the first is the example that "units" follows the network with.

    Raises:
        InputError: it is none of these.
    """
    if text == "global":
        return Global()
    if text in ("units", "units:layer"):
        return Units(next(iter(batches or ()), None), each_layer=text != "units")
    if match := re.fullmatch(r"layer(?::(\d*\.?\d+))?", text):
        return Layerwise(output=float(match[1]) if match[1] else 1.0)
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return NofM(int(match[1]), int(match[2]))
    hint = nearest(text, ("global", "layer", "units", "units:layer"))
    raise InputError(
        f"the selection {text!r} cannot be read: {hint}use global, layer, layer:0.5, units, units:layer or n:m such as 2:4"
    )


def score(text: str, *, batches: Any, seed: int) -> Score:
    """Read a score: "magnitude", "saliency" ("saliency:0.25": its power), "random" or "gradient" (× weight over the probe).

    Raises:
        InputError: it is none of these, or the power is out of range.

    Example:
        >>> from incop.experiments import methods
        >>> methods.score("saliency:0.5", batches=None, seed=0).power
        0.5
    """
    name, given, power = text.partition(":")
    if name == "saliency" and given:
        try:
            return Saliency(float(power))
        except ValueError:
            raise InputError(
                f"the score {text!r} has no power in [0, 1] after its colon: 'saliency:0.25' has"
            ) from None
    if text == "saliency":
        return Saliency()
    if text == "gradient":
        return GradientTimesWeight(_cross_entropy, batches)
    if text not in ("magnitude", "random"):
        raise unknown("score", text, ["magnitude", "saliency", "random", "gradient"])
    return Magnitude() if text == "magnitude" else Random(seed)


def meter(text: str, *, alive_only: bool = False) -> Meter | None:
    """Read a meter: "information[:mean|absolute|square]", "gradient[:norm|mean_abs]" or "none".

    Raises:
        InputError: it is none of these.
    """
    kind, _, statistic = text.partition(":")
    if kind == "none":
        return None
    if kind == "information":
        return InformationFlow(statistic or "mean", alive_only=alive_only)  # type: ignore[arg-type]  # it checks the word
    if kind == "gradient":
        return GradientFlow(_cross_entropy, statistic or "norm")  # type: ignore[arg-type]  # it checks the word
    raise unknown("meter", kind, ["information", "gradient", "none"])


def _cross_entropy(output: Any, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target)
