"""Wrappers: what PyTorch puts around a model to train it, and the model within, whose names are the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from incop.errors import InputError


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within `torch.compile`, `DataParallel` and `DistributedDataParallel`; any other as it is.

    Names of weights, layers and flows are those of the model within: a ticket found in training on several devices, or with
    a compiled model, fits the plain one.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and isinstance(model._modules.get("_orig_mod"), nn.Module):
            model = model._modules["_orig_mod"]  # type: ignore[assignment]  # not imported: torch._dynamo takes seconds
        else:
            return model


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose weights lie in pieces in several processes: a mask, a rewind point and a cut are of whole weights."""
    kinds = {type(module).__name__ for module in model.modules()}
    what = "FullyShardedDataParallel" if "FullyShardedDataParallel" in kinds else None
    for parameter in model.parameters():
        if what is None and type(parameter.data).__name__ == "DTensor":
            what = "fully_shard (FSDP2) or another sharding of DTensors"
        if what is None and hasattr(parameter, "ds_id"):
            what = "DeepSpeed"
    if what is not None:
        raise InputError(
            f"{what} keeps each weight in pieces in several processes, and masks, cuts and rewind points are of whole weights: "
            "wrap the model in DistributedDataParallel instead, or search it on one device"
        )


@contextmanager
def as_written() -> Iterator[None]:
    """Run what is compiled as it was written, the model or parts of it: compiled code does not call hooks on its layers."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
