"""Stop rules: pure functions of a level's history and the dense network's flow; each answer has a reason; no torch.

| rule | in words | it stops when |
|---|---|---|
| `FlowRestored` | `flow within 0.05` | the flow is that near to the dense network's |
| `FlowSettled` | `flow settled 0.05 for 3` | the distance has stopped falling |
| `MaskSettled` | `mask settled 0.1 for 5` | the mask that would be cut now has stopped moving |
| `AccuracyRestored` | `accuracy restored`, `accuracy within 0.005` | validation accuracy is back at the dense network's |
| `LossPlateau` | `loss settled 0.01 for 3` | the training loss has stopped falling |
| `AfterEpochs` | `after 20 epochs` | blindly, after so many epochs |

`a | b` ("a or b") stops when either does, `a & b` ("a and b") when both do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from incop.errors import InputError
from incop.records import History, Verdict

__all__ = [
    "AccuracyRestored",
    "AfterEpochs",
    "Both",
    "Either",
    "FlowRestored",
    "FlowSettled",
    "LossPlateau",
    "MaskSettled",
    "Rule",
    "parse",
]

SLACK = 1e-9  # epochs are sums of fractions


class Rule:
    """A stop rule: call it with a `History`, get a `Verdict`. It holds no state, so it can be replayed on records.

    To add one: a frozen dataclass with `needs`, `judge` and `__str__`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def wants(self) -> frozenset[str]:
        """What a check must hold for this rule: any of "flow", "reference", "accuracy", "loss", "mask"."""
        return self.needs

    def judge(self, history: History) -> tuple[bool, str]:
        """Return whether to stop, and a sentence with the numbers."""
        raise NotImplementedError

    def __call__(self, history: History) -> Verdict:
        """Judge the last check of the history.

        Raises:
            InputError: the check lacks what the rule needs.
        """
        self._demand(history)
        stop, reason = self.judge(history)
        return Verdict(stop, reason, str(self))

    def _demand(self, history: History) -> None:
        if not history.checks:
            raise InputError(
                f"the rule {str(self)!r} was asked about a level without any check: look at the model first"
            )
        now = history.now
        has = {
            "flow": now.flow is not None,
            "reference": history.reference is not None,
            "accuracy": now.accuracy is not None and history.reference_accuracy is not None,
            "loss": now.number == 0 or now.loss is not None,
            "mask": now.number == 0 or len(history.checks) < 2 or bool(now.mask_changes),
        }
        how = {
            "flow": "give the watch a meter",
            "reference": "give the watch the dense network's flow as reference=",
            "accuracy": "call look(accuracy=…) and give the watch reference_accuracy=",
            "loss": "call look(loss=…)",
            "mask": "give the watch the next cut as next_masks=",
        }
        for need in sorted(self.wants):
            if not has[need]:
                raise InputError(f"the rule {str(self)!r} needs what this check does not hold: {how[need]}")

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


def _number(rule: str, name: str, value: float, *, least: float, most: float = math.inf, whole: bool = False) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or not math.isfinite(value) or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        top = "" if most == math.inf else f" and at most {most:g}"
        raise InputError(f"{rule}({name}={value!r}): it must be {kind} of at least {least:g}{top}")


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
        _number("FlowRestored", "within", self.within, least=1e-12)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the distance to the reference with `within`."""
        assert history.now.flow is not None
        assert history.reference is not None
        distance = history.now.flow.distance(history.reference, relative=self.relative)
        unit = " relative" if self.relative else ""
        if distance < self.within:
            return True, f"flow within {self.within:g}{unit} of dense ({distance:.3g})"
        return False, f"flow {distance:.3g}{unit} from dense, not within {self.within:g}"

    def __str__(self) -> str:
        return f"flow within {self.within:g}{' relative' if self.relative else ''}"


@dataclass(frozen=True)
class FlowSettled(Rule):
    """Stop when the flow's distance to the dense network's has stopped falling.

    It has when, in each of the last `patience` checks, it fell by less than `less_than` of what it was at the level's
    first check: d_{t−1} − d_t < less_than · d_1. At high sparsity a floor remains that no training removes, so waiting for a
    distance would be waiting for ever.

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
        _number("FlowSettled", "patience", self.patience, least=1, whole=True)
        _number("FlowSettled", "less_than", self.less_than, least=1e-12, most=1.0)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the last steps of the distance with the first distance."""
        assert history.reference is not None
        distances = [c.flow.distance(history.reference) for c in history.checks if c.flow is not None]
        if len(distances) <= self.patience:
            return False, f"{len(distances)} of the {self.patience + 1} checks needed to see the flow settle"
        falls = [a - b for a, b in zip(distances, distances[1:], strict=False)][-self.patience :]
        limit = self.less_than * distances[0]
        if all(fall < limit or limit == 0.0 for fall in falls):
            return (
                True,
                f"flow settled: its distance {distances[-1]:.3g} fell by less than {limit:.3g} in {self.patience} checks",
            )
        return False, f"flow not settled: its distance fell by {max(falls):.3g} within {self.patience} checks"

    def __str__(self) -> str:
        return f"flow settled {self.less_than:g} for {self.patience:g}"


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
        >>> rule(History((Check(1, 0, 0), Check(1, 1, 1, mask_changes=(0.3,)), Check(1, 2, 2, mask_changes=(0.05, 0.08))))).stop
        True

    Source: You et al. 2020, "Drawing early-bird tickets", section 3; Zhang et al. 2021 (PrAC).
    """

    less_than: float = 0.1
    checks: int = 5
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})

    def __post_init__(self) -> None:
        _number("MaskSettled", "less_than", self.less_than, least=1e-12, most=1.0)
        _number("MaskSettled", "checks", self.checks, least=1, most=10, whole=True)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the largest change against the last checks with `less_than`."""
        changes = history.now.mask_changes[: int(self.checks)]
        if len(changes) < self.checks:
            return False, f"{len(changes)} of the {self.checks} earlier masks needed to see it settle"
        if max(changes) < self.less_than:
            return (
                True,
                f"mask settled: it moved by {max(changes):.3g}, less than {self.less_than:g}, in {self.checks} checks",
            )
        return (
            False,
            f"mask moved by {max(changes):.3g} in {self.checks} checks, not less than {self.less_than:g}",
        )

    def __str__(self) -> str:
        return f"mask settled {self.less_than:g} for {self.checks:g}"


@dataclass(frozen=True)
class AccuracyRestored(Rule):
    """Stop when validation accuracy is back at the dense network's, less `drop`.

    Args:
        drop: what may be missing, in [0, 1]: 0.005 is half a percentage point.

    Raises:
        InputError: `drop` is out of range.

    Example:
        >>> from incop.records import Check, History
        >>> from incop.stopping import AccuracyRestored
        >>> AccuracyRestored(drop=0.01)(History((Check(1, 1, 1, accuracy=0.95),), None, 0.955)).stop
        True
    """

    drop: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"accuracy"})

    def __post_init__(self) -> None:
        _number("AccuracyRestored", "drop", self.drop, least=0.0, most=1.0)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the accuracy now with the dense network's."""
        assert history.now.accuracy is not None
        assert history.reference_accuracy is not None
        goal = history.reference_accuracy - self.drop
        if history.now.accuracy >= goal:
            return True, f"accuracy {history.now.accuracy:.4f} back at {goal:.4f}"
        return False, f"accuracy {history.now.accuracy:.4f} not back at {goal:.4f}"

    def __str__(self) -> str:
        return f"accuracy within {self.drop:g}" if self.drop else "accuracy restored"


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
        _number("LossPlateau", "patience", self.patience, least=1, whole=True)
        _number("LossPlateau", "less_than", self.less_than, least=0.0, most=1.0)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the last losses with the best before them."""
        losses = [c.loss for c in history.checks if c.loss is not None]
        if len(losses) <= self.patience:
            return False, f"{len(losses)} of the {self.patience + 1} checks needed to see the loss settle"
        best, last = min(losses[: -self.patience]), min(losses[-self.patience :])
        if last >= best - self.less_than * abs(best):
            return (
                True,
                f"loss settled at {last:.3g}: no better than {best:.3g} by {self.less_than:g} for {self.patience} checks",
            )
        return False, f"loss still falling ({best:.3g} to {last:.3g})"

    def __str__(self) -> str:
        return f"loss settled {self.less_than:g} for {self.patience:g}"


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
        _number("AfterEpochs", "epochs", self.epochs, least=0.0)

    def judge(self, history: History) -> tuple[bool, str]:
        """Compare the epochs trained with `epochs`."""
        if history.now.epoch >= self.epochs - SLACK:
            return True, f"after {round(history.now.epoch, 4):g} epochs"
        return False, f"{round(history.now.epoch, 4):g} of {self.epochs:g} epochs"

    def __str__(self) -> str:
        return f"after {self.epochs:g} epochs"


@dataclass(frozen=True)
class Either(Rule):
    """Stop when any of the rules stops; the reason is that of the first that does. Made by `a | b`."""

    rules: tuple[Rule, ...]

    @property
    def wants(self) -> frozenset[str]:
        """What any of the rules needs."""
        return frozenset().union(*(rule.wants for rule in self.rules))

    def judge(self, history: History) -> tuple[bool, str]:
        """Judge every rule."""
        answers = [rule.judge(history) for rule in self.rules]
        stopped = [reason for stop, reason in answers if stop]
        return (True, stopped[0]) if stopped else (False, "; ".join(reason for _, reason in answers))

    def __str__(self) -> str:
        return " or ".join(str(rule) for rule in self.rules)


@dataclass(frozen=True)
class Both(Rule):
    """Stop when all of the rules stop. Made by `a & b`."""

    rules: tuple[Rule, ...]

    @property
    def wants(self) -> frozenset[str]:
        """What any of the rules needs."""
        return frozenset().union(*(rule.wants for rule in self.rules))

    def judge(self, history: History) -> tuple[bool, str]:
        """Judge every rule."""
        answers = [rule.judge(history) for rule in self.rules]
        waiting = [reason for stop, reason in answers if not stop]
        return (False, "; ".join(waiting)) if waiting else (True, " and ".join(reason for _, reason in answers))

    def __str__(self) -> str:
        return " and ".join(f"({rule})" if isinstance(rule, Either) else str(rule) for rule in self.rules)


NUMBER = r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
PHRASES: tuple[tuple[str, str, Callable[[re.Match[str]], Rule]], ...] = (
    (
        rf"flow within {NUMBER}( relative)?",
        "flow within X [relative]",
        lambda m: FlowRestored(float(m[1]), bool(m[2])),
    ),
    (
        rf"flow settled {NUMBER} for {NUMBER}",
        "flow settled X for N",
        lambda m: FlowSettled(_int(m[2]), float(m[1])),
    ),
    (
        rf"mask settled {NUMBER} for {NUMBER}",
        "mask settled X for N",
        lambda m: MaskSettled(float(m[1]), _int(m[2])),
    ),
    (r"accuracy restored", "accuracy restored", lambda m: AccuracyRestored()),
    (rf"accuracy within {NUMBER}", "accuracy within X", lambda m: AccuracyRestored(float(m[1]))),
    (
        rf"loss settled {NUMBER} for {NUMBER}",
        "loss settled X for N",
        lambda m: LossPlateau(_int(m[2]), float(m[1])),
    ),
    (rf"after {NUMBER} epochs?", "after N epochs", lambda m: AfterEpochs(float(m[1]))),
)


def _int(text: str) -> int:
    value = float(text)
    return int(value) if value == int(value) else value  # type: ignore[return-value]  # refused by the rule, with its name


def parse(text: str) -> Rule:
    """Read a rule in words, as `str(rule)` writes it.

    Phrases are joined by `or` and `and`; `and` binds closer; parentheses group.

    Args:
        text: such as "flow within 0.11 or accuracy restored or after 20 epochs".

    Returns:
        The rule.

    Raises:
        InputError: a phrase is unknown or a number out of range.

    Example:
        >>> from incop import stopping
        >>> stopping.parse("flow within 0.05 or after 20 epochs")
        Either(rules=(FlowRestored(within=0.05, relative=False), AfterEpochs(epochs=20.0)))
    """
    tokens = [t.strip() for t in re.split(r"(\(|\)|\bor\b|\band\b|\||&)", text.strip()) if t.strip()]
    words = {"|": "or", "&": "and"}
    tokens = [words.get(t, t) for t in tokens]
    rule, rest = _parse_or(tokens, text)
    if rest:
        raise InputError(f"the rule {text!r} cannot be read at {rest[0]!r}")
    return rule


def _parse_or(tokens: list[str], text: str) -> tuple[Rule, list[str]]:
    rule, rest = _parse_and(tokens, text)
    while rest and rest[0] == "or":
        other, rest = _parse_and(rest[1:], text)
        rule = rule | other
    return rule, rest


def _parse_and(tokens: list[str], text: str) -> tuple[Rule, list[str]]:
    rule, rest = _parse_phrase(tokens, text)
    while rest and rest[0] == "and":
        other, rest = _parse_phrase(rest[1:], text)
        rule = rule & other
    return rule, rest


def _parse_phrase(tokens: list[str], text: str) -> tuple[Rule, list[str]]:
    if tokens and tokens[0] == "(":
        rule, rest = _parse_or(tokens[1:], text)
        if not rest or rest[0] != ")":
            raise InputError(f"the rule {text!r} has a parenthesis that is not closed")
        return rule, rest[1:]
    if tokens:
        phrase = re.sub(r"\s+", " ", tokens[0])
        for pattern, _, make in PHRASES:
            if match := re.fullmatch(pattern, phrase):
                return make(match), tokens[1:]
    forms = ", ".join(f"'{form}'" for _, form, _ in PHRASES)
    shown = repr(tokens[0]) if tokens else "its end"
    raise InputError(f"the rule {text!r} cannot be read at {shown}: a rule is one of {forms}, joined by 'or' and 'and'")
