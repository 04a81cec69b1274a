"""Taps: what a measurement reads of a model. Layers' outputs are taken as they pass; the hooks are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from incop.batches import output_tensor, walk
from incop.errors import InputError
from incop.layers import CallNames, Chain, Hooks, folded, is_layer, module_of, sample_axis, units_axis


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
        self._chain = Chain.of(chain)
        self._calls = dict.fromkeys(call.partition("[")[0] for call in self._chain)
        self._modules = {module_of(call): model.get_submodule(module_of(call)) for call in chain}
        self._hooks = Hooks()
        self._seen: dict[str, Tensor] = {}
        self._names = CallNames()
        self._samples: int | None = None
        self._real: Mapping[str, Tensor] = {}
        self._padded: Mapping[str, Tensor] = {}

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._hooks.after(module, partial(self._listen, name))
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.remove()
        self._seen.clear()

    def expect(self, samples: int, real: Mapping[str, Tensor] | None = None) -> None:
        """Say what the next forward pass is of: its samples, and its real tokens as `batches.real_tokens` gives them."""
        self._samples, self._real = samples, real or {}
        self._padded = {name: mask for name, mask in self._real.items() if not bool(mask.all())}

    def _listen(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        call = self._names.of(name)
        if call in self._calls:
            self._seen[call] = self._pooled(call, module, output)

    def _pooled(self, call: str, module: nn.Module, output: Any) -> Tensor:
        first = output[0] if isinstance(output, tuple) and output else None
        if isinstance(first, PackedSequence):
            padded, sizes = pad_packed_sequence(first, batch_first=True)
            place = torch.arange(padded.shape[1], device=padded.device)
            return pooled(module, padded, call, real=place[None, :] < sizes.to(padded.device)[:, None])
        found = output_tensor(output, where=f"layer {call!r}")
        axis = _axis(self._chain, call, module, found, self._samples)
        return pooled(module, found, call, axis=axis, real=self._real_of(call, module, found, axis))

    def _real_of(self, call: str, module: nn.Module, output: Tensor, axis: int) -> Tensor | None:
        """Return which of a layer's tokens are real, when a mask says so; None when all are."""
        tokens = _tokens(module, output, axis) if self._padded else 0
        if tokens == 0 or output.shape[axis] != self._samples:  # of other rows than samples `read` tells
            return None
        whose = None if self._chain.masks is None else self._chain.masks.get(call, "")
        if whose is None:  # nobody looked: its tokens are those of a mask that is as long
            fitting = [name for name, real in self._real.items() if real.shape[1] == tokens]
            whose = fitting[0] if len(fitting) == 1 else "?"
        if whose in self._real and self._real[whose].shape[1] == tokens:
            return self._padded.get(whose)
        if whose:
            sizes = ", ".join(f"{name} {real.shape[1]}" for name, real in self._real.items())
            raise InputError(
                f"layer {call!r} has {tokens} places a sample, made of padded tokens ({sizes}), and which of them are padding "
                "cannot be told: pass chain=[…] without it, or batches without padding"
            )
        return None

    def read(self, *, samples: int) -> dict[str, Tensor]:
        """Return what the last forward pass gave, (n, M) by layer, and make ready for the next.

        Raises:
            InputError: a layer of the chain did not run, or returned another number of rows than there are samples.
        """
        seen = self._seen
        self._seen, self._names = {}, CallNames()
        self._samples, self._real, self._padded = None, {}, {}
        for call in self._calls:
            if call not in seen:
                raise InputError(
                    f"layer {call!r} of the chain did not run on this batch: the model takes other paths for other "
                    "inputs, or never runs it; pass the layers that always run as chain=[…]"
                )
            if seen[call].shape[0] != samples:
                raise folded(call, seen[call].shape[0], samples)
        whole = {call: seen[call.partition("[")[0]] for call in self._chain}
        units = self._chain.units
        return {call: rows[:, units[call].to(rows.device)] if call in units else rows for call, rows in whole.items()}


class Paths:
    """Notice a model that takes other paths for other inputs: note which layers each forward pass runs, in order.

    Args:
        model: the model to listen to, while this is entered.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks = Hooks()
        self._running: list[str] | None = None
        self.last: list[str] | None = None

    def __enter__(self) -> Self:
        self._hooks.before(self._model, self._begin)
        for name, module in self._model.named_modules():
            if is_layer(module):
                self._hooks.after(module, partial(self._count, name))
        self._hooks.after(self._model, self._end)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._running = []

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.last, self._running = self._running, None  # what checkpointing runs again afterwards does not count

    def _count(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._running is not None:
            self._running.append(name)

    def same(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches; after each, hold the layers that ran against those of the last pass before the first.

        Without such a pass (the chain was given by hand) nothing is held against anything.
        """
        expected = self.last
        for batch in batches:
            yield batch
            if expected is None or self.last is None or self.last == expected:
                continue
            raise _other_path(expected, self.last)


def _other_path(before: list[str], now: list[str]) -> InputError:
    for name in (*before, *now):
        if (times := now.count(name)) != before.count(name):
            return InputError(
                f"layer {name!r} ran {times} times on one batch and {before.count(name)} times on another: the model takes "
                "other paths for other inputs, and a flow needs the same steps for all; pass batches of one length, or the "
                "layers that always run as chain=[…]"
            )
    was, name = next((a, b) for a, b in zip(before, now, strict=True) if a != b)
    return InputError(
        f"layer {name!r} ran on one batch where {was!r} did on another: the model runs its layers in an order that depends on "
        "the data, and a flow needs the same steps for all; pass the layers that always follow each other as chain=[…]"
    )


def _tokens(module: nn.Module, output: Tensor, axis: int) -> int:
    """Return how many tokens (or places) an output has a sample; 0 when it has no such dimension."""
    if output.dim() < 3:
        return 0
    return output.numel() // max(output.shape[axis] * output.shape[units_axis(module, output.dim())], 1)


def _axis(chain: Chain, call: str, module: nn.Module, output: Tensor, samples: int | None) -> int:
    """Return the dimension of an output that holds the samples."""
    if chain.axes is not None:
        return chain.axes.get(call, 0)
    return 0 if samples is None else sample_axis(module, output.shape, samples)


def lengths(model: nn.Module, chain: Chain, samples: int, run: Callable[[], Any]) -> dict[str, int]:
    """Return how many tokens each layer of a chain puts out a sample while `run` runs the model."""
    found: dict[str, int] = {}
    names = CallNames()

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        call, first = names.of(name), next(walk(output), None)
        if first is not None:
            found[call] = _tokens(module, first, _axis(chain, call, module, first, samples))

    with Hooks() as hooks:
        for name in {module_of(call) for call in chain}:
            hooks.after(model.get_submodule(name), partial(note, name))
        run()
    return found


def pooled(module: nn.Module, output: Tensor, name: str = "", *, axis: int = 0, real: Tensor | None = None) -> Tensor:
    """Average a layer's output over its spatial or token dimensions, f_l(x) of the method.

    Args:
        module: the layer; it says where the units lie, see `layers.units_axis`.
        output: (n, M, …) or (n, …, M).
        name: of the layer, for errors.
        axis: the dimension that holds the samples.
        real: which tokens count, (n, T) booleans; all of them where it is None.
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
    units = units_axis(module, out.dim())
    if real is None:
        return out.mean([i for i in range(out.dim()) if i not in (axis, units)], dtype=dtype)
    out_nTM = out.movedim((axis, units), (0, -1)).flatten(1, -2)
    real_nT = real.to(out.device)
    total_nM = out_nTM.masked_fill(~real_nT[..., None], 0.0).sum(1, dtype=dtype)
    return total_nM / real_nT.sum(1, keepdim=True)
