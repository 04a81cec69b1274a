"""Problems of a plan: everything that is wrong with it, found together and before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from incop.errors import InputError, MissingExtra, unknown
from incop.experiments import datasets, methods, models
from incop.experiments.datasets import Dataset
from incop.experiments.models.making import check_weights, read_arguments
from incop.experiments.plan import Plan
from incop.masks import Masks
from incop.pruning import EvenDamage, Fraction, Layerwise, NofM, Selection, Target, Units
from incop.pruning.cut import reach
from incop.records import Interval
from incop.snapshots import RewindPoint
from incop.training import OPTIMIZERS, PRECISIONS, SCHEDULES

__all__ = ["DEVICES", "MOST_LEVELS", "combinations", "notices", "of_data", "of_model", "refuse", "said_wrong", "told"]

DEVICES = ("auto", "cpu", "cuda")
MOST_LEVELS = 10_000  # of an amount, which holds a sparsity for each
NEAR = 2e-3  # of sparsity: counts are rounded, most in small networks


def refuse(problems: Iterable[str], source: str = "") -> None:
    """Raise one error that lists all problems; none at all is no error.

    Raises:
        InputError: there are problems.
    """
    found = list(dict.fromkeys(problems))
    if found:
        raise InputError(f"{source}: {'; '.join(found)}" if source else "; ".join(found))


def said_wrong(plan: Plan) -> list[str]:
    """Return what is wrong with each key that is said, one by one: ranges, names and words."""
    found = plan.problems()
    known: dict[str, Sequence[str]] = {
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "precision": PRECISIONS,
        "device": DEVICES,
        "on_collapse": ("tell", "refuse"),
        "on_divergence": ("stop", "retry"),
        "offload": ("cpu", "disk"),
    }
    for key, choices in known.items():
        value = getattr(plan, key)
        if value is not None and value not in choices:
            found.append(str(unknown(key, value, choices)))
    readers: dict[str, Callable[[Any], object]] = {
        "method": methods.method,
        "model": models.check_name,
        "model_args": read_arguments,
        "data_args": lambda text: read_arguments(text, "data_args"),
        "weights": check_weights,
        "data": datasets.check_name,
        "rule": methods.rule,
        "meter": methods.meter,
        "amount": _amount,
        "selection": methods.selection,
        "score": lambda text: methods.score(text, batches=None, seed=0),
        "rewind": RewindPoint.parse,
        "check_every": Interval.parse,
    }
    for key, reader in readers.items():
        found += _unread(reader, getattr(plan, key))
    for point in plan.keep or ():
        found += _unread(RewindPoint.parse, point)
    return found + _unconsented(plan)


def _unconsented(plan: Plan) -> list[str]:
    """Return the sentence for a model that is code and that nobody who runs the plan has allowed."""
    try:
        named = models.code_of(plan.model)
    except InputError:
        return []  # it is said already what is wrong with the name
    return [models.consent(str(plan.model))] if named is not None and not plan.run_code else []


def _unread(reader: Callable[[Any], object], value: Any) -> list[str]:
    if value is None:
        return []
    try:
        reader(value)
    except (InputError, MissingExtra) as error:
        return [str(error)]
    return []


def _amount(text: str) -> None:
    amount = methods.amount(text)
    levels = getattr(amount, "levels", 1)
    if levels > MOST_LEVELS:
        raise InputError(f"the amount {text!r} goes by more than {MOST_LEVELS} levels")


def combinations(plan: Plan) -> list[str]:
    """Return what cannot work together in a resolved plan whose keys are right one by one."""
    found = []
    rule = methods.rule(plan.rule or "none")
    if rule is not None and "flow" in rule.wants and plan.meter == "none":
        found.append(
            f"the rule {str(rule)!r} watches the flow and --meter is none: choose --meter information or gradient"
        )
    beyond = [value for value in plan.ticket_at or () if plan.sparsity is not None and value >= plan.sparsity]
    if beyond:
        found.append(
            f"--ticket-at {beyond[0]} lies at or beyond --sparsity {plan.sparsity}, where the search ends: name sparsities on "
            "the way, or search further"
        )
    return found + _early(plan) + _apart(plan) + _unreachable(plan)


def of_data(plan: Plan, data: Dataset) -> list[str]:
    """Return what cannot work with these data: a split too small for what is taken of it."""
    found = []
    train, validation = len(data.train), len(data.validation)
    limited = f" (--limit {plan.limit})" if plan.limit else ""
    if plan.probe_size is not None and plan.probe_size > train:
        found.append(
            f"--probe-size {plan.probe_size} is larger than the training split of {train} images{limited}: take at most {train}"
        )
    share = plan.validation or 0.1
    if data.carved and round((train + validation) * share) not in range(1, train + validation):
        found.append(
            f"--validation {share:g} of {train + validation} training images{limited} leaves none to "
            f"{'train on' if share > 0.5 else 'validate on'}: give a fraction that leaves images to both"
        )
    for text in dict.fromkeys((plan.rewind or "init", *(plan.keep or ()))):
        after = RewindPoint.parse(text).after
        steps = math.ceil(train / (plan.batch_size or 1)) * (plan.max_epochs or 1.0)
        if after is not None and after.unit == "steps" and after.amount >= steps:
            found.append(
                f"--rewind {text} lies at or past the end of the dense network's {steps:g} steps: choose an earlier point, or "
                "--rewind dense"
            )
    return found


def of_model(plan: Plan, model: nn.Module, masks: Masks, selection: Selection) -> list[str]:
    """Return what cannot work with this network: sparsities beyond what the selection can cut of it.

    Raises:
        InputError: the selection cannot be made of this network at all.
    """
    most = reach(model, masks, selection)
    return [
        f"{words} cannot be reached: {selection} leave one unit in every layer and other layers whole, which is a sparsity of "
        f"{most:.4f} at most for this network; ask for less, or choose --selection global"
        for words, value in _wanted(plan)
        if round(value * masks.total) > round(most * masks.total)
    ][:1]


def told(model: nn.Module, selection: Selection) -> tuple[str, ...]:
    """Return what a reader should know of how a selection takes this network."""
    return (selection.about(model),) if isinstance(selection, Units) else ()


def notices(plan: Plan, data: Dataset) -> tuple[str, ...]:
    """Return what works and may not be what was meant: batches that are the whole split."""
    train = len(data.train)
    sizes = (("batch size", plan.batch_size), ("search batch size", plan.search_batch_size))
    return tuple(
        f"the {name} {size} is larger than the training split of {train} images: every step sees them all, one step an epoch"
        for name, size in sizes
        if size is not None and size > train
    )


def _early(plan: Plan) -> list[str]:
    """Return the rewind points that lie behind what is trained."""
    found = []
    for text in dict.fromkeys((plan.rewind or "init", *(plan.keep or ()))):
        after = RewindPoint.parse(text).after
        if after is None or after.unit != "epochs":
            continue
        if plan.max_epochs is not None and after.amount >= plan.max_epochs:
            found.append(
                f"--rewind {text} lies at or past the end of the dense network's {plan.max_epochs:g} epochs: choose an "
                "earlier point, or --rewind dense"
            )
        elif plan.level_epochs is not None and after.amount >= plan.level_epochs and text == plan.rewind:
            found.append(
                f"--rewind {text} lies at or past the end of a level's {plan.level_epochs:g} epochs (--level-epochs), of "
                "which none would be left to train: choose an earlier point, or --rewind rate"
            )
    return found


def _apart(plan: Plan) -> list[str]:
    """Return why cuts that are planned for all weights together cannot be made by a selection that goes layer by layer."""
    amount, selection = methods.amount(plan.amount or "0.2"), methods.selection(plan.selection or "global")
    if not isinstance(amount, EvenDamage) or not isinstance(selection, NofM | Layerwise):
        return []
    method, words = str(plan.method), f"--selection {selection}"
    if isinstance(selection, NofM):
        does = f"{words} leaves {selection.n} of every {selection.m} weights by one cut, whatever the amount"
    else:
        does = f"{words} lets each layer give up the amount by itself"
    # a resolved plan does not say whether its amount was said; that of a planned method follows from the sparsity
    if methods.is_planned(method) and plan.amount == methods.planned_amount(plan.sparsity or 0.0, plan.levels or 0):
        other = f"{words} --levels 1" if isinstance(selection, NofM) else words
        who, remedy = f"the method {method!r}", f"choose --method lth {other}, or leave --selection out"
    else:
        who, remedy = f"--amount '{amount}'", "choose --selection global, or an amount that is a fraction, such as 0.2"
    return [f"{does}, and {who} plans the amounts of many cuts for all weights together: {remedy}"]


def _unreachable(plan: Plan) -> list[str]:
    """Return the sparsities asked for that the amount cannot lead to, or that the pattern does not know."""
    wanted = _wanted(plan)
    selection = methods.selection(plan.selection or "global")
    if isinstance(selection, NofM):
        fixed = 1.0 - selection.n / selection.m
        planned = isinstance(methods.amount(plan.amount or "0.2"), EvenDamage)  # which `_apart` refuses
        return [
            f"--selection {selection} leaves {selection.n} of every {selection.m} weights, a sparsity of {fixed:.4g} whatever "
            f"the amount, and {words} asks for another: leave it out, or choose --selection global"
            for words, value in wanted[-1:]
            if abs(value - fixed) > NEAR and not planned
        ]
    most = _reach(plan)
    if most is None:
        return []
    return [
        f"{words} cannot be reached: the amount {plan.amount} leads to {most:.4f} in {plan.levels} levels; raise --levels or "
        "the amount, or ask for less"
        for words, value in wanted
        if value > most + NEAR
    ][:1]


def _wanted(plan: Plan) -> list[tuple[str, float]]:
    """Return the sparsities a plan asks for, with their words."""
    return [
        *((f"--ticket-at {value}", value) for value in plan.ticket_at or ()),
        *([] if plan.sparsity is None else [(f"--sparsity {plan.sparsity}", plan.sparsity)]),
    ]


def _reach(plan: Plan) -> float | None:
    """Return the sparsity that an amount leads to in all levels, at most; None where it depends on the weights."""
    amount, levels = methods.amount(plan.amount or "0.2"), plan.levels or 0
    if isinstance(amount, Fraction):
        return 1.0 - (1.0 - amount.fraction) ** levels
    if isinstance(amount, Target):
        at = min(levels, amount.levels) / amount.levels
        if amount.path == "cubic":
            return amount.sparsity * (1.0 - (1.0 - at) ** 3)
        return 1.0 - math.pow(1.0 - amount.sparsity, at)
    return amount.sparsity if isinstance(amount, EvenDamage) else None
