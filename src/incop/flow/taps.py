"""Taps: the only hooks of a measurement. They read layers' outputs as they pass and are gone afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from incop.batches import output_tensor
from incop.errors import InputError
from incop.layers import module_of

__all__ = ["Taps", "pooled"]

CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


class Taps:
    """Collect the outputs of named layers, averaged over space or tokens, while the model runs.

    Args:
        model: the model to listen to.
        chain: calls to keep, as `layers.chain` names them ("fc", "fc#2").

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from incop.flow.taps import Taps
        >>> net = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Flatten(), nn.LazyLinear(2)).eval()
        >>> _ = net(torch.zeros(1, 1, 5))
        >>> with Taps(net, ["0", "2"]) as taps:
        ...     _ = net(torch.zeros(4, 1, 5))
        ...     outputs = taps.read(samples=4)
        >>> {name: tuple(rows.shape) for name, rows in outputs.items()}
        {'0': (4, 3), '2': (4, 2)}
    """

    def __init__(self, model: nn.Module, chain: Sequence[str]) -> None:
        self._chain = list(chain)
        self._modules = {module_of(call): model.get_submodule(module_of(call)) for call in chain}
        self._handles: list[Any] = []
        self._seen: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._listener(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def _listener(self, name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            self._counts[name] = count = self._counts.get(name, 0) + 1
            call = name if count == 1 else f"{name}#{count}"
            if call in self._chain:
                self._seen[call] = pooled(module, output_tensor(output, where=f"layer {name!r}"), name)

        return listen

    def read(self, *, samples: int) -> dict[str, Tensor]:
        """Return what the last forward pass gave, (n, M) by layer, and make ready for the next.

        Raises:
            InputError: a layer of the chain did not run, ran another number of times than when the chain was
                found, or returned another number of rows than there are samples.
        """
        seen, counts = self._seen, self._counts
        self._seen, self._counts = {}, {}
        for call in self._chain:
            name = module_of(call)
            if call not in seen:
                raise InputError(
                    f"layer {call!r} of the chain did not run on this batch: the model takes other paths for other inputs; "
                    "pass the layers that always run as chain=[…]"
                )
            if (expected := sum(module_of(c) == name for c in self._chain)) != counts[name] and expected > 1:
                raise InputError(
                    f"layer {name!r} ran {counts[name]} times on this batch and {expected} times on another: "
                    "a flow needs the same steps for every batch; pass batches of one length or chain=[…] without it"
                )
            if seen[call].shape[0] != samples:
                raise InputError(
                    f"layer {call!r} returned {seen[call].shape[0]} rows for {samples} samples (is another dimension "
                    "folded into the batch, or the batch not the first dimension?): pass chain=[…] without it"
                )
        return {call: seen[call] for call in self._chain}


def pooled(module: nn.Module, output: Tensor, name: str = "") -> Tensor:
    """Average a layer's output over its spatial or token dimensions, f_l(x) of the method.

    Args:
        module: the layer; convolutions and normalisations have their units in dimension 1, others in the last
            (a module that is neither, with four dimensions or more: in dimension 1).
        output: (n, M, …) or (n, …, M).
        name: of the layer, for errors.

    Returns:
        (n, M), at least float32, without gradient.

    Raises:
        InputError: the output has fewer than two dimensions or is not floating point.
    """
    if output.dim() < 2 or not output.is_floating_point():
        raise InputError(
            f"layer {name!r} returned {output.dtype} of shape {tuple(output.shape)}: a flow needs floating-point outputs "
            "(samples, units); pass chain=[…] without it"
        )
    out = output.detach()
    out = out.float() if out.dtype.itemsize < 4 else out
    if out.dim() == 2:
        return out
    first = isinstance(module, CHANNELS_FIRST) or (out.dim() >= 4 and not isinstance(module, nn.Linear))
    return out.flatten(2).mean(2) if first else out.flatten(1, -2).mean(1)
