"""Watch: measure, note, ask the rule. It fits any training loop and keeps the ledger of what a level costs."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from incop import observing, ranks
from incop.batches import reusable
from incop.errors import Diverged, InputError, TrainingError
from incop.flow import Meter, measure
from incop.masks import Masks
from incop.records import Check, Flow, History, Interval, Metric, Spent, Verdict
from incop.snapshots import check_extra_states
from incop.states import State, part, restoring, under
from incop.stopping import Rule

__all__ = ["Watch"]

NO_RULE = "no rule watches this level"
OLDER_MASKS = 10  # as many earlier masks as any rule may ask for


@dataclass
class _Looks:
    """What looks of one kind have cost."""

    samples: int = 0
    seconds: float = 0.0


class _Timed:
    """Adds the time spent inside to a ledger."""

    def __init__(self, looks: _Looks) -> None:
        self._looks = looks

    def __enter__(self) -> _Looks:
        self._started = time.perf_counter()
        return self._looks

    def __exit__(self, *error: object) -> None:
        self._looks.seconds += time.perf_counter() - self._started


class Watch:
    """Look at a network while it trains, and say when its flow is consistent with the dense network's.

    Call `look()` wherever the rule is to be asked, usually after an epoch; stop when its verdict says so.
    The time between looks counts as training. What a look measures counts as probing where the rule needs it, and as
    recording where it does not.

    Where the model is a `DistributedDataParallel`, every process has a watch of its own and looks at the same steps: the probe is
    divided among them, numbers that they hand in are put together, and all get the verdict of the first.

    Args:
        model: the network in training; a look leaves it as it was.
        probe: batches of the training split for the meter, re-readable.
        meter: `flow.InformationFlow()` or `flow.GradientFlow(loss)`; without one no flow is measured.
        rule: when to stop; without one the verdict is never to stop.
        reference: the dense network's flow, from the same meter and probe.
        reference_accuracy: the dense network's validation accuracy in [0, 1], for `AccuracyRestored`.
        metric: what the network is judged by, where that is not accuracy: `look(score=…)` then takes its value.
        reference_score: the dense network's value of it, for `MetricRestored`.
        masks: the weights that are left, for meters of weights.
        next_masks: gives the masks that would be cut now, for `MaskSettled`.
        level: number of the level, for the records.
        every: how often a trainer that asks `due()` should look: epochs (1, 0.1) or steps ("50steps").
        before: whether `due()` asks for a look before any training.
        go_on: called when the rule first stops; the verdict then says to train on to the full budget, so that the level's
            ticket can be reported, and what follows is charged to the record.
        schedule_from: at which epoch of its schedule the trainer is to begin; infinity: to stay at its end.
        continues: the weights are those that the last level ended with, less what was cut; False: they were rewound.
        lr_share: what the trainer is to multiply its learning rate by, in (0, 1]; below 1 after training diverged.
        on_check: called with every check as it is made.
        on_step: called with (epoch, step) at every reported step and look.
        on_rest: called by `rest()`, wherever training could be gone on from later; it may take `state()`.

    Raises:
        InputError: the rule needs something that is not given, an argument cannot be used, or, with `on_rest`, the model has a
            state beside its tensors that cannot be remembered.

    Example:
        >>> import torch
        >>> import incop
        >>> from incop import flow, stopping
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> probe, meter = torch.randn(64, 4), flow.InformationFlow()
        >>> dense_flow = incop.measure(net, probe, meter)
        >>> watch = incop.Watch(net, probe, meter=meter, rule=stopping.FlowRestored(within=0.05), reference=dense_flow)
        >>> watch.look().reason
        'flow within 0.05 of dense (0)'
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any = None,
        *,
        meter: Meter | None = None,
        rule: Rule | None = None,
        reference: Flow | None = None,
        reference_accuracy: float | None = None,
        metric: Metric | None = None,
        reference_score: float | None = None,
        masks: Masks | None = None,
        next_masks: Callable[[], Masks] | None = None,
        level: int = 0,
        every: float | str | Interval = 1.0,
        before: bool = False,
        go_on: Callable[[], None] | None = None,
        schedule_from: float = 0.0,
        continues: bool = False,
        lr_share: float = 1.0,
        on_check: Callable[[Check], None] | None = None,
        on_step: Callable[[float, int], None] | None = None,
        on_rest: Callable[[], None] | None = None,
    ) -> None:
        if meter is not None and probe is None:
            raise InputError("a meter needs a probe: pass batches of the training split")
        self._probe = None if probe is None else reusable(probe)
        known = reference_accuracy if metric is None else reference_score
        _check_needs(rule, meter, reference, reference_accuracy, next_masks, metric, known)
        if on_rest is not None:  # a state of all will be taken, and nothing is trained yet
            check_extra_states(model)
        self.model = model
        self._ranks = ranks.of(model)
        self.meter = meter
        self.rule = rule
        self.reference = reference
        self.reference_accuracy = reference_accuracy
        self.metric = metric
        self.reference_score = reference_score
        self.masks = masks
        self.level = level
        self.every = Interval.parse(every)
        self.before = before
        self.schedule_from = schedule_from
        self.continues = continues
        self.lr_share = lr_share
        self.attempt = 0
        self.epoch = 0.0
        self.step = 0
        self._next_masks = next_masks
        self._older: list[Masks] = []
        self._go_on = go_on
        self._on_check = on_check
        self._on_step = on_step
        self._on_rest = on_rest
        self._checks: list[Check] = []
        self._samples = 0
        self._seconds = 0.0
        self._probed = _Looks()
        self._recorded = _Looks()
        self._bucket = self._probed
        self._stopped: Spent | None = None
        self._abandoned = Spent()
        self._odd = frozenset(
            observing.not_finite(model)
        )  # a mask of -inf that the model adds may be among its buffers
        self._mark = time.perf_counter()
        self._taken = False

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of this level, oldest first."""
        return tuple(self._checks)

    @property
    def spent(self) -> Spent:
        """The ledger up to the last look."""
        epoch = self._checks[-1].epoch if self._checks else 0.0
        return self._ledger(epoch)

    @property
    def stopped(self) -> Spent | None:
        """The ledger at the rule's stop, when the level went on after it; None otherwise."""
        return self._stopped

    @property
    def abandoned(self) -> Spent | None:
        """The part of the ledger that was spent before the level was begun again; None where it was not."""
        return self._abandoned if self.attempt else None

    @property
    def searching(self) -> bool:
        """Whether a rule may still end this level; False for the dense level and for full budgets."""
        return self.rule is not None and self._stopped is None

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict, None before the first look."""
        return self._checks[-1].verdict if self._checks else None

    def _ledger(self, epoch: float) -> Spent:
        probe, record = self._probed, self._recorded
        return Spent(
            self._abandoned.epochs + epoch,
            self._abandoned.steps + self.step,
            self._samples,
            self._seconds,
            probe.seconds,
            probe.samples,
            record.seconds,
            record.samples,
        )

    def start(self) -> None:
        """Start the clock now: what has passed since the watch was made is not training."""
        self._mark = time.perf_counter()

    def again(self, lr_share: float) -> None:
        """Begin the level again, whose training diverged; what was spent stays in the ledger, its checks do not.

        Args:
            lr_share: what the trainer is to multiply its learning rate by from now on.
        """
        self._seconds += time.perf_counter() - self._mark
        self._abandoned = self._ledger(self.epoch)
        self.attempt, self.lr_share = self.attempt + 1, lr_share
        self.epoch, self.step = 0.0, 0
        self._checks, self._older, self._stopped = [], [], None
        self._mark = time.perf_counter()

    def check_finite(self) -> None:
        """Refuse weights and buffers that have become NaN or infinite; every look does so.

        A gradient that is not finite leaves the loss of its step as it is, and shows in the next one's, if there is one.

        Raises:
            Diverged: one has.
        """
        mine = [name for name in observing.not_finite(self.model) if name not in self._odd]
        if found := list(dict.fromkeys(name for names in self._ranks.all(mine) for name in names)):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise Diverged(
                f"{found[0]!r}{more} of the model {'are' if more else 'is'} not finite after step {self.step} of level "
                f"{self.level} (after epoch {self.epoch:.2f})"
            )

    def pause(self) -> None:
        """Stop the clock until `start()`: what a loop does in between for a look of its own is not training."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def stepped(self, samples: int = 0, *, epoch: float | None = None) -> None:
        """Count one optimizer step.

        Args:
            samples: training samples in it, of all processes together.
            epoch: epochs trained in this level so far, where the loop knows them.
        """
        self.step += 1
        self._samples += samples
        if epoch is not None:
            self.epoch = epoch
        if self._on_step is not None:
            self._on_step(self.epoch, self.step)

    def due(self) -> bool:
        """Say whether a look is due where the loop stands, by `every` and `before`."""
        trained = self.step > 0 or self.epoch > 0
        if not trained:
            return self.before and not self._checks
        last = self._checks[-1] if self._checks else None
        at = 0.0 if last is None else last.epoch if self.every.unit == "epochs" else last.step
        return self.every.passed(epoch=self.epoch, step=self.step, times=int(at / self.every.amount + 1e-9) + 1)

    def rest(self) -> None:
        """Say that training can be gone on from here; the trainer calls it after a step and the look that was due.

        Where the watch's state is taken for a checkpoint, the time this takes counts as recording.
        """
        if self._on_rest is None:
            return
        self._taken = False
        self._on_rest()
        if self._taken:
            now = time.perf_counter()
            self._recorded.seconds += now - self._mark
            self._mark = now

    def state(self) -> State:
        """Return what the watch of a resumed level needs: where it stands, its ledger, its checks, masks it remembers."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark, self._taken = now, True
        probed, recorded = self._probed, self._recorded
        return {
            "epoch": self.epoch,
            "step": self.step,
            "samples": self._samples,
            "seconds": self._seconds,
            "probed": [probed.samples, probed.seconds],
            "recorded": [recorded.samples, recorded.seconds],
            "stopped": None if self._stopped is None else self._stopped.to_json(),
            "attempt": self.attempt,
            "abandoned": self._abandoned.to_json(),
            "odd": sorted(self._odd),
            "checks": [check.to_json() for check in self._checks],
            "older": len(self._older),
            **{
                name: mask
                for number, masks in enumerate(self._older)
                for name, mask in under(f"older/{number}", masks).items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of this level's watch; its checks are not told again."""
        with restoring("watch"):
            self.epoch, self.step = float(state["epoch"]), int(state["step"])
            self._samples, self._seconds = int(state["samples"]), float(state["seconds"])
            for bucket, name in ((self._probed, "probed"), (self._recorded, "recorded")):
                samples, seconds = state[name]
                bucket.samples, bucket.seconds = int(samples), float(seconds)
            self._stopped = None if state["stopped"] is None else Spent.from_json(state["stopped"])
            self.attempt = int(state.get("attempt", 0))
            self._abandoned = Spent.from_json(state.get("abandoned", {}))
            self._odd = frozenset(map(str, state.get("odd", self._odd)))
            self._checks = [Check.from_json(check) for check in state["checks"]]
            self._older = [
                Masks(part(f"older/{number}", state)) for number in range(min(int(state["older"]), len(state)))
            ]
        self._mark = time.perf_counter()

    def probed(self, samples: int, seconds: float = 0.0) -> None:
        """Count samples that a look needed, from within the function given as `accuracy`, or that the cut before it did."""
        self._bucket.samples += samples
        self._bucket.seconds += seconds

    def look(
        self,
        *,
        accuracy: float | Callable[[], float] | None = None,
        loss: float | None = None,
        epoch: float | None = None,
        score: float | Callable[[], float] | None = None,
    ) -> Verdict:
        """Measure the flow, note it, and ask the rule.

        Args:
            accuracy: validation accuracy in [0, 1], or a function that measures it, timed as part of the look.
            loss: mean training loss since the last look.
            epoch: epochs trained in this level so far, a fraction within one; by default one more than at the
                last look, or what `stepped` was told. 0 is a look before any training.
            score: value of the watch's metric, any number, or a function that measures it.

        Returns:
            The verdict: `.stop` and `.reason`.

        Raises:
            InputError: a value is out of range, or the rule needs one that was not given.
            Diverged: a weight or the flow is not finite.
        """
        ranks.level_buffers(self.model)
        self.check_finite()
        training = time.perf_counter() - self._mark
        last = self._checks[-1].epoch if self._checks else 0.0
        now = epoch if epoch is not None else (self.epoch if self.epoch > last else last + 1.0)
        if not math.isfinite(now) or now < last:
            raise InputError(f"look(epoch={epoch!r}): epochs trained in this level must not fall below {last:g}")
        self.epoch = now
        if self._on_step is not None:
            self._on_step(self.epoch, self.step)
        self._seconds += training
        flow = self._measured()
        number = self._accuracy(accuracy)
        value = self._score(score)
        changes = self._mask_changes()
        verdict = self._note(flow, number, self._merged(loss), changes, value)
        self._mark = time.perf_counter()
        return verdict

    def _note(
        self,
        flow: Flow | None,
        accuracy: float | None,
        loss: float | None,
        changes: tuple[float, ...],
        score: float | None,
    ) -> Verdict:
        distance = flow.distance(self.reference) if flow is not None and self.reference is not None else None
        trained = self.epoch > 0 or self.step > 0
        number = sum(check.number > 0 for check in self._checks) + 1 if trained else 0
        check = Check(
            level=self.level,
            number=number,
            epoch=self.epoch,
            step=self.step,
            flow=flow,
            distance=distance,
            accuracy=accuracy,
            loss=loss,
            mask_changes=changes,
            spent=self._ledger(self.epoch),
            attempt=self.attempt,
            score=score,
            sparsity=None if self.masks is None else self.masks.sparsity,
        )
        verdict = Verdict(False, NO_RULE)
        if self._stopped is not None:
            verdict = Verdict(False, "trained on to its full budget after the rule's stop")
        elif self.rule is not None:
            seen = (*self._checks, check)
            history = History(seen, self.reference, self.reference_accuracy, self.metric, self.reference_score)
            verdict = self._ranks.once(functools.partial(self.rule, history))
        self._checks.append(dataclasses.replace(check, verdict=verdict))
        if self._on_check is not None:
            self._on_check(self._checks[-1])
        if verdict.stop and self._go_on is not None:
            self._stopped = self.spent
            self._go_on()
            return dataclasses.replace(verdict, stop=False)
        return verdict

    def _charge(self, *what: str) -> _Timed:
        """Charge what follows to probing when the rule needs it, to the record otherwise.

        The dense level has no rule; its flow is the reference, which rules need.
        """
        wants = self.rule.wants if self.rule is not None else frozenset({"flow"} if self.level == 0 else ())
        needed = any(one in wants for one in what)
        self._bucket = self._probed if needed and self._stopped is None else self._recorded
        return _Timed(self._bucket)

    def _measured(self) -> Flow | None:
        if self.meter is None:
            return None
        with self._charge("flow") as looks:
            try:
                flow = self._ranks.same(measure(self.model, self._probe, self.meter, masks=self.masks, together=True))
            except ranks.Lost:
                raise
            except TrainingError as error:
                raise Diverged(f"after step {self.step} of level {self.level}, {error}") from error
            looks.samples += flow.samples
        return flow

    def _score(self, score: float | Callable[[], float] | None) -> float | None:
        if score is None:
            return None
        if self.metric is None:
            raise InputError(
                "look(score=…): the watch was given no metric=, Metric(name, higher_is_better), to say what it is"
            )
        with self._charge("metric"):
            number = self._ranks.mean(score() if callable(score) else score)
        return float(number)

    def _accuracy(self, accuracy: float | Callable[[], float] | None) -> float | None:
        with self._charge("accuracy", "metric"):
            number = self._merged(accuracy() if callable(accuracy) else accuracy)
        if number is not None and not 0.0 <= number <= 1.0:
            raise InputError(f"look(accuracy={number!r}): accuracy is a fraction in [0, 1], not a percentage")
        return None if number is None else float(number)

    def _merged(self, number: float | None) -> float | None:
        return None if number is None else self._ranks.mean(number)

    def _mask_changes(self) -> tuple[float, ...]:
        if self.rule is None or "mask" not in self.rule.wants or self._next_masks is None:
            return ()
        with self._charge("mask"):
            masks = self._next_masks()
            changes = tuple(masks.change(older) for older in self._older)
        self._older = [masks, *self._older][:OLDER_MASKS]
        return changes


def _check_needs(
    rule: Rule | None,
    meter: Meter | None,
    reference: Flow | None,
    reference_accuracy: float | None,
    next_masks: Callable[[], Masks] | None,
    metric: Metric | None,
    value: float | None,
) -> None:
    if rule is None:
        return
    if not isinstance(rule, Rule):
        raise InputError(
            f"the rule is a {type(rule).__name__}: pass one of incop.stopping, or a subclass of stopping.Rule"
        )
    has = {
        "flow": (meter is not None, "a meter and a probe"),
        "reference": (
            reference is not None,
            "reference=, the dense network's flow (incop.measure at the end of its training)",
        ),
        "accuracy": (
            reference_accuracy is not None,
            "reference_accuracy=, the dense network's validation accuracy"
            if metric is None
            else f"the accuracy, and what is measured is {metric.name}: use MetricRestored ('metric restored')",
        ),
        "metric": (
            value is not None,
            "reference_accuracy=, or metric= and reference_score=, of the dense network",
        ),
        "mask": (
            next_masks is not None,
            "next_masks=, a function that returns the masks that would be cut now",
        ),
    }
    for need in sorted(rule.wants):
        there, what = has.get(need, (True, ""))
        if not there:
            raise InputError(f"the rule {str(rule)!r} needs {what}")
