"""Checks of a plan: everything that is wrong with it, found together and before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from incop import methods
from incop.errors import InputError, MissingExtra, unknown
from incop.experiments import datasets, models
from incop.experiments.datasets import Dataset
from incop.experiments.models.making import check_weights, read_arguments
from incop.experiments.plan import Plan
from incop.experiments.plan_words import ResolvedPlan
from incop.loop.combinations import as_flag, beyond_the_end, ends_of, past_the_budget, without_a_meter
from incop.pruning import Layerwise, NofM, Planned
from incop.training import OPTIMIZERS, PRECISIONS, SCHEDULES

DEVICES = ("auto", "cpu", "cuda")
NEAR = 2e-3  # of sparsity: counts are rounded, most in small networks


def key_problems(plan: Plan) -> list[str]:
    """Return what is wrong with each key that a plan has, one by one: ranges and names. Words are read by `read_words`."""
    found = plan.problems()
    choices: dict[str, Sequence[str]] = {
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "precision": PRECISIONS,
        "objective": ("labels", "dense"),
        "device": DEVICES,
        "on_collapse": ("tell", "refuse"),
        "on_divergence": ("stop", "retry"),
        "offload": ("cpu", "disk"),
    }
    for key, known in choices.items():
        value = getattr(plan, key)
        if value is not None and value not in known:
            found.append(str(unknown(key, value, known)))
    checks: dict[str, Callable[[Any], object]] = {
        "method": methods.method,
        "model": models.check_name,
        "model_args": read_arguments,
        "data_args": lambda text: read_arguments(text, "data_args"),
        "weights": check_weights,
        "data": datasets.check_name,
    }
    for key, check in checks.items():
        if (value := getattr(plan, key)) is None:
            continue
        try:
            check(value)
        except (InputError, MissingExtra) as error:
            found.append(str(error))
    return found + _without_consent(plan)


def _without_consent(plan: Plan) -> list[str]:
    """Return the sentence for a model that is code and that nobody who runs the plan has allowed."""
    try:
        named = models.code_of(plan.model)
    except InputError:
        return []  # what is wrong with the name is among the sentences already
    return [models.consent(str(plan.model))] if named is not None and not plan.run_code else []


def combinations(resolved: ResolvedPlan, given: Plan) -> list[str]:
    """Return what cannot work together in a plan whose keys are right one by one.

    Args:
        resolved: the plan with every key.
        given: the keys that the user gave.
    """
    plan = resolved.plan
    return [
        *_given_networks(plan),
        *_drops(resolved, given),
        *without_a_meter(resolved.rule, resolved.meter is not None, as_flag),
        *beyond_the_end(plan.sparsity, plan.ticket_at or (), as_flag),
        *past_the_budget((resolved.rewind, *resolved.keep), plan.max_epochs, as_flag),
        *_past_the_level(resolved),
        *(_planned_layer_by_layer(resolved, given) or _unreachable(resolved)),
    ]


def _given_networks(plan: Plan) -> list[str]:
    """Return why a network cannot be one that is trained already."""
    if not plan.trained:
        return ["--keep-zeros is of a network with zeros: give --trained and its --weights"] if plan.keep_zeros else []
    if plan.weights is None and models.code_of(plan.model) is None:
        return ["--trained needs the trained weights: give --weights FILE.safetensors"]
    return [
        f"--rewind {point} is a point of the dense network's training, and with --trained there is none: choose --rewind rate"
        for point in (plan.rewind, *(plan.keep or ()))
        if point is not None and (point == "init" or point.startswith("early"))
    ][:1]


def _drops(resolved: ResolvedPlan, given: Plan) -> list[str]:
    """Return why the sparsest network within a drop cannot be searched for, and epochs that a last level cannot have."""
    plan, found = resolved.plan, []
    if plan.max_drop is not None:
        found += [
            f"--max-drop {plan.max_drop:g} finds how sparse the network can be, and {as_flag(key, value)} says it: "
            "give one of them"
            for key, value in ends_of(given.sparsity, given.ticket_at or ())[:1]
        ]
        if resolved.rewind.restores or not plan.levels:
            found.append(
                f"--max-drop goes on from the weights of the level before, and --rewind {resolved.rewind} does not: choose "
                "--method incop, or --rewind rate"
            )
    usual = plan.level_epochs or plan.max_epochs
    if plan.last_epochs is not None and usual is not None and plan.last_epochs > usual:
        found.append(
            f"--last-epochs {plan.last_epochs:g} are more than a level's {usual:g}: give less, or raise --level-epochs"
        )
    return found


def _past_the_level(resolved: ResolvedPlan) -> list[str]:
    """Return the sentence for a rewind point after which a level would have nothing left to train."""
    epochs, after = resolved.plan.level_epochs, resolved.rewind.after
    if epochs is None or after is None or after.unit != "epochs" or after.amount < epochs:
        return []
    return [
        f"--rewind {resolved.rewind} lies at or past the end of a level's {epochs:g} epochs (--level-epochs), of which none would "
        "be left to train: choose an earlier point, or --rewind rate"
    ]


def _planned_layer_by_layer(resolved: ResolvedPlan, given: Plan) -> list[str]:
    """Return why cuts that are planned for all weights together cannot be made by a selection that goes layer by layer."""
    selection, words = resolved.selection, f"--selection {resolved.selection}"
    if not isinstance(resolved.amount, Planned) or not isinstance(selection, NofM | Layerwise):
        return []
    if isinstance(selection, NofM):
        does = f"{words} leaves {selection.n} of every {selection.m} weights by one cut, whatever the amount"
    else:
        does = f"{words} lets each layer give up the amount by itself"
    if given.amount is None:
        other = f"{words} --levels 1" if isinstance(selection, NofM) else words
        who, remedy = f"the method {resolved.plan.method!r}", f"choose --method lth {other}, or leave --selection out"
    else:
        who, remedy = (
            f"--amount '{resolved.amount}'",
            "choose --selection global, or an amount that is a fraction, such as 0.2",
        )
    return [f"{does}, and {who} plans the amounts of many cuts for all weights together: {remedy}"]


def _unreachable(resolved: ResolvedPlan) -> list[str]:
    """Return the sentence for a sparsity that the amount cannot lead to, or that the pattern does not know."""
    plan, selection = resolved.plan, resolved.selection
    wanted = ends_of(plan.sparsity, plan.ticket_at or ())
    if isinstance(selection, NofM):
        fixed = 1.0 - selection.n / selection.m
        return [
            f"--selection {selection} leaves {selection.n} of every {selection.m} weights, a sparsity of {fixed:.4g} whatever "
            f"the amount, and {as_flag(key, value)} asks for another: leave it out, or choose --selection global"
            for key, value in wanted[-1:]
            if abs(value - fixed) > NEAR
        ]
    sparsity_after = getattr(resolved.amount, "sparsity_after", None)
    if sparsity_after is None:  # it depends on the weights
        return []
    most = sparsity_after(plan.levels)
    return [
        f"{as_flag(key, value)} cannot be reached: the amount {plan.amount} leads to {most:.4f} in {plan.levels} levels; raise "
        "--levels or the amount, or ask for less"
        for key, value in wanted
        if value > most + NEAR
    ][:1]


def of_data(resolved: ResolvedPlan, data: Dataset) -> list[str]:
    """Return what cannot work with these data: a split too small for what is taken of it."""
    plan = resolved.plan
    found: list[str] = []
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
    steps = math.ceil(train / (plan.batch_size or 1)) * (plan.max_epochs or 1.0)
    return found + [
        f"--rewind {point} lies at or past the end of the dense network's {steps:g} steps: choose an earlier point, or "
        "--rewind dense"
        for point in dict.fromkeys((resolved.rewind, *resolved.keep))
        if (after := point.after) is not None and after.unit == "steps" and after.amount >= steps
    ]


def notices(plan: Plan, data: Dataset) -> tuple[str, ...]:
    """Return what works and may not be what was meant: batches that are the whole split."""
    train = len(data.train)
    sizes = (("batch size", plan.batch_size), ("search batch size", plan.search_batch_size))
    return tuple(
        f"the {name} {size} is larger than the training split of {train} images: every step sees them all, one step an epoch"
        for name, size in sizes
        if size is not None and size > train
    )
