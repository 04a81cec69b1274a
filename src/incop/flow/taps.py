"""Taps: the only hooks of a measurement. They read layers' outputs as they pass and are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from incop.batches import output_tensor
from incop.errors import InputError
from incop.layers import LAYERS, folded, module_of

__all__ = ["Paths", "Taps", "pooled"]

UNITS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
UNITS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


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
            InputError: a layer of the chain did not run, or returned another number of rows than there are samples.
        """
        seen = self._seen
        self._seen, self._counts = {}, {}
        for call in self._chain:
            if call not in seen:
                raise InputError(
                    f"layer {call!r} of the chain did not run on this batch: the model takes other paths for other "
                    "inputs, or never runs it; pass the layers that always run as chain=[…]"
                )
            if seen[call].shape[0] != samples:
                raise folded(call, seen[call].shape[0], samples)
        return {call: seen[call] for call in self._chain}


class Paths:
    """Notice a model that takes other paths for other inputs: count which layers each forward pass runs.

    Args:
        model: the model to listen to, while this is entered.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self._running: dict[str, int] | None = None
        self.last: dict[str, int] | None = None

    def __enter__(self) -> Self:
        self._handles.append(self._model.register_forward_pre_hook(self._begin))
        for name, module in self._model.named_modules():
            if isinstance(module, LAYERS):
                self._handles.append(module.register_forward_hook(self._counter(name)))
        self._handles.append(self._model.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._running = {}

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.last, self._running = self._running, None  # what checkpointing runs again afterwards does not count

    def _counter(self, name: str) -> Any:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            if self._running is not None:
                self._running[name] = self._running.get(name, 0) + 1

        return count

    def same(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches; after each, hold the layers that ran against those of the last pass before the first.

        Without such a pass (the chain was given by hand) nothing is held against anything.

        Raises:
            InputError: a layer ran another number of times on this batch.
        """
        expected = self.last
        for batch in batches:
            yield batch
            if expected is None or self.last is None or self.last == expected:
                continue
            name = next(n for n in (*expected, *self.last) if expected.get(n, 0) != self.last.get(n, 0))
            raise InputError(
                f"layer {name!r} ran {self.last.get(name, 0)} times on one batch and {expected.get(name, 0)} times on "
                "another: the model takes other paths for other inputs, and a flow needs the same steps for all; pass "
                "batches of one length, or the layers that always run as chain=[…]"
            )


def pooled(module: nn.Module, output: Tensor, name: str = "") -> Tensor:
    """Average a layer's output over its spatial or token dimensions, f_l(x) of the method.

    Args:
        module: the layer. Convolutions, batch and group normalisation have their units in dimension 1; linear
            and recurrent modules, layer normalisation and attention in the last; of any other module, with four
            dimensions or more in dimension 1, with three in the last.
        output: (n, M, …) or (n, …, M).
        name: of the layer, for errors.

    Returns:
        (n, M), at least float32, without gradient.

    Raises:
        InputError: the output has fewer than two dimensions or is not floating point.
    """
    if output.dim() < 2 or not output.is_floating_point():
        raise InputError(
            f"layer {name!r} returned {output.dtype} of shape {tuple(output.shape)}: a flow needs floating-point "
            "outputs (samples, units); pass chain=[…] without it"
        )
    out = output.detach()
    dtype = torch.float32 if out.dtype.itemsize < 4 else out.dtype
    if out.dim() == 2:
        return out.to(dtype, copy=True)  # a following ReLU(inplace=True) must not write into it
    first = isinstance(module, UNITS_FIRST) or (out.dim() >= 4 and not isinstance(module, UNITS_LAST))
    return out.mean(tuple(range(2, out.dim())) if first else tuple(range(1, out.dim() - 1)), dtype=dtype)
