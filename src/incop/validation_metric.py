"""The metric on a split: accuracy, a function of all outputs and targets, or a torchmetrics object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from incop.distributed import ALONE, Ranks
from incop.errors import InputError
from incop.records import ACCURACY, Metric

IGNORED = -100  # the target that cross-entropy leaves out
ELEMENTWISE = (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss)
ELEMENTWISE_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
THROWN = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class RunningMetric(Protocol):
    """What a split's outputs are handed to, batch by batch."""

    def add(self, output: Tensor, target: Any) -> None:
        """Take a batch's outputs and targets."""

    def value(self) -> float:
        """Return the number for all of them."""


@dataclass(frozen=True)
class ValidationMetric:
    """What is measured on a split.

    Args:
        metric: its name and direction.
        measure: the function or torchmetrics object; None: the share of targets that have the largest output.
    """

    metric: Metric = ACCURACY
    measure: Any = None

    @classmethod
    def of(cls, measure: Any, higher_is_better: bool | None) -> ValidationMetric:
        """Read what a user gives as a metric."""
        if measure is None:
            if higher_is_better is not None:
                raise InputError("higher_is_better= belongs to a metric: give metric=, or leave it out for accuracy")
            return cls()
        if isinstance(measure, type):
            raise InputError(f"metric={measure.__name__} is a class: give an object of it, {measure.__name__}(…)")
        if not callable(measure):
            raise InputError(
                f"metric={measure!r} is a {type(measure).__name__}: give a function metric(output, target)"
            )
        name = getattr(measure, "__name__", type(measure).__name__)
        name = name if name.isidentifier() else "metric"  # of a lambda or a partial
        own = getattr(measure, "higher_is_better", None)
        if higher_is_better is not None and not isinstance(higher_is_better, bool):
            raise InputError(f"higher_is_better={higher_is_better!r}: it must be True or False")
        if own is not None and higher_is_better is not None and bool(own) != higher_is_better:
            raise InputError(
                f"higher_is_better={higher_is_better}, and the metric {name} says itself that it is {own}: leave it out"
            )
        better = own if higher_is_better is None else higher_is_better
        if better is None:
            raise InputError(
                f"the metric {name} does not say whether more of it is better: give higher_is_better=True or False"
            )
        return cls(Metric(name, bool(better)), measure)

    def check(self, target: Any, split: str) -> None:
        """Refuse targets of which no accuracy can be taken."""
        if self.measure is None and isinstance(target, Tensor) and target.is_floating_point():
            raise InputError(
                f"the targets of {split} are numbers ({str(target.dtype).removeprefix('torch.')}), of which there is no "
                "accuracy: give metric= and higher_is_better=, such as metric=torch.nn.functional.l1_loss, higher_is_better=False"
            )

    def check_labelled(self, labelled: bool) -> None:
        """Refuse a metric of targets where the validation split has none.

        Raises:
            InputError: a metric was given.
        """
        if self.measure is not None and not labelled:
            raise InputError(
                f"the metric {self.metric.name} is of outputs and targets, and the validation split has no targets: leave metric= "
                "out, or give the targets"
            )

    def divided(self) -> bool:
        """Say whether several processes may each take a share of a split: an object gathers what it is handed in its own way."""
        return self.measure is None or not self._gathers()

    def _gathers(self) -> bool:
        return all(callable(getattr(self.measure, name, None)) for name in ("update", "compute", "reset"))

    @contextmanager
    def over_a_split(self, ranks: Ranks = ALONE) -> Iterator[RunningMetric]:
        """Yield what the outputs on a split are handed to; each of several processes hands in its share, if it is `divided`."""
        if self.measure is None:
            yield Accuracy(ranks)
        elif self._gathers():
            synced = getattr(self.measure, "sync_on_compute", None)
            self.measure.reset()
            try:
                if not ranks.one and synced is not None:
                    self.measure.sync_on_compute = False  # every process hands in the whole split
                yield _Gathered(self.measure, self.metric.name)
            finally:
                if not ranks.one and synced is not None:
                    self.measure.sync_on_compute = synced
                self.measure.reset()
        else:
            yield _OverAll(self.measure, self.metric.name, ranks)


class Accuracy:
    """The share of targets that have the largest output."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.right = self.all = 0
        self.hits: list[Tensor] = []  # of every target, whether it has the largest output

    def add(self, output: Tensor, target: Any) -> None:
        """Take the outputs and targets of a batch."""
        if not isinstance(target, Tensor) or target.is_floating_point():
            kind = str(target.dtype).removeprefix("torch.") if isinstance(target, Tensor) else type(target).__name__
            raise InputError(f"accuracy is of classes as whole numbers, and the targets are {kind}: give metric=")
        chosen = output.argmax(_classes_at(output, target))
        counted = target != IGNORED
        hits = (chosen == target)[counted]
        self.hits.append(hits)
        self.right += int(hits.sum())
        self.all += int(counted.sum())

    def value(self) -> float:
        """Return the accuracy over all batches of all processes."""
        right, every = self.right, self.all
        if not self.ranks.one:
            right, every = self.ranks.total(torch.tensor([right, every])).tolist()
        if every == 0:
            raise InputError("accuracy cannot be taken: the split holds no target")
        return right / every


def _classes_at(output: Tensor, target: Tensor) -> int:
    """Return the dimension of the classes: the last, or the second as cross-entropy has it."""
    last, second = output.shape[:-1] == target.shape, output.dim() > 2 and output[:, 0].shape == target.shape
    shapes = f"an output {tuple(output.shape)} and a target {tuple(target.shape)}"
    if last and output.shape[-1] == 1:
        raise InputError(
            f"accuracy by the largest output is that of class 0 where there is one output ({shapes}): give metric="
        )
    if last == second:
        raise InputError(f"accuracy cannot be told of {shapes}: give metric=, a function of both")
    return -1 if last else 1


class _OverAll:
    """A function of all outputs and targets of a split."""

    def __init__(self, measure: Callable[[Tensor, Tensor], Any], name: str, ranks: Ranks) -> None:
        self.measure, self.name, self.ranks = measure, name, ranks
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def add(self, output: Tensor, target: Any) -> None:
        if not isinstance(target, Tensor):
            raise InputError(
                f"the metric {self.name} is handed all targets at once, and one is a {type(target).__name__}: make it a tensor"
            )
        self.outputs.append(output)
        self.targets.append(target)

    def value(self) -> float:
        if not self.ranks.one:
            everybody = self.ranks.all(([o.cpu() for o in self.outputs], [t.cpu() for t in self.targets]))
            self.outputs = [output for outputs, _ in everybody for output in outputs]
            self.targets = [target for _, targets in everybody for target in targets]
        return self.ranks.once(self._value)

    def _value(self) -> float:
        try:
            output, target = torch.cat(self.outputs), torch.cat(self.targets)
        except THROWN as error:
            raise InputError(
                f"the batches of a split cannot be put together for {self.name} ({error}): use an object of torchmetrics, "
                "which takes them one by one"
            ) from error
        with _thrown(self.name, output, target):
            return _number(self.measure(output, target), self.name)


class _Gathered:
    """An object of torchmetrics, or with the same three methods."""

    def __init__(self, measure: Any, name: str) -> None:
        self.measure, self.name = measure, name
        self.placed = False

    def add(self, output: Tensor, target: Any) -> None:
        if not self.placed and callable(getattr(self.measure, "to", None)):
            self.measure.to(output.device)
        self.placed = True
        with _thrown(self.name, output, target):
            self.measure.update(output, target)

    def value(self) -> float:
        return _number(self.measure.compute(), self.name)


@contextmanager
def _thrown(name: str, output: Tensor, target: Any) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except THROWN as error:
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (output, target)]
        raise InputError(
            f"the metric {name} cannot be taken of outputs {shapes[0]} and targets {shapes[1]} ({' '.join(str(error).split())}): "
            "check that they belong together"
        ) from error


def _number(value: Any, name: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        try:
            value = float(value)
        except THROWN:
            raise InputError(
                f"the metric {name} gives a {type(value).__name__}, where one number for the split belongs: take its mean"
            ) from None
    return float(value)


def refuse_broadcast(loss: Any, output: Tensor, target: Any) -> None:
    """Refuse an output (n, 1) beside a target (n,), of which torch's element-wise losses compare each with each."""
    if not isinstance(target, Tensor) or output.shape == target.shape:
        return
    if loss in ELEMENTWISE or isinstance(loss, ELEMENTWISE_MODULES):
        raise InputError(
            f"the loss compares an output {tuple(output.shape)} with a target {tuple(target.shape)} element by element, and would "
            "compare each with each: give both one shape, such as target.unsqueeze(-1)"
        )
