"""Masks: which weights are left. A value that validates itself, applies itself, and holds while training."""

from __future__ import annotations

from incop.masks.holding import Hold, hold
from incop.masks.value import Masks

__all__ = ["Hold", "Masks", "hold"]
