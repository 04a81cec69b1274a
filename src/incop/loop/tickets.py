"""What a search takes and hands out: a trainer, tickets, a dense level that is already trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from incop.masks import Masks
from incop.records import Check, Level
from incop.rewind_points import Snapshot
from incop.watch import Watch


class Trains(Protocol):
    """What a trainer must offer; incop's own `Trainer`, an adapter or a class of the user's."""

    def fit(self, model: nn.Module, masks: Masks, watch: Watch) -> None:
        """Train one level from the weights as they are, until the watch says stop or the budget is used up.

        The trainer keeps pruned weights at zero (`incop.hold(masks, model, optimizer)`), starts its optimizer afresh
        and its schedule at epoch `watch.schedule_from`, calls `watch.look()` after every epoch or when `watch.due()`
        says so, once at the end in any case, and returns when a verdict says stop.

        When a loss is not finite it raises `incop.errors.Diverged`, and multiplies its learning rate by `watch.lr_share`, which
        is below 1 after that has happened.

        A trainer that offers `state()` and `restore(state)` besides, and calls `watch.rest()` after every step, is resumed
        within a level: `restore` is called before the `fit` that goes on, in which `watch.step` is above 0. Any other is
        resumed at the level's beginning; so is one that says in `inexact` why it cannot do better. The generators of Python,
        NumPy and torch are the search's business, unless the trainer forks them.

        A trainer that is judged by another metric than accuracy says so in `measures`, a `Metric`, and calls
        `watch.look(metric_value=…)`.

        A trainer that trains pruned levels towards the dense network's outputs says so by `needs_dense_network = True`; the search
        then sets its `dense_network`, a frozen copy in evaluation mode, and None until level 0 has ended.
        """

    def evaluate(self, model: nn.Module) -> float:
        """Return the accuracy on the validation split, in [0, 1], or the metric. Never on the test split."""


@dataclass(frozen=True)
class Ticket:
    """What a level yields: which weights are left, their values at its end, and its record.

    Args:
        record: the level's record; `print(ticket)` shows its line.
        masks: the weights that are left.
        weights: copies of all parameters and buffers at the level's end, by name.
        checks: every look at the network in this level.
        points: of the dense ticket: the rewind points on its way, by their text.
    """

    record: Level
    masks: Masks
    weights: Mapping[str, Tensor]
    checks: tuple[Check, ...] = ()
    points: Mapping[str, Snapshot] = field(default_factory=dict)

    @property
    def level(self) -> int:
        """Number of the level, 0 for the dense network."""
        return self.record.level

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero."""
        return self.record.sparsity

    def load_into(self, model: nn.Module) -> None:
        """Put the ticket's weights and buffers into a model of the same kind, and prove that they are there.

        Not `model.load_state_dict(ticket.weights)`, which asks for a tied weight under each of its names.

        Raises:
            InputError: the model is of another kind; nothing has been written.

        Example:
            >>> import torch
            >>> import incop
            >>> x, y = torch.randn(40, 4), torch.randint(2, (40,))
            >>> trainer = incop.Trainer((x, y), (x, y), epochs=1, batch_size=20)
            >>> *_, ticket = incop.search(torch.nn.Linear(4, 2), trainer, levels=1, amount=0.5, rewind="rate")
            >>> fresh = torch.nn.Linear(4, 2)
            >>> ticket.load_into(fresh)
            >>> int((fresh.weight == 0).sum())
            4
        """
        Snapshot(self.weights).rewind(model)

    def __str__(self) -> str:
        return str(self.record)


@dataclass(frozen=True)
class Dense:
    """A dense level that is already trained, so that several searches can start from the very same one.

    Args:
        record: its record.
        weights: parameters and buffers at its end.
        points: rewind points on its way, by their text ("init", "early:1").
    """

    record: Level
    weights: Snapshot
    points: Mapping[str, Snapshot] = field(default_factory=dict)


def budget_of(trainer: Any, level: int = 0) -> float | None:
    """Return the epochs a trainer gives a level from the schedule's start, when it says so in `.epochs`."""
    epochs = getattr(trainer, "epochs", None)
    if level > 0:
        epochs = getattr(trainer, "level_epochs", None) or epochs
    return float(epochs) if isinstance(epochs, int | float) else None
