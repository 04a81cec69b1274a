"""Cutting: the cut that begins a level, planned where the amount asks for it, the same in every process."""

from __future__ import annotations

from typing import Any

from torch import nn

from incop import ranks
from incop.batches import first_samples, unpack
from incop.errors import TrainingError
from incop.flow import Damage
from incop.loop.parts import Search
from incop.masks import Masks
from incop.pruning import EvenDamage, Magnitude, Path, prune
from incop.pruning.cut import planned
from incop.snapshots import Snapshot

__all__ = ["cut_at", "next_masks", "plan_cuts", "planned_path", "reached"]

PLAN_PROBE = 128  # samples on which trial cuts are ranked: each cut is held against itself, so few are enough


def planned_path(parts: Search, amount: Any, damage: Damage) -> Path:
    """Return the path of sparsities that an amount plans by trial cuts."""
    return planned(parts.model, parts.masks, amount, score=parts.score, selection=parts.selection, damage=damage)


def plan_cuts(parts: Search) -> list[str]:
    """Let an amount that tries cuts do so once, on the dense network; the first level is charged for it."""
    if not isinstance(parts.amount, EvenDamage):
        return []
    probe, left = [], PLAN_PROBE
    for batch in map(unpack, parts.probe):
        probe.append(first_samples(batch, left))
        left -= probe[-1].samples
        if left <= 0:
            break

    def tried() -> tuple[Path, int, float, bool]:
        damage = Damage(parts.model, probe)
        return planned_path(parts, parts.amount, damage), damage.samples, damage.seconds, damage.blind

    parts.amount, samples, seconds, blind = ranks.of(parts.model).once(tried)
    parts.planning = samples, seconds
    if not blind:
        return []
    return [
        "no layer's output varies over the probe, so that the flow could not choose the cuts: they go evenly; check the probe"
    ]


def cut_at(parts: Search, level: int, *, at_most: float | None) -> list[str]:
    """Cut the weights that a level begins without, and return what a reader of its record should know."""
    told = plan_cuts(parts) if level == 1 else []
    masks = next_masks(parts, level, at_most=at_most)
    if masks.remaining == 0:
        raise TrainingError(f"level {level} would leave no weights at all: cut less per level, or search fewer levels")
    notices = [
        f"layer {name.removesuffix('.weight')!r} has no weights left"
        for name in masks
        if masks.remaining_in(name) == 0 and parts.masks.remaining_in(name) > 0
    ]
    if notices and parts.on_collapse == "refuse":
        raise TrainingError(
            f"level {level} would begin with a collapse ({notices[0]}): cut less per level or layer by layer, skip the layer, "
            "or let on_collapse tell it"
        )
    notices += told
    if masks.remaining == parts.masks.remaining:
        notices.append("nothing was cut: the amount asked for no weight")
    notices += _prove_agreement(parts.model, masks, level)
    parts.masks = masks
    return notices


def _prove_agreement(model: nn.Module, masks: Masks, level: int) -> list[str]:
    """Refuse masks and weights that are not those of every process that trains the model; say by what they were compared."""
    together = ranks.of(model)
    if together.one:
        return []
    digest = masks.digest().hex()
    for what, mine in (
        ("would cut other weights", digest),
        ("would begin from other weights", Snapshot.of(model).sums()),
    ):
        if (apart := together.apart(mine)) is not None:
            raise ranks.shared(
                TrainingError(
                    f"level {level} {what} in process {apart} than in process 0: their weights or scores have come "
                    "apart; train through DistributedDataParallel, and give all processes one seed and scores of the same batches"
                )
            )
    return [f"{together.size} processes hold the same masks ({digest[:16]}) and weights"]


def next_masks(parts: Search, level: int, *, at_most: float | None = None) -> Masks:
    """Return the masks that the next cut would leave; the first process decides where last bits could."""
    asked = ranks.of(parts.model).asked
    return prune(
        parts.model,
        parts.masks,
        amount=asked(parts.amount),
        score=parts.score if parts.score is None or isinstance(parts.score, Magnitude) else asked(parts.score),
        selection=parts.selection,
        level=level,
        at_most=at_most,
    )


def reached(masks: Masks, sparsity: float) -> bool:
    """Say whether so many weights are gone as a sparsity asks for."""
    return masks.total - masks.remaining >= round(sparsity * masks.total)
