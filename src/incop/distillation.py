"""Distillation: how far a network's outputs are from those of another, the dense one, as a loss and as a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from incop import distributed
from incop.batches import Batch, real_tokens, walk
from incop.errors import InputError
from incop.records import Metric

AGREEMENT = Metric("agreement", higher_is_better=True)
ERROR = Metric("error", higher_is_better=False)

Masks = Mapping[str, Tensor]  # which tokens are real, (n, T) booleans, by the name of the input that says so


@dataclass(frozen=True)
class DistillationLoss:
    """Kullback-Leibler divergence from the dense network's class probabilities to the network's, both at a temperature.

    The mean over the samples, pixels or tokens, times the square of the temperature. Padded tokens do not count.

    Args:
        dim: the dimension of the classes in an output; None: the second, as torch's cross-entropy has it, (N, C) or (N, C, H, W).
            Of outputs with three dimensions it must be given: -1 for tokens (N, T, C), 1 for (N, C, L).
        temperature: what the class scores are divided by, > 0.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> import torch
        >>> from incop.distillation import DistillationLoss
        >>> scores, dense_scores = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])
        >>> round(float(DistillationLoss()(scores, dense_scores)), 4), float(DistillationLoss()(scores, scores))
        (0.361, 0.0)

    Source: Hinton, Vinyals & Dean 2015 (distillation).
    """

    dim: int | None = None
    temperature: float = 2.0
    metric: ClassVar[Metric] = AGREEMENT

    def __post_init__(self) -> None:
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not number or not 0 < self.temperature < math.inf:
            raise InputError(f"DistillationLoss(temperature={self.temperature!r}): it must be a number > 0")
        if self.dim is not None and (not isinstance(self.dim, int) or isinstance(self.dim, bool) or self.dim == 0):
            raise InputError(
                f"DistillationLoss(dim={self.dim!r}): the classes' dimension is 1, -1 or another; 0 is that of the samples"
            )

    def __call__(self, output: Any, dense_output: Any, masks: Masks | None = None) -> Tensor:
        """Return the loss of class scores beside the dense network's; of several tensors the sum.

        Raises:
            InputError: the outputs do not fit together, or hold no class scores.
        """
        terms = []
        for own, dense, dim in self._pairs(output, dense_output, masks or {}):
            kept = own.numel() / own.shape[dim]
            log_p, log_q = (functional.log_softmax(t / self.temperature, dim) for t in (own, dense))
            divergence = functional.kl_div(log_p, log_q, reduction="sum", log_target=True)
            terms.append(divergence * (self.temperature**2 / kept))
        return torch.stack(terms).sum()

    def totals(self, output: Any, dense_output: Any, masks: Masks | None = None) -> Tensor:
        """Return of every tensor how often both have the same largest class score, and out of how many: (tensors, 2)."""
        pairs = self._pairs(output, dense_output, masks or {})
        same = [(own.argmax(dim) == dense.argmax(dim)) for own, dense, dim in pairs]
        return torch.tensor([[float(one.sum()), float(one.numel())] for one in same], dtype=torch.float64)

    @staticmethod
    def value(totals: Tensor) -> float:
        """Return the agreement: the share in [0, 1] of samples, pixels or tokens with the same largest class score."""
        return float(totals[:, 0].sum() / totals[:, 1].sum())

    def _pairs(self, output: Any, dense_output: Any, masks: Masks) -> list[tuple[Tensor, Tensor, int]]:
        found = []
        for own, dense in _paired(output, dense_output):
            dim = self._classes_at(own)
            if dim == own.dim() - 1:
                own, dense = real_part(own, dense, masks)
            found.append((own, dense, dim if own.dim() > dim else -1))
        return found

    def _classes_at(self, output: Tensor) -> int:
        shape = tuple(output.shape)
        if self.dim is None and output.dim() == 3:
            raise InputError(
                f"classes may be in the second or the last dimension of an output {shape}: give objective=DistillationLoss(dim=-1) "
                "of incop.distillation for tokens (N, T, C), or dim=1 for (N, C, L)"
            )
        dim = 1 if self.dim is None else self.dim if self.dim > 0 else self.dim + output.dim()
        if not 0 < dim < output.dim() or output.shape[dim] < 2:
            raise InputError(
                f"an output {shape} has no class scores in dimension {1 if self.dim is None else self.dim}: where outputs are "
                "numbers give loss=torch.nn.functional.mse_loss, and else objective=DistillationLoss(dim=…) of incop.distillation"
            )
        return dim


@dataclass(frozen=True)
class OutputError:
    """Mean square error between the network's outputs and the dense network's. Padded tokens do not count.

    Example:
        >>> import torch
        >>> from incop.distillation import OutputError
        >>> float(OutputError()(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])))
        2.0
    """

    metric: ClassVar[Metric] = ERROR

    def __call__(self, output: Any, dense_output: Any, masks: Masks | None = None) -> Tensor:
        """Return the error of an output; of several tensors the sum.

        Raises:
            InputError: the outputs do not fit together.
        """
        pairs = [real_part(own, dense, masks or {}) for own, dense in _paired(output, dense_output)]
        return torch.stack([functional.mse_loss(own, dense) for own, dense in pairs]).sum()

    def totals(self, output: Any, dense_output: Any, masks: Masks | None = None) -> Tensor:
        """Return of every tensor the sum of squares, and of how many numbers: (tensors, 2)."""
        pairs = [real_part(own, dense, masks or {}) for own, dense in _paired(output, dense_output)]
        sums = [[float((own.double() - dense.double()).square().sum()), float(own.numel())] for own, dense in pairs]
        return torch.tensor(sums, dtype=torch.float64)

    @staticmethod
    def value(totals: Tensor) -> float:
        """Return the error, summed over the tensors."""
        return float((totals[:, 0] / totals[:, 1]).sum())


def compared(output: Any) -> list[Tensor]:
    """Return the tensors of an output that are compared: its "logits" where it has them, else all that hold floats.

    Raises:
        InputError: there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = [logits] if isinstance(logits, Tensor) else [t for t in walk(output) if t.is_floating_point()]
    if not found:
        raise InputError(
            f"the model returned a {type(output).__name__} without a tensor of floats, so that there is nothing to hold to the "
            "dense network's: give objective=, a function (output, dense_output)"
        )
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in found]


def token_masks(model: nn.Module, inputs: Any, output: Any) -> Masks:
    """Return which tokens of a batch are real, where an output may be of tokens: (N, T, …)."""
    if not isinstance(inputs, Batch) or all(t.dim() != 3 for t in compared(output)):
        return {}
    return real_tokens(distributed.within(model), inputs)


def _paired(output: Any, dense_output: Any) -> list[tuple[Tensor, Tensor]]:
    own, dense = compared(output), compared(dense_output)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (own, dense)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the outputs {shapes[0]} do not fit the dense network's {shapes[1]}: a model must return the same in training and "
            "in evaluation, or give objective=, a function (output, dense_output)"
        )
    return list(zip(own, dense, strict=True))


def real_part(own: Tensor, dense: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """Return the real tokens' outputs (tokens, …) of (N, T, …) where a mask is of these tokens; a decoder's goes first."""
    fitting = [name for name, mask in masks.items() if own.dim() == 3 and mask.shape == own.shape[:2]]
    if not fitting:
        return own, dense
    mask = masks[next((name for name in fitting if name.startswith(("decoder_", "tgt_"))), fitting[0])]
    return own[mask], dense[mask]
