"""What a trainer carries from step to step, from level to level, and across a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from incop import observing
from incop.loaders import Loader, Place, SampleOrder
from incop.ranks import ALONE, Ranks
from incop.states import State, optimizer_state, part, restore_optimizer, restoring, under


@dataclass
class Stretch:
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
    begin: float
    searching: bool
    step: int = 0
    losses: list[float] = field(default_factory=list)
    ranks: Ranks = ALONE

    def state(self) -> State:
        """Return what `Carried.resumed` makes the same stretch of."""
        state: State = {
            "begin": self.begin,
            "step": self.step,
            "searching": self.searching,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            **self.samples.state(),
            **{_torch_of(n): one for n, one in enumerate(self.ranks.all(torch.get_rng_state()))},
            **under("optimizer", optimizer_state(self.optimizer)),
        }
        if observing.device_of(self.model).type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(observing.device_of(self.model))
        return state


@dataclass
class Carried:
    """What a trainer knows beside its settings.

    Args:
        now: what is trained at the moment; None between levels.
        kept: the network and the optimizer of the last search level, where that is kept.
        outside: the caller's random states when the level began; they come back after it.
        pending: a state that the next level goes on from.
    """

    now: Stretch | None = None
    kept: tuple[nn.Module, torch.optim.Optimizer] | None = None
    outside: State = field(default_factory=dict)
    pending: State | None = None

    def state(self, loader: Loader | None) -> State:
        """Return what is `pending` when it is to be gone on with."""
        kept = None if self.kept is None else self.kept[1]
        apart = kept is not None and (self.now is None or kept is not self.now.optimizer)
        state: State = {"keeps": kept is not None, "apart": apart}
        if kept is not None and apart:
            state |= under("kept", optimizer_state(kept))
        if self.now is None:
            return state | ({} if loader is None else under("loader", loader.state()))
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
        self,
        model: nn.Module,
        samples: SampleOrder | Place,
        fresh: Callable[[], torch.optim.Optimizer],
        seed_of: Callable[[int], int],
        ranks: Ranks,
    ) -> Stretch | None:
        """Return the stretch of the pending state; None where the level begins.

        Args:
            model: the network.
            samples: their order, which takes the state's place.
            fresh: makes an optimizer of its weights.
            seed_of: gives a seed for a step, where this process had no random state.
            ranks: the processes that train the model.

        Raises:
            InputError: the state is incomplete, or of another network.
        """
        state, self.pending = self.pending, None
        if state is None:
            return None
        self.kept = None  # of a level that diverged
        with restoring("training"):
            return self._stretch(state, model, samples, fresh, seed_of, ranks)

    def _stretch(
        self,
        state: State,
        model: nn.Module,
        samples: SampleOrder | Place,
        fresh: Callable[[], torch.optim.Optimizer],
        seed_of: Callable[[int], int],
        ranks: Ranks,
    ) -> Stretch | None:
        if state.get("keeps"):
            kept = fresh()
            restore_optimizer(kept, part("kept", state))
            self.kept = model, kept
        if "step" not in state:
            if isinstance(samples, Place):
                samples.loader.restore(part("loader", state))
            return None
        optimizer = self.kept[1] if self.kept is not None and not state["apart"] else fresh()
        restore_optimizer(optimizer, part("optimizer", state))
        begin, step = float(state["begin"]), int(state["step"])
        samples.restore(state)
        torch.set_rng_state(state["torch"])
        if (mine := state.get(_torch_of(ranks.rank))) is not None:
            torch.set_rng_state(mine)
        else:  # there were fewer processes
            torch.manual_seed(seed_of(step))
        if "cuda" in state and observing.device_of(model).type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], observing.device_of(model))
        if not (0.0 <= begin < 1e9 and step >= 0):
            raise ValueError(f"it stands at epoch {begin}, step {step}")
        return Stretch(
            model, optimizer, samples, begin, bool(state["searching"]), step, state["losses"].tolist(), ranks
        )


def _torch_of(rank: int) -> str:
    return "torch" if rank == 0 else f"torch of {rank}"
