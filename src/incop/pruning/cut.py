"""The cut: score, amount and selection put together. Masks only ever shrink, by exactly the asked count.

Where a selection says that weights go together, by the fewest whole places of its line that make up the count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from incop.errors import InputError
from incop.masks import Masks
from incop.pruning.amounts import Amount, Competition, Fraction, Planned, SparsityPath
from incop.pruning.scores import Magnitude, Score
from incop.pruning.selection import Global, Selection, checked, foremost, lowest
from incop.records import shortest
from incop.wrappers import unwrapped


def prune(
    model: nn.Module,
    amount: Amount | float = 0.2,
    masks: Masks | None = None,
    *,
    score: Score | None = None,
    selection: Selection | None = None,
    skip: Iterable[str | type[nn.Module]] = (),
    frozen: bool = False,
    level: int = 1,
    levels: int | None = None,
    damage: Callable[[Masks], float] | None = None,
    at_most: float | None = None,
) -> Masks:
    """Choose the weights to cut and return the new masks. The model is not changed: `masks.apply(model)` does that.

    Args:
        model: its weights are scored as they are now.
        amount: how many go: a fraction of what is left, or an amount such as `Target` or `PQIndex`.
        masks: the weights left so far; by default all prunable ones.
        score: which go first, by default the smallest in `Magnitude`.
        selection: who competes with whom, by default all (`Global`).
        skip: layers to leave out when `masks` is not given; see `layers.prunable`.
        frozen: cut weights that training leaves as they are too, when `masks` is not given.
        level: number of the level that begins with this cut, for amounts that follow a schedule.
        levels: how many levels there will be, for amounts that depend on it.
        damage: from trial masks to the harm they would do, for amounts that ask. A trial shows what an answer of so
            many would leave: the layers before as they are cut by then, those after it as they are.
        at_most: a sparsity in [0, 1] the cut must not pass: of what it would cut beyond, the weights with the largest
            scores stay, so that it ends exactly there. The pattern of `NofM` does not heed it; `Units` pass it by less than
            one unit.

    Returns:
        Masks that keep a subset of what was kept; the same for the same weights, every time.

    Raises:
        InputError: nothing is prunable, or the amount answers with a count that cannot be cut.
        TrainingError: a weight is not finite.

    Example:
        >>> import torch
        >>> from incop import pruning
        >>> net = torch.nn.Linear(10, 10)
        >>> masks = pruning.prune(net, 0.2)
        >>> pruning.prune(net, pruning.Fraction(0.5), masks).remaining
        40
    """
    amount = amount_of(amount)
    selection = selection or Global()
    masks = masks if masks is not None else Masks.full(model, skip=skip, frozen=frozen)
    if at_most is not None and not 0 <= at_most <= 1:
        raise InputError(f"at_most={at_most!r}: the sparsity not to pass is a fraction in [0, 1]")
    if not masks:
        raise InputError("there are no masks to prune in: leave masks out, or give those of Masks.full(model)")
    weights = {name: weight.detach() for name, weight in masks.weights(model).items()}
    choice = _Choice.of(model, masks, weights, score, selection)
    if not choice.by_amount:
        return masks.intersect(choice.cut(masks, list(masks), choice.waiting(masks)))
    kept = masks
    for names, share in selection.groups(list(masks)):
        trial = _trial(kept, names, choice, share, amount)
        flat = _flat(weights, kept, names)
        total = sum(masks[name].numel() for name in names)
        kept = trial(amount(Competition(flat, total, level, _harm(trial, damage), levels)))
    if at_most is not None:
        kept = _given_back(masks, kept, choice, round(at_most * masks.total))
    return masks.intersect(kept)


def amount_of(given: Amount | float) -> Amount:
    """Return the amount that a number or an amount stands for."""
    if isinstance(given, int | float):
        return Fraction(given)
    if isinstance(given, Masks):
        raise InputError(
            "the amount is a Masks: the amount comes second and masks third, as in prune(model, 0.2, masks=masks)"
        )
    if not callable(given):
        raise InputError(
            f"the amount is a {type(given).__name__}: give a fraction of what is left, such as 0.2, or an amount that is called "
            "with a Competition and returns a count"
        )
    return given


@dataclass(frozen=True)
class _Choice:
    """Which weights go when so many must: those with the lowest scores, or those that are foremost in a line.

    Args:
        ranks: by parameter name, scores or places.
        pick: from the ranks of what is left, flat, and a count to which of them go.
        by_amount: whether the amount has a say.
    """

    ranks: dict[str, Tensor]
    pick: Callable[[Tensor, int], Tensor] = lowest
    by_amount: bool = True

    @classmethod
    def of(
        cls, model: nn.Module, masks: Masks, weights: dict[str, Tensor], score: Score | None, selection: Selection
    ) -> _Choice:
        inner = unwrapped(model)
        scores = checked((score or Magnitude())(inner, weights), weights)
        line = getattr(selection, "line", None)
        if line is None:
            return cls(scores)
        left = {name: masks[name].to(scores[name].device) for name in scores}
        return cls(line(inner, scores, left), foremost, getattr(selection, "by_amount", True))

    def cut(self, masks: Masks, names: list[str], count: int) -> dict[str, Tensor]:
        """Return the masks of these weights after so many of them went."""
        gone = self.pick(_flat(self.ranks, masks, names), count)
        new, at = {}, 0
        for name in names:
            left = masks.remaining_in(name)
            mask = masks[name].clone()
            mask[masks[name]] = ~gone[at : at + left].to(mask.device)
            new[name], at = mask, at + left
        return new

    def waiting(self, masks: Masks) -> int:
        """Return how many weights stand in the line; of weights that go one by one, all."""
        if self.pick is lowest:
            return masks.remaining
        return sum(int((self.ranks[name][masks[name].to(self.ranks[name].device)] >= 0).sum()) for name in masks)


def reach(model: nn.Module, masks: Masks, selection: Selection | None) -> float:
    """Return the largest sparsity that a selection can lead to by amounts; what is wrong with it for this network is said here."""
    selection = selection or Global()
    selection.groups(list(masks))
    if not hasattr(selection, "line"):
        return 1.0
    weights = {name: weight.detach() for name, weight in masks.weights(model).items()}
    choice = _Choice.of(model, masks, weights, _same, selection)
    return 1.0 - (masks.remaining - choice.waiting(masks)) / max(masks.total, 1) if choice.by_amount else 1.0


def _same(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score all weights the same, whatever they are."""
    return {name: torch.zeros_like(weight) for name, weight in weights.items()}


def _given_back(before: Masks, after: Masks, choice: _Choice, most: int) -> Masks:
    """Return `after` with what was newly cut last put back: no more than `most` are gone, but for what goes together."""
    excess = after.total - after.remaining - most
    if excess <= 0:
        return after
    cut = Masks({name: before[name] & ~after[name] for name in before})
    still = choice.cut(cut, list(cut), max(cut.remaining - excess, 0))  # True: put back
    return Masks({name: after[name] | still[name] for name in cut})


def planned(
    model: nn.Module,
    masks: Masks,
    amount: Planned,
    *,
    score: Score | None = None,
    selection: Selection | None = None,
    damage: Callable[[Masks], float] | None = None,
    levels: int | None = None,
) -> SparsityPath:
    """Return the path of sparsities that an amount plans before the first cut, by trial cuts that are not made."""
    selection = selection or Global()
    groups = selection.groups(list(masks))
    if len(groups) != 1 or groups[0][1] != 1.0 or not getattr(selection, "by_amount", True):
        raise InputError(f"the amount '{amount}' plans one path for all weights: use it with selection global")
    names, share = groups[0]
    weights = {name: weight.detach() for name, weight in masks.weights(model).items()}
    trial = _trial(masks, names, _Choice.of(model, masks, weights, score, selection), share, amount)
    flat = _flat(weights, masks, names)
    found = amount.plan(Competition(flat, masks.total, 1, _harm(trial, damage), levels))
    sparsities = getattr(found, "sparsities", None)
    if sparsities is None:
        raise InputError(
            f"the amount '{amount}' planned a {type(found).__name__}: plan() must return a pruning.SparsityPath"
        )
    return SparsityPath(tuple(sparsities))


Trial = Callable[[int], Masks]


def _trial(kept: Masks, names: list[str], choice: _Choice, share: float, amount: Amount) -> Trial:
    """Return the function from an amount's answer to the masks it would leave; `kept` still holds this group whole."""
    left = sum(kept.remaining_in(name) for name in names)

    def trial(count: int) -> Masks:
        return Masks({**kept, **choice.cut(kept, names, _possible(count, share, left, amount))})

    return trial


def _harm(trial: Trial, damage: Callable[[Masks], float] | None) -> Callable[[int], float] | None:
    return None if damage is None else lambda count: damage(trial(count))


def _possible(count: float, share: float, left: int, amount: Amount) -> int:
    if not (math.isfinite(count) and count == int(count) and 0 <= round(int(count) * share) <= left):
        part = "" if share == 1.0 else f", of which this layer gives up {shortest(share)}"
        raise InputError(f"the amount {amount} asks to cut {count} of {left} weights that are left{part}")
    return round(int(count) * share)


def _flat(tensors: dict[str, Tensor], masks: Masks, names: list[str]) -> Tensor:
    parts = [tensors[name][masks[name].to(tensors[name].device)] for name in names]
    home = parts[0].device  # a network may be spread over several
    return torch.cat([(part.float() if part.dtype.itemsize < 4 else part).to(home) for part in parts])
