"""Methods: a table of the search's arguments, in words; a method is a row of it. No torch, and no flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from incop.errors import unknown

__all__ = ["METHODS", "arguments", "method"]

PLANNED = "planned"  # a key that follows from the sparsity and the budget; see `planned`
PLANNED_SPARSITY = 0.9  # of a planned method when none is given: lottery tickets are as good as dense networks there
LEVELS = 10  # of the other methods
FIFTH = 0.2  # what the field prunes a level
FURTHEST = 0.998  # sparsity at which the path ends where the sparsest network is searched for
LAST_SHARE = 1 / 4  # of a level's budget, that a ticket is finished with there; half of it is enough to try one
SEARCH_SHARE = 1 / 36  # of what levels of a fifth would train; a thirtieth with its trial cuts, more on tiny data
CUTS_PER_FIFTH = 2.5
BATCH_SHARE = 3  # the search's batches are a third of the recipe's: at as many samples, three times the steps

# A fifth of all weights a level, every level trained in full.
FULL_LEVELS: Mapping[str, Any] = {
    "meter": "none",
    "rule": "none",
    "amount": "0.2",
    "selection": "global",
    "rewind": "init",
    "check_every": "1",
}

# Many small cuts with a little training after each.
PLANNED_CUTS: Mapping[str, Any] = {
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
        **FULL_LEVELS,
        "levels": 0,
        "rewind": "none",
    },
    "lth": {
        "about": "lottery tickets: a fifth per level, layer by layer, output layer half; every level in full",
        **FULL_LEVELS,
        "selection": "layer:0.5",
    },
    "sap": {
        "about": "sparsity-aware pruning: amount from the PQ index, global; every level in full",
        **FULL_LEVELS,
        "amount": "pq:1,2",
    },
    "lth-early": {
        "about": "lottery tickets rewound to the end of the first epoch: a fifth per level, global; every level in full",
        **FULL_LEVELS,
        "rewind": "early:1",
    },
    "lth-rate": {
        "about": "learning-rate rewinding: weights stay; a fifth per level, global; every level in full",
        **FULL_LEVELS,
        "rewind": "rate",
    },
    "incop": {
        "about": "many cuts, each as harmful to the flow as the next, with a little training after each; last level in full",
        **PLANNED_CUTS,
        "score": "saliency",
    },
    "incop-magnitude": {
        "about": "incop with the smallest weights cut, whatever their gradients: no label is read in any decision",
        **PLANNED_CUTS,
        "score": "magnitude",
    },
    "incop-if": {
        "about": "InCoP as published: a level ends when the information flow is within 0.11, or accuracy is back",
        **FULL_LEVELS,
        "meter": "information:mean",
        "rule": "flow within 0.11 or accuracy restored",
        "amount": "pq:1,2",
        "check_every": "2",
    },
    "incop-gf": {
        "about": "InCoP as published: a level ends when the gradient flow is within 0.5, or accuracy is back",
        **FULL_LEVELS,
        "meter": "gradient:norm",
        "rule": "flow within 0.5 or accuracy restored",
        "amount": "pq:1,2",
        "check_every": "2",
    },
}


def method(name: str) -> dict[str, Any]:
    """Return a method's arguments."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return {key: value for key, value in METHODS[name].items() if key != "about"}


def is_planned(name: str) -> bool:
    """Say whether a method's cuts, and how long it trains after each, follow from the sparsity and the budget."""
    return bool(METHODS[name]["amount"] == PLANNED)


def fifths(sparsity: float) -> float:
    """Return how many levels of a fifth lead to a sparsity: ln(1 − s) / ln 0.8."""
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
    """
    number = levels if levels is not None else cuts(sparsity)
    stretch = f"{fifths(sparsity) * epochs * SEARCH_SHARE / number:.4g}"
    return {
        "levels": number,
        "amount": f"flow to {sparsity!r} in {number}",
        "rule": f"after {stretch} epochs",
        "check_every": stretch,
        "search_batch_size": max(batch_size // BATCH_SHARE, 1),
    }


def arguments(
    name: str,
    *,
    sparsity: float | None = None,
    levels: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 1,
    max_drop: float | None = None,
) -> dict[str, Any]:
    """Return all of a method's arguments in words, with what follows from the sparsity and the budget filled in.

    Args:
        name: one of `METHODS`.
        sparsity: to be reached, in (0, 1); by default 0.9 of a planned method, and what the levels lead to of another.
        levels: how many; by default as the method says.
        epochs: the budget of a level trained in full.
        batch_size: samples a step of such a level.
        max_drop: what the metric may lose where the sparsest network is searched for, in place of a sparsity.
    """
    row = method(name)
    if is_planned(name) and max_drop is not None:
        return {**row, **planned(FURTHEST, epochs, batch_size, levels), "last_epochs": epochs * LAST_SHARE}
    if is_planned(name):
        sparsity = PLANNED_SPARSITY if sparsity is None else sparsity
        return {**row, "sparsity": sparsity, **planned(sparsity, epochs, batch_size, levels)}
    row = {"levels": LEVELS, **row, **({} if levels is None else {"levels": levels})}
    if sparsity is not None:
        row |= {"sparsity": sparsity, "amount": f"to {sparsity!r} in {row['levels']}"}
    return row


def describe() -> dict[str, str]:
    """Return one line about every method."""
    return {name: row["about"] for name, row in METHODS.items()}
