"""Settings: what a search is called with. Nothing in them changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from incop.flat_state import State
from incop.flow import Meter
from incop.loop.combinations import ends_of
from incop.loop.tickets import Dense, Trains
from incop.masks import Masks
from incop.offload import Offload
from incop.pruning import Amount, Score, Selection
from incop.recipe import LevelRecipe
from incop.records import ACCURACY, Check, Interval, Metric
from incop.rewind_points import RewindPoint
from incop.stopping import Rule


@dataclass(frozen=True)
class SearchSettings:
    """The arguments of `search`, which describes them, with what was given in words read."""

    model: nn.Module
    trainer: Trains
    levels: int
    probe: Any
    meter: Meter | None
    rule: Rule | None
    amount: Amount
    rewind: RewindPoint
    score: Score | None
    selection: Selection | None
    skip: Iterable[str | type[nn.Module]]
    frozen: bool
    trained: bool
    masks: Masks | None
    search_recipe: LevelRecipe
    last_recipe: LevelRecipe
    check_every: Interval
    check_before: bool
    last_level_full: bool
    sparsity: float | None
    max_drop: float | None
    ticket_at: tuple[float, ...]
    on_collapse: str
    on_divergence: str
    dense: Dense | None
    keep: tuple[RewindPoint, ...]
    offload: Offload
    on_check: Callable[[Check], None] | None
    on_step: Callable[[int, float, int], None] | None
    on_state: Callable[[Callable[[], State]], None] | None
    on_notice: Callable[[str], None] | None

    @property
    def metric(self) -> Metric:
        """What the trainer judges the network by."""
        return getattr(self.trainer, "measures", ACCURACY)

    @property
    def needs_dense_network(self) -> bool:
        """Whether the trainer trains towards the dense network's outputs."""
        return bool(getattr(self.trainer, "needs_dense_network", False))

    @property
    def ends(self) -> list[tuple[str, float]]:
        """The sparsities at which a cut is to stop exactly, with the names of their arguments."""
        return ends_of(self.sparsity, self.ticket_at)
