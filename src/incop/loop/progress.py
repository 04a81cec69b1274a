"""Progress: what a search carries from level to level, and the level it is at."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from incop.flat_state import State
from incop.flow import Damage
from incop.loop.edge import Edge
from incop.loop.settings import SearchSettings
from incop.masks import Masks
from incop.pruning import Amount, Score, SparsityPath
from incop.pruning.saliency import Gathers
from incop.records import Flow, Level
from incop.rewind_points import Snapshot


@dataclass
class LevelProgress:
    """The level that is trained, and what was found out before its training."""

    number: int = 0
    notices: list[str] = field(default_factory=list)
    last: bool = False
    report: bool = False
    trials: tuple[int, float] = (0, 0.0)  # samples and seconds that trial cuts took before its cut
    resume: State | None = None  # what its watch and trainer go on from
    stop: int | None = None  # of the path, which it tries or finishes; None: it is on the path
    short: bool = False  # whether it only tries its stop
    stopped: Snapshot | None = None  # where the rule stopped, when the level is trained on to report its ticket
    random: State = field(default_factory=dict)  # of all generators when its training began
    beginning: State = field(default_factory=dict)  # what to go back to if training diverges, where that is asked for


@dataclass
class SearchProgress:
    """What a search carries from level to level."""

    masks: Masks
    score: Score | None  # a fresh one, where it gathers
    level: LevelProgress = field(default_factory=LevelProgress)
    path: SparsityPath | None = None  # planned on the dense network
    points: dict[str, Snapshot] = field(default_factory=dict)
    reference: Flow | None = None
    reference_value: float | None = None  # of the metric, of the dense network
    lr_share: float = 1.0  # what learning rates are multiplied by since training diverged
    dense_network: nn.Module | None = None  # a frozen copy, where the trainer needs it
    edge: Edge | None = None  # where the search is for the edge
    cuts: int = 0  # made on the path
    familiar: Damage | None = None  # holds outputs against the dense network's
    chosen: Level | None = None  # the sparsest ticket that does the job
    retaken: int = 0  # how often level 0 was begun again, and its rewind points taken anew

    @classmethod
    def of(cls, settings: SearchSettings) -> SearchProgress:
        """Return the progress of a search that has not begun."""
        masks = Masks.full(settings.model, skip=settings.skip, frozen=settings.frozen)
        if settings.masks is not None:
            masks = masks.intersect(settings.masks)
        score = settings.score.fresh() if isinstance(settings.score, Gathers) else settings.score
        return cls(masks, score, edge=None if settings.max_drop is None else Edge(settings.max_drop))

    @property
    def path_is_over(self) -> bool:
        """Whether a planned path has no further cut."""
        return self.path is not None and self.cuts >= len(self.path.sparsities)

    def amount(self, settings: SearchSettings) -> Amount:
        """Return the amount that cuts: the path that was planned, or what the search was given."""
        return self.path or settings.amount
