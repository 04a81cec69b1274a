"""The vocabulary: frozen records of what was seen, decided and spent; to and from JSON; no torch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from incop.errors import InputError

__all__ = ["Check", "Flow", "History", "Interval", "Level", "Record", "Run", "Spent", "Verdict"]

SCHEMA = 1  # of every record written to disk; a reader refuses a newer one


class Record:
    """What all records share: a plain dictionary of JSON values, there and back."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary of JSON values (nested records too)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a record; unknown keys of a newer version are refused by name.

        Raises:
            InputError: a key is unknown or one that must be there is missing.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if strange := sorted(set(data) - set(known)):
            raise InputError(
                f"a {cls.__name__} record has the unknown key {strange[0]!r}: "
                "it was written by another version of incop, or edited"
            )
        needed = {
            n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if missing := sorted(needed - set(data)):
            raise InputError(f"a {cls.__name__} record lacks the key {missing[0]!r}: the file was cut short or edited")
        return cls(**{name: _revive(cls.__name__, name, value) for name, value in data.items()})


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN: "nan", "inf", "-inf", which float() reads back
    return value


_NESTED: dict[tuple[str, str], type[Record]] = {}


def _revive(record: str, name: str, value: Any) -> Any:
    kind = _NESTED.get((record, name))
    if kind is not None and isinstance(value, Mapping):
        return kind.from_json(value)
    if kind is not None and isinstance(value, list):
        return tuple(kind.from_json(v) for v in value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    return value


@dataclass(frozen=True)
class Interval:
    """A stretch of training, in epochs or in steps.

    Args:
        amount: > 0; a fraction of an epoch is allowed, a fraction of a step is not.
        unit: "epochs" or "steps".

    Raises:
        InputError: the amount is not positive and finite, or no whole number of steps.

    Example:
        >>> from incop.records import Interval
        >>> Interval.parse("0.5"), str(Interval.parse("50 steps"))
        (Interval(amount=0.5, unit='epochs'), '50steps')
    """

    amount: float
    unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        fits = isinstance(self.amount, int | float) and math.isfinite(self.amount) and self.amount > 0
        if not fits or isinstance(self.amount, bool) or (self.unit == "steps" and self.amount != int(self.amount)):
            raise InputError(
                f"{self.amount!r} {self.unit} is no stretch of training: give a positive number of epochs or whole steps"
            )

    @classmethod
    def parse(cls, text: str | float | Interval) -> Interval:
        """Read a number of epochs ("2", "0.1", 0.1, "2epochs") or of steps ("50steps").

        Raises:
            InputError: it is neither.
        """
        if isinstance(text, Interval):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(epochs?|steps?)?\s*", str(text))
        if not match:
            raise InputError(f"{text!r} is no stretch of training: give epochs (2, 0.1) or steps (50steps)")
        return cls(float(match[1]), "steps" if (match[2] or "").startswith("step") else "epochs")

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.amount:g}{'steps' if self.unit == 'steps' else ''}"

    def passed(self, *, epoch: float, step: int, times: int = 1) -> bool:
        """Say whether so many of these stretches have been trained."""
        return (epoch if self.unit == "epochs" else step) >= times * self.amount - 1e-9


@dataclass(frozen=True)
class Flow(Record):
    """The flow of a network: named floats, one per pair of neighbouring layers or one per layer.

    Args:
        values: the flow by name, in the order in which the forward pass runs the layers.
        meter: how it was measured, as the meter describes itself.
        samples: size of the probe, in samples.
        seconds: time the measurement took.

    Example:
        >>> from incop.records import Flow
        >>> dense = Flow({"fc1->fc2": 0.02, "fc2->fc3": 0.05}, meter="information (mean)")
        >>> now = Flow({"fc1->fc2": 0.05, "fc2->fc3": 0.01}, meter="information (mean)")
        >>> round(now.distance(dense), 3)
        0.05
    """

    values: Mapping[str, float]
    meter: str = ""
    samples: int = 0
    seconds: float = field(default=0.0, compare=False)

    def norm(self) -> float:
        """Return the Euclidean norm of the flow, ‖Δ‖₂."""
        return math.sqrt(math.fsum(v * v for v in self.values.values()))

    def distance(self, other: Flow, *, relative: bool = False) -> float:
        """Return the Euclidean distance of two flows, ‖Δ − Δ'‖₂.

        Args:
            other: the flow to compare with, usually the reference.
            relative: divide by the norm of `other`, ‖Δ − Δ'‖₂ / ‖Δ'‖₂.

        Returns:
            A number ≥ 0. NaN when either flow is NaN somewhere, so that no rule takes it for near.

        Raises:
            InputError: the flows name other layers, come from other meters, or a relative distance
                from a zero flow is asked for.

        Source: arXiv 2501.15592, the stop condition ‖Δ − Δ_ref‖₂ < ε.
        """
        if self.meter and other.meter and self.meter != other.meter:
            raise InputError(
                f"a flow measured by {self.meter!r} cannot be compared with one measured by {other.meter!r}: "
                "measure both with the same meter"
            )
        if list(self.values) != list(other.values):
            strange = sorted(set(self.values) ^ set(other.values)) or list(self.values)
            raise InputError(
                f"two flows of other layers cannot be compared (they differ at {strange[0]!r}): "
                "measure both on the same model, or give the meter the chain by hand"
            )
        gap = math.sqrt(
            math.fsum((a - b) ** 2 for a, b in zip(self.values.values(), other.values.values(), strict=True))
        )
        if not relative:
            return gap
        scale = other.norm()
        if scale == 0.0:
            raise InputError(
                "a distance relative to a flow that is zero everywhere has no meaning: use an absolute one"
            )
        return gap / scale


@dataclass(frozen=True)
class Verdict(Record):
    """The answer of a stop rule: whether to stop, and a sentence that says why.

    Args:
        stop: end this level's training now.
        reason: one sentence with the numbers it was decided by.
        rule: the rule that decided, in words.
    """

    stop: bool
    reason: str
    rule: str = ""


@dataclass(frozen=True)
class Spent(Record):
    """The cost ledger: what training took, and separately what looking at the network took.

    Args:
        epochs: passes over the training split, a fraction where a level ended within one.
        steps: optimizer steps.
        samples: training samples seen.
        seconds: time of training, without probing.
        probe_seconds: time of probing: flows, validation passes for a rule, trial masks.
        probe_samples: samples that went through the network for probing.
    """

    epochs: float = 0.0
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    probe_seconds: float = 0.0
    probe_samples: int = 0

    def __add__(self, other: Spent) -> Spent:
        """Add two ledgers entry by entry."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Spent(*(a + b for a, b in pairs))

    @staticmethod
    def total(parts: Iterable[Spent]) -> Spent:
        """Add any number of ledgers."""
        total = Spent()
        for part in parts:
            total = total + part
        return total


@dataclass(frozen=True)
class Check(Record):
    """One look at the network while a level trains: everything a rule may ask for, and what it answered.

    Args:
        level: 0 for the dense network.
        number: 0 for a check before any training of the level, then 1, 2, …
        epoch: epochs trained in this level so far.
        step: optimizer steps in this level so far.
        flow: the flow now, or None when no meter was asked.
        distance: the flow's distance to the reference, absolute; None without a reference.
        accuracy: validation accuracy in [0, 1], or None when nothing asked for it.
        loss: mean training loss since the last check, or None.
        mask_changes: fraction of the kept positions in which the mask that would be cut now differs from
            the one that would have been cut at the last check, the one before it, … (nearest first).
        spent: the level's ledger so far.
        verdict: what the rule answered.
    """

    level: int
    number: int
    epoch: float
    step: int = 0
    flow: Flow | None = None
    distance: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    mask_changes: tuple[float, ...] = ()
    spent: Spent = Spent()
    verdict: Verdict | None = None


@dataclass(frozen=True)
class History:
    """What a stop rule sees: the checks of one level so far, and the dense network's flow and accuracy.

    Args:
        checks: the level's checks, oldest first; the last is the one to judge.
        reference: the flow of the dense network at the end of level 0.
        reference_accuracy: its validation accuracy in [0, 1].
    """

    checks: tuple[Check, ...]
    reference: Flow | None = None
    reference_accuracy: float | None = None

    @property
    def now(self) -> Check:
        """The check to judge."""
        return self.checks[-1]


@dataclass(frozen=True)
class Level(Record):
    """The record of one prune → rewind → retrain level, as `levels.jsonl` and `summary.json` hold it.

    Args:
        level: 0 for the dense network.
        sparsity: fraction of prunable weights that are zero, in [0, 1].
        model_sparsity: the same over all parameters.
        remaining: prunable weights that are left, a count.
        epochs: epochs trained in this level.
        max_epochs: the epochs the level might have taken, or None when the trainer does not say.
        steps: optimizer steps in this level.
        samples: training samples seen in this level.
        seconds: time of its training.
        probe_seconds: time of its probing.
        probe_samples: samples probed.
        val_accuracy: validation accuracy at its end, in [0, 1].
        test_accuracy: test accuracy at its end, or None when there is no test split.
        distance: the flow's distance to the reference at its end, or None.
        flow: the flow at its end, or None.
        stop_reason: why it ended, a sentence.
        rewind: what its weights started from.
        layers: sparsity by layer.
        notices: anything a reader should know, such as a layer that lost all its weights.
    """

    level: int
    sparsity: float
    model_sparsity: float
    remaining: int
    epochs: float
    steps: int
    samples: int
    seconds: float
    probe_seconds: float
    probe_samples: int
    val_accuracy: float | None
    stop_reason: str
    rewind: str
    max_epochs: float | None = None
    test_accuracy: float | None = None
    distance: float | None = None
    flow: Flow | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def spent(self) -> Spent:
        """The level's ledger."""
        return Spent(self.epochs, self.steps, self.samples, self.seconds, self.probe_seconds, self.probe_samples)

    def __str__(self) -> str:
        """One line for people: level 3 · sparsity 0.488 · 4 of 20 epochs · accuracy 0.939 · why it ended."""
        budget = "" if self.max_epochs is None else f" of {self.max_epochs:g}"
        parts = [
            f"level {self.level}",
            f"sparsity {self.sparsity:.3f}",
            f"{round(self.epochs, 2):g}{budget} epochs",
        ]
        if self.val_accuracy is not None:
            parts.append(f"accuracy {self.val_accuracy:.3f}")
        return " · ".join([*parts, self.stop_reason])


@dataclass(frozen=True)
class Run(Record):
    """The summary of a run, as `summary.json` holds it.

    Args:
        method: name of the method.
        data: name of the data set.
        model: name of the model.
        seed: the run's seed.
        status: "finished", "running", "interrupted" or "failed".
        dense: val_accuracy, test_accuracy and epochs of level 0.
        levels: one record per finished level, the dense one first.
        spent: the ledger of all levels.
        full_epochs: what the same levels would have cost without early stops, in epochs.
        environment: versions, machine, threads, time.
        command: the command that repeats the run.
        error: what ended it, when it failed.
        schema: version of the record.
    """

    method: str
    data: str
    model: str
    seed: int
    status: str
    dense: Mapping[str, Any]
    levels: tuple[Level, ...]
    spent: Spent
    full_epochs: float | None
    environment: Mapping[str, Any]
    command: str = ""
    error: str | None = None
    schema: int = SCHEMA


_NESTED.update(
    {
        ("Check", "flow"): Flow,
        ("Check", "spent"): Spent,
        ("Check", "verdict"): Verdict,
        ("Level", "flow"): Flow,
        ("Run", "levels"): Level,
        ("Run", "spent"): Spent,
    }
)
