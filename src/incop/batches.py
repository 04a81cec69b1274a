"""Batches of any usual form: unpack one into inputs and target, count its samples, move it to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from incop.errors import InputError

__all__ = ["Batch", "call", "first_samples", "output_tensor", "placed", "reusable", "unpack", "walk"]

TARGET_KEYS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class Batch:
    """One batch, unpacked: what the model is called with, and what its output is held against.

    Args:
        args: positional inputs of the model.
        kwargs: keyword inputs of the model.
        target: the target, or None for a batch of inputs alone.
        samples: number of samples n in the batch.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any
    samples: int


def unpack(batch: Any) -> Batch:
    """Unpack a batch of any usual form.

    `x` and `[x]` are inputs alone; `(x, y)` is input and target; `((a, b), y)` calls `model(a, b)`;
    `({…}, y)` and `{…}` call `model(**inputs)`; a dictionary's target is its first key among
    labels, label, target, targets, y.

    Raises:
        InputError: no tensor is found in it, or it has another form.

    Example:
        >>> import torch
        >>> from incop.batches import unpack
        >>> unpack((torch.zeros(8, 3), torch.zeros(8))).samples
        8
    """
    if isinstance(batch, Batch):
        return batch
    inputs, target = batch, None
    if isinstance(batch, Mapping):
        key = next((k for k in TARGET_KEYS if k in batch), None)
        target = batch[key] if key else None
        inputs = {k: v for k, v in batch.items() if k != key}
    elif isinstance(batch, tuple | list) and len(batch) == 1:
        inputs = batch[0]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
    elif isinstance(batch, tuple | list):
        raise InputError(
            f"a batch of {len(batch)} parts is ambiguous: give ((inputs, …), target), or a dictionary of the "
            "model's arguments with the target under 'labels'"
        )
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    elif isinstance(inputs, tuple | list):
        args = tuple(inputs)
    else:
        args = (inputs,)
    first = next((t for t in walk((args, kwargs)) if t.dim() > 0), None)
    if first is None:
        raise InputError(
            f"a batch of type {type(batch).__name__} holds no input tensor: give a tensor, (input, target), or a "
            "dictionary of tensors"
        )
    return Batch(args, kwargs, target, int(first.shape[0]))


def walk(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from walk(v)
    elif isinstance(value, tuple | list):
        for v in value:
            yield from walk(v)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: _mapped(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(v, change) for v in value)
    return value


def placed(batch: Batch, *, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """Return the batch on a device; floating tensors among the inputs also in `dtype`, when one is given."""

    def change(t: Tensor) -> Tensor:
        return t.to(device=device, dtype=dtype if dtype is not None and t.is_floating_point() else None)

    target = _mapped(batch.target, lambda t: t.to(device))
    return replace(batch, args=_mapped(batch.args, change), kwargs=_mapped(dict(batch.kwargs), change), target=target)


def call(model: nn.Module | Callable[..., Any], batch: Batch) -> Any:
    """Call the model with the batch's inputs."""
    return model(*batch.args, **batch.kwargs)


def output_tensor(output: Any, *, where: str) -> Tensor:
    """Return the one tensor an output holds: itself, or the first of a tuple, dictionary or dataclass.

    A dictionary's (or `ModelOutput`'s) "logits" goes before its first tensor.

    Raises:
        InputError: no tensor is found; `where` names the module in the sentence.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]  # type: ignore[no-any-return]
    first = next(walk(output), None)
    if first is None and hasattr(output, "__dict__"):
        first = next(walk(vars(output)), None)
    if first is None:
        raise InputError(f"{where} returned a {type(output).__name__} without a tensor in it")
    return first


def reusable(batches: Any, *, what: str = "the probe") -> Iterable[Any]:
    """Return batches that can be gone through many times: a list, a data loader, one tensor, one batch.

    Raises:
        InputError: an iterator that ends after one pass, or something that holds no batches at all.
    """
    if isinstance(batches, Tensor):
        return [batches]
    if isinstance(batches, Mapping):
        return [batches]
    if isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        return [batches]
    if isinstance(batches, Iterator):
        raise InputError(
            f"{what} is an iterator, which can be read only once, and it is read at every check: "
            "pass list(batches) or the data loader itself"
        )
    if not isinstance(batches, Iterable):
        raise InputError(f"{what} is a {type(batches).__name__}: pass a data loader or a list of batches")
    if isinstance(batches, Sized) and len(batches) == 0:
        raise InputError(f"{what} is empty: pass at least one batch")
    return batches


def first_samples(batch: Batch, count: int) -> Batch:
    """Return the batch's first samples, when every tensor in its inputs has them along dimension 0; else the whole."""
    if any(t.dim() == 0 or t.shape[0] != batch.samples for t in walk((batch.args, batch.kwargs))):
        return batch

    def cut(t: Tensor) -> Tensor:
        return t[:count] if t.dim() and t.shape[0] == batch.samples else t

    args, kwargs, target = (_mapped(part, cut) for part in (batch.args, dict(batch.kwargs), batch.target))
    return Batch(args, kwargs, target, min(count, batch.samples))
