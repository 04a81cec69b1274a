"""Bits: a boolean tensor kept as eight positions a byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from incop.errors import InputError, quoted

CHUNK = 2**13  # bytes unpacked at a time: with them 65,536 positions, whose integers stay within the caches
_TABLES: dict[tuple[torch.dtype, torch.device], Tensor] = {}


@dataclass(frozen=True)
class Bits:
    """A boolean tensor in bits: position i in row-major order is bit 7 − i mod 8 of byte i // 8, as `numpy.packbits` has it.

    Args:
        bytes: shape (⌈n / 8⌉,), uint8; the bits after the last position are 0.
        shape: of the boolean tensor, n positions in all.
        count: how many of them are True.
    """

    bytes: Tensor
    shape: torch.Size
    count: int

    @classmethod
    def of(cls, name: str, mask: Tensor) -> Bits:
        """Pack a boolean tensor, on its device."""
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"the mask of {name!r} is {kind}, not a boolean tensor: compare it with 0 first")
        flat = mask.detach().reshape(-1)
        if flat.is_cpu:
            packed = torch.from_numpy(np.packbits(flat.numpy()))
        else:
            eights = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8, device=flat.device)
            eights[: flat.numel()] = flat
            worth = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=flat.device)
            packed = (eights.view(-1, 8) * worth).sum(1, dtype=torch.uint8)
        return cls(packed, mask.shape, int(flat.sum()))

    @classmethod
    def read(cls, name: str, packed: Tensor, shape: list[int], count: int) -> Bits:
        """Return bits that a file holds, with the shape and the count that it says."""
        if packed.dtype != torch.uint8 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise ValueError(f"{quoted(name)} is no packed mask")
        positions = math.prod(shape)
        if packed.shape != ((positions + 7) // 8,):
            raise ValueError(f"{quoted(name)} has {packed.numel()} bytes for {quoted(positions)} positions")
        found = cls.of(name, cls(packed, torch.Size(shape), count).unpacked())
        if found.count != count:
            raise ValueError(f"{quoted(name)} keeps {found.count} positions and was written with {quoted(count)}")
        return found

    @property
    def total(self) -> int:
        """Positions in all, n."""
        return math.prod(self.shape)

    def unpacked(self) -> Tensor:
        """Return the boolean tensor, a fresh one."""
        if self.bytes.is_cpu:
            flat = torch.from_numpy(np.unpackbits(self.bytes.numpy(), count=self.total).view(np.bool_))
        else:
            flat = self.words(torch.int16, 0, self.bytes.numel())[: self.total] != 0
        return flat.reshape(self.shape)

    def words(self, kind: torch.dtype, first: int, last: int) -> Tensor:
        """Return an integer a position of bytes `first` to `last`: −1, all bits set, where True, and 0 where not."""
        return _table(kind, self.bytes.device).index_select(0, self.bytes[first:last].int()).view(-1)

    def keep(self, tensor: Tensor, kind: torch.dtype) -> None:
        """Set a contiguous tensor to +0.0 where these bits are False, whatever stands there, a chunk at a time.

        Args:
            tensor: of this shape; its elements have the size of `kind`.
            kind: the integer that its bits are read as.
        """
        flat = tensor.view(-1).view(kind)
        for first in range(0, self.bytes.numel(), CHUNK):
            part = flat[8 * first : 8 * (first + CHUNK)]
            part.bitwise_and_(self.words(kind, first, first + CHUNK)[: part.numel()])

    def to(self, device: torch.device) -> Bits:
        """Return the same bits on a device."""
        return self if self.bytes.device == device else Bits(self.bytes.to(device), self.shape, self.count)


def _table(kind: torch.dtype, device: torch.device) -> Tensor:
    """Return the eight integers that every byte stands for, shape (256, 8)."""
    if (kind, device) not in _TABLES:
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
        _TABLES[kind, device] = (-torch.from_numpy(bits.astype(np.int64))).to(device=device, dtype=kind)
    return _TABLES[kind, device]
