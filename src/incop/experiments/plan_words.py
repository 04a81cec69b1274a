"""A plan's words read into the parts of a search, each once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from incop import flow, pruning, stopping
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.flow import Meter
from incop.pruning import Amount, Score, Selection
from incop.records import Interval
from incop.rewind_points import RewindPoint
from incop.stopping import Rule


@dataclass(frozen=True)
class ResolvedPlan:
    """A plan with every key, and what its words mean.

    The score and the selection may still need data, see `with_data`.
    """

    plan: Plan
    rule: Rule | None
    meter: Meter | None
    amount: Amount
    selection: Selection
    score: Score
    rewind: RewindPoint
    check_every: Interval
    keep: tuple[RewindPoint, ...] = ()


# key → how its words are read; the plan's other keys say what the words leave open
READERS: Mapping[str, Callable[[Any, Plan], Any]] = {
    "rule": lambda text, plan: None if text == "none" else stopping.parse(text),
    "meter": lambda text, plan: flow.parse_meter(text, alive_only=bool(plan.alive_only)),
    "amount": lambda text, plan: pruning.parse_amount(text),
    "selection": lambda text, plan: pruning.parse_selection(text),
    "score": lambda text, plan: pruning.parse_score(text, seed=plan.seed or 0),
    "rewind": lambda text, plan: RewindPoint.parse(text),
    "check_every": lambda text, plan: Interval.parse(text),
    "keep": lambda texts, plan: tuple(RewindPoint.parse(text) for text in texts),
}


def read_words(plan: Plan, *, known: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Read the words of all keys that a plan has.

    Args:
        plan: any plan.
        known: keys that were read before.
    """
    parts: dict[str, Any] = {}
    problems = []
    for key, read in READERS.items():
        words = getattr(plan, key)
        if words is None or key in known:
            continue
        try:
            parts[key] = read(words, plan)
        except InputError as error:
            problems.append(str(error))
    return parts, problems


def with_data(part: Any, batches: Any) -> Any:
    """Return a score or a selection that knows the data it needs, by its own `with_data`; one that needs none as it is."""
    return part.with_data(batches) if hasattr(part, "with_data") else part
