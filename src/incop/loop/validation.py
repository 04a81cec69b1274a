"""Validation: what would fail after training is found out before."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import nn

from incop.batches import first_samples, unpack
from incop.errors import InputError, refuse, unknown
from incop.flow import Meter, measure
from incop.loop.combinations import beyond_the_end, beyond_the_selection, in_python, past_the_budget, without_a_meter
from incop.loop.cutting import TrialCuts, planned_path
from incop.loop.edge_search import validate_max_drop
from incop.loop.given import validate_given
from incop.loop.progress import SearchProgress
from incop.loop.settings import SearchSettings
from incop.loop.tickets import budget_of
from incop.pruning import Planned
from incop.pruning.cut import reach
from incop.pruning.saliency import Gathers
from incop.records import ACCURACY, Metric
from incop.stopping import Rule
from incop.wrappers import unwrapped


def validate(settings: SearchSettings, progress: SearchProgress) -> None:
    """Find out before any training what would fail after it."""
    for name in ("fit", "evaluate"):
        if not callable(getattr(settings.trainer, name, None)):
            raise InputError(
                f"the trainer ({type(settings.trainer).__name__}) has no {name}(): it needs fit(model, masks, watch) and "
                "evaluate(model)"
            )
    if not isinstance(settings.levels, int) or isinstance(settings.levels, bool) or settings.levels < 0:
        raise InputError(f"levels={settings.levels!r}: give a whole number of pruning levels, at least 1, or a method")
    _validate_ends(settings)
    validate_max_drop(settings)
    _validate_answers(settings)
    if settings.rule is not None and not isinstance(settings.rule, Rule):
        raise InputError(
            f"the rule is a {type(settings.rule).__name__}: pass one of incop.stopping, such as stopping.parse(text)"
        )
    _validate_metric(settings)
    validate_given(settings, progress)
    _validate_reach(settings, progress)
    if callable(getattr(progress.score, "gathering", None)) and not isinstance(progress.score, Gathers):
        raise InputError(
            f"the score ({type(progress.score).__name__}) has gathering(), and not all that goes with it: fresh(), state() and "
            "restore(state, weights)"
        )
    refuse(past_the_budget([settings.rewind], budget_of(settings.trainer), in_python))
    if isinstance(settings.amount, Planned) and settings.levels:
        _try_plan(settings, progress, settings.amount)
    if settings.meter is not None:
        _try_meter(settings.model, settings.probe, settings.meter)
    refuse(without_a_meter(settings.rule, settings.meter is not None, in_python))


def _validate_reach(settings: SearchSettings, progress: SearchProgress) -> None:
    """Refuse sparsities that leave no weights, and those that the selection, which lines weights up here once, cannot lead to."""
    total = progress.masks.total
    for name, value in settings.ends:
        _leaves_some(name, value, total)
    most = reach(settings.model, progress.masks, settings.selection)
    refuse(beyond_the_selection(settings.ends, total, most, settings.selection, in_python))


def _leaves_some(name: str, sparsity: float, total: int) -> None:
    if round(sparsity * total) >= total:
        raise InputError(f"{name}={sparsity!r} would leave none of the {total} weights of this network: ask for less")


def _validate_answers(settings: SearchSettings) -> None:
    for what, answer, known in (
        ("collapse", settings.on_collapse, ["tell", "refuse"]),
        ("divergence", settings.on_divergence, ["stop", "retry"]),
    ):
        if answer not in known:
            raise unknown(f"answer to a {what}", str(answer), known)


def _validate_metric(settings: SearchSettings) -> None:
    if not isinstance(settings.metric, Metric):
        raise InputError(
            f"the trainer measures a {type(settings.metric).__name__}: say it by Metric(name, higher_is_better)"
        )
    if settings.metric != ACCURACY and settings.rule is not None and "accuracy" in settings.rule.wants:
        raise InputError(
            f"the rule {str(settings.rule)!r} asks for the accuracy, and the trainer measures {settings.metric.name}: use "
            "MetricRestored(drop), in words 'metric within X'"
        )


def _validate_ends(settings: SearchSettings) -> None:
    for name, value in settings.ends:
        if not 0 < value < 1:
            raise InputError(f"{name}={value!r}: a sparsity to reach is a fraction in (0, 1)")
    refuse(beyond_the_end(settings.sparsity, settings.ticket_at, in_python))


def _try_meter(model: nn.Module, probe: Any, meter: Meter) -> None:
    """Measure four samples at most: they tell whether model and probe can be measured at all."""
    if probe is None:
        raise InputError("a meter needs a probe: pass probe=batches of the training split")
    few = _few(probe)
    if not few:
        raise InputError("the probe is empty: pass at least one batch")
    measure(unwrapped(model), few, meter)


def _try_plan(settings: SearchSettings, progress: SearchProgress, amount: Planned) -> None:
    """Plan on a few samples: it tells whether cuts can be tried, whether all weights compete with all, and where the path ends."""
    trials = None if settings.probe is None else TrialCuts(settings.model, _few(settings.probe))
    path = planned_path(settings, progress, amount, trials)
    _leaves_some("sparsity", path.sparsities[-1], progress.masks.total)


def _few(probe: Any) -> list[Any]:
    return [first_samples(unpack(batch), 2) for batch in islice(probe, 2)]
