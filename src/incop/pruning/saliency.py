"""Saliency: a weight's size times what its gradients were while it was trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from incop.errors import InputError
from incop.masks import Masks
from incop.pruning.scores import Score
from incop.states import State

__all__ = ["Gathers", "Saliency"]

POWER = 1 / 3  # on the two pairs it was chosen on, 1/4 to 1/2 cannot be told apart; 0 and 1 are worse (docs/log.md)
FAINT = 1e-8  # of the mean squared gradient: weights of no gradient at all still go by their size


@runtime_checkable
class Gathers(Score, Protocol):
    """A score that gathers something of the weights while they are trained."""

    def fresh(self) -> Self:
        """Return one of the same settings that has gathered nothing."""

    def gathering(
        self, model: nn.Module, masks: Masks, *, when: Callable[[], bool] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Gather for as long as the context lasts, where `when` says yes."""

    def state(self) -> State:
        """Return copies of what was gathered."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was gathered."""


class Saliency:
    """The size of a weight times a power of its gradients' size, gathered while it is trained: |w| · F^(power/2).

    F is the mean of the squared gradient over the steps of any torch optimizer, the last `memory` of them counting most:
    F ← (1 − 1/memory) F + g² / memory. At power 1 the score orders weights as ½ F w² does, the loss that cutting one adds to
    second order, with gradients for curvature; at power 0 it is `Magnitude`. A cut is trained out again, so that neither is what
    matters in the end; a third of the way to the former measured best (docs/method.md). What the training has computed anyway is
    read: gathering costs no sample.

    Before anything is gathered, as on the dense network, it is |w|. Weights whose gradient was always zero, such as those of
    units that are never active, go first, the smallest before the others.

    Args:
        power: in [0, 1].
        memory: steps, at least 1.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> import torch
        >>> from incop import Masks, pruning
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.0)
        >>> masks, score = Masks.full(net), pruning.Saliency(power=1)
        >>> with score.gathering(net, masks):
        ...     net(torch.tensor([[1.0, 3.0]])).sum().backward()
        ...     sgd.step()
        >>> found = score(net, {"weight": torch.ones(1, 2)})["weight"]
        >>> round((found[0, 1] / found[0, 0]).item(), 3)
        3.0

    Source: LeCun, Denker & Solla 1990, the saliency; Theis et al. 2018, squared gradients for its curvature.
    """

    def __init__(self, power: float = POWER, memory: int = 1000) -> None:
        if not (isinstance(power, int | float) and not isinstance(power, bool) and 0 <= power <= 1):
            raise InputError(f"Saliency(power={power!r}): the power must be in [0, 1] (0 is the magnitude)")
        if not isinstance(memory, int) or isinstance(memory, bool) or memory < 1:
            raise InputError(f"Saliency(memory={memory!r}): it must be a whole number of steps, at least 1")
        self.power, self.memory = float(power), memory
        self._squares: dict[str, Tensor] = {}

    def fresh(self) -> Saliency:
        """Return one of the same settings that has gathered nothing."""
        return Saliency(self.power, self.memory)

    @contextlib.contextmanager
    def gathering(self, model: nn.Module, masks: Masks, *, when: Callable[[], bool] | None = None) -> Iterator[None]:
        """Gather after every step of every torch optimizer that trains these weights, for as long as the context lasts.

        Args:
            model: the network, or what wraps it to train it.
            masks: name the weights.
            when: asked at every step; gather if it says yes. By default always.
        """
        names = {id(weight): name for name, weight in masks.weights(model).items()}

        def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if when is None or when():
                self._gather(optimizer, names)

        handle = register_optimizer_step_post_hook(after_step)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _gather(self, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
        skipped = getattr(optimizer, "found_inf", None)  # a fused optimizer under a gradient scaler took no step
        if skipped is not None and bool(skipped):
            return
        for group in optimizer.param_groups:
            for weight in group["params"]:
                name, gradient = names.get(id(weight)), weight.grad
                if name is None or gradient is None:
                    continue
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                gradient = gradient.float() if gradient.dtype.itemsize < 4 else gradient
                known = self._squares.get(name)
                known = torch.zeros_like(gradient) if known is None else known.to(gradient.device)
                self._squares[name] = known.mul_(1 - 1 / self.memory).addcmul_(
                    gradient, gradient, value=1 / self.memory
                )

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return |w| · F^(power/2); |w| alone where nothing was gathered."""
        known = [self._squares[name] for name in weights if name in self._squares]
        count = sum(one.numel() for one in known)
        mean = sum(one.sum(dtype=torch.float64).item() for one in known) / count if known else 0.0
        return {name: self._of(weight.detach(), self._squares.get(name), mean) for name, weight in weights.items()}

    def _of(self, weight: Tensor, squares: Tensor | None, mean: float) -> Tensor:
        size = weight.abs()
        if (
            squares is None or mean == 0.0 or self.power == 0.0
        ):  # no optimizer trained it: as if its gradients were the mean
            return size
        # in float64: the square of a small gradient times a small share leaves float32
        share = squares.to(weight.device, torch.float64).div_(mean).add_(FAINT).pow_(self.power / 2)
        return share.mul_(size).to(size.dtype if size.dtype.itemsize >= 4 else torch.float32)

    def state(self) -> State:
        """Return copies of what was gathered, by the weights' names."""
        return {name: one.clone() for name, one in self._squares.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was gathered."""
        self._squares = {name: one.clone() for name, one in state.items()}

    def __str__(self) -> str:
        return "saliency" if self.power == POWER else f"saliency:{self.power:g}"
