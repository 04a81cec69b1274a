"""Batches of any usual form: unpack one into inputs and target, count its samples, move it to a device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from incop.errors import InputError

TARGET_KEYS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class Batch:
    """One batch, unpacked: what the model is called with, and what its output is held against.

    Args:
        args: positional inputs of the model.
        kwargs: keyword inputs of the model.
        target: the target, or None for a batch of inputs alone.
        samples: number of samples n in the batch.
        target_key: under which name a model that takes its target takes it.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any
    samples: int
    target_key: str = TARGET_KEYS[0]


def unpack(batch: Any) -> Batch:
    """Unpack a batch of any usual form.

    `x` and `[x]` are inputs alone; `(x, y)` is input and target; `((a, b), y)` calls `model(a, b)`;
    `({…}, y)` and `{…}` call `model(**inputs)`; a dictionary's target is its first key among
    labels, label, target, targets, y.
    """
    if isinstance(batch, Batch):
        return batch
    inputs, target = batch, None
    key = None
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
    if first.shape[0] == 0:
        raise InputError(f"a batch holds an input of shape {tuple(first.shape)}, no sample at all: leave it out")
    return Batch(args, kwargs, target, int(first.shape[0]), key or TARGET_KEYS[0])


def walk(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists, dictionaries and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from walk(v)
    elif isinstance(value, tuple | list):
        for v in value:
            yield from walk(v)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from walk(getattr(value, part.name))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the value with every tensor in nested tuples, lists and dictionaries replaced by `change` of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(v, change) for v in value)
    return value


def placed(batch: Batch, *, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """Return the batch on a device; floating tensors among the inputs also in `dtype`, when one is given.

    A half-precision target is widened to `dtype` with the inputs; other targets keep their type, which is the
    loss's business.
    """

    def change(t: Tensor) -> Tensor:
        return _usable(t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def change_target(t: Tensor) -> Tensor:
        return _usable(t.to(device=device, dtype=dtype if t.dtype in (torch.float16, torch.bfloat16) else None))

    return replace(
        batch,
        args=mapped(batch.args, change),
        kwargs=mapped(dict(batch.kwargs), change),
        target=mapped(batch.target, change_target),
    )


def _usable(t: Tensor) -> Tensor:
    # autograd cannot save a tensor made in inference mode; a copy made outside it is an ordinary one
    return t.clone() if t.is_inference() and not torch.is_inference_mode_enabled() else t


def call(model: nn.Module | Callable[..., Any], batch: Batch) -> Any:
    """Call the model with the batch's inputs."""
    return model(*batch.args, **batch.kwargs)


def output_tensor(output: Any, *, where: str) -> Tensor:
    """Return the one tensor an output holds: itself, or the first of a tuple, dictionary or dataclass.

    A dictionary's (or `ModelOutput`'s) "logits" goes before its first tensor.
    """
    if isinstance(output, Tensor):
        return output
    named = output if isinstance(output, Mapping) else _attributes(output)
    if isinstance(named.get("logits"), Tensor):
        return named["logits"]  # type: ignore[no-any-return]
    first = next(walk(output), next(walk(named), None))
    if first is None:
        raise InputError(f"{where} returned a {type(output).__name__} without a tensor in it")
    return first


def _attributes(value: Any) -> Mapping[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    return getattr(value, "__dict__", {})


def reusable(batches: Any, *, what: str = "the probe") -> Iterable[Any]:
    """Return batches that can be gone through many times: a list, a data loader, one tensor, one batch.

    One batch is a tensor, a dictionary, a `Batch`, a tuple (inputs, target), or what a data loader makes of that,
    a list of two tensors of which the second cannot be a batch of the same inputs.
    """
    if isinstance(batches, Tensor | Mapping | Batch) or _is_pair(batches):
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


def _is_pair(batches: Any) -> bool:
    """Say whether this is one batch (inputs, target) rather than two batches."""
    if not (isinstance(batches, tuple | list) and len(batches) == 2):
        return False
    inputs, target = batches
    if isinstance(batches, tuple) and isinstance(target, Mapping):
        return isinstance(inputs, Tensor)  # several targets by name
    if not isinstance(target, Tensor):
        return False
    if isinstance(batches, tuple):
        return isinstance(inputs, Tensor | Mapping | tuple | list)
    if not isinstance(inputs, Tensor) or not (inputs.dim() and target.dim() and len(inputs) == len(target)):
        return False
    return bool(inputs.dim() != target.dim() or inputs.is_floating_point() != target.is_floating_point())


def first_samples(batch: Batch, count: int) -> Batch:
    """Return the batch's first samples, when every tensor in its inputs has them along dimension 0; else the whole."""
    found = samples_between(batch, 0, min(count, batch.samples))
    return batch if found is None else found


def samples_between(batch: Batch, begin: int, end: int) -> Batch | None:
    """Return some of the batch's samples in a row; None where not every tensor in its inputs has them along dimension 0."""
    if any(t.dim() == 0 or t.shape[0] != batch.samples for t in walk((batch.args, batch.kwargs))):
        return None

    def cut(t: Tensor) -> Tensor:
        return t[begin:end] if t.dim() and t.shape[0] == batch.samples else t

    args, kwargs, target = (mapped(part, cut) for part in (batch.args, dict(batch.kwargs), batch.target))
    return replace(batch, args=args, kwargs=kwargs, target=target, samples=end - begin)


def parts(batch: Batch, count: int) -> list[Batch]:
    """Return the batch in at most `count` parts, sample i in part i mod count, where it can be divided; else the whole."""
    if any(t.dim() == 0 or t.shape[0] != batch.samples for t in walk((batch.args, batch.kwargs, batch.target))):
        return [batch]

    def part(first: int) -> Batch:
        def cut(t: Tensor) -> Tensor:
            return t[first::count]

        args, kwargs, target = (mapped(part, cut) for part in (batch.args, dict(batch.kwargs), batch.target))
        return replace(batch, args=args, kwargs=kwargs, target=target, samples=len(range(first, batch.samples, count)))

    return [part(first) for first in range(min(count, batch.samples))]


def with_target(batch: Batch) -> Batch:
    """Return the batch with its target among the inputs, for a model that works out its own loss."""
    if batch.target is None:
        return batch
    return replace(batch, kwargs={**batch.kwargs, batch.target_key: batch.target})


# Inputs that say which tokens are real, and whether they mark the real ones or the padding.
TOKEN_MASKS = {
    "attention_mask": True,
    "decoder_attention_mask": True,
    "key_padding_mask": False,
    "src_key_padding_mask": False,
    "tgt_key_padding_mask": False,
}
SIDES = ("decoder_", "tgt_")  # inputs of a decoder begin so; all others are the encoder's


def real_tokens(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return which tokens of a batch are real, (n, T) booleans by the name of the input that says so.

    These are transformers' `attention_mask` and `decoder_attention_mask` (1 for a real token) and torch's
    `key_padding_mask`, `src_key_padding_mask` and `tgt_key_padding_mask` (True for padding), by keyword or by place.
    """
    inputs = _named(model, batch)
    found = {name: inputs[name] for name in TOKEN_MASKS if isinstance(inputs.get(name), Tensor)}
    return {name: _real(name, mask, batch.samples) for name, mask in found.items()}


def _real(name: str, mask: Tensor, samples: int) -> Tensor:
    flat = mask.flatten(1) if mask.dim() > 2 and all(length == 1 for length in mask.shape[1:-1]) else mask
    if flat.dim() != 2 or flat.shape[0] != samples:
        raise InputError(
            f"{name} has shape {tuple(mask.shape)} for {samples} samples: layers' outputs are averaged over the real tokens, "
            "so give it as (samples, tokens)"
        )
    if TOKEN_MASKS[name]:
        real, plain = flat == 1, (flat == 0) | (flat == 1)
    elif flat.is_floating_point():
        real, plain = flat == 0, (flat == 0) | (flat == -torch.inf)
    else:
        real, plain = flat == 0, (flat == 0) | (flat == 1)
    if not bool(plain.all()):
        raise InputError(f"{name} holds other values than those for a real token and for padding: give 0 and 1")
    if not bool(real.any(1).all()):
        raise InputError(f"{name} leaves a sample without a real token: leave the sample out")
    return real


def _named(model: nn.Module, batch: Batch) -> Mapping[str, Any]:
    """Return the batch's inputs by the names that the model's forward pass gives them, where it can be told."""
    if not batch.args:
        return batch.kwargs
    try:
        bound = inspect.signature(model.forward).bind_partial(*batch.args, **batch.kwargs)
    except (TypeError, ValueError):
        return batch.kwargs
    return {**bound.arguments, **batch.kwargs}


def shortened(model: nn.Module, batch: Batch, mask: str, tokens: int) -> Batch:
    """Return the batch with the tokens that a mask is of cut to the first so many, in every input that has them."""
    side = next((s for s in SIDES if mask.startswith(s)), "")
    whole = real_tokens(model, batch)[mask].shape[1]

    def cut(t: Tensor) -> Tensor:
        return (
            t[:, :tokens] if t.dim() > 1 and t.shape[1] == whole else t[..., :tokens] if t.shape[-1:] == (whole,) else t
        )

    def of_this_side(name: str) -> bool:
        return next((s for s in SIDES if name.startswith(s)), "") == side

    named = _named(model, batch)
    places = [next((name for name, value in named.items() if value is given), "") for given in batch.args]
    args = tuple(mapped(v, cut) if of_this_side(n) else v for n, v in zip(places, batch.args, strict=True))
    kwargs = {name: mapped(value, cut) if of_this_side(name) else value for name, value in batch.kwargs.items()}
    return replace(batch, args=args, kwargs=kwargs)
