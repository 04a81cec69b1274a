"""Validation: what would fail after training is found out before."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

from torch import nn

from incop.batches import first_samples, unpack
from incop.errors import InputError, refuse, unknown
from incop.flow import Damage, Meter, measure
from incop.loop.combinations import (
    beyond_the_end,
    beyond_the_selection,
    ends_of,
    in_python,
    past_the_budget,
    without_a_meter,
)
from incop.loop.cutting import planned_path
from incop.loop.parts import Search
from incop.loop.tickets import budget_of
from incop.pruning import EvenDamage
from incop.pruning.cut import reach
from incop.pruning.saliency import Gathers
from incop.records import Metric
from incop.stopping import Rule
from incop.wrappers import unwrapped

__all__ = ["validate"]


def validate(parts: Search) -> None:
    """Find out before any training what would fail after it."""
    for name in ("fit", "evaluate"):
        if not callable(getattr(parts.trainer, name, None)):
            raise InputError(
                f"the trainer ({type(parts.trainer).__name__}) has no {name}(): it needs fit(model, masks, watch) and "
                "evaluate(model)"
            )
    if not isinstance(parts.levels, int) or isinstance(parts.levels, bool) or parts.levels < 0:
        raise InputError(f"levels={parts.levels!r}: give a whole number of pruning levels, at least 1")
    _validate_ends(parts)
    _validate_answers(parts)
    if parts.rule is not None and not isinstance(parts.rule, Rule):
        raise InputError(
            f"the rule is a {type(parts.rule).__name__}: pass one of incop.stopping, such as stopping.parse(text)"
        )
    _validate_metric(parts)
    _validate_left(parts)
    _validate_selection(parts)
    if callable(getattr(parts.score, "gathering", None)) and not isinstance(parts.score, Gathers):
        raise InputError(
            f"the score ({type(parts.score).__name__}) has gathering(), and not all that goes with it: fresh(), state() and "
            "restore(state, weights)"
        )
    refuse(past_the_budget([parts.rewind], budget_of(parts.trainer), in_python))
    if isinstance(parts.amount, EvenDamage):
        if parts.probe is None:
            raise InputError(
                f"the amount '{parts.amount}' tries cuts on a probe: pass probe=batches of the training split"
            )
        _try_damage(parts)
    if parts.meter is not None:
        _try_meter(parts.model, parts.probe, parts.meter)
    refuse(without_a_meter(parts.rule, parts.meter is not None, in_python))


def _validate_selection(parts: Search) -> None:
    """Have a selection that lines weights up do so once, and see that it can lead where the search is to end."""
    most = reach(parts.model, parts.masks, parts.selection)
    ends = ends_of(parts.sparsity, parts.ticket_at)
    refuse(beyond_the_selection(ends, parts.masks.total, most, parts.selection, in_python))


def _validate_left(parts: Search) -> None:
    """Refuse to search for a network of no weights, as a high sparsity of a small network is."""
    total = parts.masks.total
    wanted = [("sparsity", parts.sparsity), *(("ticket_at", value) for value in parts.ticket_at)]
    if isinstance(parts.amount, EvenDamage):
        wanted.append(("sparsity", parts.amount.sparsity))
    for name, value in wanted:
        if value is not None and round(value * total) >= total:
            raise InputError(f"{name}={value!r} would leave none of the {total} weights of this network: ask for less")


def _validate_answers(parts: Search) -> None:
    for what, answer, known in (
        ("collapse", parts.on_collapse, ["tell", "refuse"]),
        ("divergence", parts.on_divergence, ["stop", "retry"]),
    ):
        if answer not in known:
            raise unknown(f"answer to a {what}", str(answer), known)


def _validate_metric(parts: Search) -> None:
    if parts.metric is None:
        return
    if not isinstance(parts.metric, Metric):
        raise InputError(
            f"the trainer measures a {type(parts.metric).__name__}: say it by Metric(name, higher_is_better)"
        )
    if parts.rule is not None and "accuracy" in parts.rule.wants:
        raise InputError(
            f"the rule {str(parts.rule)!r} asks for the accuracy, and the trainer measures {parts.metric.name}: use "
            "MetricRestored(drop), in words 'metric within X'"
        )


def _validate_ends(parts: Search) -> None:
    for name, value in [("sparsity", parts.sparsity), *(("ticket_at", value) for value in parts.ticket_at)]:
        if value is not None and not 0 < value < 1:
            raise InputError(f"{name}={value!r}: a sparsity to reach is a fraction in (0, 1)")
    refuse(beyond_the_end(parts.sparsity, parts.ticket_at, in_python))


def _try_meter(model: nn.Module, probe: Any, meter: Meter) -> None:
    """Measure four samples at most: they tell whether model and probe can be measured at all."""
    if probe is None:
        raise InputError("a meter needs a probe: pass probe=batches of the training split")
    few = [first_samples(unpack(batch), 2) for batch in islice(probe, 2)]
    if not few:
        raise InputError("the probe is empty: pass at least one batch")
    measure(unwrapped(model), few, meter)


def _try_damage(parts: Search) -> None:
    """Try a cut on a few samples, and whether all weights compete with all."""
    few = [first_samples(unpack(batch), 2) for batch in islice(parts.probe, 2)]
    damage = Damage(parts.model, few)
    planned_path(parts, dataclasses.replace(parts.amount, trials=2), damage)  # type: ignore[type-var]  # it is EvenDamage
