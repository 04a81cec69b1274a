"""Fitting: a level is trained, begun again where it diverged, and proven."""

from __future__ import annotations

import contextlib

from torch import nn

from incop import ranks
from incop.errors import Diverged, InputError, TrainingError
from incop.loop.parts import Search, Standing
from incop.loop.states import beginning_of, random_of
from incop.masks import Masks
from incop.pruning.saliency import Gathers
from incop.snapshots import Snapshot
from incop.states import part, random_states, restore_random, restoring
from incop.watch import Watch

__all__ = ["fit_level", "prove_zero"]

SLOWER = 0.5  # of the learning rate, each time training diverged and is begun again
LEAST_SHARE = SLOWER**3  # of it, with which that is done for the last time


def fit_level(parts: Search, at: Standing, watch: Watch) -> None:
    """Train a level from its beginning, or from where a state left it."""
    state, parts.resume = parts.resume, None
    if state is None:
        at.random = random_states()
        at.beginning = beginning_of(parts, at) if parts.on_divergence == "retry" else {}
    else:
        watch.restore(part("watch", state))
        at.random = part(random_of(ranks.of(parts.model).rank), state) or part("random", state)
        restore_random(at.random)
        restore = getattr(parts.trainer, "restore", None)
        if callable(restore):
            restore(part("trainer", state))
    watch.start()
    if state is None:
        watch.rest()
    while True:
        try:
            with ranks.linked(ranks.of(parts.model)), _gathering(parts, at, watch):
                parts.trainer.fit(parts.model, parts.masks, watch)
            _ended(parts, watch)
            at.notices += _missed(parts, at, watch)
            return
        except Diverged as error:
            _go_back(parts, at, watch, error)


def _gathering(parts: Search, at: Standing, watch: Watch) -> contextlib.AbstractContextManager[None]:
    """Let the score gather where a cut follows: not on the dense network, which may be shared, nor past the rule's stop."""
    if at.number == 0 or at.last or not isinstance(parts.score, Gathers):
        return contextlib.nullcontext()
    return parts.score.gathering(parts.model, parts.masks, when=lambda: watch.stopped is None)


def _missed(parts: Search, at: Standing, watch: Watch) -> list[str]:
    """Say if a score that should have gathered could not."""
    # once is enough, and what it gathered is as large as the network
    trained = watch.step > 0 or watch.epoch > 0  # a loop need not tell its steps
    if at.number != 1 or at.last or not trained or not isinstance(parts.score, Gathers) or parts.score.state():
        return []
    seen = f"{watch.step} steps" if watch.step else f"{watch.epoch:g} epochs"
    return [
        f"the score '{parts.score}' gathered nothing in {seen}, and the next cut goes without: no optimizer of torch trains these "
        "weights themselves"
    ]


def _ended(parts: Search, watch: Watch) -> None:
    """Look once more where the trainer did not at its end, and see that nothing in the network is NaN or infinite."""
    if not watch.checks:
        raise InputError(
            f"the trainer ({type(parts.trainer).__name__}) never called watch.look() in level {watch.level}: "
            "call it after every epoch, so that epochs are counted and the rule is asked"
        )
    if watch.step > watch.checks[-1].step:
        watch.look(epoch=watch.epoch)
    watch.check_finite()


def _go_back(parts: Search, at: Standing, watch: Watch, error: Diverged) -> None:
    """Put everything back as it was when the level began, for another time with a smaller learning rate.

    Raises:
        Diverged: that is not asked for, or was done as often as it may be.
    """
    if not at.beginning:
        more = (
            "on_divergence='retry' begins the level again with half the learning rate"
            if parts.on_divergence == "stop"
            else "this level goes on from a state without its beginning, taken before on_divergence was 'retry': start anew"
        )
        raise Diverged(error.what, f"{error.remedy}; {more}") from error
    if parts.lr_share <= LEAST_SHARE:
        raise Diverged(f"{error.what}, with {parts.lr_share:g} of the learning rate", error.remedy) from error
    parts.lr_share *= SLOWER
    told = (
        f"level {at.number} was begun again with {parts.lr_share:g} of the learning rate, after {watch.epoch:.4g} epochs that "
        f"diverged: {error.what}"
    )
    with restoring("level"):
        Snapshot(part("model", at.beginning)).rewind(parts.model)
        at.random = part("random", at.beginning)
        restore_random(at.random)
        restore = getattr(parts.trainer, "restore", None)
        if callable(restore):
            restore(part("trainer", at.beginning))
        if isinstance(parts.score, Gathers):
            parts.score.restore(part("score", at.beginning), parts.masks.weights(parts.model))
        at.beginning["notices"] = at.notices = [*map(str, at.beginning["notices"]), told]
    at.stopped = None
    if at.number == 0:
        parts.points = {name: point for name, point in parts.points.items() if name == "init"}
        parts.retaken += 1
    if parts.on_notice is not None:
        parts.on_notice(told)
    watch.again(parts.lr_share)
    watch.rest()


def prove_zero(model: nn.Module, masks: Masks, level: int) -> None:
    """Refuse pruned weights that are not zero after a level."""
    for name, weight in masks.weights(model).items():
        if bool((weight.detach()[~masks[name].to(weight.device)] != 0).any()):
            raise TrainingError(
                f"pruned weights of {name!r} are no longer zero after level {level}: the trainer must keep them there "
                "with incop.hold(masks, model, optimizer)"
            )
