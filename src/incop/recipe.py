"""A recipe: how a method wants a level trained, in shares of the trainer's own settings; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from incop.errors import InputError


@dataclass(frozen=True)
class LevelRecipe:
    """How a level is to be trained, relative to the trainer's own settings.

    A trainer reads it from `watch.recipe`, whenever it begins a level and after every look.

    Args:
        budget: share of the level's usual budget of epochs, in (0, 1]; the schedule spans that share.
        batch: share of the usual batch size, in (0, 1].
        lr: what the learning rate is multiplied by, > 0.
        keep_optimizer: a level that goes on from the last one's weights (`watch.continues`) goes on with its optimizer too.

    Raises:
        InputError: a value is out of range.

    Example:
        >>> from incop.recipe import LevelRecipe
        >>> recipe = LevelRecipe(budget=0.25, batch=1 / 3, lr=2.0)
        >>> recipe.batch_size(64), recipe.lr * 1e-3
        (21, 0.002)
    """

    budget: float = 1.0
    batch: float = 1.0
    lr: float = 1.0
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        for name, value, most in (("budget", self.budget, 1.0), ("batch", self.batch, 1.0), ("lr", self.lr, math.inf)):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 < value <= most:
                span = "in (0, 1]" if most == 1.0 else "> 0"
                raise InputError(f"LevelRecipe({name}={value!r}): it must be a number {span}")

    def batch_size(self, usual: int) -> int:
        """Return the share of a batch size, rounded down, at least 1."""
        return max(int(usual * self.batch + 1e-9), 1)


USUAL = LevelRecipe()
"""Training as the trainer does it by itself."""
