"""What arguments of a search cannot work together: checked here for Python and for the command line, each in its own spelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from incop.pruning import Selection
from incop.rewind_points import RewindPoint
from incop.stopping import Rule

Spelling = Callable[[str, object], str]  # from an argument's name and value to how the user writes them


def in_python(key: str, value: object) -> str:
    """Return an argument as Python writes it: ticket_at=0.5."""
    return f"{key}={str(value)!r}" if isinstance(value, RewindPoint) else f"{key}={value!r}"


def as_flag(key: str, value: object) -> str:
    """Return an argument as the command line writes it: --ticket-at 0.5."""
    return f"--{key.replace('_', '-')} {'none' if value is None else value}"


def ends_of(sparsity: float | None, ticket_at: Iterable[float]) -> list[tuple[str, float]]:
    """Return the sparsities that a search is to reach, each with the argument that gives it."""
    return [*(("ticket_at", one) for one in ticket_at), *([] if sparsity is None else [("sparsity", sparsity)])]


def beyond_the_end(sparsity: float | None, ticket_at: Sequence[float], spelling: Spelling) -> list[str]:
    """Return a sentence where a ticket is wanted of a sparsity that the search does not go to."""
    return [
        f"{spelling('ticket_at', one)} lies at or beyond {spelling('sparsity', sparsity)}, where the search ends: name "
        "sparsities on the way, or search further"
        for one in ticket_at
        if sparsity is not None and one >= sparsity
    ][:1]


def without_a_meter(rule: Rule | None, has_meter: bool, spelling: Spelling) -> list[str]:
    """Return a sentence where a rule watches the flow and nothing measures it."""
    if rule is None or has_meter or "flow" not in rule.wants:
        return []
    return [
        f"the rule {str(rule)!r} needs a meter, and {spelling('meter', None)} measures nothing: give one of the "
        "information flow or of the gradient flow"
    ]


def past_the_budget(points: Iterable[RewindPoint], epochs: float | None, spelling: Spelling) -> list[str]:
    """Return a sentence for every rewind point that the dense network's training does not come to."""
    return [
        f"{spelling('rewind', point)} lies at or past the end of the dense network's {epochs:g} epochs: choose an earlier point, "
        f"or {spelling('rewind', 'dense')}"
        for point in dict.fromkeys(points)
        if (after := point.after) is not None
        and after.unit == "epochs"
        and epochs is not None
        and after.amount >= epochs
    ]


def beyond_the_selection(
    ends: Iterable[tuple[str, float]], total: int, most: float, selection: Selection | None, spelling: Spelling
) -> list[str]:
    """Return a sentence where a sparsity is wanted that the selection cannot lead to.

    Args:
        ends: the sparsities that are wanted, see `ends_of`.
        total: weights of the network that compete.
        most: the largest sparsity that the selection leads to, see `pruning.cut.reach`.
        selection: it, for the sentence.
        spelling: how the user writes arguments.
    """
    return [
        f"{spelling(name, value)} cannot be reached: the selection '{selection}' leads to a sparsity of {most:.4f} at most for "
        "this network; ask for less, or select single weights"
        for name, value in ends
        if round(value * total) > round(most * total)
    ][:1]
