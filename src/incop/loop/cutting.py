"""Cutting: the cut that begins a level, planned where the amount asks for it, the same in every process."""

from __future__ import annotations

from typing import Any

from torch import nn

from incop import distributed
from incop.batches import first_samples, unpack
from incop.errors import TrainingError
from incop.flow import Damage
from incop.loop.progress import LevelProgress, SearchProgress
from incop.loop.settings import SearchSettings
from incop.masks import Masks
from incop.pruning import Magnitude, Planned, SparsityPath, prune
from incop.pruning.cut import planned
from incop.rewind_points import Snapshot

TRIAL_SAMPLES = 128  # on which trial cuts are ranked: each cut is held against itself, so few are enough


class TrialCuts:
    """What trial cuts would do to the flow of a network as it is now; nothing is measured before an amount asks."""

    def __init__(self, model: nn.Module, probe: Any) -> None:
        self._model, self._probe = model, probe
        self._damage: Damage | None = None

    def __call__(self, masks: Masks) -> float:
        """Return the damage of leaving only these weights, in [0, 1]."""
        if self._damage is None:
            self._damage = Damage(self._model, first_of(self._probe, TRIAL_SAMPLES))
        return self._damage(masks)

    @property
    def cost(self) -> tuple[int, float]:
        """Samples and seconds that the trials took."""
        return (0, 0.0) if self._damage is None else (self._damage.samples, self._damage.seconds)

    @property
    def notices(self) -> list[str]:
        """What a reader of the record should know of them."""
        if self._damage is None or not self._damage.blind:
            return []
        return ["no layer's output varies over the probe, so that no cut shows any damage: check the probe"]


def first_of(probe: Any, samples: int) -> list[Any]:
    """Return the batches that hold the first so many samples of a probe."""
    found: list[Any] = []
    for batch in map(unpack, probe):
        found.append(first_samples(batch, samples))
        samples -= found[-1].samples
        if samples <= 0:
            break
    return found


def trial_cuts(settings: SearchSettings) -> TrialCuts | None:
    """Return what measures trial cuts of the network as it is now; None where the search has no probe."""
    return None if settings.probe is None else TrialCuts(settings.model, settings.probe)


def planned_path(
    settings: SearchSettings, progress: SearchProgress, amount: Planned, damage: TrialCuts | None
) -> SparsityPath:
    """Return the path of sparsities that an amount plans for the network as it is now."""
    return planned(
        settings.model,
        progress.masks,
        amount,
        score=progress.score,
        selection=settings.selection,
        damage=damage,
        levels=settings.levels,
    )


def cut_at(settings: SearchSettings, progress: SearchProgress, number: int, *, at_most: float | None) -> LevelProgress:
    """Cut the weights that a level begins without, and return the level with what a reader of its record should know."""
    trials = trial_cuts(settings)
    together = distributed.of(settings.model)
    amount = settings.amount
    if number == 1 and isinstance(amount, Planned):
        progress.path = together.once(lambda: planned_path(settings, progress, amount, trials))
    masks = next_masks(settings, progress, number, trials, at_most=at_most)
    if masks.remaining == 0:
        raise TrainingError(f"level {number} would leave no weights at all: cut less per level, or search fewer levels")
    notices = [
        f"layer {name.removesuffix('.weight')!r} has no weights left"
        for name in masks
        if masks.remaining_in(name) == 0 and progress.masks.remaining_in(name) > 0
    ]
    if notices and settings.on_collapse == "refuse":
        raise TrainingError(
            f"level {number} would begin with a collapse ({notices[0]}): cut less per level or layer by layer, skip the layer, "
            "or let on_collapse tell it"
        )
    cost, found = together.same(((0, 0.0), []) if trials is None else (trials.cost, trials.notices))
    notices += found
    if masks.remaining == progress.masks.remaining:
        notices.append("nothing was cut: the amount asked for no weight")
    notices += _prove_agreement(settings.model, masks, number)
    progress.masks = masks
    return LevelProgress(number, notices, trials=cost)


def _prove_agreement(model: nn.Module, masks: Masks, level: int) -> list[str]:
    """Refuse masks and weights that are not those of every process that trains the model; say by what they were compared."""
    together = distributed.of(model)
    if together.one:
        return []
    digest = masks.digest().hex()
    for what, mine in (
        ("would cut other weights", digest),
        ("would begin from other weights", Snapshot.of(model).sums()),
    ):
        if (apart := together.apart(mine)) is not None:
            raise distributed.shared(
                TrainingError(
                    f"level {level} {what} in process {apart} than in process 0: their weights or scores have come "
                    "apart; train through DistributedDataParallel, and give all processes one seed and scores of the same batches"
                )
            )
    return [f"{together.size} processes hold the same masks ({digest[:16]}) and weights"]


def next_masks(
    settings: SearchSettings,
    progress: SearchProgress,
    number: int,
    damage: TrialCuts | None,
    *,
    at_most: float | None = None,
) -> Masks:
    """Return the masks that the cut of a level would leave; the first process decides where last bits could."""
    asked, score = distributed.of(settings.model).asked, progress.score
    return prune(
        settings.model,
        asked(progress.amount(settings)),
        progress.masks,
        score=score if score is None or isinstance(score, Magnitude) else asked(score),
        selection=settings.selection,
        level=number,
        levels=settings.levels,
        damage=damage,
        at_most=at_most,
    )


def reached(masks: Masks, sparsity: float) -> bool:
    """Say whether so many weights are gone as a sparsity asks for."""
    return masks.total - masks.remaining >= round(sparsity * masks.total)
