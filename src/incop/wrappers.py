"""Wrappers: what PyTorch puts around a model to train it, and the model within, whose names are the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["as_written", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within `torch.compile`, `DataParallel` and `DistributedDataParallel`; any other as it is.

    Names of weights, layers and flows are those of the model within: a ticket found in training on several devices, or with
    a compiled model, fits the plain one.

    Example:
        >>> from torch import nn
        >>> from incop.wrappers import unwrapped
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and isinstance(model._modules.get("_orig_mod"), nn.Module):
            model = model._modules["_orig_mod"]  # type: ignore[assignment]  # not imported: torch._dynamo takes seconds
        else:
            return model


@contextmanager
def as_written() -> Iterator[None]:
    """Run what is compiled as it was written, the model or parts of it: compiled code does not call hooks on its layers."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
