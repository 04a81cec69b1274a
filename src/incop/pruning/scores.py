"""Scores: which weights matter. The lowest go first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from incop import batches as batches_room
from incop import inspection
from incop.batches import output_tensor, unpack
from incop.errors import InputError, unknown
from incop.pruning.saliency import Saliency
from incop.wrappers import as_written

Loss = Callable[[Any, Any], Tensor]


class Score(Protocol):
    """Gives every weight a number; weights with the lowest are cut first."""

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one score a weight, by parameter name, each of its weight's shape."""


@dataclass(frozen=True)
class Magnitude:
    """The size of a weight, |w|.

    Example:
        >>> import torch
        >>> from incop.pruning import Magnitude
        >>> Magnitude()(torch.nn.Identity(), {"w": torch.tensor([-2.0, 1.0])})
        {'w': tensor([2., 1.])}

    Source: Han et al. 2015; Frankle & Carbin 2019.
    """

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return |w|."""
        return {name: w.detach().abs() for name, w in weights.items()}

    def __str__(self) -> str:
        return "magnitude"


@dataclass(frozen=True)
class Random:
    """A number drawn for every weight from a seed, the same at every call: a control without any choice.

    Args:
        seed: of the draw.

    Example:
        >>> import torch
        >>> from incop.pruning import Random
        >>> w = {"w": torch.zeros(3)}
        >>> bool(torch.equal(Random(1)(None, w)["w"], Random(1)(None, w)["w"]))
        True
    """

    seed: int = 0

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return uniform numbers in [0, 1), float32 whatever the default: the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: torch.rand(w.shape, generator=generator, dtype=torch.float32).to(w.device)
            for name, w in weights.items()
        }

    def __str__(self) -> str:
        return "random"


@dataclass(frozen=True)
class GradientTimesWeight:
    """The change of the loss if a weight were cut, to first order: |w · ∂L/∂w|, L the mean loss over batches.

    Args:
        loss: `loss(output, target)`, the mean over the batch.
        batches: data of the training split; see `incop.batches.unpack` for the forms. None until `with_data` gives them.

    Raises:
        InputError: the loss is no mean, there are no batches, or one has no target.

    Example:
        >>> import torch
        >>> from incop.pruning import GradientTimesWeight
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> score = GradientTimesWeight(torch.nn.MSELoss(), [(torch.ones(1, 1), torch.zeros(1, 1))])
        >>> w = net.weight.detach()
        >>> bool(torch.allclose(score(net, {"weight": w})["weight"], 2 * w**2))
        True

    Source: Molchanov et al. 2017; Lee et al. 2019 (SNIP).
    """

    loss: Loss
    batches: Any = None

    def __post_init__(self) -> None:
        if getattr(self.loss, "reduction", "mean") != "mean":
            raise InputError("gradient × weight is that of the mean loss: pass the loss with reduction='mean'")

    def with_data(self, batches: Any) -> GradientTimesWeight:
        """Return the same score of these batches."""
        return replace(self, batches=batches)

    def __call__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return |w · ∂L/∂w|, half precision measured in float32; the model is left as it was found."""
        if self.batches is None:
            raise InputError("gradient × weight has no data to see: give it batches, by with_data(batches)")
        dtype = torch.float32 if inspection.half_precision(model) else None
        leaves = {name: _widened(w.detach()).clone().requires_grad_() for name, w in weights.items()}
        sums = {name: torch.zeros_like(w) for name, w in leaves.items()}
        samples = 0
        with inspection.undisturbed(model), torch.enable_grad():
            for batch in batches_room.reusable(self.batches, what="the data of the score"):
                part = batches_room.placed(unpack(batch), device=inspection.device_of(model), dtype=dtype)
                if part.target is None:
                    raise InputError("gradient × weight needs targets: give (inputs, target) batches")
                with as_written():
                    output = inspection.full_precision(model, part, leaves)
                value = self.loss(output_tensor(output, where=type(model).__name__), part.target)
                if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                    raise InputError("the loss must return one number that depends on the weights")
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), found, strict=True):
                    if gradient is not None:
                        total.add_(gradient, alpha=part.samples)
                samples += part.samples
        if samples == 0:
            raise InputError("gradient × weight has no data to see: give it batches with samples")
        return {name: (leaves[name].detach() * sums[name] / samples).abs() for name in leaves}

    def __str__(self) -> str:
        return "gradient"


def _widened(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype.itemsize < 4 else weight


def _saliency(power: str | None) -> Saliency:
    if power is None:
        return Saliency()
    try:
        return Saliency(float(power))
    except ValueError:
        raise InputError(
            f"the score 'saliency:{power}' has no power in [0, 1] after its colon: 'saliency:0.25' has"
        ) from None


# How a score is read, how it is shown, what it makes of a seed and a loss.
SCORES: tuple[tuple[str, str, Callable[[re.Match[str], int, Loss], Score]], ...] = (
    (r"magnitude", "magnitude", lambda m, seed, loss: Magnitude()),
    (
        r"saliency(?::(.*))?",
        "saliency",
        lambda m, seed, loss: _saliency(m[1]),
    ),
    (r"random", "random", lambda m, seed, loss: Random(seed)),
    (r"gradient", "gradient", lambda m, seed, loss: GradientTimesWeight(loss)),
)


def parse_score(text: str, *, seed: int = 0, loss: Loss = functional.cross_entropy) -> Score:
    """Read a score in words, as `str(score)` writes it.

    Args:
        text: "magnitude", "saliency" ("saliency:0.25": its power), "random" or "gradient" (× weight).
        seed: of "random".
        loss: of "gradient", the mean over a batch.

    Returns:
        The score; `GradientTimesWeight` still needs batches, which `with_data` gives it.

    Raises:
        InputError: it is none of these, or the power is out of range.

    Example:
        >>> from incop import pruning
        >>> pruning.parse_score("saliency:0.5").power
        0.5
    """
    for pattern, _, make in SCORES:
        if match := re.fullmatch(pattern, text):
            return make(match, seed, loss)
    raise unknown("score", text, [form for _, form, _ in SCORES])
