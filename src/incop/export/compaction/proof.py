"""Proof: two networks answer alike, on several batches and sizes of them, in float64 where the model allows it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from incop.batches import Batch, call, first_samples, mapped, walk
from incop.export.compaction.removal import Removal, removed
from incop.export.differences import difference

EXACT = 1e-12  # relative; in float64 sums in another order differ by less, mistakes by more
ROUNDING = {torch.float64: EXACT, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
OTHERS = 8  # samples of the batch that is made up


def tolerance_of(model: nn.Module) -> float:
    """Return how far answers may be apart by rounding, relative to the largest, for the type of a model's weights."""
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return max((ROUNDING.get(kind, 1e-1) for kind in kinds), default=1e-5)


class Proof:
    """The answers of a network, to hold another against.

    Args:
        model: the network; it is copied.
        example: a batch; also tried are its first sample, and a batch of other values.
    """

    def __init__(self, model: nn.Module, example: Batch) -> None:
        self._allowed = EXACT
        native = tolerance_of(model)
        batches = [example, first_samples(example, 1), made_up(example)]
        try:
            self._model, inside = copy.deepcopy(model).double(), _Rounding()
            with inside:
                self._known = _answered(self._model, [as_double(batch) for batch in batches])
            if inside.rounds:  # the model itself goes through a smaller type: its own rounding shows
                self._allowed = max(native, ROUNDING[torch.float32])
        except Exception:  # some models are written for one type of numbers
            self._model, self._allowed = copy.deepcopy(model), native
            self._known = _answered(self._model, batches)

    def holds(self, what: Removal) -> bool:
        """Say whether the network answers alike without what goes; if it throws, it does not.

        What goes is taken out of the wide copy, so that a constant is taken up unrounded: what is then left is mistakes.
        """
        try:
            other = removed(self._model, what)
            return all(difference(known, answers(other, batch)) <= self._allowed for batch, known in self._known)
        except Exception:
            return False


def _answered(model: nn.Module, batches: list[Batch]) -> list[tuple[Batch, list[Tensor]]]:
    """Return each batch with its answer; what is not the example itself is left out if the model does not take it."""
    found = [(batches[0], answers(model, batches[0]))]
    for batch in batches[1:]:
        with suppress(Exception):
            found.append((batch, answers(model, batch)))
    return found


def as_double(batch: Batch) -> Batch:
    """Return a batch whose floating tensors are float64."""

    def wide(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t.clone()

    return Batch(mapped(batch.args, wide), mapped(dict(batch.kwargs), wide), None, batch.samples)


def made_up(batch: Batch) -> Batch:
    """Return a batch of the same shapes with other numbers: normal ones of a like mean and spread, whole ones in the range."""
    few = first_samples(batch, OTHERS)
    generator = torch.Generator().manual_seed(0)

    def other(t: Tensor) -> Tensor:
        if t.numel() == 0 or t.dtype == torch.bool or t.is_complex():
            return t.clone()
        if t.is_floating_point():
            spread = float(t.double().std(correction=0))
            spread = spread if spread > 0 else 1.0
            return (torch.randn(t.shape, generator=generator, dtype=torch.float64) * spread + t.double().mean()).to(
                t.dtype
            )
        return torch.randint(int(t.min()), int(t.max()) + 1, t.shape, generator=generator).to(t.dtype)

    return Batch(mapped(few.args, other), mapped(dict(few.kwargs), other), None, few.samples)


def answers(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return all tensors of a model's answer, and those that it leaves in its modules' attributes."""
    with torch.no_grad():
        found = [tensor.clone() for tensor in walk(call(model, batch))]
    return found + [tensor.detach().clone() for module in model.modules() for tensor in _left(module)]


def _left(module: nn.Module) -> Iterator[Tensor]:
    for name, value in sorted(vars(module).items()):
        if name not in ("_parameters", "_buffers", "_modules"):
            yield from walk(value)


class _Rounding(TorchDispatchMode):
    """Notes whether an operator answers in a floating type smaller than float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch forgot to type it
        self.rounds = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.rounds = self.rounds or any(t.is_floating_point() and t.dtype.itemsize < 8 for t in walk(out))
        return out
