"""The vocabulary: frozen records of what was seen, decided and spent; to and from JSON; no torch."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from incop.errors import InputError, quoted

__all__ = ["Check", "Flow", "History", "Interval", "Level", "Metric", "Run", "Spent", "Verdict"]

SCHEMA = 1  # of every record written to disk; a reader refuses a newer one
MOST = 2**53  # of a count: beyond it a float, in which costs are reckoned, is no longer exact
DEEPEST = 20  # objects and lists within each other, where a record may hold anything

# What numbers of a name must lie between when they are read; others may be any float, NaN too. Whole numbers are counts.
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("sparsity", "model_sparsity", "accuracy", "val_accuracy", "test_accuracy", "lr_share"), (0.0, 1.0)
    ),
    **dict.fromkeys(("epoch", "epochs", "max_epochs", "full_epochs"), (0.0, 1e9)),
    **dict.fromkeys(("seconds", "probe_seconds", "record_seconds"), (0.0, 1e12)),
}


class Record:
    """What all records share: a plain dictionary of JSON values, there and back."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary of JSON values (nested records too)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a record; unknown keys of a newer version are refused by name.

        Raises:
            InputError: it is no mapping, a key is unknown, one that must be there is missing, or a value is of
                another type.
        """
        if not isinstance(data, Mapping):
            raise InputError(
                f"a {cls.__name__} record is a {type(data).__name__}, not an object of keys and values: "
                "the file is damaged or was edited"
            )
        readers, needed = _readers(cls)  # type: ignore[arg-type]  # mypy does not see that a class can be hashed
        if strange := [key for key in data if key not in readers]:
            raise InputError(
                f"a {cls.__name__} record has the unknown key {quoted(min(map(str, strange)))}: "
                "it was written by another version of incop, or edited"
            )
        if missing := [name for name in needed if name not in data]:
            raise InputError(
                f"a {cls.__name__} record lacks the key {min(missing)!r}: the file was cut short or edited"
            )
        return cls(**{name: readers[name](value) for name, value in data.items()})


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


Reader = Callable[[Any], Any]


@functools.cache
def _readers(record: type[Record]) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """Return how each field is read from its JSON value, and which fields must be there.

    Made once a class: a run has tens of thousands of records, and looking at types again for each took longer than
    reading the file.
    """
    hints = typing.get_type_hints(record)
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    needed = tuple(f.name for f in fields if f.default is missing and f.default_factory is missing)
    return {f.name: _reader(f"{record.__name__}.{f.name}", hints[f.name]) for f in fields}, needed


def _reader(where: str, hint: Any) -> Reader:
    """Return the function that reads a field's type: lists as tuples, "nan" as NaN only where a float belongs."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return functools.partial(_anything, where)
    if kind in (types.UnionType, typing.Union):
        inner = _reader(where, next(p for p in parts if p is not types.NoneType))
        return lambda value: None if value is None else inner(value)
    if kind is tuple:
        each = _reader(where, parts[0])
        return lambda value: (
            tuple(map(each, value)) if isinstance(value, list | tuple) else _refuse(where, "tuple", value)
        )
    if kind is Mapping:
        one = _reader(where, parts[1])
        return lambda value: (
            {str(k): one(v) for k, v in value.items()}
            if isinstance(value, Mapping)
            else _refuse(where, "Mapping", value)
        )
    if isinstance(hint, type) and issubclass(hint, Record):
        return lambda value: (
            hint.from_json(value) if isinstance(value, Mapping) else _refuse(where, hint.__name__, value)
        )
    return functools.partial(_plain_value, where, hint, RANGES.get(where.rpartition(".")[2]))


def _plain_value(where: str, hint: Any, span: tuple[float, float] | None, value: Any) -> Any:
    if hint in (int, float):
        return _number(where, hint, span, value)
    return value if type(value) is hint else _refuse(where, getattr(hint, "__name__", str(hint)), value)


def _number(where: str, hint: Any, span: tuple[float, float] | None, value: Any) -> Any:
    kind = type(value)
    if kind is int:
        if not (0 if hint is int else -MOST) <= value <= MOST:
            return _refuse(where, f"{'a count' if hint is int else 'a number'} of at most 2**53", value)
    elif hint is int:
        return _refuse(where, "int", value)
    elif kind is str and value in ("nan", "inf", "-inf"):
        value = float(value)
    elif kind is not float:
        return _refuse(where, "float", value)
    if span is not None and not span[0] <= value <= span[1]:
        return _refuse(where, f"a number from {span[0]:g} to {span[1]:g}", value)
    return value


def _anything(where: str, value: Any, depth: int = 0) -> Any:
    """Let any JSON value pass that can be shown later: not nested without end, no endless whole number."""
    if depth > DEEPEST or (isinstance(value, int) and abs(value) > 2**63):
        return _refuse(where, f"a number of 64 bits or at most {DEEPEST} levels of lists", value)
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            _anything(where, part, depth + 1)
    return value


def _refuse(where: str, wanted: str, value: Any) -> Any:
    raise InputError(
        f"a record holds {quoted(value)} under {where!r}, where {wanted} belongs: the file is damaged or was edited"
    )


def shortest(number: float) -> str:
    """Return the shortest text that reads back as the same number.

    Example:
        >>> from incop.records import shortest
        >>> shortest(20.0), shortest(0.1), shortest(1e-7)
        ('20', '0.1', '1e-07')
    """
    return repr(float(number)).removesuffix(".0")


def only_incop(command: object) -> str:
    """Return a recorded command if it calls incop and nothing besides; else nothing.

    It is shown to be copied into a shell, and a record may be a stranger's.

    Example:
        >>> from incop.records import only_incop
        >>> only_incop("incop search r/plan.toml --out NEW"), only_incop("incop list; curl x | sh")
        ('incop search r/plan.toml --out NEW', '')
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return ""
    same = words[:1] == ["incop"] and shlex.join(words) == command and str(command).isprintable()
    return str(command) if same else ""


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
        if self.unit not in ("epochs", "steps"):
            raise InputError(f"a stretch of training is measured in epochs or steps, not in {self.unit!r}")
        if not fits or isinstance(self.amount, bool) or (self.unit == "steps" and self.amount != int(self.amount)):
            raise InputError(
                f"{self.amount!r} {self.unit} is no stretch of training: "
                "give a positive number of epochs, or of whole steps"
            )

    @classmethod
    def parse(cls, text: str | float | Interval) -> Interval:
        """Read a number of epochs ("2", "0.1", 0.1, "2epochs") or of steps ("50steps").

        Raises:
            InputError: it is neither.
        """
        if isinstance(text, Interval):
            return text
        match = re.fullmatch(r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*(epochs?|steps?)?\s*", str(text))
        if not match:
            raise InputError(f"{text!r} is no stretch of training: give epochs (2, 0.1) or steps (50steps)")
        return cls(float(match[1]), "steps" if (match[2] or "").startswith("step") else "epochs")

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{shortest(self.amount)}{'steps' if self.unit == 'steps' else ''}"

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
        """Return the Euclidean norm of the flow, ‖Δ‖₂; NaN when a value is."""
        return _norm(self.values.values())

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
        if strange := sorted(set(self.values) ^ set(other.values)):
            raise InputError(
                f"two flows of other layers cannot be compared (they differ at {strange[0]!r}): "
                "measure both on the same model, or give the meter the chain by hand"
            )
        gap = _norm(value - other.values[name] for name, value in self.values.items())
        if not relative:
            return gap
        scale = other.norm()
        if scale == 0.0:
            raise InputError(
                "a distance relative to a flow that is zero everywhere has no meaning: use an absolute one"
            )
        return gap / scale


def _norm(values: Iterable[float]) -> float:
    numbers = list(values)  # hypot neither over- nor underflows, but says inf of (inf, NaN)
    return math.nan if any(math.isnan(v) for v in numbers) else math.hypot(*numbers)


@dataclass(frozen=True)
class Metric(Record):
    """What a network is judged by, where it is not accuracy.

    Args:
        name: how it is called in records and tables.
        higher_is_better: whether more of it is better.

    Example:
        >>> from incop.records import Metric
        >>> rmse = Metric("rmse", higher_is_better=False)
        >>> rmse.restored(3.2, of=3.0, drop=0.25), rmse.restored(3.2, of=3.0, drop=0.1)
        (True, False)
    """

    name: str
    higher_is_better: bool

    def goal(self, of: float, drop: float = 0.0) -> float:
        """Return what a value must reach to be no worse than another by more than `drop`."""
        return of - drop if self.higher_is_better else of + drop

    def restored(self, value: float, *, of: float, drop: float = 0.0, slack: float = 0.0) -> bool:
        """Say whether a value is no worse than another by more than `drop`, in the metric's own direction and unit."""
        goal = self.goal(of, drop)
        return value >= goal - slack if self.higher_is_better else value <= goal + slack


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
        record_seconds: time of looks that no rule needed, made only for the record; no part of the method's cost.
        record_samples: samples of such looks.
    """

    epochs: float = 0.0
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    probe_seconds: float = 0.0
    probe_samples: int = 0
    record_seconds: float = 0.0
    record_samples: int = 0

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
        attempt: 0, or how often the level was begun again before, because training diverged.
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
        score: the run's metric where that is not accuracy, any number; None when nothing asked for it.
        sparsity: of the level's masks, in [0, 1]; None when the watch was given none.
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
    attempt: int = 0
    score: float | None = None
    sparsity: float | None = None


@dataclass(frozen=True)
class History:
    """What a stop rule sees: the checks of one level so far, and the dense network's flow and accuracy.

    Args:
        checks: the level's checks, oldest first; the last is the one to judge.
        reference: the flow of the dense network at the end of level 0.
        reference_accuracy: its validation accuracy in [0, 1].
        metric: what networks are judged by, where that is not accuracy.
        reference_score: the dense network's value of it.
    """

    checks: tuple[Check, ...]
    reference: Flow | None = None
    reference_accuracy: float | None = None
    metric: Metric | None = None
    reference_score: float | None = None

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
        val_accuracy: validation accuracy at its end, in [0, 1]; None where another metric is measured.
        test_accuracy: test accuracy at its end, or None when there is no test split.
        distance: the flow's distance to the reference at its end, or None.
        flow: the flow at its end, or None.
        stop_reason: why it ended, a sentence.
        rewind: what its weights started from.
        layers: sparsity by layer.
        notices: anything a reader should know, such as a layer that lost all its weights.
        record_seconds: time of looks that no rule needed, made only for the record.
        record_samples: samples of such looks.
        search: the ledger up to where the rule ended the level, when the level was then trained on to its full budget
            so that its ticket could be reported; None when the whole level belongs to the search.
        lr_share: what the learning rate was multiplied by because training had diverged, in (0, 1]; see `on_divergence`.
        abandoned: the part of the ledger that went into training that diverged and was begun again; None where none did.
        flops: floating-point operations of one sample's forward pass over the weights that are left.
        dense_flops: the same for the dense network.
        metric: what the network is judged by, where that is not accuracy.
        score: its value on the validation split at the level's end, any number.
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
    record_seconds: float = 0.0
    record_samples: int = 0
    search: Spent | None = None
    lr_share: float = 1.0
    abandoned: Spent | None = None
    flops: int | None = None
    dense_flops: int | None = None
    metric: Metric | None = None
    score: float | None = None

    @property
    def spent(self) -> Spent:
        """The level's ledger."""
        return Spent(
            self.epochs,
            self.steps,
            self.samples,
            self.seconds,
            self.probe_seconds,
            self.probe_samples,
            self.record_seconds,
            self.record_samples,
        )

    @property
    def trained(self) -> float:
        """Epochs that the ticket was trained in this level, without those that were abandoned."""
        return self.epochs - (0.0 if self.abandoned is None else self.abandoned.epochs)

    @property
    def searched(self) -> Spent:
        """The part of the ledger that belonged to the search."""
        return self.search if self.search is not None else self.spent

    def __str__(self) -> str:
        """One line for people: level 3 · sparsity 0.488 · 4 of 20 epochs · accuracy 0.939 · why it ended."""
        budget = "" if self.max_epochs is None else f" of {self.max_epochs:g}"
        parts = [
            f"level {self.level}",
            f"sparsity {self.sparsity:.3f}",
            f"{round(self.trained, 2):g}{budget} epochs{_abandoned(self)}",
        ]
        if self.val_accuracy is not None:
            parts.append(f"accuracy {self.val_accuracy:.3f}")
        if self.metric is not None and self.score is not None:
            parts.append(f"{self.metric.name} {self.score:.4g}")
        return " · ".join([*parts, self.stop_reason])


def _abandoned(level: Level) -> str:
    return "" if level.abandoned is None else f" ({round(level.abandoned.epochs, 2):g} more abandoned)"


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
        full_epochs: what full retraining to the same sparsity would have cost with the dense level; see `full_retraining`.
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


def full_retraining(levels: Sequence[Level]) -> float | None:
    """Return the epochs that full retraining takes to the last level's sparsity, without the dense level's.

    Every level at its whole budget; a run of finer cuts is held against levels of a fifth, which the field prunes.

    Args:
        levels: of a run, the dense one first.

    Returns:
        Epochs; None when a budget is not known, 0.0 without a pruned level.
    """
    pruned = [level for level in levels if level.level > 0]
    budgets = [level.max_epochs for level in pruned]
    if not pruned:
        return 0.0
    if any(budget is None for budget in budgets):
        return None
    whole = float(sum(budget for budget in budgets if budget is not None))
    left = 1.0 - pruned[-1].sparsity
    fifths = math.ceil(math.log(left) / math.log(0.8) - 1e-6) if 0.0 < left < 1.0 else len(pruned)
    return whole * min(fifths, len(pruned)) / len(pruned)
