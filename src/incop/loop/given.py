"""A given network: the search starts from it as it is, so that level 0 measures it and trains nothing."""

from __future__ import annotations

from incop import distributed
from incop.errors import InputError
from incop.inspection import undisturbed
from incop.loop.fitting import level_record
from incop.loop.progress import SearchProgress
from incop.loop.settings import SearchSettings
from incop.loop.tickets import Dense
from incop.masks import Masks
from incop.rewind_points import Snapshot
from incop.watch import Watch


def validate_given(settings: SearchSettings, progress: SearchProgress) -> None:
    """Refuse what a network that is already trained cannot have.

    Raises:
        InputError: a rewind point that lies before or within its training, a dense level besides, or weights that the masks
            given call pruned and that are not zero.
    """
    if settings.trained and settings.dense is not None:
        raise InputError("trained=True starts from the model's own weights, and dense= from others: give one of them")
    for point in (settings.rewind, *settings.keep) if settings.trained else ():
        if point.kind in ("init", "early"):
            raise InputError(
                f"rewind {str(point)!r} is a point of the dense network's training, and the network given is trained already "
                "(trained=True): choose rewind='rate', 'dense' or 'none'"
            )
    for name, weight in progress.masks.weights(settings.model).items() if settings.masks is not None else ():
        if bool((weight.detach()[~progress.masks[name].to(weight.device)] != 0).any()):
            raise InputError(
                f"masks= says that weights of {name!r} are pruned, and they are not zero: call masks.apply(model) first"
            )


def measured(settings: SearchSettings, progress: SearchProgress) -> Dense:
    """Measure the network that was given; its weights and buffers keep their bits, whatever `evaluate` does."""
    model, before = settings.model, Snapshot.of(settings.model, offload=settings.offload)
    watch = Watch(
        model,
        settings.probe,
        meter=settings.meter,
        masks=progress.masks,
        metric=settings.metric,
        on_check=settings.on_check,
    )

    def evaluated() -> float:
        with undisturbed(model):  # a user's evaluation may leave it in another mode
            return settings.trainer.evaluate(model)

    watch.start()
    watch.look(epoch=0.0, metric_value=evaluated)
    progress.reference = watch.checks[-1].flow
    progress.level.notices += _zeros(settings, progress)
    record = level_record(settings, progress, watch, rewind="none", stop_reason="given network")
    return Dense(record, before, {})


def _zeros(settings: SearchSettings, progress: SearchProgress) -> list[str]:
    """Say of a network with zeros that they may be trained again, unless masks keep them."""
    found = Masks.of(settings.model, skip=settings.skip, frozen=settings.frozen)
    free = progress.masks.remaining - found.intersect(progress.masks).remaining
    if free * 1000 < found.total:  # by chance, or by a unit that never learned
        return []
    return [
        f"{free} of the {found.total} prunable weights of the network given are zero already ({free / found.total:.4f}) and are "
        "trained like the others; masks=Masks.of(model) keeps them zero (--keep-zeros)"
    ]


def trained_together(settings: SearchSettings) -> None:
    """Prove that all processes were given one network."""
    together = distributed.of(settings.model)
    if not together.one and (apart := together.apart(Snapshot.of(settings.model).sums())) is not None:
        raise distributed.shared(
            InputError(f"process {apart} was given another network than process 0: give all the same weights")
        )
