"""Fitting: a level is trained, begun again where it diverged, proven and recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from incop import distributed
from incop.errors import Diverged, InputError, TrainingError
from incop.flat_state import part, random_states, restore_random, restoring
from incop.loop.cutting import next_masks, trial_cuts
from incop.loop.progress import SearchProgress
from incop.loop.search_state import beginning_of, offer, random_of
from incop.loop.settings import SearchSettings
from incop.loop.tickets import Ticket, budget_of
from incop.masks import Masks
from incop.pruning.saliency import Gathers
from incop.recipe import LevelRecipe
from incop.records import Level
from incop.rewind_points import Snapshot
from incop.watch import Watch

SLOWER = 0.5  # of the learning rate, each time training diverged and is begun again
LEAST_SHARE = SLOWER**3  # of it, with which that is done for the last time


def fit_level(settings: SearchSettings, progress: SearchProgress, watch: Watch) -> None:
    """Train a level from its beginning, or from where a state left it."""
    level = progress.level
    state, level.resume = level.resume, None
    if state is None:
        level.random = random_states()
        level.beginning = beginning_of(settings, progress) if settings.on_divergence == "retry" else {}
    else:
        watch.restore(part("watch", state))
        level.random = part(random_of(distributed.of(settings.model).rank), state) or part("random", state)
        restore_random(level.random)
        restore = getattr(settings.trainer, "restore", None)
        if callable(restore):
            restore(part("trainer", state))
    watch.start()
    if state is None:
        watch.rest()
    while True:
        try:
            with distributed.linked(distributed.of(settings.model)), _gathering(settings, progress, watch):
                settings.trainer.fit(settings.model, progress.masks, watch)
            _ended(settings, watch)
            level.notices += _missed(progress, watch)
            return
        except Diverged as error:
            _go_back(settings, progress, watch, error)


def _gathering(
    settings: SearchSettings, progress: SearchProgress, watch: Watch
) -> contextlib.AbstractContextManager[None]:
    """Let the score gather where a cut follows: not on the dense network, which may be shared, nor past the rule's stop."""
    level = progress.level
    if level.number == 0 or level.last or not isinstance(progress.score, Gathers):
        return contextlib.nullcontext()
    return progress.score.gathering(settings.model, progress.masks, when=lambda: watch.stopped is None)


def _missed(progress: SearchProgress, watch: Watch) -> list[str]:
    """Say if a score that should have gathered could not."""
    # once is enough, and what it gathered is as large as the network
    level, score = progress.level, progress.score
    trained = watch.step > 0 or watch.epoch > 0  # a loop need not tell its steps
    if level.number != 1 or level.last or not trained or not isinstance(score, Gathers) or score.state():
        return []
    seen = f"{watch.step} steps" if watch.step else f"{watch.epoch:g} epochs"
    return [
        f"the score '{score}' gathered nothing in {seen}, and the next cut goes without: no optimizer of torch trains these "
        "weights themselves"
    ]


def _ended(settings: SearchSettings, watch: Watch) -> None:
    """Look once more where the trainer did not at its end, and see that nothing in the network is NaN or infinite."""
    if not watch.checks:
        raise InputError(
            f"the trainer ({type(settings.trainer).__name__}) never called watch.look() in level {watch.level}: "
            "call it after every epoch, so that epochs are counted and the rule is asked"
        )
    if watch.step > watch.checks[-1].step:
        watch.look(epoch=watch.epoch)
    watch.check_finite()


def _go_back(settings: SearchSettings, progress: SearchProgress, watch: Watch, error: Diverged) -> None:
    """Put everything back as it was when the level began, for another time with a smaller learning rate."""
    level = progress.level
    if not level.beginning:
        more = (
            "on_divergence='retry' begins the level again with half the learning rate"
            if settings.on_divergence == "stop"
            else "this level goes on from a state without its beginning, taken before on_divergence was 'retry': start anew"
        )
        raise Diverged(error.what, f"{error.remedy}; {more}") from error
    if progress.lr_share <= LEAST_SHARE:
        raise Diverged(f"{error.what}, with {progress.lr_share:g} of the learning rate", error.remedy) from error
    progress.lr_share *= SLOWER
    told = (
        f"level {level.number} was begun again with {progress.lr_share:g} of the learning rate, after {watch.epoch:.4g} epochs "
        f"that diverged: {error.what}"
    )
    with restoring("level"):
        Snapshot(part("model", level.beginning)).rewind(settings.model)
        level.random = part("random", level.beginning)
        restore_random(level.random)
        restore = getattr(settings.trainer, "restore", None)
        if callable(restore):
            restore(part("trainer", level.beginning))
        if isinstance(progress.score, Gathers):
            progress.score.restore(part("score", level.beginning), progress.masks.weights(settings.model))
        level.beginning["notices"] = level.notices = [*map(str, level.beginning["notices"]), told]
    level.stopped = None
    if level.number == 0:
        progress.points = {name: point for name, point in progress.points.items() if name == "init"}
        progress.retaken += 1
    if settings.on_notice is not None:
        settings.on_notice(told)
    watch.again(progress.lr_share)
    watch.rest()


def prove_zero(model: nn.Module, masks: Masks, level: int) -> None:
    """Refuse pruned weights that are not zero after a level."""
    for name, weight in masks.weights(model).items():
        if bool((weight.detach()[~masks[name].to(weight.device)] != 0).any()):
            raise TrainingError(
                f"pruned weights of {name!r} are no longer zero after level {level}: the trainer must keep them there "
                "with incop.hold(masks, model, optimizer)"
            )


def level_record(
    settings: SearchSettings, progress: SearchProgress, watch: Watch, *, rewind: str, stop_reason: str
) -> Level:
    """Return the record of a level that was trained."""
    end = watch.checks[-1]
    measured = end.metric_value
    if measured is None:
        measured = distributed.of(settings.model).mean(settings.trainer.evaluate(settings.model))
    spent = watch.spent
    budget = budget_of(settings.trainer, watch.level)
    if budget is not None:
        budget *= watch.recipe.budget
    if budget is not None and math.isfinite(watch.schedule_from):
        budget = max(budget - watch.schedule_from, 0.0)
    return Level(
        level=watch.level,
        sparsity=progress.masks.sparsity,
        model_sparsity=progress.masks.model_sparsity(settings.model),
        remaining=progress.masks.remaining,
        epochs=spent.epochs,
        steps=spent.steps,
        samples=spent.samples,
        seconds=spent.seconds,
        probe_seconds=spent.probe_seconds,
        probe_samples=spent.probe_samples,
        record_seconds=spent.record_seconds,
        record_samples=spent.record_samples,
        search=watch.stopped,
        metric_value=measured,
        stop_reason=stop_reason,
        rewind=rewind,
        max_epochs=budget,
        distance=end.distance,
        flow=end.flow,
        layers=progress.masks.layer_sparsity(),
        notices=tuple(progress.level.notices),
        lr_share=progress.lr_share,
        abandoned=watch.abandoned,
        metric=settings.metric,
    )


def copy_of(settings: SearchSettings, epoch: float = 0.0) -> Snapshot:
    """Copy the model to where the search keeps copies."""
    return Snapshot.of(settings.model, epoch=epoch, offload=settings.offload)


def short(recipe: LevelRecipe) -> LevelRecipe:
    """Return the recipe of a last level that only tries a ticket: half the budget."""
    return dataclasses.replace(recipe, budget=recipe.budget / 2)


def train_sparse(
    settings: SearchSettings, progress: SearchProgress, ended: Callable[[Watch], dict[str, Any]] | None = None
) -> Ticket:
    """Rewind, retrain and prove the level that was begun, and return its ticket.

    Args:
        settings: of the search.
        progress: of it.
        ended: called when the level is trained; returns further fields of its record.
    """
    level, masks = progress.level, progress.masks
    point = progress.points[str(settings.rewind)] if settings.rewind.restores else None
    if level.resume is None:
        (point or Snapshot.of(settings.model)).rewind(settings.model, masks)  # proves itself
    full = level.last and (settings.last_level_full or level.stop is not None)

    def go_on() -> None:
        level.stopped = copy_of(settings)

    def would_cut() -> Masks:
        trials = trial_cuts(settings)
        cut = next_masks(settings, progress, (progress.cuts or level.number) + 1, trials)
        if trials is not None:
            watch.probed(trials.cost[0])  # noqa: F821  # until the level has ended; the look counts its seconds itself
        return cut

    starts = {"early": 0.0 if point is None else point.epoch, "none": math.inf}
    watch = Watch(
        settings.model,
        settings.probe,
        meter=settings.meter,
        rule=None if full else settings.rule,
        reference=progress.reference,
        metric=settings.metric,
        reference_value=progress.reference_value,
        masks=masks,
        next_masks=would_cut,
        level=level.number,
        every=settings.check_every,
        before=settings.check_before and not full,
        go_on=go_on if level.report and not level.last else None,
        schedule_from=starts.get(settings.rewind.kind, 0.0),
        continues=level.number > 1 and not settings.rewind.restores,
        lr_share=progress.lr_share,
        search_recipe=settings.search_recipe,
        last_recipe=short(settings.last_recipe) if level.short else settings.last_recipe,
        on_check=settings.on_check,
        on_step=None if settings.on_step is None else functools.partial(settings.on_step, level.number),
        on_rest=lambda: offer(settings, progress, watch),  # noqa: F821  # until the level has ended
    )
    watch.probed(*level.trials)
    fit_level(settings, progress, watch)
    prove_zero(settings.model, masks, level.number)
    stops = [check.verdict.reason for check in watch.checks if check.verdict is not None and check.verdict.stop]
    reason = stops[0] if stops else "full budget"
    more = {} if ended is None else ended(watch)
    record = level_record(settings, progress, watch, rewind=str(settings.rewind), stop_reason=reason)
    record = dataclasses.replace(record, **more)
    weights = copy_of(settings).tensors
    if level.stopped is not None:
        level.stopped.rewind(settings.model)  # the search goes on from where the rule stopped
    ticket = Ticket(record, masks, weights, watch.checks)
    del watch  # it holds the function that holds it, and with both the masks, until Python looks for such rings
    return ticket
