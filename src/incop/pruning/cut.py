"""The cut: score, amount and selection put together. Masks only ever shrink, by exactly the asked count."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from incop.errors import InputError
from incop.masks import Masks
from incop.pruning.amounts import Amount, Competition, Fraction
from incop.pruning.scores import Magnitude, Score
from incop.pruning.selection import Global, NofM, Selection, checked, lowest

__all__ = ["prune"]


@torch.no_grad()
def prune(
    model: nn.Module,
    masks: Masks | None = None,
    *,
    amount: Amount | float = 0.2,
    score: Score | None = None,
    selection: Selection | None = None,
    skip: Iterable[str | type[nn.Module]] = (),
    level: int = 1,
    damage: Callable[[Masks], float] | None = None,
) -> Masks:
    """Choose the weights to cut and return the new masks. The model is not changed: `masks.apply(model)` does that.

    Args:
        model: its weights are scored as they are now.
        masks: the weights left so far; by default all prunable ones.
        amount: how many go: a fraction of what is left, or an amount such as `Target` or `PQIndex`.
        score: which go first, by default the smallest in `Magnitude`.
        selection: who competes with whom, by default all (`Global`).
        skip: layers to leave out when `masks` is not given; see `layers.prunable`.
        level: number of the level that begins with this cut, for amounts that follow a schedule.
        damage: from trial masks to the harm they would do, for amounts that ask.

    Returns:
        Masks that keep a subset of what was kept; the same for the same weights, every time.

    Raises:
        InputError: nothing is prunable, or the amount answers with a count that cannot be cut.
        TrainingError: a weight is NaN.

    Example:
        >>> import torch
        >>> from incop import pruning
        >>> net = torch.nn.Linear(10, 10)
        >>> masks = pruning.prune(net, amount=0.2)
        >>> pruning.prune(net, masks, amount=pruning.Fraction(0.5)).remaining
        40
    """
    amount = Fraction(float(amount)) if isinstance(amount, int | float) else amount
    score = score or Magnitude()
    selection = selection or Global()
    masks = masks if masks is not None else Masks.full(model, skip=skip)
    parameters = {name: weight.detach() for name, weight in masks.weights(model).items()}
    scores = score(model, parameters)
    checked(scores)
    if isinstance(selection, NofM):
        new = {name: selection.cut(scores[name], masks[name].to(scores[name].device)) for name in masks}
        return masks.intersect(new)
    kept = {name: masks[name] for name in masks}
    for names, share in selection.groups(list(masks)):
        flat = _flat(parameters, masks, names)
        flat_scores = _flat(scores, masks, names)

        def trial(count: int, names: list[str] = names, flat_scores: Tensor = flat_scores) -> Masks:
            return Masks({**kept, **_cut(masks, names, flat_scores, count)})

        def harm(count: int, trial: Callable[[int], Masks] = trial) -> float:
            assert damage is not None
            return damage(trial(count))

        total = sum(masks[name].numel() for name in names)
        count = amount(Competition(flat, total, level, harm if damage is not None else None))
        kept = {
            **kept,
            **_cut(masks, names, flat_scores, _possible(round(count * share), flat.numel(), amount)),
        }
    return masks.intersect(kept)


def _possible(count: int, left: int, amount: Amount) -> int:
    if not 0 <= count <= left:
        raise InputError(f"the amount {amount} asks to cut {count} of {left} weights that are left")
    return count


def _flat(tensors: dict[str, Tensor], masks: Masks, names: list[str]) -> Tensor:
    parts = [tensors[name][masks[name].to(tensors[name].device)] for name in names]
    return torch.cat([part.float() if part.dtype.itemsize < 4 else part for part in parts])


def _cut(masks: Masks, names: list[str], scores: Tensor, count: int) -> dict[str, Tensor]:
    gone = lowest(scores, count)
    new, at = {}, 0
    for name in names:
        left = masks.remaining_in(name)
        mask = masks[name].clone()
        mask[masks[name]] = ~gone[at : at + left].to(mask.device)
        new[name], at = mask, at + left
    return new
