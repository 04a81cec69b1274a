"""Look at a model without changing it: mode, gradients, random state and buffers come back as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from incop.batches import Batch, call
from incop.errors import TrainingError

__all__ = ["device_of", "full_precision", "half_precision", "undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in evaluation mode, and put everything back on the way out, also when it throws.

    Restored: the training flag of every module, every buffer (the same tensor with the same bits),
    `.grad` of every parameter, and the random states of Python, NumPy and torch on every device in use.
    Weights are watched rather than copied: a forward pass that writes to them is an error.

    Raises:
        TrainingError: the model's forward pass changed one of its own weights.

    Example:
        >>> from torch import nn
        >>> from incop.observing import undisturbed
        >>> net = nn.Dropout(0.5)
        >>> with undisturbed(net):
        ...     print(net.training)
        False
        >>> net.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    grads = [(p, p.grad, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    versions = [(name, p, p._version) for name, p in model.named_parameters()]
    random_states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        for module, _ in modes:  # not model.eval(), which a model may override with side effects
            module.training = False
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, _ in modes:
                for name in set(module._buffers) - {n for m, n, _, _ in buffers if m is module}:
                    del module._buffers[name]
            for module, name, buffer, bits in buffers:
                module._buffers[name] = buffer
                _restore(buffer, bits)
            for p, grad, bits in grads:
                p.grad = grad
                _restore(grad, bits)
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        torch.set_rng_state(random_states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
    for name, p, version in versions:
        if p._version != version:
            raise TrainingError(
                f"the forward pass of {type(model).__name__} changes its own weight {name!r}, so looking at the model "
                "would change it: keep such state in a buffer"
            )


def _restore(tensor: Tensor | None, bits: Tensor | None) -> None:
    if tensor is None or bits is None or _same_bits(tensor, bits):
        return
    if tensor.shape != bits.shape:
        tensor.resize_(bits.shape)
    tensor.copy_(bits)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer, the CPU when it has none."""
    first = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def half_precision(model: nn.Module) -> bool:
    """Say whether any of the model's parameters is float16 or bfloat16."""
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())


def full_precision(model: nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None = None) -> Any:
    """Call the model with its tensors replaced for the time of the call, half-precision ones by float32 copies.

    Half precision overflows at 65,504 and rounds at the third digit: flows measured in it would be noise.

    Args:
        model: the model; its own tensors are not touched.
        batch: what it is called with.
        weights: parameters to put in place of its own, by name.
    """

    def widened(t: Tensor) -> Tensor:
        return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t

    tensors = {name: widened(t.detach()) for name, t in (*model.named_parameters(), *model.named_buffers())}
    tensors.update(weights or {})
    return functional_call(model, tensors, batch.args, dict(batch.kwargs)) if tensors else call(model, batch)
