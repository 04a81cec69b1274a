"""Gradient flow: the size of each layer's gradient over a probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from incop.batches import Batch, output_tensor
from incop.errors import InputError, TrainingError, unknown
from incop.flow import meter as meter_room
from incop.layers import hides_layers, module_of, reentrant

__all__ = ["GradientFlow", "Gradients", "mean_loss"]

Statistic = Literal["norm", "mean_abs"]
Loss = Callable[[Any, Any], Tensor]


@dataclass
class Gradients:
    """Sums of per-batch mean gradients, each weighted by its batch's samples; float64."""

    samples: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, gradients: dict[str, Tensor], samples: int) -> None:
        """Add the mean gradients of one batch."""
        for name, gradient in gradients.items():
            part = gradient.double() * samples
            self.sums[name] = self.sums[name].add_(part) if name in self.sums else part
        self.samples += samples

    def merge(self, other: Gradients) -> Gradients:
        """Return the statistics of both sets of samples together."""
        if not (self.samples and other.samples):
            return self if self.samples else other
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return Gradients(self.samples + other.samples, sums, dict(self.counts))


@dataclass(frozen=True, init=False)
class GradientFlow:
    """The size of each layer's gradient, g_l = ‖∂L/∂W_l‖₂, of the mean loss over the probe, over unpruned weights.

    A real backward pass over the probe, by functional gradients: `.grad` of the model's parameters is not
    touched and frozen layers are measured too.

    Args:
        loss: `loss(output, target)`, the mean over the batch's samples (as torch's losses are by default; with
            class weights or ignored labels theirs is a weighted mean, and the flow depends on the batches).
        statistic: "norm" (Euclidean, as published) or "mean_abs" (mean absolute gradient). One is never
            compared with the other.
        chain: names of the layers to measure; by default those of the forward pass's chain.

    Raises:
        InputError: the statistic is unknown, or the loss sums over the batch instead of averaging.

    Example:
        >>> import torch
        >>> import incop
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> probe = (torch.randn(64, 4), torch.randint(3, (64,)))
        >>> list(incop.measure(net, probe, incop.flow.GradientFlow(torch.nn.CrossEntropyLoss())).values)
        ['0', '2']

    Source: arXiv 2501.15592, the gradient-flow criterion; with the backward pass it needs.
    """

    loss: Loss
    statistic: Statistic
    layers: tuple[str, ...] | None

    def __init__(self, loss: Loss, statistic: Statistic = "norm", *, chain: Sequence[str] | None = None) -> None:
        if statistic not in get_args(Statistic):
            raise unknown("statistic", str(statistic), get_args(Statistic))
        if not callable(loss):
            raise InputError(f"the loss is a {type(loss).__name__}: pass a function of (output, target)")
        options = getattr(loss, "keywords", {})  # of a functools.partial
        if (reduction := getattr(loss, "reduction", options.get("reduction", "mean"))) != "mean":
            raise InputError(
                f"the loss has reduction={reduction!r}: gradient flow is that of the mean loss over the probe, "
                "whatever its batches; pass it with reduction='mean'"
            )
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "statistic", statistic)
        object.__setattr__(self, "layers", meter_room.by_hand(chain))

    def __str__(self) -> str:
        """Name the statistic; flows of different statistics are never compared."""
        return f"gradient flow ({'norm' if self.statistic == 'norm' else 'mean absolute gradient'})"

    def chain(self, model: nn.Module, batch: Batch) -> tuple[str, ...]:
        """Return the layers measured, in order; a layer that runs twice has one weight and appears once."""
        names = (module_of(call) for call in meter_room.trace(model, batch, self.layers))
        found = tuple(dict.fromkeys(names))
        for name in found:
            if not isinstance(getattr(model.get_submodule(name), "weight", None), nn.Parameter):
                raise InputError(
                    f"layer {name!r} has no weight of its own to take a gradient of: leave it out of chain=[…]"
                )
        return found

    def collect(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        chain: tuple[str, ...],
        masks: Mapping[str, Tensor] | None = None,
    ) -> Gradients:
        """Run the model forward and backward over the batches and keep the sums of the gradients.

        Raises:
            InputError: a batch has no target, or the loss cannot be used.
            TrainingError: the loss is not finite.
        """
        names = _weight_names(model, chain)
        statistics = Gradients()
        kept: dict[str, Tensor] = {}
        for layer, name in names.items():
            weight = model.get_parameter(name)
            mask = None if masks is None else masks.get(name)
            if mask is not None and mask.shape != weight.shape:
                raise InputError(
                    f"the mask of {name!r} has shape {tuple(mask.shape)} and the weight {tuple(weight.shape)}: pass "
                    "the masks of this model"
                )
            if mask is not None:
                kept[layer] = mask.to(weight.device, torch.bool)
            statistics.counts[layer] = weight.numel() if mask is None else int(mask.sum())
        for batch in batches:
            gradients = self._gradients(model, batch, names)
            gradients = {k: g.where(kept[k], 0) if k in kept else g for k, g in gradients.items()}
            statistics.add(gradients, batch.samples)
        return statistics

    def _gradients(self, model: nn.Module, batch: Batch, names: Mapping[str, str]) -> dict[str, Tensor]:
        if batch.target is None:
            raise InputError(
                "gradient flow needs targets and a batch of the probe has none: give (inputs, target) batches"
            )
        weights = {name: model.get_parameter(name).detach() for name in names.values()}
        weights = {n: (w.float() if w.dtype.itemsize < 4 else w).requires_grad_() for n, w in weights.items()}

        def backward(output: Any) -> tuple[Tensor | None, ...]:
            if not isinstance(output, Tensor):
                output = output_tensor(output, where=type(model).__name__)
            return _gradients_of(mean_loss(self.loss, output, batch.target), weights)

        with torch.enable_grad():
            found = meter_room.forward(model, batch, weights, then=backward)
        return {
            layer: torch.zeros_like(weights[name]) if gradient is None else gradient
            for (layer, name), gradient in zip(names.items(), found, strict=True)
        }

    def flow(self, statistics: Any) -> dict[str, float]:
        """Turn the sums into g, by layer.

        Raises:
            TrainingError: a gradient was not finite.
        """
        values = {}
        for layer, total in statistics.sums.items():
            mean = total / statistics.samples
            size = mean.norm() if self.statistic == "norm" else mean.abs().sum() / max(statistics.counts[layer], 1)
            values[layer] = float(size)
            if not math.isfinite(values[layer]):
                raise TrainingError(
                    f"the gradient of layer {layer!r} is not finite on the probe: lower the learning rate"
                )
        return values


def _gradients_of(loss: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    if not bool(torch.isfinite(loss)):
        raise TrainingError(
            f"the loss on the probe is {loss.item()}: the training diverged or the probe holds NaN values; "
            "lower the learning rate, or check the data"
        )
    if not loss.requires_grad:
        raise InputError(
            f"the loss does not depend on any of the weights {', '.join(weights)}: does the model detach its output, "
            "or the loss leave torch?"
        )
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    if any(gradient is None for gradient in found) and hides_layers(loss):
        raise reentrant()
    return found


def _weight_names(model: nn.Module, chain: Sequence[str]) -> dict[str, str]:
    first = {id(p): name for name, p in model.named_parameters()}  # a shared weight has one name
    names: dict[str, str] = {}
    for layer in chain:
        name = first[id(model.get_submodule(layer).weight)]
        if name not in names.values():
            names[layer] = name
    return names


def mean_loss(loss: Loss, output: Any, target: Any) -> Tensor:
    """Return the loss as one number.

    Raises:
        InputError: it is no tensor, not one number, or throws on these shapes.
    """
    try:
        value = loss(output, target)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (output, target)]
        raise InputError(
            f"the loss cannot be taken of an output {shapes[0]} and a target {shapes[1]} ({error}): "
            "check that model, loss and labels belong together"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError("the loss must return one number, the mean over the batch")
    return value
