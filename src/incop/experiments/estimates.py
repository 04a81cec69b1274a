"""Estimates: what a comparison may cost at most, before anything has run."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from incop.experiments.comparison import Comparison, Job, jobs_of
from incop.experiments.comparison_runs import GUESS
from incop.experiments.controls import Label
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.masks import Masks
from incop.watch import Watch

TIMED_STEPS = 20


def estimates(comparison: Comparison) -> list[tuple[Job, float]]:
    """Return every job with the most epochs it may take after the dense level, before anything has run."""
    found = []
    for job in jobs_of(comparison):
        end = job.sparsity if job.sparsity is not None else max(comparison.sparsities)
        plan = resolve(comparison.plan_of(job.label, GUESS, end, job.data, job.model, job.seed)).plan
        found.append((job, _most_epochs(job.label, plan, end)))
    return found


def _most_epochs(label: Label, plan: Plan, sparsity: float) -> float:
    budget = float(plan.max_epochs or 1.0)
    share = 0.12  # by the PQ index 5 to 40 % of what is left goes at a level, more at first
    if plan.amount and re.fullmatch(r"[\d.]+", plan.amount):
        share = float(plan.amount)
    levels = math.ceil(math.log(1 - sparsity) / math.log(1 - share)) if 0 < share < 1 else 1
    per_level = float(plan.rule.split()[1]) if plan.rule and plan.rule.startswith("after ") else budget
    if label.needs_cost:
        per_level = 2.0  # matched to a rule that usually stops at its first check
    return min(per_level, budget) * max(levels - 1, 0) + budget * (1 + len(plan.ticket_at or ()))


def seconds_per_epoch(comparison: Comparison, data: str, model: str) -> float:
    """Return how long an epoch takes on this machine, by a few timed steps of the first method."""
    label = Label.parse(comparison.methods[0])
    plan = comparison.plan_of(label, GUESS, max(comparison.sparsities), data, model, comparison.plan.seed or 0)
    parts = prepare(resolve(plan))
    trainer = replace(parts.trainer, epochs=TIMED_STEPS / parts.trainer.steps_per_epoch)
    watch = Watch(parts.model)
    watch.start()
    trainer.fit(parts.model, Masks.full(parts.model), watch)
    return watch.spent.seconds / TIMED_STEPS * parts.trainer.steps_per_epoch
