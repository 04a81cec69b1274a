"""What a ticket has cost: the ledgers of the levels it took, in every unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from incop.records import Level, Spent

PASSES = 3  # a training step is one forward pass and a backward pass of about twice its work


@dataclass(frozen=True)
class TicketCost:
    """A cost in every unit; what is charged is training and probing, what was measured only for the record is not.

    Args:
        epochs: passes over the training split.
        samples: training samples seen.
        seconds: time of training.
        probe_epochs: samples probed, as passes over the training split.
        probe_samples: samples probed.
        probe_seconds: time of probing.
        record_samples: samples measured only for the record, which no rule needed.
        record_seconds: time of those measurements.
        flops: FLOPs of the training, about 3 × forward × samples, without the pruned weights; None when not known.
        dense_flops: the same as if no weight had been pruned.
    """

    epochs: float = 0.0
    samples: float = 0.0
    seconds: float = 0.0
    probe_epochs: float = 0.0
    probe_samples: float = 0.0
    probe_seconds: float = 0.0
    record_samples: float = 0.0
    record_seconds: float = 0.0
    flops: float | None = 0.0
    dense_flops: float | None = 0.0

    @property
    def charged_epochs(self) -> float:
        """Training and probing, in passes over the training split."""
        return self.epochs + self.probe_epochs

    @property
    def charged_seconds(self) -> float:
        """Training and probing, in seconds."""
        return self.seconds + self.probe_seconds

    def __add__(self, other: TicketCost) -> TicketCost:
        """Add two costs entry by entry; what one of them does not know, the sum does not know."""
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            pair = (getattr(self, entry.name), getattr(other, entry.name))
            values[entry.name] = None if None in pair else pair[0] + pair[1]
        return TicketCost(**values)


def samples_per_epoch(levels: Iterable[Level]) -> float | None:
    """Return the size of the training split as the ledgers tell it; None when nothing was trained."""
    trained = [level for level in levels if level.epochs > 0]
    epochs = sum(level.epochs for level in trained)
    return sum(level.samples for level in trained) / epochs if epochs else None


def level_cost(level: Level, spent: Spent, per_epoch: float | None) -> TicketCost:
    """Return a ledger of a level as a cost.

    Args:
        level: the level, for its FLOPs.
        spent: the level's ledger or the searched part of it.
        per_epoch: samples in the training split; None: probing cannot be told in epochs and counts as none.
    """
    return TicketCost(
        epochs=spent.epochs,
        samples=spent.samples,
        seconds=spent.seconds,
        probe_epochs=spent.probe_samples / per_epoch if per_epoch else 0.0,
        probe_samples=spent.probe_samples,
        probe_seconds=spent.probe_seconds,
        record_samples=spent.record_samples,
        record_seconds=spent.record_seconds,
        flops=None if level.flops is None else float(PASSES * level.flops * spent.samples),
        dense_flops=None if level.dense_flops is None else float(PASSES * level.dense_flops * spent.samples),
    )


def costs_of_ticket(levels: Sequence[Level], number: int) -> tuple[TicketCost, TicketCost, TicketCost]:
    """Return what the ticket of a level has cost: its search, all after level 0, and all.

    The search is the searched parts of the pruning levels before it; "after level 0" adds the full training of its
    own level, "all" the dense network.

    Args:
        levels: all levels of the run.
        number: the number of the ticket's level.
    """
    per_epoch = samples_per_epoch(levels)
    search = dense = own = TicketCost()
    for level in levels:
        if level.level == 0:
            dense = level_cost(level, level.spent, per_epoch)
        if 0 < level.level < number:
            search = search + level_cost(level, level.searched, per_epoch)
        elif level.level == number > 0:
            own = level_cost(level, level.spent, per_epoch)
    return search, search + own, search + own + dense
