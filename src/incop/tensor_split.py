"""A split of two tensors in memory, and the order in which its samples are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from incop.distributed import Ranks
from incop.errors import InputError
from incop.flat_state import State

EVALUATED = 1000  # samples that are evaluated at once


def in_memory(split: Any) -> bool:
    """Say whether a split is two tensors, inputs and targets, and not batches."""
    return isinstance(split, tuple) and len(split) == 2 and all(isinstance(part, Tensor) for part in split)


def inputs_alone(split: Any) -> Tensor | None:
    """Return the inputs of a split that is one tensor, by itself or in a tuple; None where it is something else."""
    alone = split[0] if isinstance(split, tuple) and len(split) == 1 else split
    return alone if isinstance(alone, Tensor) else None


@dataclass(frozen=True)
class TensorSplit:
    """Inputs and targets in memory; the counterpart of `incop.loaders.Loader`.

    Args:
        inputs: (N, …), N ≥ 1.
        target: (N, …).
        what: its name in messages.
        prepare: turns a batch of inputs into what the model takes.
        augment: changes a batch of training inputs before that, given a random generator.
        labelled: whether the targets are labels; False: they are the samples' places in the split, see `by_place`.
    """

    inputs: Tensor
    target: Tensor
    what: str = "the training split"
    prepare: Callable[[Tensor], Any] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    labelled: bool = True

    inexact = None  # its order is known, so that training is resumed to the bit
    divided = True  # among processes, batch by batch

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.target) or len(self.inputs) == 0:
            raise InputError(
                f"{self.what} has {len(self.inputs)} inputs and {len(self.target)} labels: it needs as many, and some"
            )

    def by_place(self) -> TensorSplit:
        """Return the split with every sample's place in it instead of its target: of what is kept for each sample."""
        return replace(self, target=torch.arange(len(self.inputs), device=self.inputs.device), labelled=False)

    def steps(self, batch_size: int) -> int:
        """Return the steps of an epoch; the last batch may be smaller."""
        return math.ceil(len(self.inputs) / batch_size)

    def order(self, device: torch.device, level: int, seed: int) -> SampleOrder:
        """Return the order of a level's samples."""
        return SampleOrder(self, torch.Generator().manual_seed(seed + level))

    def once(self, device: torch.device, together: Ranks) -> Iterator[tuple[Any, Tensor, int]]:
        """Go through all samples once, of several processes through this one's share."""
        begin, end = together.share(len(self.inputs))
        parts = self.inputs[begin:end].split(EVALUATED), self.target[begin:end].split(EVALUATED)
        for inputs, target in zip(*parts, strict=True):
            yield self.prepared(inputs), target, len(target)

    def prepared(self, inputs: Tensor) -> Any:
        """Return a batch of inputs as the model takes it."""
        return inputs if self.prepare is None else self.prepare(inputs)

    def state(self) -> State:
        """Return nothing: all that decides the order is the level's."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state of `state`."""


@dataclass
class SampleOrder:
    """The order in which samples in memory are drawn, and how many of them have been.

    Args:
        split: the samples.
        generator: what draws it.
        order: the places of all samples of the epoch; empty before the first.
        at: how many are behind.
    """

    split: TensorSplit
    generator: torch.Generator
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    at: int = 0

    def afresh(self) -> SampleOrder:
        """Return an order that is yet to be drawn."""
        return SampleOrder(self.split, self.generator)

    def state(self) -> State:
        """Return what `restore` needs."""
        return {"generator": self.generator.get_state(), "order": self.order, "at": self.at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on in the same order from the same place."""
        self.order, self.at = state["order"].to(self.split.target.device), int(state["at"])
        self.generator.set_state(state["generator"])

    def next(self, batch_size: int, together: Ranks) -> tuple[Any, Tensor, int]:
        """Return this process's part of the next batch, and how many samples it has in all.

        The order is drawn anew when all samples were seen; the last batch may be smaller.
        """
        split = self.split
        if self.at >= len(self.order):
            order = torch.randperm(len(split.target), generator=self.generator)
            self.order, self.at = order.to(split.target.device), 0
        index = self.order[self.at : self.at + batch_size]
        self.at += len(index)
        inputs = split.inputs.index_select(0, index)  # 7 µs with the labels; `inputs[index]`, 21
        if split.augment is not None:
            inputs = split.augment(inputs, self.generator)
        count = len(index)
        if not together.one and count >= 2 * together.size:  # a batch too small to divide is taken whole by each
            begin, end = together.share(count)
            inputs, index = inputs[begin:end], index[begin:end]
        return split.prepared(inputs), split.target.index_select(0, index), count
