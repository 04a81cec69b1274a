"""Loaders: batches of any re-readable kind as a trainer takes them, and the place in a pass at which it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from incop import distributed
from incop.batches import Batch, placed, unpack
from incop.distributed import Ranks, divides_itself
from incop.errors import InputError
from incop.flat_state import State, part, random_states, restore_random, under

# Samplers whose order is known from torch's random state, or a generator of theirs, when a pass begins.
SEEDED = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, BatchSampler, type(None))
ALONE = "it is gone through once an epoch"


class Loader:
    """Batches that are gone through once an epoch: a data loader, a list, or any object with a length that can be read again.

    Args:
        batches: the batches; each is unpacked as `incop.batches.unpack` does.
        unpack: turns one into (inputs, target) first, where it has another form.
        what: their name in messages.
        targets: whether every batch must have a target.
    """

    def __init__(
        self,
        batches: Any,
        *,
        unpack: Callable[[Any], Any] | None = None,
        what: str = "the training split",
        targets: bool = True,
    ) -> None:
        if isinstance(batches, Iterator):
            raise InputError(
                f"{what} is an iterator, which can be read only once, and it is read at every epoch: pass list(batches) or the "
                "data loader itself"
            )
        if isinstance(batches, Tensor | Mapping | Batch) or not isinstance(batches, Iterable):
            raise InputError(
                f"{what} is a {type(batches).__name__}: pass (inputs, targets) of two tensors, a data loader, or a list of batches"
            )
        self.batches = batches
        self.what = what
        self._unpack = unpack
        self._targets = targets
        try:
            self._count = len(batches)  # type: ignore[arg-type]  # that it has none is what is found out
        except TypeError:
            raise InputError(
                f"{what} is a {type(batches).__name__} that does not say how many batches it has, such as a stream: {ALONE}, and "
                "budgets and schedules are reckoned in epochs; give it a length (__len__), or take an epoch's batches as a list"
            ) from None
        if self._count == 0:
            raise InputError(f"{what} is empty: pass at least one batch")
        self.first = self._looked_at()

    def __len__(self) -> int:
        return self._count

    @property
    def target(self) -> Any:
        """The first batch's target."""
        return self.first.target

    @property
    def labelled(self) -> bool:
        """Whether the first batch has a target."""
        return self.first.target is not None

    def steps(self, batch_size: int) -> int:
        """Return the batches of an epoch; a loader has a batch size of its own."""
        return self._count

    def order(self, device: torch.device, level: int, seed: int) -> Place:
        """Return the beginning of a level's first pass."""
        return Place(self, device, level * 100_000)

    @property
    def inexact(self) -> str | None:
        """Why a pass cannot be taken up again where it was left, as a sentence; None where it can."""
        why = _unknown_order(self.batches)
        if why is None:
            return None
        return f"a search that is resumed goes on at the beginning of the level it stood in: {why}"

    def unpacked(self, batch: Any) -> Batch:
        """Return a batch as the trainer takes it."""
        found = unpack(batch if self._unpack is None else self._unpack(batch))
        if found.target is None and self._targets:
            raise InputError(
                f"a batch of {self.what} has no target: give (inputs, target), a dictionary with the target under 'labels', or "
                "unpack=, a function that makes (inputs, target) of a batch"
            )
        return found

    @property
    def divided(self) -> bool:
        """Whether each of several processes is given its own share of the samples."""
        return divides_itself(self.batches)

    def once(self, device: torch.device, together: Ranks = distributed.ALONE) -> Iterator[tuple[Batch, Any, int]]:
        """Go through all batches once, on a device; of several processes each is given its part of the batches."""
        own, every = self.state(), 1 if self.divided else together.size
        try:
            for number, batch in enumerate(self.batches):
                if number % every == together.rank % every:
                    found = placed(self.unpacked(batch), device=device)
                    yield found, found.target, found.samples
        finally:
            self.restore(own)  # they may be the training split's, too

    def set_epoch(self, number: int) -> None:
        """Tell its samplers that draw their order by a pass's number."""
        for holder in _holders(self.batches):
            if callable(tell := getattr(holder, "set_epoch", None)):
                tell(number)

    def generators(self) -> list[torch.Generator]:
        """Return the random generators of its own that decide its order."""
        return [generator for holder in _holders(self.batches) if (generator := _generator(holder)) is not None]

    def state(self) -> State:
        """Return the states of its own generators."""
        return {f"{number}": generator.get_state() for number, generator in enumerate(self.generators())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put the states of its own generators back."""
        for number, generator in enumerate(self.generators()):
            generator.set_state(state[str(number)])

    def _looked_at(self) -> Batch:
        """Return the first batch, and leave every random state as it was."""
        random, own = random_states(), self.state()
        try:
            return self.unpacked(next(iter(self.batches)))
        except StopIteration:
            raise InputError(f"{self.what} says that it has {self._count} batches and holds none") from None
        finally:
            restore_random(random)
            self.restore(own)


class Place:
    """Where training stands in a pass through a loader; it can be told and taken up again.

    Args:
        loader: what is gone through.
        device: where its batches go.
        passes: passes before this one, by which a `DistributedSampler` draws its order.
    """

    def __init__(self, loader: Loader, device: torch.device, passes: int = 0) -> None:
        self.loader = loader
        self.device = device
        self.passes = passes
        self.at = 0
        self._pass: Iterator[Any] | None = None
        self._before: tuple[State, State] = {}, {}

    def afresh(self) -> Self:
        """Return the beginning of a new pass."""
        return type(self)(self.loader, self.device, self.passes)

    def next(self, batch_size: int, together: Ranks) -> tuple[Batch, Any, int]:
        """Return the next batch and how many samples all processes have in it; a new pass begins when one is through."""
        for _ in range(2):
            if self._pass is None:
                self._begin()
            assert self._pass is not None
            batch = next(self._pass, None)
            if batch is not None:
                self.at += 1
                found = placed(self.loader.unpacked(batch), device=self.device)
                return found, found.target, sum(together.all(found.samples))
            self._pass = None
        raise InputError(f"{self.loader.what} held batches once and now holds none: it can be read only once")

    def _begin(self) -> None:
        self._before = random_states(), self.loader.state()
        if self.loader.divided:
            self.loader.set_epoch(self.passes)
        self._pass, self.at, self.passes = iter(self.loader.batches), 0, self.passes + 1

    def state(self) -> State:
        """Return what the pass began with and how many of its batches are behind."""
        began, own = self._before
        return {
            "at": self.at,
            "open": self._pass is not None,
            **under("began", began),
            **under("own", own),
            **under("now", self.loader.state()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Begin the same pass again and leave out what is behind; random states other than the loader's own stay as they are."""
        if not state["open"]:
            return
        random = random_states()
        restore_random(part("began", state))
        self.loader.restore(part("own", state))
        self._begin()
        assert self._pass is not None
        for _ in range(int(state["at"])):
            next(self._pass, None)
        self.at = int(state["at"])
        self.loader.restore(part("now", state))
        restore_random(random)


def _holders(batches: Any) -> list[Any]:
    if not isinstance(batches, DataLoader):
        return []
    return [batches, batches.sampler, batches.batch_sampler, getattr(batches.batch_sampler, "sampler", None)]


def _generator(holder: Any) -> torch.Generator | None:
    found = getattr(holder, "generator", None)
    return found if isinstance(found, torch.Generator) else None


def _unknown_order(batches: Any) -> str | None:
    """Return why the order of a pass is not known from the random states it began with; None where it is."""
    if isinstance(batches, list | tuple):
        return None
    if not isinstance(batches, DataLoader) or type(batches).__iter__ is not DataLoader.__iter__:
        return f"the order in which a {type(batches).__name__} gives its batches is its own"
    if isinstance(batches.dataset, IterableDataset):
        return "the data loader reads a stream"
    if batches.persistent_workers:
        return "the data loader keeps its workers, and with them their random states, from epoch to epoch"
    strange = [type(one).__name__ for one in _holders(batches)[1:] if type(one) not in SEEDED]
    return f"the order of the sampler {strange[0]} is its own" if strange else None
