"""Differences: how far two networks' answers are apart, and with how many samples this is tried."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = (None, 1)  # the whole example and one sample: a size that was frozen into a form shows


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return max |a − b| / max |a| over all pairs of tensors; 0 only for the same bits, infinite for other shapes or kinds."""
    if len(expected) != len(found) or any(
        a.shape != b.shape or a.dtype != b.dtype for a, b in zip(expected, found, strict=True)
    ):
        return float("inf")
    largest = 0.0
    for a, b in zip(expected, found, strict=True):
        if torch.equal(a, b) or a.numel() == 0:
            continue
        if not a.is_floating_point():
            return float("inf")
        same = (a == b) | (a.isnan() & b.isnan())
        apart = (a.double() - b.double()).abs().masked_fill(same, 0.0)
        scale = float(a.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
        largest = max(largest, float((apart / scale).nan_to_num(float("inf")).max()))
    return largest
