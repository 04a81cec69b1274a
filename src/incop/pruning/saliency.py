"""Saliency: a weight's size times what its gradients were while it was trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from incop.errors import InputError
from incop.flat_state import State
from incop.masks import Masks
from incop.records import shortest

Handed = tuple[tuple[Any, ...], dict[str, Any]]  # a step's arguments
Read = dict[str, tuple[Tensor, int]]  # gradients that were read in this step, by name, each with its version
POWER = 1 / 3  # on the two pairs it was chosen on, 1/4 to 1/2 cannot be told apart; 0 and 1 are worse (docs/log.md)
FAINT = 1e-8  # of the mean squared gradient: weights of no gradient at all still go by their size


@runtime_checkable
class Gathers(Protocol):
    """A score that gathers something of the weights while they are trained."""

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one score a weight, as every `Score` does."""

    def fresh(self) -> Self:
        """Return one of the same settings that has gathered nothing."""

    def gathering(
        self, model: nn.Module, masks: Masks, *, when: Callable[[], bool] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Gather for as long as the context lasts, where `when` says yes."""

    def state(self) -> State:
        """Return copies of what was gathered."""

    def restore(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Go on from what was gathered of these weights."""


class Saliency:
    """The size of a weight times a power of its gradients' size, gathered while it is trained: |w| · F^(power/2).

    F is the mean of the squared gradient over the steps of any torch optimizer, as it is given them, clipped or accumulated; the
    last `memory` of them count most: F ← (1 − 1/memory) F + g² / memory. At power 1 the score orders weights as ½ F w² does, the
    loss that cutting one adds to second order, with gradients for curvature; at power 0 it is `Magnitude`. A cut is trained out
    again, so that neither is what matters in the end; a third of the way to the former measured best (docs/method.md). What the
    training has computed anyway is read: gathering costs no sample.

    Before anything is gathered, as on the dense network, it is |w|; so it is relative to the others for a layer that no optimizer
    trained. Weights whose gradient was always zero, such as those of units that are never active, count as if their F were 1e-8
    of the mean: by default as a twentieth of their size. A layer that took part in fewer steps than the others, as one that is
    unfrozen late, counts as if its gradients had been smaller: of a quarter of some hundred steps, as 0.8 of its size. Squares
    of gradients outside 1e-19 to 1e19 leave float32: where F is not finite it begins anew at zero.

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
        """Gather at every step of every torch optimizer that trains these weights, for as long as the context lasts.

        Read are the gradients that a step is given, or that its closure makes.

        What was gathered before is kept: after a cut go on in another context, with the new masks.

        Args:
            model: the network, or what wraps it to train it.
            masks: name the weights.
            when: asked at every step; gather if it says yes. By default always.

        Raises:
            InputError: what was gathered before is of another network.
        """
        weights = masks.weights(model)  # held to the end: an id belongs to whoever lives
        _check({name: one for name, one in self._squares.items() if name in weights}, weights)
        names = {id(weight): name for name, weight in weights.items()}
        read: Read = {}

        def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Handed | None:
            if when is not None and not when():
                return None
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if not callable(closure):  # none, or something of the optimizer's own
                self._gather(optimizer, names, read)
                return None

            def made() -> Any:
                loss = closure()
                self._gather(optimizer, names, read)
                return loss

            return ((args[0], made, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": made})

        # before, not after: SGD with Nesterov's momentum of many tensors at once writes to the gradients
        before = register_optimizer_step_pre_hook(before_step)
        after = register_optimizer_step_post_hook(lambda *step: read.clear())
        try:
            yield
        finally:
            before.remove()
            after.remove()

    @torch.no_grad()
    def _gather(self, optimizer: torch.optim.Optimizer, names: Mapping[int, str], read: Read) -> None:
        # under a gradient scaler a fused optimizer divides by the scale itself, and itself takes no step
        scale, skips = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if isinstance(skips, Tensor) and bool(skips):
            return
        for group in optimizer.param_groups:
            for weight in group["params"]:
                name, gradient = names.get(id(weight)), weight.grad
                if name is None or gradient is None:
                    continue
                last = read.get(name)
                if last is not None and last[0] is gradient and last[1] == gradient._version:
                    continue  # an optimizer within another is given the same
                read[name] = gradient, gradient._version
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                gradient = gradient.float() if gradient.dtype.itemsize < 4 else gradient
                gradient = gradient / scale.to(gradient.device) if isinstance(scale, Tensor) else gradient
                known = self._squares.get(name)
                known = torch.zeros_like(gradient) if known is None else known.to(gradient.device)
                known.mul_(1 - 1 / self.memory).addcmul_(gradient, gradient, value=1 / self.memory)
                self._squares[name] = known.nan_to_num_(0.0, 0.0)  # else one NaN would stay for ever

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return |w| · F^(power/2); |w| alone where nothing was gathered."""
        known = {name: self._squares[name] for name in weights if name in self._squares}
        _check(known, weights)
        count = sum(one.numel() for one in known.values())
        mean = sum(one.sum(dtype=torch.float64).item() for one in known.values()) / count if known else 0.0
        return {name: self._of(weight.detach(), known.get(name), mean) for name, weight in weights.items()}

    def _of(self, weight: Tensor, squares: Tensor | None, mean: float) -> Tensor:
        size = weight.abs()
        if squares is None or mean == 0.0 or self.power == 0.0:  # None: no optimizer trained it, as if F were the mean
            return size
        # in float64: the square of a small gradient times a small share leaves float32
        share = squares.to(weight.device, torch.float64, copy=True).div_(mean).add_(FAINT).pow_(self.power / 2)
        return share.mul_(size).to(size.dtype if size.dtype.itemsize >= 4 else torch.float32)

    def state(self) -> State:
        """Return copies of what was gathered, by the weights' names."""
        return {name: one.clone() for name, one in self._squares.items()}

    def restore(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Go on from what was gathered of these weights.

        Raises:
            InputError: it was gathered of others.
        """
        _check(state, weights)
        self._squares = {  # in the weights' memory order, in which gradients come and sums are taken
            name: torch.empty_like(weights[name], dtype=one.dtype).copy_(one) for name, one in state.items()
        }

    def __str__(self) -> str:
        return "saliency" if self.power == POWER else f"saliency:{shortest(self.power)}"


def _check(gathered: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    for name, one in gathered.items():
        if (
            name not in weights
            or not isinstance(one, Tensor)
            or one.shape != weights[name].shape
            or not one.is_floating_point()
        ):
            raise InputError(
                f"what the score gathered of {name!r} does not fit this network: it is of another one or was edited; "
                "begin with a fresh score"
            )
