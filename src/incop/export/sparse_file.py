"""The sparse form: positions and values of the weights that are left, and everything else as it is, in one small file.

8 bytes    MAGIC, the last of them the schema
16 bytes   the first half of SHA-256 of all that follows
8 bytes    how long the head is, and how long it is unpacked
the head   JSON, packed
streams    one after the other, their lengths in the head: packed bits of masks, gaps of masks, then the planes of the values
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from incop.errors import InputError, quoted
from incop.export import rice_code
from incop.export.compression import packed, unpacked

MAGIC = b"incopsp"
SCHEMA = 1
FIXED = len(MAGIC) + 1 + 16 + 8
MAX_HEAD = 2**22  # bytes of JSON: 40,000 tensors
MAX_DIMENSIONS = 64
SMALL = 2**28  # bytes that are always unpacked
MAX_RATIO = 1000  # else how many times the file's size: 99.9 % of weights pruned
KINDS = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
BITS = -1  # in the place of Rice's k: the mask is its bits, packed


@dataclass(frozen=True)
class _Entry:
    """What the head says of one tensor."""

    name: str
    kind: torch.dtype
    shape: tuple[int, ...]
    kept: int | None = None  # positions of its mask; None: it has none
    shift: int = BITS
    coded: int = 0  # bytes of its mask

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def values(self) -> int:
        return self.count if self.kept is None else self.kept


def bound(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> int:
    """Return the bytes that mask and values take at least where neither follows a pattern: H(k / n) · n / 8 + 4 k, and the rest.

    H(p) = −p log₂ p − (1 − p) log₂(1 − p), for each mask by itself. Values count with their own width, 4 bytes for float32;
    so does every entry of a tensor without a mask: a bias, a statistic of BatchNorm, a counter.

    Args:
        masks: boolean tensors by name.
        weights: all tensors of the state dict; those that share memory count once.
    """
    total = 0.0
    for name, first in _ties(weights).items():
        tensor = weights[name]
        if first != name:
            continue
        kept = tensor.numel()
        if name in masks and kept:
            kept = int(masks[name].sum())
            p = kept / tensor.numel()
            total += tensor.numel() / 8 * sum(-q * math.log2(q) for q in (p, 1 - p) if q)
        total += kept * tensor.element_size()
    return math.ceil(total)


def pack(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return the file of a state dict and its masks; what is pruned must be +0.0.

    Args:
        weights: the state dict, on the CPU. Tensors that are one in memory are stored once.
        masks: by name.
        about: what a reader should know, as JSON values.
    """
    for name, tensor in weights.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if KINDS.get(kind) != tensor.dtype or tensor.layout != torch.strided or tensor.is_quantized:
            raise InputError(f"the form 'sparse' cannot keep {name!r}, a tensor of {kind} ({tensor.layout})")
    ties = _ties(weights)
    own = [name for name, first in ties.items() if first == name]
    entries: list[_Entry] = []
    patterns: list[bytes] = []
    codes: list[bytes] = []
    for name in own:
        tensor = weights[name]
        entry = _Entry(name, tensor.dtype, tuple(tensor.shape))
        if name in masks:
            bits = masks[name].contiguous().numpy().reshape(-1)
            shift, code = _mask_coded(bits)
            (patterns if shift == BITS else codes).append(code)
            entry = _Entry(name, tensor.dtype, tuple(tensor.shape), int(bits.sum()), shift, len(code))
        entries.append(entry)
    values = {entry.name: _values(weights[entry.name], masks.get(entry.name)) for entry in entries}
    streams = [b"".join(patterns), b"".join(codes)]
    for dtype, group in _by_kind(entries):
        streams += _planes(dtype, np.concatenate([values[entry.name] for entry in group]))
    stored = [packed(stream) for stream in streams]
    tied = {name: first for name, first in ties.items() if first != name}
    told = {"about": dict(about), "tensors": [_said(entry) for entry in entries], "stored": [len(s) for s in stored]}
    if tied:
        told |= {"tied": tied, "order": list(weights)}
    head = json.dumps(told, separators=(",", ":")).encode()
    short = packed(head)
    sizes = len(short).to_bytes(4, "little") + len(head).to_bytes(4, "little")
    content = sizes + short + b"".join(stored)
    return MAGIC + bytes([SCHEMA]) + hashlib.sha256(content).digest()[:16] + content


def unpack(content: bytes, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return weights, masks and what is said about them, of a file that `pack` made.

    Args:
        content: the file.
        most: bytes of weights and masks that it may unpack to; by default 1,000 times its size, and 256 MiB always.
    """
    if len(content) < FIXED or not content.startswith(MAGIC):
        raise InputError("it is no file of the form 'sparse'")
    schema = content[len(MAGIC)]
    if schema > SCHEMA:
        raise InputError(f"it was written by a newer incop (schema {schema}): upgrade")
    body = memoryview(content)[FIXED - 8 :]
    if hashlib.sha256(body).digest()[:16] != content[FIXED - 24 : FIXED - 8]:
        raise InputError("it is damaged: its content is not what was written")
    short, size = (int.from_bytes(body[at : at + 4], "little") for at in (0, 4))
    if size > MAX_HEAD or short > len(body) - 8:
        raise InputError(f"its head announces {size} bytes, and at most {MAX_HEAD} are read")
    try:
        told = json.loads(unpacked(bytes(body[8 : 8 + short]), size))
        entries = [_understood(one) for one in told["tensors"]]
        return _taken_apart(
            entries, told, body[8 + short :], max(SMALL, MAX_RATIO * len(content)) if most is None else most
        )
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its head cannot be understood ({type(error).__name__}: {error})") from error


def _taken_apart(
    entries: list[_Entry], told: dict[str, Any], body: memoryview, most: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    needed = sum(entry.count * (entry.kind.itemsize + (entry.kept is not None)) for entry in entries)
    if needed > most:
        raise InputError(
            f"it unpacks to {needed} bytes, and at most {most} are taken for a file of its size: if you trust it, "
            f"say read(…, most={needed})"
        )
    if len({entry.name for entry in entries}) != len(entries):
        raise InputError("its head names a tensor twice")
    groups = list(_by_kind(entries))
    sizes = [sum(entry.coded for entry in entries if (entry.shift == BITS) == bits) for bits in (True, False)]
    for kind, group in groups:
        count, planes = sum(entry.values for entry in group), _planes_of(kind)
        sizes += [count * kind.itemsize // planes] * planes
    streams = _streams(sizes, told["stored"], body)
    masks = _masks(entries, streams[0], streams[1])
    found, at = {}, 2
    for kind, group in groups:
        planes = _planes_of(kind)
        values = _from_planes(kind, streams[at : at + planes])
        at += planes
        ends = np.cumsum([entry.values for entry in group]).tolist()
        for entry, part in zip(group, np.split(values, ends[:-1]), strict=True):
            found[entry.name] = _whole(entry, part, masks.get(entry.name))
    tied = told.get("tied", {})
    order = told.get("order", [entry.name for entry in entries])
    if sorted(order) != sorted([*found, *tied]) or not isinstance(told["about"], dict):
        raise InputError("its head does not name the tensors that it holds")
    return {name: found[tied.get(name, name)] for name in order}, masks, told["about"]


def _streams(sizes: list[int], stored: list[int], body: memoryview) -> list[bytes]:
    if len(stored) != len(sizes) or sum(stored) != len(body) or any(type(n) is not int or n < 0 for n in stored):
        raise InputError("its parts are not as long as its head says")
    found, at = [], 0
    for size, length in zip(sizes, stored, strict=True):
        found.append(unpacked(bytes(body[at : at + length]), size))
        at += length
    return found


def _masks(entries: list[_Entry], patterns: bytes, codes: bytes) -> dict[str, Tensor]:
    found, at = {}, {True: 0, False: 0}
    for entry in entries:
        if entry.kept is None:
            continue
        packed_bits = entry.shift == BITS
        source = patterns if packed_bits else codes
        code = source[at[packed_bits] : at[packed_bits] + entry.coded]
        at[packed_bits] += entry.coded
        if packed_bits:
            if len(code) != (entry.count + 7) // 8:
                raise InputError(f"the mask of {quoted(entry.name)} has {len(code)} bytes for {entry.count} positions")
            bits = np.unpackbits(np.frombuffer(code, dtype=np.uint8), count=entry.count).view(np.bool_)
        else:
            bits = rice_code.decoded(code, entry.shift, size=entry.count, kept=entry.kept)
        if int(bits.sum()) != entry.kept:
            raise InputError(f"the mask of {quoted(entry.name)} keeps other than {entry.kept} positions")
        found[entry.name] = torch.from_numpy(bits).reshape(entry.shape)
    return found


def _mask_coded(bits: NDArray[np.bool_]) -> tuple[int, bytes]:
    """Return the shorter code: gaps for what is strewn, packed bits for what follows a pattern, whole rows and channels."""
    shift, code = rice_code.coded(bits)
    pattern = np.packbits(bits).tobytes()
    return (BITS, pattern) if len(packed(pattern)) < len(packed(code)) else (shift, code)


def _ties(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name the first that is the same tensor in memory."""
    first: dict[Any, str] = {}
    ties = {}
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.data_ptr() else name
        ties[name] = first.setdefault(place, name)
    return ties


def _by_kind(entries: list[_Entry]) -> Iterator[tuple[torch.dtype, list[_Entry]]]:
    for _, group in groupby(sorted(entries, key=lambda entry: str(entry.kind)), key=lambda entry: entry.kind):
        same = list(group)
        yield same[0].kind, same


def _values(tensor: Tensor, mask: Tensor | None) -> NDArray[np.uint8]:
    """Return the bytes of what is left of a tensor, (values, bytes a value)."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    whole = flat.view(torch.uint8).numpy().reshape(-1, tensor.element_size())
    return whole if mask is None else whole[mask.contiguous().numpy().reshape(-1)]


def _whole(entry: _Entry, values: NDArray[np.uint8], mask: Tensor | None) -> Tensor:
    if not entry.count:
        return torch.empty(entry.shape, dtype=entry.kind)
    if mask is not None:
        strewn = np.zeros((entry.count, entry.kind.itemsize), dtype=np.uint8)
        strewn[mask.numpy().reshape(-1)] = values
        values = strewn
    flat = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).copy())
    return flat.view(entry.kind).reshape(entry.shape)


def _planes_of(kind: torch.dtype) -> int:
    """Return into how many streams the bytes of values go: of floats one for each place, since only exponents can be packed."""
    return kind.itemsize if kind.is_floating_point else 1


def _planes(kind: torch.dtype, values: NDArray[np.uint8]) -> list[bytes]:
    if kind.is_floating_point and kind.itemsize > 1:
        # the sign goes behind the last bit, so that the exponent's eight bits share a byte
        whole = values.view(f"<u{kind.itemsize}")
        values = (whole << 1 | whole >> (8 * kind.itemsize - 1)).view(np.uint8).reshape(values.shape)
    turned = np.ascontiguousarray(values.T)
    return [turned[plane].tobytes() for plane in range(len(turned))] if _planes_of(kind) > 1 else [turned.tobytes()]


def _from_planes(kind: torch.dtype, planes: list[bytes]) -> NDArray[np.uint8]:
    turned = np.frombuffer(b"".join(planes), dtype=np.uint8).reshape(kind.itemsize, -1)
    values = np.ascontiguousarray(turned.T)
    if kind.is_floating_point and kind.itemsize > 1:
        whole = values.view(f"<u{kind.itemsize}")
        values = (whole >> 1 | whole << (8 * kind.itemsize - 1)).view(np.uint8).reshape(values.shape)
    return values


def _said(entry: _Entry) -> list[Any]:
    plain = [entry.name, str(entry.kind).removeprefix("torch."), list(entry.shape)]
    return plain if entry.kept is None else [*plain, entry.kept, entry.shift, entry.coded]


def _understood(said: list[Any]) -> _Entry:
    name, kind, shape, *mask = said
    numbers = [*shape, *mask]
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and -1 <= n < 2**40 for n in numbers):
        raise InputError(f"its head gives {quoted(name)} a shape of {quoted(shape)}")
    if not isinstance(name, str) or kind not in KINDS or min(shape, default=0) < 0:
        raise InputError(f"its head gives {quoted(name)} the kind {quoted(kind)} and the shape {quoted(shape)}")
    entry = _Entry(name, KINDS[kind], tuple(shape), *mask)
    if math.prod(max(n, 1) for n in shape) >= 2**62:
        raise InputError(f"its head gives {quoted(name)} a shape of {quoted(shape)}")
    if mask and (len(mask) != 3 or not 0 <= mask[0] <= entry.count or mask[2] < 0):
        raise InputError(f"its head gives {quoted(name)} a mask of {quoted(mask)}")
    return entry
