"""The parts of a search, what it carries from level to level, and the level it is at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from incop.flow import Meter
from incop.loop.tickets import Dense, Trains
from incop.masks import Masks
from incop.offload import Offload
from incop.pruning import Amount, Score, Selection
from incop.records import ACCURACY, Check, Flow, Interval, Metric
from incop.snapshots import RewindPoint, Snapshot
from incop.states import State
from incop.stopping import Rule

__all__ = ["Search", "Standing"]


@dataclass
class Standing:
    """The level that is trained, and what was found out before its training."""

    number: int
    notices: list[str] = field(default_factory=list)
    last: bool = False
    report: bool = False
    stopped: Snapshot | None = None  # where the rule stopped, when the level is trained on to report its ticket
    random: State = field(default_factory=dict)  # of all generators when its training began
    beginning: State = field(default_factory=dict)  # what to go back to if training diverges, where that is asked for


@dataclass
class Search:
    """The parts of a search and what it carries from level to level."""

    model: nn.Module
    trainer: Trains
    probe: Any
    meter: Meter | None
    rule: Rule | None
    amount: Amount
    levels: int
    rewind: RewindPoint
    score: Score | None
    selection: Selection | None
    check_every: Interval
    check_before: bool
    last_level_full: bool
    sparsity: float | None
    ticket_at: tuple[float, ...]
    on_collapse: str
    on_divergence: str
    on_notice: Callable[[str], None] | None
    on_check: Callable[[Check], None] | None
    on_step: Callable[[int, float, int], None] | None
    masks: Masks
    resume: State | None = None
    on_state: Callable[[Callable[[], State]], None] | None = None
    dense: Dense | None = None
    keep: tuple[RewindPoint, ...] = ()
    offload: Offload = field(default_factory=Offload)
    points: dict[str, Snapshot] = field(default_factory=dict)
    reference: Flow | None = None
    metric: Metric = ACCURACY
    reference_value: float | None = None  # of the metric, of the dense network
    planning: tuple[int, float] = (0, 0.0)  # samples and seconds that planning the cuts took
    lr_share: float = 1.0  # what learning rates are multiplied by since training diverged
    retaken: int = 0  # how often level 0 was begun again, and its rewind points taken anew
