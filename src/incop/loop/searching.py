"""The search: prune, rewind, retrain while watching the flow, and hand out a ticket; level after level.

It knows no files, no trainer class and no plots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from incop import distributed
from incop.batches import reusable
from incop.errors import InputError
from incop.flat_state import State
from incop.flow import Meter, measure
from incop.loop.cutting import cut_at, reached
from incop.loop.dense_network import frozen_copy, hand_over, take_back
from incop.loop.edge_search import levels_to_edge
from incop.loop.fitting import copy_of, fit_level, level_record, train_sparse
from incop.loop.given import measured, trained_together
from incop.loop.method_arguments import with_method
from incop.loop.progress import LevelProgress, SearchProgress
from incop.loop.result import Search
from incop.loop.search_state import offer, restore
from incop.loop.settings import SearchSettings
from incop.loop.tickets import Dense, Ticket, Trains
from incop.loop.validation import validate
from incop.masks import Masks
from incop.offload import Offload
from incop.pruning import Amount, Score, Selection, SparsityPath
from incop.pruning.cut import amount_of
from incop.recipe import USUAL, LevelRecipe
from incop.records import Check, Interval
from incop.rewind_points import RewindPoint
from incop.stopping import Rule
from incop.watch import Watch
from incop.wrappers import refuse_sharded

DEFAULTS: Mapping[str, Any] = {"amount": 0.2, "check_every": 1.0, "search_recipe": USUAL, "last_recipe": USUAL}


def search(
    model: nn.Module,
    trainer: Trains,
    *,
    method: str | None = None,
    levels: int | None = None,
    probe: Any = None,
    meter: Meter | None = None,
    rule: Rule | None = None,
    amount: Amount | float | None = None,
    rewind: str | RewindPoint | None = None,
    score: Score | None = None,
    selection: Selection | None = None,
    skip: Iterable[str | type[nn.Module]] = (),
    frozen: bool = False,
    trained: bool = False,
    masks: Masks | None = None,
    search_recipe: LevelRecipe | None = None,
    last_recipe: LevelRecipe | None = None,
    check_every: float | str | Interval | None = None,
    check_before: bool = False,
    last_level_full: bool = True,
    sparsity: float | None = None,
    max_drop: float | None = None,
    ticket_at: Sequence[float] = (),
    on_collapse: Literal["tell", "refuse"] = "tell",
    on_divergence: Literal["stop", "retry"] = "stop",
    dense: Dense | None = None,
    keep: Sequence[str | RewindPoint] = (),
    offload: str | Path | None = None,
    on_check: Callable[[Check], None] | None = None,
    on_step: Callable[[int, float, int], None] | None = None,
    on_state: Callable[[Callable[[], State]], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    resume: State | None = None,
) -> Search:
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
        method: one of `incop.methods.METHODS`, such as "incop": its row gives every argument below that is left out, and the probe
            is drawn by the trainer. The trainer says in `epochs` what a level trained in full takes.
        levels: pruning levels after level 0, at least 1 (0: the dense network only); needed without a method.
        probe: batches of the training split that the meter and trial cuts see; needed with a meter.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`.
        rule: ends a level's retraining; None retrains every level in full.
        amount: how many weights go per level: a fraction of those left, by default 0.2, or an amount of `incop.pruning` or of
            your own.
        rewind: what a level starts from: "init", "early:N", "dense", "rate" or "none"; see `RewindPoint`. By default "early:1", or
            "rate" where the network is trained already.
        score: which weights go, by default the smallest.
        selection: who competes with whom, by default all with all.
        skip: layers that are not pruned: names, patterns or module classes.
        frozen: prune weights that training leaves as they are (`requires_grad` is off) too.
        trained: the model is a trained network: level 0 measures it and trains nothing. Drops are against it, and the
            trainer's `epochs` are the budget of a level.
        masks: weights that are pruned already and stay so, which must be zero; by default none are.
        search_recipe: how levels are trained while the rule may end them, relative to the trainer's settings.
        last_recipe: how levels are trained that no rule ends: the last one and those of `ticket_at`.
        check_every: how often the rule is asked: epochs (1, 0.1) or steps ("50steps"); by default every epoch.
        check_before: ask it once before a level's training too; a level that needs none then costs none.
        last_level_full: give the last level its full budget, whatever the rule says.
        sparsity: end the search with the level that reaches this sparsity, in (0, 1); its cut goes exactly there.
        max_drop: find the sparsest ticket whose metric on the validation split is at most so much worse than the dense (or
            given) network's; ≥ 0, in units of the metric (0.005 of accuracy). The path of cuts is walked until the outputs
            no longer vary as the dense network's do over the probe; stops on it are then tried by half a last level, back
            and forth, and the best is finished. `.chosen` of what is returned is that ticket.
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
    arguments = dict(locals())  # by the names that the settings have too
    refuse_sharded(model)
    del arguments["resume"], arguments["method"]  # a state is as large as several networks, and not kept for so long
    if method is not None:
        arguments = with_method(arguments, method)
    arguments |= {key: value for key, value in DEFAULTS.items() if arguments[key] is None}
    settings = SearchSettings(
        **arguments
        | {
            "probe": None if arguments["probe"] is None else reusable(arguments["probe"]),
            "amount": amount_of(arguments["amount"]),
            "rewind": RewindPoint.parse(arguments["rewind"] or ("rate" if trained else "early:1")),
            "check_every": Interval.parse(arguments["check_every"]),
            "ticket_at": tuple(sorted(ticket_at)),
            "keep": tuple(RewindPoint.parse(point) for point in keep),
            "offload": Offload(offload),
        }
    )
    progress = SearchProgress.of(settings)
    validate(settings, progress)
    progress.dense_network = frozen_copy(settings)
    return Search(_levels(settings, progress, resume), progress)


def _levels(settings: SearchSettings, progress: SearchProgress, resume: State | None) -> Generator[Ticket, None, None]:
    take_back(settings)
    if resume is not None:
        restore(settings, progress, resume)
        del resume
    if progress.level.number > 0:
        hand_over(settings, progress)
    if progress.level.number == 0:
        trained = settings.dense if progress.level.resume is None else None
        if settings.trained and trained is None:
            trained_together(settings)
            trained = measured(settings, progress)
        ticket = _dense(settings, progress) if trained is None else _given(settings, progress, trained)
        hand_over(settings, progress)
        yield ticket
        del ticket
        keeps_dense = progress.dense_network is not None or settings.max_drop is not None
        needed = {str(settings.rewind) if settings.rewind.restores else "", "dense" if keeps_dense else ""}
        progress.points = {name: point for name, point in progress.points.items() if name in needed}  # each a network
    if progress.edge is not None:
        yield from levels_to_edge(settings, progress)
        return
    for number in range(max(progress.level.number, 1), settings.levels + 1):
        if progress.level.resume is None:  # else its cut was made
            progress.level = _begun(settings, progress, number)
        yield train_sparse(settings, progress)
        if progress.level.last:
            return


def _begun(settings: SearchSettings, progress: SearchProgress, number: int) -> LevelProgress:
    """Cut, and say what kind of level follows."""
    ends = [value for _, value in settings.ends]
    ahead = [end for end in ends if not reached(progress.masks, end)]
    level = cut_at(settings, progress, number, at_most=min(ahead, default=None))
    arrived = [end for end in ahead if reached(progress.masks, end)]
    level.last = number == settings.levels or (
        settings.sparsity is not None and reached(progress.masks, settings.sparsity)
    )
    level.report = any(end in settings.ticket_at for end in arrived)
    if level.last:
        amount = progress.amount(settings)
        if not ends and isinstance(amount, SparsityPath):  # given more cuts than there are levels
            ahead = [end for end in amount.sparsities[-1:] if not reached(progress.masks, end)]
        level.notices += [
            f"the sparsity {end:g} was not reached: {number} levels led to {progress.masks.sparsity:.4f}; search more levels or "
            "cut more per level"
            for end in ahead
            if end not in arrived
        ]
    return level


def _dense(settings: SearchSettings, progress: SearchProgress) -> Ticket:
    level = progress.level
    points = list(dict.fromkeys([settings.rewind, *settings.keep]))
    if any(point.kind == "init" for point in points) and "init" not in progress.points:
        progress.points["init"] = copy_of(settings)

    def remember(epoch: float, step: int) -> None:
        if settings.on_step is not None:
            settings.on_step(0, epoch, step)
        for point in points:
            after = point.after
            if after is None or str(point) in progress.points or not after.passed(epoch=epoch, step=step):
                continue
            distributed.level_buffers(settings.model)
            progress.points[str(point)] = copy_of(settings, epoch)
            passed = epoch if after.unit == "epochs" else step
            if passed > after.amount * 1.01 + (1.0 if after.unit == "steps" else 0.0):
                level.notices.append(
                    f"the rewind point {point} was taken at {passed:g} {after.unit}, where the trainer first reported"
                )

    watch = Watch(
        settings.model,
        settings.probe,
        meter=settings.meter,
        masks=progress.masks,
        metric=settings.metric,
        every=settings.check_every,
        lr_share=progress.lr_share,
        on_check=settings.on_check,
        on_step=remember,
        on_rest=lambda: offer(settings, progress, watch),  # noqa: F821  # until the level has ended
    )
    fit_level(settings, progress, watch)
    progress.points["dense"] = end = copy_of(settings, watch.epoch)
    for point in points:
        if settings.levels and point.restores and str(point) not in progress.points:
            raise InputError(
                f"level 0 ended after {watch.epoch:g} epochs without passing the rewind point {str(point)!r}: "
                "train it longer, rewind to an earlier point, or let the trainer report steps with watch.stepped(epoch=…)"
            )
    progress.reference = watch.checks[-1].flow
    record = level_record(settings, progress, watch, rewind="none", stop_reason="dense network, full training")
    progress.reference_value = record.metric_value
    ticket = Ticket(record, progress.masks, end.tensors, watch.checks, dict(progress.points))
    del watch  # as in `_sparse`
    return ticket


def _given(settings: SearchSettings, progress: SearchProgress, dense: Dense) -> Ticket:
    """Start from a dense level that is already trained; only its flow is measured, by this search's meter."""
    progress.points.update({**dense.points, "dense": dense.weights})
    if settings.rewind.restores and str(settings.rewind) not in progress.points:
        have = ", ".join(progress.points)
        raise InputError(
            f"the dense level given has no rewind point {str(settings.rewind)!r}: it has {have}; train it with keep="
        )
    dense.weights.rewind(settings.model)
    if settings.meter is not None and not settings.trained:
        found = measure(settings.model, settings.probe, settings.meter, masks=progress.masks, together=True)
        progress.reference = distributed.of(settings.model).same(found)
    record = dataclasses.replace(dense.record, flow=progress.reference)
    progress.lr_share = record.lr_share  # as if this search had trained it
    if record.metric != settings.metric:
        raise InputError(
            f"the dense level given was judged by {record.metric.name}, and the trainer measures {settings.metric.name}: "
            "give them one metric"
        )
    progress.reference_value = record.metric_value
    return Ticket(record, progress.masks, dense.weights.tensors, (), dict(progress.points))
