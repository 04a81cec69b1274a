"""What a trainer carries from step to step, from level to level, and across a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from incop import inspection
from incop.distributed import ALONE, Ranks
from incop.flat_state import State, optimizer_state, part, restore_optimizer, restoring, under
from incop.loaders import Loader, Place
from incop.tensor_split import SampleOrder, TensorSplit


@dataclass
class TrainingPhase:
    """A stretch of training with one optimizer and one batch size: a level, or what a rule's stop divides it into.

    Args:
        model: the network.
        optimizer: of its weights.
        samples: the order of samples, or the place in a pass through a data loader.
        begin: epochs of the level before it.
        searching: whether a rule may end it.
        step: steps in it so far.
        losses: of the steps since the last look.
        ranks: the processes that train the model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    samples: SampleOrder | Place
    begin: float = 0.0
    searching: bool = False
    step: int = 0
    losses: list[float] = field(default_factory=list)
    ranks: Ranks = ALONE

    def state(self) -> State:
        """Return what `restore` needs."""
        state: State = {
            "begin": self.begin,
            "step": self.step,
            "searching": self.searching,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            **self.samples.state(),
            **{_torch_of(n): one for n, one in enumerate(self.ranks.all(torch.get_rng_state()))},
            **under("optimizer", optimizer_state(self.optimizer)),
        }
        if inspection.device_of(self.model).type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(inspection.device_of(self.model))
        return state

    def restore(self, state: Mapping[str, Any], seed: int) -> None:
        """Go on where another stretch of the same model stood; `seed` is for a process that was not there then."""
        restore_optimizer(self.optimizer, part("optimizer", state))
        self.begin, self.step, self.searching = float(state["begin"]), int(state["step"]), bool(state["searching"])
        if not (0.0 <= self.begin < 1e9 and self.step >= 0):
            raise ValueError(f"it stands at epoch {self.begin}, step {self.step}")
        self.losses = state["losses"].tolist()
        self.samples.restore(state)
        torch.set_rng_state(state["torch"])
        if (mine := state.get(_torch_of(self.ranks.rank))) is not None:
            torch.set_rng_state(mine)
        else:
            torch.manual_seed(seed + self.step)
        if "cuda" in state and inspection.device_of(self.model).type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], inspection.device_of(self.model))


@dataclass
class Carried:
    """What a trainer knows beside its settings.

    Args:
        now: what is trained at the moment; None between levels.
        kept: the network and the optimizer of the last search level, where that is kept.
        outside: the caller's random states when the level began; they come back after it.
        pending: a state that the next level goes on from.
    """

    now: TrainingPhase | None = None
    kept: tuple[nn.Module, torch.optim.Optimizer] | None = None
    outside: State = field(default_factory=dict)
    pending: State | None = None

    def state(self, split: TensorSplit | Loader) -> State:
        """Return what is `pending` when it is to be gone on with."""
        kept = None if self.kept is None else self.kept[1]
        apart = kept is not None and (self.now is None or kept is not self.now.optimizer)
        state: State = {"keeps": kept is not None, "apart": apart}
        if kept is not None and apart:
            state |= under("kept", optimizer_state(kept))
        if self.now is None:
            return state | under("loader", split.state())
        return state | self.now.state() | under("outside", self.outside)

    def enter(self, devices: list[torch.device]) -> None:
        """Note the caller's random states; of a resumed level, put back those that it began with."""
        before = part("outside", self.pending or {})
        with restoring("training"):
            if "torch" in before:
                torch.set_rng_state(before["torch"])
            for device in devices:
                if "cuda" in before:
                    torch.cuda.set_rng_state(before["cuda"], device)
        self.outside = {"torch": torch.get_rng_state()}
        for device in devices:
            self.outside["cuda"] = torch.cuda.get_rng_state(device)

    def resumed(
        self, blank: TrainingPhase, split: TensorSplit | Loader, fresh: Callable[[], torch.optim.Optimizer], seed: int
    ) -> TrainingPhase | None:
        """Return the stretch of the pending state; None where a level begins with it.

        Args:
            blank: a stretch that has not begun, which becomes that of the state.
            split: the training split.
            fresh: makes an optimizer of the network's weights.
            seed: of this process.
        """
        state, self.pending = self.pending or {}, None
        self.kept = None  # of a level that diverged
        with restoring("training"):
            if state.get("keeps"):
                self.kept = blank.model, fresh()
                restore_optimizer(self.kept[1], part("kept", state))
            if "step" not in state:
                split.restore(part("loader", state))
                return None
            if self.kept is not None and not state["apart"]:
                blank.optimizer = self.kept[1]
            blank.restore(state, seed)
        return blank


def _torch_of(rank: int) -> str:
    return "torch" if rank == 0 else f"torch of {rank}"
