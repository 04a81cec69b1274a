"""The compacted form: units and channels that nobody needs are gone, and the answers are the same."""

from __future__ import annotations

from typing import Any

from torch import nn

from incop.export.compaction import compact
from incop.export.subject import Subject
from incop.masks import Masks

__all__ = ["compacted"]


def compacted(model: nn.Module, masks: Masks | None, example: Any) -> nn.Module:
    """Return the masked model without its dead units: the same class and forward pass, with smaller layers.

    A unit is dead where all weights into it are pruned (it puts out a constant, which the next layer's bias takes up) or all
    weights out of it (nobody hears it), where this is exact. What is not understood stays whole. The answers are proven equal
    on the example, on one sample of it, and on other values: to 1e-12 in float64, where the model runs in it.

    Args:
        model: any module, or what wraps it to train it; it stays as it is.
        masks: the weights that are left; None: those that are not exactly zero.
        example: a batch of any usual form, see `incop.batches.unpack`.

    Raises:
        InputError: the model cannot be followed, or the masks belong to another.

    Example:
        >>> import torch
        >>> from incop import Masks
        >>> from incop.export import compacted
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> masks = Masks({"0.weight": torch.tensor([[True] * 4, [False] * 4, [True] * 4])})
        >>> compacted(net, masks, torch.randn(8, 4))[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    return compact(Subject.of(model, masks, example=example)).model
