"""The search: prune, rewind, retrain while watching the flow, and hand out a ticket; level after level.

It knows no files, no trainer class and no plots.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal

from torch import nn

from incop import ranks
from incop.batches import reusable
from incop.errors import InputError
from incop.flow import Meter, measure
from incop.loop.cutting import cut_at, next_masks, reached
from incop.loop.fitting import fit_level, prove_zero
from incop.loop.parts import Search, Standing
from incop.loop.states import offer, restored
from incop.loop.tickets import Dense, Ticket, Trains, budget_of
from incop.loop.validation import validate
from incop.masks import Masks
from incop.offload import Offload
from incop.pruning import Amount, Fraction, Path, Score, Selection
from incop.pruning.saliency import Gathers
from incop.records import ACCURACY, Check, Interval, Level
from incop.snapshots import RewindPoint, Snapshot
from incop.states import State
from incop.stopping import Rule
from incop.watch import Watch
from incop.wrappers import refuse_sharded

__all__ = ["search"]


def search(
    model: nn.Module,
    trainer: Trains,
    *,
    levels: int,
    probe: Any = None,
    meter: Meter | None = None,
    rule: Rule | None = None,
    amount: Amount | float = 0.2,
    rewind: str | RewindPoint = "early:1",
    score: Score | None = None,
    selection: Selection | None = None,
    skip: Iterable[str | type[nn.Module]] = (),
    frozen: bool = False,
    check_every: float | str | Interval = 1.0,
    check_before: bool = False,
    last_level_full: bool = True,
    sparsity: float | None = None,
    ticket_at: Sequence[float] = (),
    on_collapse: Literal["tell", "refuse"] = "tell",
    on_divergence: Literal["stop", "retry"] = "stop",
    dense: Dense | None = None,
    keep: Sequence[str | RewindPoint] = (),
    offload: str | FilePath | None = None,
    on_check: Callable[[Check], None] | None = None,
    on_step: Callable[[int, float, int], None] | None = None,
    on_state: Callable[[Callable[[], State]], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    resume: State | None = None,
) -> Iterator[Ticket]:
    """Search a sparse network: yield the dense network's ticket, then one ticket a level.

    Level 0 trains the dense network in full and measures its flow, the reference. Every further level cuts weights,
    rewinds, proves the rewind bit for bit, and retrains until the rule says that the flow is consistent with the
    reference, or the trainer's budget is used up. The model holds the last ticket's weights after each step (after a
    level reported by `ticket_at`: those of the rule's stop, from which the search goes on).

    Every process that trains one `DistributedDataParallel` model calls this with the same arguments and is handed the same tickets:
    probes are divided among them, decisions are the first one's, and at every level their masks and weights are proved to be one.

    Args:
        model: the network; it is trained and pruned in place.
        trainer: anything with `fit(model, masks, watch)` and `evaluate(model)`; see `Trains`.
        levels: pruning levels after level 0, at least 1 (0: the dense network only).
        probe: batches of the training split that the meter sees; needed with a meter.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`.
        rule: ends a level's retraining; None retrains every level in full.
        amount: how many weights go per level: a fraction of those left, or an amount of `incop.pruning`.
        rewind: what a level starts from: "init", "early:N", "dense", "rate" or "none"; see `RewindPoint`.
        score: which weights go, by default the smallest.
        selection: who competes with whom, by default all with all.
        skip: layers that are not pruned: names, patterns or module classes.
        frozen: prune weights that training leaves as they are (`requires_grad` is off) too.
        check_every: how often the rule is asked: epochs (1, 0.1) or steps ("50steps").
        check_before: ask it once before a level's training too; a level that needs none then costs none.
        last_level_full: give the last level its full budget, whatever the rule says.
        sparsity: end the search with the level that reaches this sparsity, in (0, 1); its cut goes exactly there.
        ticket_at: sparsities on the way, in (0, 1), that a cut stops exactly at and whose level is trained on to its full
            budget after the rule's stop, to report its ticket; the search then goes on from where the rule stopped.
        on_collapse: what to do when a cut leaves a layer without weights: "tell" it in the level's notices, or "refuse" it
            before the level is trained. Without a way around that layer, such as a shortcut, nothing gets through.
        on_divergence: what to do when a loss, a weight or a flow becomes NaN or infinite: "stop" with an error, or "retry": go
            back to the level's beginning and on from there with half the learning rate, for this level and all after it, at
            most three times in a search. What was spent stays in the ledger; the level's record says `lr_share` and
            `abandoned`, and a notice why.
        dense: a dense level already trained; the search starts from it instead of training its own.
        keep: further rewind points of level 0 to hand out with its ticket, for searches that share it.
        offload: where the rewind point and the tickets' weights are kept: by default beside the network, on its device; "cpu": in
            the CPU's memory; a folder as `pathlib.Path`: in files there, read when they are asked for.
        on_check: called with every check as it is made.
        on_step: called with (level, epoch, step) after every step that the trainer reports.
        on_state: called wherever the search could be gone on from, with a function that returns its state: a flat
            mapping from names to tensors and to what JSON holds. Taking it costs a copy, so it is taken only when wanted.
        on_notice: called with a sentence the user should know at once: that a level is begun again.
        resume: such a state, of a search with the same arguments; this one goes on from there, and its tickets from then
            on are those of the other, to the bit on the same machine. `dense` is then not needed.

    Yields:
        Tickets, level 0 first; when resumed, that of the level the state was taken in first.

    Raises:
        InputError: something given cannot be used; before any training where it can be known then.
        TrainingError: a rewind is not exact, or nothing would be left.
        Diverged: a loss, a weight or a flow is not finite, also after what `on_divergence` allows; it is a TrainingError.

    Example:
        >>> import torch
        >>> import incop
        >>> from incop import flow, stopping
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(200, 8), torch.randint(2, (200,))
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> trainer = incop.Trainer((x, y), (x, y), epochs=2, batch_size=50)
        >>> rule = stopping.FlowRestored(within=0.05) | stopping.AfterEpochs(2)
        >>> tickets = incop.search(net, trainer, probe=x, meter=flow.InformationFlow(), rule=rule, levels=2)
        >>> [round(ticket.sparsity, 2) for ticket in tickets]
        [0.0, 0.2, 0.36]

    Source: arXiv 2501.15592, the InCoP algorithm; Frankle & Carbin 2019 for iterative magnitude pruning.
    """
    refuse_sharded(model)
    parts = Search(
        model=model,
        trainer=trainer,
        probe=None if probe is None else reusable(probe),
        meter=meter,
        rule=rule,
        amount=Fraction(float(amount)) if isinstance(amount, int | float) else amount,
        levels=levels,
        rewind=RewindPoint.parse(rewind),
        score=score.fresh() if isinstance(score, Gathers) else score,
        selection=selection,
        check_every=Interval.parse(check_every),
        check_before=check_before,
        last_level_full=last_level_full,
        sparsity=sparsity,
        ticket_at=tuple(sorted(ticket_at)),
        on_collapse=on_collapse,
        on_divergence=on_divergence,
        on_notice=on_notice,
        dense=dense,
        keep=tuple(RewindPoint.parse(point) for point in keep),
        offload=Offload(offload),
        on_check=on_check,
        on_step=on_step,
        on_state=on_state,
        resume=resume,
        masks=Masks.full(model, skip=skip, frozen=frozen),
        metric=getattr(trainer, "measures", ACCURACY),
    )
    validate(parts)
    return _levels(parts)


def _levels(parts: Search) -> Iterator[Ticket]:
    at = None if parts.resume is None else restored(parts, parts.resume)
    if at is None or at.number == 0:
        yield _dense(parts, at or Standing(0)) if parts.dense is None or at is not None else _given(parts, parts.dense)
        at = None
        needed = str(parts.rewind) if parts.rewind.restores else ""
        parts.points = {
            name: point for name, point in parts.points.items() if name == needed
        }  # each is as large as the network
    for number in range(1 if at is None else at.number, parts.levels + 1):
        level, at = at or _begun(parts, number), None
        yield _sparse(parts, level)
        if level.last:
            return


def _begun(parts: Search, number: int) -> Standing:
    """Cut, and say what kind of level follows."""
    ends = [*parts.ticket_at, *([] if parts.sparsity is None else [parts.sparsity])]
    ahead = [end for end in ends if not reached(parts.masks, end)]
    notices = cut_at(parts, number, at_most=min(ahead, default=None))
    arrived = [end for end in ahead if reached(parts.masks, end)]
    last = number == parts.levels or (parts.sparsity is not None and reached(parts.masks, parts.sparsity))
    if last:
        if not ends and isinstance(parts.amount, Path):  # given more cuts than there are levels
            ahead = [end for end in parts.amount.sparsities[-1:] if not reached(parts.masks, end)]
        notices += [
            f"the sparsity {end:g} was not reached: {number} levels led to {parts.masks.sparsity:.4f}; search more levels or "
            "cut more per level"
            for end in ahead
            if end not in arrived
        ]
    return Standing(number, notices, last, report=any(end in parts.ticket_at for end in arrived))


def _dense(parts: Search, at: Standing) -> Ticket:
    points = list(dict.fromkeys([parts.rewind, *parts.keep]))
    if any(point.kind == "init" for point in points) and "init" not in parts.points:
        parts.points["init"] = _copy(parts)

    def remember(epoch: float, step: int) -> None:
        if parts.on_step is not None:
            parts.on_step(0, epoch, step)
        for point in points:
            after = point.after
            if after is None or str(point) in parts.points or not after.passed(epoch=epoch, step=step):
                continue
            ranks.level_buffers(parts.model)
            parts.points[str(point)] = _copy(parts, epoch)
            passed = epoch if after.unit == "epochs" else step
            if passed > after.amount * 1.01 + (1.0 if after.unit == "steps" else 0.0):
                at.notices.append(
                    f"the rewind point {point} was taken at {passed:g} {after.unit}, where the trainer first reported"
                )

    watch = Watch(
        parts.model,
        parts.probe,
        meter=parts.meter,
        masks=parts.masks,
        metric=parts.metric,
        every=parts.check_every,
        lr_share=parts.lr_share,
        on_check=parts.on_check,
        on_step=remember,
        on_rest=lambda: offer(parts, at, watch),  # noqa: F821  # until the level has ended
    )
    fit_level(parts, at, watch)
    parts.points["dense"] = end = _copy(parts, watch.epoch)
    for point in points:
        if parts.levels and point.restores and str(point) not in parts.points:
            raise InputError(
                f"level 0 ended after {watch.epoch:g} epochs without passing the rewind point {str(point)!r}: "
                "train it longer, rewind to an earlier point, or let the trainer report steps with watch.stepped(epoch=…)"
            )
    parts.reference = watch.checks[-1].flow
    record = _record(parts, watch, rewind="none", stop_reason="dense network, full training", notices=at.notices)
    parts.reference_value = record.metric_value
    ticket = Ticket(record, parts.masks, end.tensors, watch.checks, dict(parts.points))
    del watch  # as in `_sparse`
    return ticket


def _copy(parts: Search, epoch: float = 0.0) -> Snapshot:
    return Snapshot.of(parts.model, epoch=epoch, offload=parts.offload)


def _given(parts: Search, dense: Dense) -> Ticket:
    """Start from a dense level that is already trained; only its flow is measured, by this search's meter."""
    parts.points.update({**dense.points, "dense": dense.weights})
    if parts.rewind.restores and str(parts.rewind) not in parts.points:
        have = ", ".join(parts.points)
        raise InputError(
            f"the dense level given has no rewind point {str(parts.rewind)!r}: it has {have}; train it with keep="
        )
    dense.weights.rewind(parts.model)
    if parts.meter is not None:
        found = measure(parts.model, parts.probe, parts.meter, masks=parts.masks, together=True)
        parts.reference = ranks.of(parts.model).same(found)
    record = dataclasses.replace(dense.record, flow=parts.reference)
    parts.lr_share = record.lr_share  # as if this search had trained it
    if record.metric != parts.metric:
        raise InputError(
            f"the dense level given was judged by {record.metric.name}, and the trainer measures {parts.metric.name}: "
            "give them one metric"
        )
    parts.reference_value = record.metric_value
    return Ticket(record, parts.masks, dense.weights.tensors, (), dict(parts.points))


def _sparse(parts: Search, at: Standing) -> Ticket:
    level, masks, last = at.number, parts.masks, at.last
    point = parts.points[str(parts.rewind)] if parts.rewind.restores else None
    if parts.resume is None:
        (point or Snapshot.of(parts.model)).rewind(parts.model, masks)  # proves itself
    full = last and parts.last_level_full

    def go_on() -> None:
        at.stopped = _copy(parts)

    starts = {"early": 0.0 if point is None else point.epoch, "none": math.inf}
    watch = Watch(
        parts.model,
        parts.probe,
        meter=parts.meter,
        rule=None if full else parts.rule,
        reference=parts.reference,
        metric=parts.metric,
        reference_value=parts.reference_value,
        masks=masks,
        next_masks=lambda: next_masks(parts, level + 1),
        level=level,
        every=parts.check_every,
        before=parts.check_before and not full,
        go_on=go_on if at.report and not last else None,
        schedule_from=starts.get(parts.rewind.kind, 0.0),
        continues=level > 1 and not parts.rewind.restores,
        lr_share=parts.lr_share,
        on_check=parts.on_check,
        on_step=_told(parts.on_step, level),
        on_rest=lambda: offer(parts, at, watch),  # noqa: F821  # until the level has ended
    )
    watch.probed(*parts.planning)
    parts.planning = 0, 0.0
    fit_level(parts, at, watch)
    prove_zero(parts.model, masks, level)
    stops = [check.verdict.reason for check in watch.checks if check.verdict is not None and check.verdict.stop]
    reason = stops[0] if stops else "full budget"
    record = _record(parts, watch, rewind=str(parts.rewind), stop_reason=reason, notices=at.notices)
    weights = _copy(parts).tensors
    if at.stopped is not None:
        at.stopped.rewind(parts.model)  # the search goes on from where the rule stopped
    ticket = Ticket(record, masks, weights, watch.checks)
    del watch  # it holds the function that holds it, and with both the masks, until Python looks for such rings
    return ticket


def _told(on_step: Callable[[int, float, int], None] | None, level: int) -> Callable[[float, int], None] | None:
    if on_step is None:
        return None
    return lambda epoch, step: on_step(level, epoch, step)


def _record(parts: Search, watch: Watch, *, rewind: str, stop_reason: str, notices: list[str]) -> Level:
    end = watch.checks[-1]
    measured = end.metric_value
    if measured is None:
        measured = ranks.of(parts.model).mean(parts.trainer.evaluate(parts.model))
    spent = watch.spent
    budget = budget_of(parts.trainer, watch.level)
    if budget is not None and math.isfinite(watch.schedule_from):
        budget = max(budget - watch.schedule_from, 0.0)
    return Level(
        level=watch.level,
        sparsity=parts.masks.sparsity,
        model_sparsity=parts.masks.model_sparsity(parts.model),
        remaining=parts.masks.remaining,
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
        layers=parts.masks.layer_sparsity(),
        notices=tuple(notices),
        lr_share=parts.lr_share,
        abandoned=watch.abandoned,
        metric=parts.metric,
    )
