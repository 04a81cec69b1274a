"""The rules: each a frozen value that judges a history, holds no state, and says why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from incop.errors import InputError, unknown
from incop.records import ACCURACY, History, Verdict, shortest

SLACK = 1e-9  # epochs are sums of fractions, accuracies differences of them

# What a rule may need, and how a watch is given it.
NEEDS = {
    "flow": "give the watch a meter",
    "reference": "give the watch the dense network's flow as reference=",
    "accuracy": "call look(accuracy=…) and give the watch reference_accuracy=",
    "metric": "call look(accuracy=…) and give the watch reference_accuracy=, or metric_value=, metric= and reference_value=",
    "loss": "call look(loss=…)",
    "mask": "give the watch the next cut as next_masks=",
}


class Rule:
    """A stop rule: call it with a `History`, get a `Verdict`. It holds no state, so it can be replayed on records.

    To add one: a frozen dataclass with `needs`, `judge` and `__str__`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def wants(self) -> frozenset[str]:
        """What a check must hold for this rule: any of "flow", "reference", "accuracy", "metric", "loss", "mask"."""
        return self.needs

    def judge(self, history: History) -> tuple[bool, str]:
        """Return whether to stop, and a sentence with the numbers."""
        raise NotImplementedError

    def __call__(self, history: History) -> Verdict:
        """Judge the last check of the history."""
        if not history.checks:
            raise InputError(
                f"the rule {str(self)!r} was asked about a level without any check: look at the model first"
            )
        if lacking := self.lacking(history):
            raise InputError(f"the rule {str(self)!r} needs what this check does not hold: {NEEDS[lacking[0]]}")
        stop, reason = self.judge(history)
        return Verdict(stop, reason, str(self))

    def lacking(self, history: History) -> list[str]:
        """Return which of the rule's needs the last check does not meet.

        Raises:
            InputError: the rule needs something that no check can hold.
        """
        now = history.now
        judged = now.metric_value is not None and history.reference_value is not None
        has = {
            "flow": now.flow is not None,
            "reference": history.reference is not None,
            "accuracy": judged and history.metric == ACCURACY,
            "metric": judged,
            "loss": now.number == 0 or now.loss is not None,
            "mask": now.number == 0 or len(history.checks) < 2 or bool(now.mask_changes),
        }
        if strange := sorted(self.wants - has.keys()):
            raise unknown("need of a rule", strange[0], tuple(NEEDS))
        return [need for need in sorted(self.wants) if not has[need]]

    def __or__(self, other: Rule) -> Rule:
        """Stop when either rule stops."""
        return Either(_flat(self, Either) + _flat(other, Either))

    def __and__(self, other: Rule) -> Rule:
        """Stop when both rules stop."""
        return Both(_flat(self, Both) + _flat(other, Both))


def _flat(rule: Rule, kind: type[Any]) -> tuple[Rule, ...]:
    if not isinstance(rule, Rule):
        raise InputError(f"a rule can be joined with another rule, not with a {type(rule).__name__}")
    return rule.rules if isinstance(rule, kind) else (rule,)


def _number(rule: str, name: str, value: float, *, above: bool = False, most: float = math.inf) -> None:
    """Refuse what is no finite number in [0, most], or (0, most] with `above`."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    if not fits or not math.isfinite(value) or (above and value == 0):
        low = "above 0" if above else "of at least 0"
        top = "" if most == math.inf else f" and at most {most:g}"
        raise InputError(f"{rule}({name}={value!r}): it must be a number {low}{top}")


def _count(rule: Rule, name: str, *, most: float = math.inf) -> None:
    """Refuse what is no whole number in [1, most]; keep 2.0 as 2."""
    value = getattr(rule, name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= most
    if not fits or value == math.inf or value != int(value):
        top = "" if most == math.inf else f" and at most {most:g}"
        raise InputError(f"{type(rule).__name__}({name}={value!r}): it must be a whole number of at least 1{top}")
    object.__setattr__(rule, name, int(value))


@dataclass(frozen=True)
class FlowRestored(Rule):
    """Stop when the flow is back at the dense network's: ‖Δ − Δ_ref‖₂ < within.

    Args:
        within: the tolerance ε > 0. Published: 0.08–0.15 for the mean correlation, 0.3–0.7 for gradient norms.
        relative: compare ‖Δ − Δ_ref‖₂ / ‖Δ_ref‖₂ instead.

    Raises:
        InputError: `within` is not positive.

    Example:
        >>> from incop.records import Check, Flow, History
        >>> from incop.stopping import FlowRestored
        >>> dense, now = Flow({"a->b": 0.30}), Flow({"a->b": 0.27})
        >>> FlowRestored(within=0.05)(History((Check(1, 1, 1.0, flow=now),), dense)).reason
        'flow within 0.05 of dense (0.03)'

    Source: arXiv 2501.15592, the stop condition of InCoP-IF and InCoP-GF.
    """

    within: float
    relative: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"flow", "reference"})

    def __post_init__(self) -> None:
        _number("FlowRestored", "within", self.within, above=True)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the distance to the reference with `within`."""
        assert history.now.flow is not None
        assert history.reference is not None
        distance = history.now.flow.distance(history.reference, relative=self.relative)
        unit = " relative" if self.relative else ""
        if distance < self.within:
            return True, f"flow within {shortest(self.within)}{unit} of dense ({distance:.3g})"
        return False, f"flow {distance:.3g}{unit} from dense, not within {shortest(self.within)}"

    def __str__(self) -> str:
        return f"flow within {shortest(self.within)}{' relative' if self.relative else ''}"


@dataclass(frozen=True)
class FlowSettled(Rule):
    """Stop when the flow's distance to the dense network's has stopped falling.

    It has when, in each of the last `patience` checks, it fell by less than `less_than` of what it was at the level's
    first check, or not at all: d_{t−1} − d_t < less_than · d_1. A check before any training does not count: what the
    first steps do to the distance says nothing of where it settles. At high sparsity a floor remains that no training
    removes, so waiting for a distance would be waiting for ever.

    Args:
        patience: checks in a row, at least 1.
        less_than: fraction of the first distance, in (0, 1].

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> from incop.records import Check, Flow, History
        >>> from incop.stopping import FlowSettled
        >>> checks = tuple(Check(1, k, k, flow=Flow({"a->b": x})) for k, x in enumerate((0.1, 0.2, 0.29, 0.292), 1))
        >>> FlowSettled(patience=1)(History(checks, Flow({"a->b": 0.3}))).stop
        True
    """

    patience: int = 2
    less_than: float = 0.05
    needs: ClassVar[frozenset[str]] = frozenset({"flow", "reference"})

    def __post_init__(self) -> None:
        _count(self, "patience")
        _number("FlowSettled", "less_than", self.less_than, above=True, most=1.0)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the last steps of the distance with the first distance."""
        assert history.reference is not None
        trained = [c.flow for c in history.checks if c.flow is not None and c.number > 0]
        if len(trained) <= self.patience:
            return False, f"{len(trained)} of the {self.patience + 1} checks needed to see the flow settle"
        looked_at = [trained[0], *trained[-self.patience - 1 :]]
        distances = [flow.distance(history.reference) for flow in looked_at]
        falls = [before - after for before, after in pairwise(distances[1:])]
        limit = self.less_than * distances[0]
        if not all(math.isfinite(number) for number in (*falls, limit)):
            return False, f"flow not settled: a distance of the last {self.patience} checks is not finite"
        if all(fall < limit or fall <= 0.0 for fall in falls):
            fell = f"its distance {distances[-1]:.3g} fell by less than {limit:.3g}"
            return True, f"flow settled: {fell} in {self.patience} checks"
        return False, f"flow not settled: its distance fell by {max(falls):.3g} within {self.patience} checks"

    def __str__(self) -> str:
        return f"flow settled {shortest(self.less_than)} for {self.patience}"


@dataclass(frozen=True)
class MaskSettled(Rule):
    """Stop when the mask that would be cut now differs by less than `less_than` from those of the last checks.

    Args:
        less_than: fraction of the kept positions, in (0, 1]; Early-Bird tickets use 0.1.
        checks: how many earlier checks it is compared with, 1 to 10; Early-Bird tickets use 5.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> from incop.records import Check, History
        >>> from incop.stopping import MaskSettled
        >>> rule = MaskSettled(less_than=0.1, checks=2)
        >>> looks = Check(1, 0, 0), Check(1, 1, 1, mask_changes=(0.3,)), Check(1, 2, 2, mask_changes=(0.05, 0.08))
        >>> rule(History(looks)).stop
        True

    Source: You et al. 2020, "Drawing early-bird tickets", section 3; Zhang et al. 2021 (PrAC).
    """

    less_than: float = 0.1
    checks: int = 5
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})

    def __post_init__(self) -> None:
        _number("MaskSettled", "less_than", self.less_than, above=True, most=1.0)
        _count(self, "checks", most=10)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the largest change against the last checks with `less_than`."""
        if history.now.number == 0:
            return False, "no training yet that could have moved the mask"
        changes = history.now.mask_changes[: self.checks]
        if len(changes) < self.checks:
            return False, f"{len(changes)} of the {self.checks} earlier masks needed to see it settle"
        most, limit = max(changes), shortest(self.less_than)
        if all(change < self.less_than for change in changes):
            return True, f"mask settled: it moved by {most:.3g}, less than {limit}, in {self.checks} checks"
        return False, f"mask moved by {most:.3g} in {self.checks} checks, not less than {limit}"

    def __str__(self) -> str:
        return f"mask settled {shortest(self.less_than)} for {self.checks}"


@dataclass(frozen=True)
class _Restored(Rule):
    """The metric is no worse than the dense network's by more than `drop`."""

    drop: float = 0.0
    word: ClassVar[str]
    most: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        _number(type(self).__name__, "drop", self.drop, most=self.most)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the metric now with the dense network's."""
        metric, now, dense = history.metric, history.now.metric_value, history.reference_value
        assert now is not None
        assert dense is not None
        back = metric.restored(now, of=dense, drop=self.drop, slack=SLACK * max(abs(dense), 1.0))
        digits = ".4f" if metric == ACCURACY else ".4g"
        goal = f"{metric.goal(dense, self.drop):{digits}}"
        return back, f"{metric.name} {now:{digits}} {'' if back else 'not '}back at {goal}"

    def __str__(self) -> str:
        return f"{self.word} within {shortest(self.drop)}" if self.drop else f"{self.word} restored"


@dataclass(frozen=True)
class AccuracyRestored(_Restored):
    """Stop when validation accuracy is back at the dense network's, less `drop`.

    Args:
        drop: what may be missing, in [0, 1]: 0.005 is half a percentage point.

    Raises:
        InputError: `drop` is out of range.

    Example:
        >>> from incop.records import Check, History
        >>> from incop.stopping import AccuracyRestored
        >>> AccuracyRestored(drop=0.01)(History((Check(1, 1, 1, metric_value=0.95),), None, 0.955)).stop
        True
    """

    needs: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    word: ClassVar[str] = "accuracy"
    most: ClassVar[float] = 1.0


@dataclass(frozen=True)
class MetricRestored(_Restored):
    """Stop when the metric is no worse than the dense network's by more than `drop`, in its own direction and unit.

    Args:
        drop: what may be missing, at least 0: 0.1 is a tenth of whatever the metric counts.

    Raises:
        InputError: `drop` is out of range.

    Example:
        >>> from incop.records import Check, History, Metric
        >>> from incop.stopping import MetricRestored
        >>> rmse = Metric("rmse", higher_is_better=False)
        >>> MetricRestored(drop=0.5)(History((Check(1, 1, 1, metric_value=3.6),), None, 3.2, rmse)).reason
        'rmse 3.6 back at 3.7'
    """

    needs: ClassVar[frozenset[str]] = frozenset({"metric"})
    word: ClassVar[str] = "metric"


@dataclass(frozen=True)
class LossPlateau(Rule):
    """Stop when the mean training loss has not fallen below its best by the fraction `less_than` for `patience` checks.

    Args:
        patience: checks in a row, at least 1.
        less_than: fraction of the best loss, in [0, 1].

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> from incop.records import Check, History
        >>> from incop.stopping import LossPlateau
        >>> checks = tuple(Check(1, k, k, loss=x) for k, x in enumerate((1.0, 0.5, 0.499, 0.498), 1))
        >>> LossPlateau(patience=2)(History(checks)).stop
        True
    """

    patience: int = 3
    less_than: float = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __post_init__(self) -> None:
        _count(self, "patience")
        _number("LossPlateau", "less_than", self.less_than, most=1.0)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the last losses with the best before them."""
        losses = [c.loss for c in history.checks if c.loss is not None and c.number > 0]
        if len(losses) <= self.patience:
            return False, f"{len(losses)} of the {self.patience + 1} checks needed to see the loss settle"
        best, last = _least(losses[: -self.patience]), _least(losses[-self.patience :])
        if not (math.isfinite(best) and math.isfinite(last)):
            return False, f"loss not settled: of the last {len(losses)} losses some are not finite"
        if last >= best - self.less_than * abs(best):
            better = f"no better than {best:.3g} by {shortest(self.less_than)} for {self.patience} checks"
            return True, f"loss settled at {last:.3g}: {better}"
        return False, f"loss still falling ({best:.3g} to {last:.3g})"

    def __str__(self) -> str:
        return f"loss settled {shortest(self.less_than)} for {self.patience}"


def _least(losses: Sequence[float]) -> float:
    return math.nan if any(math.isnan(loss) for loss in losses) else min(losses)


@dataclass(frozen=True)
class AfterEpochs(Rule):
    """Stop blindly after so many epochs of the level.

    Args:
        epochs: at least 0, also a fraction.

    Raises:
        InputError: `epochs` is negative or not a number.

    Example:
        >>> from incop.records import Check, History
        >>> from incop.stopping import AfterEpochs
        >>> AfterEpochs(2)(History((Check(1, 1, epoch=2.0),))).reason
        'after 2 epochs'
    """

    epochs: float

    def __post_init__(self) -> None:
        _number("AfterEpochs", "epochs", self.epochs)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the epochs trained with `epochs`."""
        trained = shortest(round(history.now.epoch, 4))
        if history.now.epoch >= self.epochs - SLACK:
            return True, f"after {trained} epochs"
        return False, f"{trained} of {shortest(self.epochs)} epochs"

    def __str__(self) -> str:
        return f"after {shortest(self.epochs)} epochs"


@dataclass(frozen=True)
class _Joined(Rule):
    """Two rules or more, joined."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        flat = tuple(part for rule in self.rules for part in _flat(rule, type(self)))
        if len(flat) < 2:
            raise InputError(f"{type(self).__name__} joins at least two rules, not {len(flat)}")
        object.__setattr__(self, "rules", flat)

    @property
    def wants(self) -> frozenset[str]:
        """What any of the rules needs."""
        return frozenset().union(*(rule.wants for rule in self.rules))


@dataclass(frozen=True)
class Either(_Joined):
    """Stop when any of the rules stops; the reason is that of the first that does. Made by `a | b`.

    Args:
        rules: two or more.

    Raises:
        InputError: there are fewer, or one of them is no rule.
    """

    def judge(self, history: History) -> tuple[bool, str]:
        """Judge every rule."""
        answers = [rule.judge(history) for rule in self.rules]
        stopped = [reason for stop, reason in answers if stop]
        return (True, stopped[0]) if stopped else (False, "; ".join(reason for _, reason in answers))

    def __str__(self) -> str:
        return " or ".join(str(rule) for rule in self.rules)


@dataclass(frozen=True)
class Both(_Joined):
    """Stop when all of the rules stop. Made by `a & b`.

    Args:
        rules: two or more.

    Raises:
        InputError: there are fewer, or one of them is no rule.
    """

    def judge(self, history: History) -> tuple[bool, str]:
        """Judge every rule."""
        answers = [rule.judge(history) for rule in self.rules]
        waiting = [reason for stop, reason in answers if not stop]
        return (False, "; ".join(waiting)) if waiting else (True, " and ".join(reason for _, reason in answers))

    def __str__(self) -> str:
        return " and ".join(f"({rule})" if isinstance(rule, Either) else str(rule) for rule in self.rules)
