"""Watch: measure, note, ask the rule. It fits any training loop and keeps the ledger of what a level costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from incop import distributed, inspection
from incop.batches import reusable
from incop.errors import Diverged, InputError, TrainingError, renamed
from incop.flat_state import State, part, restoring, under
from incop.flow import Meter, measure
from incop.ledger import Expense, Ledger
from incop.masks import Masks
from incop.recipe import USUAL, LevelRecipe
from incop.records import ACCURACY, Check, Flow, History, Interval, Metric, Spent, Verdict
from incop.rewind_points import check_extra_states
from incop.stopping import Rule

NO_RULE = "no rule watches this level"
OLDER_MASKS = 10  # as many earlier masks as any rule may ask for


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
        metric: what the network is judged by, by default accuracy; of another metric `look(metric_value=…)` takes the value.
        reference_value: the dense network's value of the metric, for `MetricRestored`.
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
        search_recipe: how the trainer is to train while the rule may end the level.
        last_recipe: how it is to train a level that no rule ends, and what follows a rule's stop.
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

    @renamed(reference_score="reference_value")
    def __init__(
        self,
        model: nn.Module,
        probe: Any = None,
        *,
        meter: Meter | None = None,
        rule: Rule | None = None,
        reference: Flow | None = None,
        reference_accuracy: float | None = None,
        metric: Metric = ACCURACY,
        reference_value: float | None = None,
        masks: Masks | None = None,
        next_masks: Callable[[], Masks] | None = None,
        level: int = 0,
        every: float | str | Interval = 1.0,
        before: bool = False,
        go_on: Callable[[], None] | None = None,
        schedule_from: float = 0.0,
        continues: bool = False,
        lr_share: float = 1.0,
        search_recipe: LevelRecipe = USUAL,
        last_recipe: LevelRecipe = USUAL,
        on_check: Callable[[Check], None] | None = None,
        on_step: Callable[[float, int], None] | None = None,
        on_rest: Callable[[], None] | None = None,
    ) -> None:
        if meter is not None and probe is None:
            raise InputError("a meter needs a probe: pass batches of the training split")
        self._probe = None if probe is None else reusable(probe)
        self.metric = metric
        self.reference_value = reference_value
        if reference_accuracy is not None:
            what = "Watch(reference_accuracy=…)"
            self.reference_value = _of_accuracy(metric, reference_accuracy, reference_value, what, "reference_value=")
        has = {"flow": meter is not None, "reference": reference is not None, "mask": next_masks is not None}
        _check_needs(rule, metric, {**has, "metric": self.reference_value is not None})
        if on_rest is not None:  # a state of all will be taken, and nothing is trained yet
            check_extra_states(model)
        self.model = model
        self._ranks = distributed.of(model)
        self.meter = meter
        self.rule = rule
        self.reference = reference
        self.masks = masks
        self.level = level
        self.every = Interval.parse(every)
        self.before = before
        self.schedule_from = schedule_from
        self.continues = continues
        self.lr_share = lr_share
        self.search_recipe = search_recipe
        self.last_recipe = last_recipe
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
        self._ledger = Ledger()
        self._stopped: Spent | None = None
        self._odd = frozenset(
            inspection.not_finite(model)
        )  # a mask of -inf that the model adds may be among its buffers
        self._taken = False
        self._ledger.start()

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of this level, oldest first."""
        return tuple(self._checks)

    @property
    def spent(self) -> Spent:
        """The ledger up to the last look."""
        return self._ledger.spent(self._checks[-1].epoch if self._checks else 0.0, self.step)

    @property
    def stopped(self) -> Spent | None:
        """The ledger at the rule's stop, when the level went on after it; None otherwise."""
        return self._stopped

    @property
    def abandoned(self) -> Spent | None:
        """The part of the ledger that was spent before the level was begun again; None where it was not."""
        return self._ledger.abandoned if self.attempt else None

    @property
    def searching(self) -> bool:
        """Whether a rule may still end this level; False for the dense level and for full budgets."""
        return self.rule is not None and self._stopped is None

    @property
    def recipe(self) -> LevelRecipe:
        """How the level is to be trained from here: as the search is while a rule may end it, as the last level is otherwise."""
        return self.search_recipe if self.searching else self.last_recipe

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict, None before the first look."""
        return self._checks[-1].verdict if self._checks else None

    def start(self) -> None:
        """Start the clock now: what has passed since the watch was made is not training."""
        self._ledger.start()

    def again(self, lr_share: float) -> None:
        """Begin the level again, whose training diverged; what was spent stays in the ledger, its checks do not.

        Args:
            lr_share: what the trainer is to multiply its learning rate by from now on.
        """
        self._ledger.pause()
        self._ledger.abandoned = self._ledger.spent(self.epoch, self.step)
        self.attempt, self.lr_share = self.attempt + 1, lr_share
        self.epoch, self.step = 0.0, 0
        self._checks, self._older, self._stopped = [], [], None

    def check_finite(self) -> None:
        """Refuse weights and buffers that have become NaN or infinite; every look does so.

        A gradient that is not finite leaves the loss of its step as it is, and shows in the next one's, if there is one.

        Raises:
            Diverged: one has.
        """
        mine = [name for name in inspection.not_finite(self.model) if name not in self._odd]
        if found := list(dict.fromkeys(name for names in self._ranks.all(mine) for name in names)):
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise Diverged(
                f"{found[0]!r}{more} of the model {'are' if more else 'is'} not finite after step {self.step} of level "
                f"{self.level} (after epoch {self.epoch:.2f})"
            )

    def pause(self) -> None:
        """Stop the clock until `start()`: what a loop does in between for a look of its own is not training."""
        self._ledger.pause()

    def stepped(self, samples: int = 0, *, epoch: float | None = None) -> None:
        """Count one optimizer step.

        Args:
            samples: training samples in it, of all processes together.
            epoch: epochs trained in this level so far, where the loop knows them.
        """
        self.step += 1
        self._ledger.trained.samples += samples
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
            self._ledger.pause(self._ledger.recorded)

    def state(self) -> State:
        """Return what the watch of a resumed level needs: where it stands, its ledger, its checks, masks it remembers."""
        self._ledger.pause()
        self._taken = True
        return {
            "epoch": self.epoch,
            "step": self.step,
            **self._ledger.state(),
            "stopped": None if self._stopped is None else self._stopped.to_json(),
            "attempt": self.attempt,
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
            self._ledger.restore(state)
            self._stopped = None if state["stopped"] is None else Spent.from_json(state["stopped"])
            self.attempt = int(state.get("attempt", 0))
            self._odd = frozenset(map(str, state.get("odd", self._odd)))
            self._checks = [Check.from_json(check) for check in state["checks"]]
            self._older = [
                Masks(part(f"older/{number}", state)) for number in range(min(int(state["older"]), len(state)))
            ]
        self._ledger.start()

    def probed(self, samples: int, seconds: float = 0.0) -> None:
        """Count samples that a look needed, from within the function given as `accuracy`, or that the cut before it did."""
        self._ledger.bucket.samples += samples
        self._ledger.bucket.seconds += seconds

    def charge(self, samples: int, seconds: float = 0.0) -> None:
        """Count what a decision about the level needed besides its looks as probing."""
        self._ledger.probed.samples += samples
        self._ledger.probed.seconds += seconds

    @renamed(score="metric_value")
    def look(
        self,
        *,
        accuracy: float | Callable[[], float] | None = None,
        loss: float | None = None,
        epoch: float | None = None,
        metric_value: float | Callable[[], float] | None = None,
    ) -> Verdict:
        """Measure the flow, note it, and ask the rule.

        Args:
            accuracy: validation accuracy in [0, 1], or a function that measures it, timed as part of the look.
            loss: mean training loss since the last look.
            epoch: epochs trained in this level so far, a fraction within one; by default one more than at the
                last look, or what `stepped` was told. 0 is a look before any training.
            metric_value: value of the watch's metric, where that is not accuracy, or a function that measures it.

        Returns:
            The verdict: `.stop` and `.reason`.

        Raises:
            InputError: a value is out of range, or the rule needs one that was not given.
            Diverged: a weight or the flow is not finite.
        """
        distributed.level_buffers(self.model)
        self.check_finite()
        self._ledger.pause()
        last = self._checks[-1].epoch if self._checks else 0.0
        now = epoch if epoch is not None else (self.epoch if self.epoch > last else last + 1.0)
        if not math.isfinite(now) or now < last:
            raise InputError(f"look(epoch={epoch!r}): epochs trained in this level must not fall below {last:g}")
        self.epoch = now
        if self._on_step is not None:
            self._on_step(self.epoch, self.step)
        flow = self._measured()
        value = self._judged(accuracy, metric_value)
        changes = self._mask_changes()
        verdict = self._note(flow, value, None if loss is None else self._ranks.mean(loss), changes)
        self._ledger.start()
        return verdict

    def _note(
        self, flow: Flow | None, metric_value: float | None, loss: float | None, changes: tuple[float, ...]
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
            metric_value=metric_value,
            loss=loss,
            mask_changes=changes,
            spent=self._ledger.spent(self.epoch, self.step),
            attempt=self.attempt,
            metric=self.metric.name,
            sparsity=None if self.masks is None else self.masks.sparsity,
        )
        verdict = Verdict(False, NO_RULE)
        if self._stopped is not None:
            verdict = Verdict(False, "trained on to its full budget after the rule's stop")
        elif self.rule is not None:
            seen = (*self._checks, check)
            history = History(seen, self.reference, self.reference_value, self.metric)
            verdict = self._ranks.once(functools.partial(self.rule, history))
        self._checks.append(dataclasses.replace(check, verdict=verdict))
        if self._on_check is not None:
            self._on_check(self._checks[-1])
        if verdict.stop and self._go_on is not None:
            self._stopped = self.spent
            self._go_on()
            return dataclasses.replace(verdict, stop=False)
        return verdict

    def _charge(self, *what: str) -> AbstractContextManager[Expense]:
        """Charge what follows to probing when the rule needs it, to the record otherwise.

        The dense level has no rule; its flow is the reference, which rules need.
        """
        wants = self.rule.wants if self.rule is not None else frozenset({"flow"} if self.level == 0 else ())
        needed = any(one in wants for one in what)
        ledger = self._ledger
        return ledger.charged(ledger.probed if needed and self._stopped is None else ledger.recorded)

    def _measured(self) -> Flow | None:
        if self.meter is None:
            return None
        with self._charge("flow") as looks:
            try:
                flow = self._ranks.same(measure(self.model, self._probe, self.meter, masks=self.masks, together=True))
            except distributed.Lost:
                raise
            except TrainingError as error:
                raise Diverged(f"after step {self.step} of level {self.level}, {error}") from error
            looks.samples += flow.samples
        return flow

    def _judged(
        self, accuracy: float | Callable[[], float] | None, value: float | Callable[[], float] | None
    ) -> float | None:
        name = "metric_value" if accuracy is None else "accuracy"
        if accuracy is not None:
            value = _of_accuracy(self.metric, accuracy, value, "look(accuracy=…)", "metric_value=")
        with self._charge("accuracy", "metric"):
            number = value() if callable(value) else value
            number = None if number is None else self._ranks.mean(number)
        return None if number is None else self.metric.check(number, f"look({name}=")

    def _mask_changes(self) -> tuple[float, ...]:
        if self.rule is None or "mask" not in self.rule.wants or self._next_masks is None:
            return ()
        with self._charge("mask"):
            masks = self._next_masks()
            changes = tuple(masks.change(older) for older in self._older)
        self._older = [masks, *self._older][:OLDER_MASKS]
        return changes


def _of_accuracy(metric: Metric, accuracy: Any, value: Any, what: str, other: str) -> Any:
    """Return an accuracy as the metric's value, which it is only where nothing else is measured."""
    if metric != ACCURACY:
        raise InputError(f"{what}: what is measured is {metric.name}; give its value as {other}")
    if value is not None:
        raise InputError(f"{what} and {other} are two values of one metric, the accuracy: give one")
    return accuracy


def _check_needs(rule: Rule | None, metric: Metric, has: dict[str, bool]) -> None:
    """Refuse a rule that asks for something that the watch was not given."""
    if rule is None:
        return
    if not isinstance(rule, Rule):
        raise InputError(
            f"the rule is a {type(rule).__name__}: pass one of incop.stopping, or a subclass of stopping.Rule"
        )
    how = {
        "flow": "a meter and a probe",
        "reference": "reference=, the dense network's flow (incop.measure at the end of its training)",
        "accuracy": "reference_accuracy=, the dense network's validation accuracy"
        if metric == ACCURACY
        else f"the accuracy, and what is measured is {metric.name}: use MetricRestored ('metric restored')",
        "metric": "reference_accuracy=, or metric= and reference_value=, of the dense network",
        "mask": "next_masks=, a function that returns the masks that would be cut now",
    }
    has = has | {"accuracy": has["metric"] and metric == ACCURACY}
    for need in sorted(rule.wants):
        if not has.get(need, True):
            raise InputError(f"the rule {str(rule)!r} needs {how[need]}")
