"""The search: prune, rewind, retrain while watching the flow, and hand out a ticket; level after level.

It knows no files, no trainer class and no plots.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from incop import ranks
from incop.batches import first_samples, reusable, unpack
from incop.errors import Diverged, InputError, TrainingError, unknown
from incop.flow import Damage, Meter, measure
from incop.masks import Masks
from incop.offload import Offload
from incop.pruning import Amount, EvenDamage, Fraction, Magnitude, Path, Score, Selection, prune
from incop.pruning.cut import planned, reach
from incop.records import Check, Flow, Interval, Level, Metric
from incop.snapshots import RewindPoint, Snapshot
from incop.states import State, part, random_states, restore_random, restoring, under
from incop.stopping import Rule
from incop.watch import Watch
from incop.wrappers import refuse_sharded, unwrapped

__all__ = ["Dense", "Ticket", "Trains", "search"]

SLOWER = 0.5  # of the learning rate, each time training diverged and is begun again
LEAST_SHARE = SLOWER**3  # of it, with which that is done for the last time
PLAN_PROBE = 128  # samples on which trial cuts are ranked: each cut is held against itself, so few are enough


class Trains(Protocol):
    """What a trainer must offer; incop's own `Trainer`, an adapter or a class of the user's."""

    def fit(self, model: nn.Module, masks: Masks, watch: Watch) -> None:
        """Train one level from the weights as they are, until the watch says stop or the budget is used up.

        The trainer keeps pruned weights at zero (`incop.hold(masks, model, optimizer)`), starts its optimizer afresh
        and its schedule at epoch `watch.schedule_from`, calls `watch.look()` after every epoch or when `watch.due()`
        says so, once at the end in any case, and returns when a verdict says stop.

        When a loss is not finite it raises `incop.errors.Diverged`, and multiplies its learning rate by `watch.lr_share`, which
        is below 1 after that has happened.

        A trainer that offers `state()` and `restore(state)` besides, and calls `watch.rest()` after every step, is resumed
        within a level: `restore` is called before the `fit` that goes on, in which `watch.step` is above 0. Any other is
        resumed at the level's beginning; so is one that says in `inexact` why it cannot do better. The generators of Python,
        NumPy and torch are the search's business, unless the trainer forks them.

        A trainer that is judged by another metric than accuracy says so in `measures`, a `Metric`, and calls
        `watch.look(score=…)`.
        """

    def evaluate(self, model: nn.Module) -> float:
        """Return the accuracy on the validation split, in [0, 1], or the metric. Never on the test split."""


@dataclass(frozen=True)
class Ticket:
    """What a level yields: which weights are left, their values at its end, and its record.

    Args:
        record: the level's record; `print(ticket)` shows its line.
        masks: the weights that are left.
        weights: copies of all parameters and buffers at the level's end, by name.
        checks: every look at the network in this level.
        points: of the dense ticket: the rewind points on its way, by their text.
    """

    record: Level
    masks: Masks
    weights: Mapping[str, Tensor]
    checks: tuple[Check, ...] = ()
    points: Mapping[str, Snapshot] = field(default_factory=dict)

    @property
    def level(self) -> int:
        """Number of the level, 0 for the dense network."""
        return self.record.level

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero."""
        return self.record.sparsity

    def load_into(self, model: nn.Module) -> None:
        """Put the ticket's weights and buffers into a model of the same kind, and prove that they are there.

        Not `model.load_state_dict(ticket.weights)`, which asks for a tied weight under each of its names.

        Raises:
            InputError: the model is of another kind; nothing has been written.

        Example:
            >>> import torch
            >>> import incop
            >>> x, y = torch.randn(40, 4), torch.randint(2, (40,))
            >>> trainer = incop.Trainer((x, y), (x, y), epochs=1, batch_size=20)
            >>> *_, ticket = incop.search(torch.nn.Linear(4, 2), trainer, levels=1, amount=0.5, rewind="rate")
            >>> fresh = torch.nn.Linear(4, 2)
            >>> ticket.load_into(fresh)
            >>> int((fresh.weight == 0).sum())
            4
        """
        Snapshot(self.weights).rewind(model)

    def __str__(self) -> str:
        return str(self.record)


@dataclass(frozen=True)
class Dense:
    """A dense level that is already trained, so that several searches can start from the very same one.

    Args:
        record: its record.
        weights: parameters and buffers at its end.
        points: rewind points on its way, by their text ("init", "early:1").
    """

    record: Level
    weights: Snapshot
    points: Mapping[str, Snapshot] = field(default_factory=dict)


@dataclass
class _Level:
    """The level that is trained, and what was found out before its training."""

    number: int
    notices: list[str] = field(default_factory=list)
    last: bool = False
    report: bool = False
    stopped: Snapshot | None = None  # where the rule stopped, when the level is trained on to report its ticket
    random: State = field(default_factory=dict)  # of all generators when its training began
    beginning: State = field(default_factory=dict)  # what to go back to if training diverges, where that is asked for


@dataclass
class _Search:
    """The parts of a search and what it carries from level to level."""

    model: nn.Module
    trainer: Trains
    probe: Any
    meter: Meter | None
    rule: Rule | None
    amount: Amount
    levels: int
    rewind: RewindPoint
    score: Score | None
    selection: Selection | None
    check_every: Interval
    check_before: bool
    last_level_full: bool
    sparsity: float | None
    ticket_at: tuple[float, ...]
    on_collapse: str
    on_divergence: str
    on_notice: Callable[[str], None] | None
    on_check: Callable[[Check], None] | None
    on_step: Callable[[int, float, int], None] | None
    masks: Masks
    resume: State | None = None
    on_state: Callable[[Callable[[], State]], None] | None = None
    dense: Dense | None = None
    keep: tuple[RewindPoint, ...] = ()
    offload: Offload = field(default_factory=Offload)
    points: dict[str, Snapshot] = field(default_factory=dict)
    reference: Flow | None = None
    reference_accuracy: float | None = None
    metric: Metric | None = None
    reference_score: float | None = None
    planning: tuple[int, float] = (0, 0.0)  # samples and seconds that planning the cuts took
    lr_share: float = 1.0  # what learning rates are multiplied by since training diverged
    retaken: int = 0  # how often level 0 was begun again, and its rewind points taken anew


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
    parts = _Search(
        model=model,
        trainer=trainer,
        probe=None if probe is None else reusable(probe),
        meter=meter,
        rule=rule,
        amount=Fraction(float(amount)) if isinstance(amount, int | float) else amount,
        levels=levels,
        rewind=RewindPoint.parse(rewind),
        score=score,
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
        metric=getattr(trainer, "measures", None),
    )
    _validate(parts)
    return _levels(parts)


def _validate(parts: _Search) -> None:
    """Find out before any training what would fail after it."""
    for name in ("fit", "evaluate"):
        if not callable(getattr(parts.trainer, name, None)):
            raise InputError(
                f"the trainer ({type(parts.trainer).__name__}) has no {name}(): it needs fit(model, masks, watch) and "
                "evaluate(model)"
            )
    if not isinstance(parts.levels, int) or isinstance(parts.levels, bool) or parts.levels < 0:
        raise InputError(f"levels={parts.levels!r}: give a whole number of pruning levels, at least 1")
    _validate_ends(parts)
    _validate_answers(parts)
    if parts.rule is not None and not isinstance(parts.rule, Rule):
        raise InputError(
            f"the rule is a {type(parts.rule).__name__}: pass one of incop.stopping, such as stopping.parse(text)"
        )
    _validate_metric(parts)
    _validate_selection(parts)
    budget = budget_of(parts.trainer)
    after = parts.rewind.after
    if budget is not None and after is not None and after.unit == "epochs" and after.amount >= budget:
        raise InputError(
            f"rewind {str(parts.rewind)!r} lies at or past the end of the dense network's {budget:g} epochs: "
            "choose an earlier point, or rewind='dense'"
        )
    if isinstance(parts.amount, EvenDamage):
        if parts.probe is None:
            raise InputError(
                f"the amount '{parts.amount}' tries cuts on a probe: pass probe=batches of the training split"
            )
        _try_damage(parts)
    if parts.meter is not None:
        _try_meter(parts.model, parts.probe, parts.meter)
    elif parts.rule is not None and "flow" in parts.rule.wants:
        raise InputError(f"the rule {str(parts.rule)!r} needs a meter: pass meter=flow.InformationFlow() and a probe")


def _validate_selection(parts: _Search) -> None:
    """Have a selection that lines weights up do so once, and see that it can lead where the search is to end."""
    most = reach(parts.model, parts.masks, parts.selection)
    for name, value in [("sparsity", parts.sparsity), *(("ticket_at", value) for value in parts.ticket_at)]:
        if value is not None and round(value * parts.masks.total) > round(most * parts.masks.total):
            raise InputError(
                f"{name}={value!r} cannot be reached: the selection '{parts.selection}' leads to a sparsity of {most:.4f} at most "
                "for this network; ask for less, or select single weights"
            )


def _validate_answers(parts: _Search) -> None:
    for what, answer, known in (
        ("collapse", parts.on_collapse, ["tell", "refuse"]),
        ("divergence", parts.on_divergence, ["stop", "retry"]),
    ):
        if answer not in known:
            raise unknown(f"answer to a {what}", str(answer), known)


def _validate_metric(parts: _Search) -> None:
    if parts.metric is None:
        return
    if not isinstance(parts.metric, Metric):
        raise InputError(
            f"the trainer measures a {type(parts.metric).__name__}: say it by Metric(name, higher_is_better)"
        )
    if parts.rule is not None and "accuracy" in parts.rule.wants:
        raise InputError(
            f"the rule {str(parts.rule)!r} asks for the accuracy, and the trainer measures {parts.metric.name}: use "
            "MetricRestored(drop), in words 'metric within X'"
        )


def _validate_ends(parts: _Search) -> None:
    for name, value in [("sparsity", parts.sparsity), *(("ticket_at", value) for value in parts.ticket_at)]:
        if value is not None and not 0 < value < 1:
            raise InputError(f"{name}={value!r}: a sparsity to reach is a fraction in (0, 1)")
    beyond = [value for value in parts.ticket_at if parts.sparsity is not None and value >= parts.sparsity]
    if beyond:
        raise InputError(
            f"ticket_at={beyond[0]!r} lies at or beyond sparsity={parts.sparsity!r}, where the search ends: name sparsities on "
            "the way, or search further"
        )


def _try_meter(model: nn.Module, probe: Any, meter: Meter) -> None:
    """Measure four samples at most: they tell whether model and probe can be measured at all."""
    if probe is None:
        raise InputError("a meter needs a probe: pass probe=batches of the training split")
    few = [first_samples(unpack(batch), 2) for batch in islice(probe, 2)]
    if not few:
        raise InputError("the probe is empty: pass at least one batch")
    measure(unwrapped(model), few, meter)


def _try_damage(parts: _Search) -> None:
    """Try a cut on a few samples, and whether all weights compete with all."""
    few = [first_samples(unpack(batch), 2) for batch in islice(parts.probe, 2)]
    damage = Damage(parts.model, few)
    _path(parts, dataclasses.replace(parts.amount, trials=2), damage)  # type: ignore[type-var]  # it is EvenDamage


def _path(parts: _Search, amount: Any, damage: Damage) -> Path:
    return planned(parts.model, parts.masks, amount, score=parts.score, selection=parts.selection, damage=damage)


def budget_of(trainer: Any, level: int = 0) -> float | None:
    """Return the epochs a trainer gives a level from the schedule's start, when it says so in `.epochs`."""
    epochs = getattr(trainer, "epochs", None)
    if level > 0:
        epochs = getattr(trainer, "level_epochs", None) or epochs
    return float(epochs) if isinstance(epochs, int | float) else None


def _levels(parts: _Search) -> Iterator[Ticket]:
    at = None if parts.resume is None else _restore(parts, parts.resume)
    if at is None or at.number == 0:
        yield _dense(parts, at or _Level(0)) if parts.dense is None or at is not None else _given(parts, parts.dense)
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


def _begun(parts: _Search, number: int) -> _Level:
    """Cut, and say what kind of level follows."""
    ends = [*parts.ticket_at, *([] if parts.sparsity is None else [parts.sparsity])]
    ahead = [end for end in ends if not _reached(parts.masks, end)]
    notices = _cut(parts, number, at_most=min(ahead, default=None))
    arrived = [end for end in ahead if _reached(parts.masks, end)]
    last = number == parts.levels or (parts.sparsity is not None and _reached(parts.masks, parts.sparsity))
    if last:
        notices += [
            f"the sparsity {end:g} was not reached: {number} levels led to {parts.masks.sparsity:.4f}; search more levels or "
            "cut more per level"
            for end in ahead
            if end not in arrived
        ]
    return _Level(number, notices, last, report=any(end in parts.ticket_at for end in arrived))


def _reached(masks: Masks, sparsity: float) -> bool:
    return masks.total - masks.remaining >= round(sparsity * masks.total)


def _dense(parts: _Search, at: _Level) -> Ticket:
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
        on_rest=lambda: _rest(parts, at, watch),
    )
    _fit(parts, at, watch)
    parts.points["dense"] = end = _copy(parts, watch.epoch)
    for point in points:
        if parts.levels and point.restores and str(point) not in parts.points:
            raise InputError(
                f"level 0 ended after {watch.epoch:g} epochs without passing the rewind point {str(point)!r}: "
                "train it longer, rewind to an earlier point, or let the trainer report steps with watch.stepped(epoch=…)"
            )
    parts.reference = watch.checks[-1].flow
    record = _record(parts, watch, rewind="none", stop_reason="dense network, full training", notices=at.notices)
    parts.reference_accuracy, parts.reference_score = record.val_accuracy, record.score
    return Ticket(record, parts.masks, end.tensors, watch.checks, dict(parts.points))


def _copy(parts: _Search, epoch: float = 0.0) -> Snapshot:
    return Snapshot.of(parts.model, epoch=epoch, offload=parts.offload)


def _given(parts: _Search, dense: Dense) -> Ticket:
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
        names = [one.name if one is not None else "accuracy" for one in (record.metric, parts.metric)]
        raise InputError(
            f"the dense level given was judged by {names[0]}, and the trainer measures {names[1]}: give them one"
        )
    parts.reference_accuracy, parts.reference_score = record.val_accuracy, record.score
    return Ticket(record, parts.masks, dense.weights.tensors, (), dict(parts.points))


def _plan(parts: _Search) -> None:
    """Let an amount that tries cuts do so once, on the dense network; the first level is charged for it."""
    if not isinstance(parts.amount, EvenDamage):
        return
    probe, left = [], PLAN_PROBE
    for batch in map(unpack, parts.probe):
        probe.append(first_samples(batch, left))
        left -= probe[-1].samples
        if left <= 0:
            break

    def tried() -> tuple[Path, int, float]:
        damage = Damage(parts.model, probe)
        return _path(parts, parts.amount, damage), damage.samples, damage.seconds

    parts.amount, samples, seconds = ranks.of(parts.model).once(tried)
    parts.planning = samples, seconds


def _cut(parts: _Search, level: int, *, at_most: float | None) -> list[str]:
    if level == 1:
        _plan(parts)
    masks = _next_masks(parts, level, at_most=at_most)
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


def _next_masks(parts: _Search, level: int, *, at_most: float | None = None) -> Masks:
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


def _sparse(parts: _Search, at: _Level) -> Ticket:
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
        reference_accuracy=parts.reference_accuracy,
        metric=parts.metric,
        reference_score=parts.reference_score,
        masks=masks,
        next_masks=lambda: _next_masks(parts, level + 1),
        level=level,
        every=parts.check_every,
        before=parts.check_before and not full,
        go_on=go_on if at.report and not last else None,
        schedule_from=starts.get(parts.rewind.kind, 0.0),
        continues=level > 1 and not parts.rewind.restores,
        lr_share=parts.lr_share,
        on_check=parts.on_check,
        on_step=_told(parts.on_step, level),
        on_rest=lambda: _rest(parts, at, watch),
    )
    watch.probed(*parts.planning)
    parts.planning = 0, 0.0
    _fit(parts, at, watch)
    _prove_zero(parts.model, masks, level)
    stops = [check.verdict.reason for check in watch.checks if check.verdict is not None and check.verdict.stop]
    reason = stops[0] if stops else "full budget"
    record = _record(parts, watch, rewind=str(parts.rewind), stop_reason=reason, notices=at.notices)
    weights = _copy(parts).tensors
    if at.stopped is not None:
        at.stopped.rewind(parts.model)  # the search goes on from where the rule stopped
    return Ticket(record, masks, weights, watch.checks)


def _told(on_step: Callable[[int, float, int], None] | None, level: int) -> Callable[[float, int], None] | None:
    if on_step is None:
        return None
    return lambda epoch, step: on_step(level, epoch, step)


def _rest(parts: _Search, at: _Level, watch: Watch) -> None:
    """Offer the search's state where it can be gone on from: within a level only with a trainer that can, too."""
    able = all(callable(getattr(parts.trainer, name, None)) for name in ("state", "restore"))
    why = getattr(parts.trainer, "inexact", None)
    able = able and why is None
    if why is not None and parts.on_state is not None and at.number == watch.step == 0:
        at.notices.append(str(why))
    if parts.on_state is not None and (able or watch.step == 0):
        parts.on_state(lambda: _state(parts, at, watch))


def _state(parts: _Search, at: _Level, watch: Watch) -> State:
    take = getattr(parts.trainer, "state", dict)
    points = {_place(parts, name): point.tensors for name, point in parts.points.items()}
    stopped = {} if at.stopped is None else {"stopped": at.stopped.tensors}
    groups: dict[str, Any] = {
        "model": Snapshot.of(parts.model).tensors,
        "masks": parts.masks,
        **points,
        **stopped,
        **{_random_of(rank): one for rank, one in enumerate(ranks.of(parts.model).all(random_states()))},
        "watch": watch.state(),
        "trainer": take(),
    }
    for (
        name,
        value,
    ) in at.beginning.items():  # its tensors never change, and are written once as those of a rewind point
        groups.setdefault(f"points/beginning {at.number}" if isinstance(value, Tensor) else "beginning", {})[name] = (
            value
        )
    return {
        "level": at.number,
        "notices": list(at.notices),
        "last": at.last,
        "report": at.report,
        "points": {name: point.epoch for name, point in parts.points.items()},
        "path": list(parts.amount.sparsities) if isinstance(parts.amount, Path) else None,
        "reference": None if parts.reference is None else parts.reference.to_json(),
        "reference_accuracy": parts.reference_accuracy,
        "lr_share": parts.lr_share,
        "retaken": parts.retaken,
        "reference_score": parts.reference_score,
        **{key: value for name, group in groups.items() for key, value in under(name, group).items()},
    }


def _restore(parts: _Search, state: State) -> _Level:
    """Put everything of the search back that does not belong to its watch or its trainer.

    Raises:
        InputError: the state is of another search, or incomplete.
    """
    with restoring("search"):
        at = _Level(int(state["level"]), list(map(str, state["notices"])), bool(state["last"]), bool(state["report"]))
        Snapshot(part("model", state)).rewind(parts.model)
        parts.masks = Masks(part("masks", state))
        parts.masks.weights(parts.model)
        parts.lr_share, parts.retaken = float(state.get("lr_share", 1.0)), int(state.get("retaken", 0))
        at.beginning = part("beginning", state) | part(f"points/beginning {at.number}", state)
        parts.points = {
            name: Snapshot(parts.offload.copy(part(_place(parts, name), state)), epoch)
            for name, epoch in state["points"].items()
        }
        stopped = part("stopped", state)
        at.stopped = Snapshot(stopped) if stopped else None
        if isinstance(parts.amount, EvenDamage) and state["path"] is not None:
            parts.amount = Path(tuple(state["path"]))
        parts.reference = None if state["reference"] is None else Flow.from_json(state["reference"])
        accuracy = state["reference_accuracy"]
        parts.reference_accuracy = None if accuracy is None else float(accuracy)
        score = state.get("reference_score")
        parts.reference_score = None if score is None else float(score)
    return at


def _fit(parts: _Search, at: _Level, watch: Watch) -> None:
    state, parts.resume = parts.resume, None
    if state is None:
        at.random = random_states()
        at.beginning = _beginning(parts, at) if parts.on_divergence == "retry" else {}
    else:
        watch.restore(part("watch", state))
        at.random = part(_random_of(ranks.of(parts.model).rank), state) or part("random", state)
        restore_random(at.random)
        restore = getattr(parts.trainer, "restore", None)
        if callable(restore):
            restore(part("trainer", state))
    watch.start()
    if state is None:
        watch.rest()
    while True:
        try:
            with ranks.linked(ranks.of(parts.model)):
                parts.trainer.fit(parts.model, parts.masks, watch)
            _ended(parts, watch)
            return
        except Diverged as error:
            _go_back(parts, at, watch, error)


def _ended(parts: _Search, watch: Watch) -> None:
    """Look once more where the trainer did not at its end, and see that nothing in the network is NaN or infinite."""
    if not watch.checks:
        raise InputError(
            f"the trainer ({type(parts.trainer).__name__}) never called watch.look() in level {watch.level}: "
            "call it after every epoch, so that epochs are counted and the rule is asked"
        )
    if watch.step > watch.checks[-1].step:
        watch.look(epoch=watch.epoch)
    watch.check_finite()


def _random_of(rank: int) -> str:
    return "random" if rank == 0 else f"random of {rank}"


def _place(parts: _Search, point: str) -> str:
    """Return where a rewind point stands in a state: under another name when it was taken anew, since files hold it by name."""
    return f"points/{point}" if not parts.retaken or point == "init" else f"points/{point} again {parts.retaken}"


def _beginning(parts: _Search, at: _Level) -> State:
    take = getattr(parts.trainer, "state", dict)
    groups = {"model": Snapshot.of(parts.model).tensors, "random": at.random, "trainer": take()}
    return {"notices": list(at.notices)} | {
        key: value for name, group in groups.items() for key, value in under(name, group).items()
    }


def _go_back(parts: _Search, at: _Level, watch: Watch, error: Diverged) -> None:
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
        at.beginning["notices"] = at.notices = [*map(str, at.beginning["notices"]), told]
    at.stopped = None
    if at.number == 0:
        parts.points = {name: point for name, point in parts.points.items() if name == "init"}
        parts.retaken += 1
    if parts.on_notice is not None:
        parts.on_notice(told)
    watch.again(parts.lr_share)
    watch.rest()


def _prove_zero(model: nn.Module, masks: Masks, level: int) -> None:
    for name, weight in masks.weights(model).items():
        if bool((weight.detach()[~masks[name].to(weight.device)] != 0).any()):
            raise TrainingError(
                f"pruned weights of {name!r} are no longer zero after level {level}: the trainer must keep them there "
                "with incop.hold(masks, model, optimizer)"
            )


def _record(parts: _Search, watch: Watch, *, rewind: str, stop_reason: str, notices: list[str]) -> Level:
    end = watch.checks[-1]
    measured = end.accuracy if parts.metric is None else end.score
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
        val_accuracy=measured if parts.metric is None else None,
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
        score=None if parts.metric is None else measured,
    )
