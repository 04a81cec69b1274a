"""Gradient flow: the size of each layer's gradient over a probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from incop.batches import Batch, output_tensor, with_target
from incop.errors import InputError, TrainingError, unknown
from incop.flow import meter as meter_room
from incop.flow.losses import OwnLoss
from incop.flow.moments import Total
from incop.layers import Chain, hides_layers, is_conv1d, module_of, reentrant, weight_names

Statistic = Literal["norm", "mean_abs"]
Loss = Callable[[Any, Any], Tensor]


@dataclass
class Gradients:
    """Sums of per-batch mean gradients, each weighted by what its batch's mean is over; float64."""

    samples: int = 0
    weight: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, gradients: dict[str, Tensor], samples: int, weight: float | None = None) -> None:
        """Add the mean gradients of one batch; `weight` is how many numbers the mean is over, by default the samples."""
        weight = float(samples if weight is None else weight)
        for name, gradient in gradients.items():
            part = gradient.double() * weight
            self.sums[name] = self.sums[name].add_(part) if name in self.sums else part
        self.samples += samples
        self.weight += weight

    def merge(self, other: Gradients) -> Gradients:
        """Return the statistics of both sets of samples together."""
        if not (self.samples and other.samples):
            return self if self.samples else other
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return Gradients(self.samples + other.samples, self.weight + other.weight, sums, dict(self.counts))

    def none(self) -> Gradients:
        """Return the statistics of no samples, of weights as large as these."""
        return Gradients(
            0, 0.0, {name: torch.zeros_like(total) for name, total in self.sums.items()}, dict(self.counts)
        )

    def across(self, total: Total) -> Gradients:
        """Return the statistics of all processes together: the sums of gradients, as many numbers as there are weights."""
        samples, weight = total(torch.tensor([self.samples, self.weight], dtype=torch.float64)).tolist()
        return Gradients(int(samples), weight, {k: total(part) for k, part in self.sums.items()}, dict(self.counts))


@dataclass(frozen=True, init=False)
class GradientFlow:
    """The size of each layer's gradient, g_l = ‖∂L/∂W_l‖₂, of the mean loss over the probe, over unpruned weights.

    A real backward pass over the probe, by functional gradients: `.grad` of the model's parameters is not
    touched and frozen layers are measured too.

    Args:
        loss: `loss(output, target)`, the mean over the batch's samples (as torch's losses are by default; with
            class weights or ignored labels theirs is a weighted mean, and the flow depends on the batches, unless the
            loss has a `weight(output, target)` that says how many numbers it is the mean over). The output is a tensor:
            of several, "logits" or the first of a tuple. `flow.OwnLoss()` for models that work out their loss
            themselves, `flow.TokenLoss()` for language models.
        statistic: "norm" (Euclidean, as published) or "mean_abs" (mean absolute gradient). One is never
            compared with the other.
        chain: names of the layers to measure; by default those of the forward pass's chain.
        whole: hand the loss the model's output as it is, such as a dictionary of several tensors.

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
    layers: meter_room.Places | None
    whole: bool

    def __init__(
        self,
        loss: Loss,
        statistic: Statistic = "norm",
        *,
        chain: Sequence[str | Sequence[str]] | None = None,
        whole: bool = False,
    ) -> None:
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
        object.__setattr__(self, "whole", bool(whole))

    def __str__(self) -> str:
        """Name the statistic; flows of different statistics are never compared."""
        return f"gradient flow ({'norm' if self.statistic == 'norm' else 'mean absolute gradient'})"

    def chain(self, model: nn.Module, batch: Batch) -> Chain:
        """Return the weights measured, in order, by their layers' names; a layer that runs twice appears once.

        A layer with several weights, such as an LSTM, has one name for each: "lstm.weight_ih_l0".
        """
        traced = meter_room.trace(model, self._called(batch), self.layers)
        units: dict[str, Tensor] = {}
        for call in traced:
            name = module_of(call)
            if call in traced.units:
                part = f"{name}[{call.partition('[')[2]}"
                units[part] = traced.units[call]
                continue
            for whole in _names(name, model.get_submodule(name)):
                units[whole] = torch.empty(0)
        return Chain(units, units={name: part for name, part in units.items() if part.numel()})

    def _called(self, batch: Batch) -> Batch:
        return with_target(batch) if isinstance(self.loss, OwnLoss) else batch

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
        parts = _parts(model, Chain.of(chain))
        statistics = Gradients()
        kept: dict[str, Tensor] = {}
        for layer, part in parts.items():
            weight = model.get_parameter(part.weight)
            mask = None if masks is None else masks.get(part.weight)
            if mask is not None and mask.shape != weight.shape:
                raise InputError(
                    f"the mask of {part.weight!r} has shape {tuple(mask.shape)} and the weight {tuple(weight.shape)}: pass "
                    "the masks of this model"
                )
            if mask is not None:
                kept[layer] = part.of(mask.to(weight.device, torch.bool))
            statistics.counts[layer] = int(kept[layer].sum()) if layer in kept else part.of(weight).numel()
        with _recurrent_backward(model):
            for batch in batches:
                gradients, terms = self._gradients(model, batch, parts)
                gradients = {k: g.where(kept[k], 0) if k in kept else g for k, g in gradients.items()}
                statistics.add(gradients, batch.samples, terms)
        return statistics

    def _gradients(
        self, model: nn.Module, batch: Batch, parts: Mapping[str, _Part]
    ) -> tuple[dict[str, Tensor], float | None]:
        if batch.target is None and not isinstance(self.loss, OwnLoss):
            raise InputError(
                "gradient flow needs targets and a batch of the probe has none: give (inputs, target) batches"
            )
        weights = {part.weight: model.get_parameter(part.weight).detach() for part in parts.values()}
        weights = {n: (w.float() if w.dtype.itemsize < 4 else w).requires_grad_() for n, w in weights.items()}
        weight_of = getattr(self.loss, "weight", None)  # of a loss of class weights this is a tensor

        def backward(output: Any) -> tuple[tuple[Tensor | None, ...], float | None]:
            if not self.whole and not isinstance(self.loss, OwnLoss):
                output = _one_tensor(output, type(model).__name__)
            loss = mean_loss(self.loss, output, batch.target)
            weight = weight_of(output, batch.target) if callable(weight_of) else None
            return _gradients_of(loss, weights), weight

        with torch.enable_grad():
            found, weight = meter_room.forward(model, self._called(batch), weights, then=backward)
        whole = {
            name: torch.zeros_like(w) if gradient is None else gradient
            for (name, w), gradient in zip(weights.items(), found, strict=True)
        }
        return {layer: part.of(whole[part.weight]) for layer, part in parts.items()}, weight

    def flow(self, statistics: Any) -> dict[str, float]:
        """Turn the sums into g, by layer.

        Raises:
            TrainingError: a gradient was not finite.
        """
        values = {}
        for layer, total in statistics.sums.items():
            mean = total / statistics.weight
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


class _Part(NamedTuple):
    """A weight, or those of its numbers that belong to a part of its layer's units."""

    weight: str
    units: Tensor | None = None
    axis: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor of the weight's shape."""
        if self.units is None:
            return tensor
        return tensor.index_select(self.axis, self.units.to(tensor.device).nonzero().flatten())


def _names(name: str, module: nn.Module) -> list[str]:
    """Return the names under which a layer's weights are measured."""
    own = weight_names(module) or (("weight",) if isinstance(getattr(module, "weight", None), nn.Parameter) else ())
    if isinstance(module, nn.MultiheadAttention):
        own = (*own, "out_proj.weight")
    plain = [part for part in own if isinstance(_inside(module, part), nn.Parameter)]
    if not plain or len(plain) < len(own):
        raise InputError(f"layer {name!r} has no weight of its own to take a gradient of: leave it out of chain=[…]")
    return [name if part == "weight" else f"{name}.{part}" for part in own]


def _inside(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _parts(model: nn.Module, chain: Chain) -> dict[str, _Part]:
    first = {id(p): name for name, p in model.named_parameters()}  # a shared weight has one name
    modules = dict(model.named_modules())
    parts: dict[str, _Part] = {}
    seen = set()
    for layer in chain:
        name = module_of(layer)
        weight = first[id(modules[name].weight if name in modules else model.get_parameter(name))]
        label = layer.partition("[")[2]
        if (weight, label) in seen:
            continue
        seen.add((weight, label))
        # a linear weight is (units, inputs); that of transformers' Conv1D and of a transposed convolution (inputs, units)
        turned = name in modules and (is_conv1d(modules[name]) or getattr(modules[name], "transposed", False) is True)
        parts[layer] = _Part(weight, chain.units.get(layer), int(turned))
    return parts


@contextmanager
def _recurrent_backward(model: nn.Module) -> Iterator[None]:
    """Let recurrent modules run backward in evaluation mode, which cuDNN's cannot."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):
        yield


def _one_tensor(output: Any, model: str) -> Tensor:
    """Return the tensor of an output that a loss is taken of, where there is no doubt which."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and not isinstance(output.get("logits"), Tensor):
        names = [str(name) for name, value in output.items() if isinstance(value, Tensor)]
        if len(names) > 1:
            raise InputError(
                f"{model} returned several tensors ({', '.join(names)}) and none under 'logits': pass a loss that takes "
                "them all, with GradientFlow(loss, whole=True)"
            )
    return output_tensor(output, where=model)


def mean_loss(loss: Loss, output: Any, target: Any) -> Tensor:
    """Return the loss as one number."""
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
