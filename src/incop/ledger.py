"""The ledger of a level: its training, and apart from it what looking at the network took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from incop.flat_state import State
from incop.records import Spent


@dataclass
class Expense:
    """What training, or looks of one kind, have cost.

    Args:
        samples: that went through the network.
        seconds: that it took.
    """

    samples: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """A clock and counters: what passes between `start` and `pause` is training, what is `charged` is not.

    Args:
        trained: training.
        probed: looks that a rule needed.
        recorded: looks that were made for the record only.
        abandoned: what went into training that diverged.
    """

    trained: Expense = field(default_factory=Expense)
    probed: Expense = field(default_factory=Expense)
    recorded: Expense = field(default_factory=Expense)
    abandoned: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self.bucket = self.probed
        self.start()

    def start(self) -> None:
        """Start the clock: what has passed since it stood still is not training."""
        self._mark = time.perf_counter()

    def pause(self, cost: Expense | None = None) -> None:
        """Count the time since the clock was started, by default as training, and start it again."""
        cost, now = cost or self.trained, time.perf_counter()
        cost.seconds += now - self._mark
        self._mark = now

    @contextmanager
    def charged(self, bucket: Expense) -> Iterator[Expense]:
        """Add the time spent inside to a kind of looks."""
        self.bucket, started = bucket, time.perf_counter()
        try:
            yield bucket
        finally:
            bucket.seconds += time.perf_counter() - started

    def spent(self, epoch: float, step: int) -> Spent:
        """Return the ledger at an epoch and a step of the level."""
        return Spent(
            self.abandoned.epochs + epoch,
            self.abandoned.steps + step,
            self.trained.samples,
            self.trained.seconds,
            self.probed.seconds,
            self.probed.samples,
            self.recorded.seconds,
            self.recorded.samples,
        )

    def state(self) -> State:
        """Return what `restore` needs."""
        return {
            "samples": self.trained.samples,
            "seconds": self.trained.seconds,
            "probed": [self.probed.samples, self.probed.seconds],
            "recorded": [self.recorded.samples, self.recorded.seconds],
            "abandoned": self.abandoned.to_json(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        for cost, (samples, seconds) in (
            (self.trained, (state["samples"], state["seconds"])),
            (self.probed, state["probed"]),
            (self.recorded, state["recorded"]),
        ):
            cost.samples, cost.seconds = int(samples), float(seconds)
        self.abandoned = Spent.from_json(state.get("abandoned", {}))
