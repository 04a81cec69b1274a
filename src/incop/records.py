"""The vocabulary: frozen records of what was seen, decided and spent; no torch."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from incop.errors import InputError
from incop.record_json import ACCURACY_NAME, MetricRecord, Record

__all__ = ["ACCURACY", "Check", "Flow", "History", "Interval", "Level", "Metric", "Run", "Spent", "Verdict"]

SCHEMA = 2  # of every record written to disk; a reader refuses a newer one


def shortest(number: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return repr(float(number)).removesuffix(".0")


def only_incop(command: object) -> str:
    """Return a recorded command if it calls incop and nothing besides; else nothing.

    It is shown to be copied into a shell, and a record may be a stranger's.
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
    """What a network is judged by on the validation split.

    Args:
        name: how it is called in records and tables; "accuracy" is a fraction in [0, 1].
        higher_is_better: whether more of it is better.

    Raises:
        InputError: it is an accuracy of which less is better.

    Example:
        >>> from incop.records import Metric
        >>> rmse = Metric("rmse", higher_is_better=False)
        >>> rmse.restored(3.2, of=3.0, drop=0.25), rmse.restored(3.2, of=3.0, drop=0.1)
        (True, False)
    """

    name: str
    higher_is_better: bool

    def __post_init__(self) -> None:
        if self.name == ACCURACY_NAME and not self.higher_is_better:
            raise InputError("a metric named 'accuracy' of which less is better: give it another name, such as 'error'")

    def check(self, value: float, where: str) -> float:
        """Return a value as a float.

        Raises:
            InputError: it is an accuracy outside [0, 1]; the sentence begins with `where`.
        """
        if self == ACCURACY and not 0.0 <= value <= 1.0:
            raise InputError(
                f"{where}{value!r}): accuracy is a fraction in [0, 1], not a percentage; for another metric give "
                "metric=Metric(name, higher_is_better)"
            )
        return float(value)

    def goal(self, of: float, drop: float = 0.0) -> float:
        """Return what a value must reach to be no worse than another by more than `drop`."""
        return of - drop if self.higher_is_better else of + drop

    def restored(self, value: float, *, of: float, drop: float = 0.0, slack: float = 0.0) -> bool:
        """Say whether a value is no worse than another by more than `drop`, in the metric's own direction and unit."""
        goal = self.goal(of, drop)
        return value >= goal - slack if self.higher_is_better else value <= goal + slack


ACCURACY = Metric(ACCURACY_NAME, higher_is_better=True)


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
class Check(MetricRecord):
    """One look at the network while a level trains: everything a rule may ask for, and what it answered.

    Args:
        level: 0 for the dense network.
        attempt: 0, or how often the level was begun again before, because training diverged.
        number: 0 for a check before any training of the level, then 1, 2, …
        epoch: epochs trained in this level so far.
        step: optimizer steps in this level so far.
        flow: the flow now, or None when no meter was asked.
        distance: the flow's distance to the reference, absolute; None without a reference.
        metric_value: the metric on the validation split, such as the accuracy in [0, 1]; None when nothing asked for it.
        loss: mean training loss since the last check, or None.
        mask_changes: fraction of the kept positions in which the mask that would be cut now differs from
            the one that would have been cut at the last check, the one before it, … (nearest first).
        spent: the level's ledger so far.
        verdict: what the rule answered.
        metric: name of the metric.
        sparsity: of the level's masks, in [0, 1]; None when the watch was given none.
    """

    level: int
    number: int
    epoch: float
    step: int = 0
    flow: Flow | None = None
    distance: float | None = None
    metric_value: float | None = None
    loss: float | None = None
    mask_changes: tuple[float, ...] = ()
    spent: Spent = Spent()
    verdict: Verdict | None = None
    attempt: int = 0
    metric: str = ACCURACY_NAME
    sparsity: float | None = None

    ACCURACY_KEY: ClassVar[str] = "accuracy"

    @property
    def metric_name(self) -> str:
        """The name of the metric."""
        return self.metric


@dataclass(frozen=True)
class History:
    """What a stop rule sees: the checks of one level so far, and the dense network's flow and metric.

    Args:
        checks: the level's checks, oldest first; the last is the one to judge.
        reference: the flow of the dense network at the end of level 0.
        reference_value: the dense network's value of the metric.
        metric: what networks are judged by, by default accuracy.
    """

    checks: tuple[Check, ...]
    reference: Flow | None = None
    reference_value: float | None = None
    metric: Metric = ACCURACY

    @property
    def now(self) -> Check:
        """The check to judge."""
        return self.checks[-1]


@dataclass(frozen=True)
class Level(MetricRecord):
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
        metric_value: the metric on the validation split at its end; an accuracy stands under `val_accuracy` in JSON.
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
        metric: what the network is judged by.
        role: in a search with `max_drop`: "path" of a stop on the path, "tried" or "finished" of a stop that had a last level.
        likeness: mean correlation of the output units with the dense network's at a stop, in [−1, 1].
        drop: what the metric has lost against the dense network on the validation split, where it was tried or finished.
        drop_low: least value of the drop's 95 % interval over the validation samples; None where they cannot be told.
        drop_high: largest value of it.
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
    metric_value: float | None
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
    metric: Metric = ACCURACY
    role: str = ""
    likeness: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None

    ACCURACY_KEY: ClassVar[str] = "val_accuracy"
    OPTIONAL: ClassVar[tuple[str, ...]] = ("role", "likeness", "drop", "drop_low", "drop_high")

    @property
    def metric_name(self) -> str:
        """The name of the metric."""
        return self.metric.name

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy at the level's end, in [0, 1]; None where another metric is measured."""
        return self.accuracy

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
        more = "" if self.abandoned is None else f" ({round(self.abandoned.epochs, 2):g} more abandoned)"
        parts = [
            f"level {self.level}",
            f"sparsity {self.sparsity:.3f}",
            f"{round(self.trained, 2):g}{budget} epochs{more}",
        ]
        if self.judged:
            parts.append(self.judged)
        return " · ".join([*parts, self.stop_reason])


@dataclass(frozen=True)
class ChosenTicket(Record):
    """The sparsest ticket that does the job, as a search with `max_drop` found it; a level of None: there is none.

    Args:
        verdict: what was found, in a sentence.
        max_drop: what the metric was allowed to lose.
        level: the ticket's level.
        sparsity: of it, in [0, 1].
        val_accuracy: on the validation split, in [0, 1].
        test_accuracy: on the test split, which is read for this ticket alone.
        drop: what the metric lost on the validation split.
        drop_low: least value of the drop's 95 % interval over the validation samples.
        drop_high: largest value of it.
        epochs_after_dense: of the whole search, every probed sample counted like a trained one.
    """

    verdict: str
    max_drop: float
    level: int | None = None
    sparsity: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    epochs_after_dense: float = 0.0


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
        chosen: with `max_drop`, the sparsest ticket within it; None where no sparsest one was searched for.
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
    chosen: ChosenTicket | None = None


def full_retraining(levels: Sequence[Level]) -> float | None:
    """Return the epochs that full retraining takes to the last level's sparsity, without the dense level's.

    Every level at its whole budget; a run of finer cuts is held against levels of a fifth, which the field prunes.

    Args:
        levels: of a run, the dense one first.
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
