"""Counting: parameters, those that are not zero, and the multiplications of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from incop.batches import Batch, call
from incop.export.csr import CSRLinear
from incop.layers import is_conv1d, weight_names

__all__ = ["Counts", "count"]


@dataclass(frozen=True)
class Counts:
    """What a network holds and does.

    Args:
        parameters: numbers that are stored as weights; of a CSR layer those that are left.
        nonzero: those of them that are not zero.
        macs: multiplications (each with its addition) by layers' weights for one sample, as this network does them.
        macs_nonzero: those by weights that are not zero.
    """

    parameters: int
    nonzero: int
    macs: int
    macs_nonzero: int


def count(model: nn.Module, sample: Batch) -> Counts:
    """Count a network's parameters and its multiplications by weights for one sample.

    Every use of every weight of a linear, convolution, recurrent or attention module counts one. The products of
    attention between tokens, normalisation and activations have no weights and are left out; so are bare parameters.

    Args:
        model: any network, in evaluation mode.
        sample: a batch of one sample.

    Example:
        >>> import torch
        >>> from incop.batches import unpack
        >>> from incop.export.counting import count
        >>> count(torch.nn.Conv2d(1, 2, 3, bias=False), unpack(torch.zeros(1, 1, 5, 5)))
        Counts(parameters=18, nonzero=18, macs=162, macs_nonzero=162)
    """
    uses: list[tuple[Tensor, int]] = []
    handles = [
        module.register_forward_hook(
            lambda module, args, kwargs, output: uses.extend(_uses(module, args, kwargs, output)), with_kwargs=True
        )
        for module in model.modules()
        if weight_names(module) or isinstance(module, CSRLinear)
    ]
    try:
        with torch.no_grad(), _modules_only():
            call(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    sizes = {id(weight): (_values(weight).numel(), int(_values(weight).count_nonzero())) for weight, _ in uses}
    stored = [*model.parameters(), *(m.weight for m in model.modules() if isinstance(m, CSRLinear))]
    return Counts(
        sum(_values(p).numel() for p in stored),
        sum(int(_values(p).count_nonzero()) for p in stored),
        sum(sizes[id(weight)][0] * times for weight, times in uses),
        sum(sizes[id(weight)][1] * times for weight, times in uses),
    )


def _values(tensor: Tensor) -> Tensor:
    return tensor.values() if tensor.layout == torch.sparse_csr else tensor.detach()


@contextmanager
def _modules_only() -> Iterator[None]:
    """Keep torch's fused attention from passing the modules by."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _uses(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> list[tuple[Tensor, int]]:
    """Return the weights of a module, each with how often one call multiplies by each of its numbers."""
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, *(kwargs.get(name, given) for name, given in _three(args)))
    weights = [getattr(module, name) for name in weight_names(module)] or [module.weight]
    first = inputs[0]
    if isinstance(module, nn.RNNBase):
        batch = first.numel() // first.shape[-1] if not hasattr(first, "batch_sizes") else len(first.data)
        return [(weight, batch) for weight in weights]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return [(weight, first.numel() // module.in_channels) for weight in weights]
    if isinstance(module, nn.modules.conv._ConvNd):
        return [(weight, output.numel() // module.out_channels) for weight in weights]
    if isinstance(module, nn.Linear | nn.Bilinear | CSRLinear) or is_conv1d(module):
        return [(weight, output.numel() // output.shape[-1]) for weight in weights]
    return [(weight, first.shape[0] if first.dim() > 1 else 1) for weight in weights]  # cells


def _three(args: tuple[Any, ...]) -> list[tuple[str, Any]]:
    return [(name, args[i] if i < len(args) else None) for i, name in enumerate(("query", "key", "value"))]


def _attention(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, int]]:
    tokens = [part.numel() // part.shape[-1] for part in (query, key, value)]
    if module._qkv_same_embed_dim:
        parts = module.in_proj_weight.detach().chunk(3)
    else:
        parts = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return [*zip(parts, tokens, strict=True), (module.out_proj.weight, tokens[0])]
