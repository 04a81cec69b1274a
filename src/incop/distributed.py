"""Ranks: the processes that train one network together, and what they tell each other; one process alone tells itself.

Everything that knows of process groups is here. Torch is imported where it is needed, so that commands can ask `launched()`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from incop.errors import Diverged, IncopError, InputError, MissingExtra, TrainingError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

PATIENCE = 300.0  # seconds that a process waits for the others; `INCOP_RANK_TIMEOUT` says another number
ASK_STORE = 3.0  # seconds to wait for why another process has ended: where the notes are kept may be gone too
NOTE = "ended/"
# what gloo, NCCL and their stores say when another process is gone or does not answer
UNREACHABLE = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|broken pipe|socket|gloo|nccl|peer|unreachable|no route", re.I
)

_notes: Any = None  # the store in which a process that ends says why


class Lost(TrainingError):
    """Another process of the search has ended or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train one network together, as one of them sees them. Each method must be called by all of them.

    Args:
        rank: the number of this one, from 0; the first one writes and decides.
        size: how many there are.
        group: torch's process group; None for one alone.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def one(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def share(self, count: int) -> tuple[int, int]:
        """Return this one's share of so many samples in a row, from and to; shares differ by one at most."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def same(self, value: T) -> T:
        """Return the first one's value."""
        if self.one:
            return value
        from torch import distributed

        told = [value]
        with linked(self):
            distributed.broadcast_object_list(told, src=distributed.get_global_rank(self.group, 0), group=self.group)
        return told[0]

    def all(self, value: T) -> list[T]:
        """Return everybody's value, in the order of their numbers."""
        if self.one:
            return [value]
        from torch import distributed

        told: list[Any] = [None] * self.size
        with linked(self):
            distributed.all_gather_object(told, value, group=self.group)
        return told

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of everybody's tensor, the same to the bit everywhere; shapes must agree."""
        if self.one:
            return tensor
        from torch import distributed

        whole = tensor.detach().to(self._carrier(tensor), copy=True).contiguous()
        with linked(self):
            distributed.all_reduce(whole, group=self.group)
        return whole.to(tensor.device)

    def mean(self, value: float) -> float:
        """Return everybody's value where it is one, and else their mean."""
        found = self.all(float(value))
        return found[0] if all(one == found[0] for one in found) else sum(found) / len(found)

    def once(self, function: Callable[[], T]) -> T:
        """Let the first one do something, and return what it found to all; when it raises, all raise the same."""
        if self.one:
            return function()
        value, error = self._tried(function) if self.first else (None, None)
        told: Any
        told, wrong = self.same((value, error and _portable(error)))
        if wrong is not None:
            raise shared(error or wrong)
        return told  # type: ignore[no-any-return]

    def together(self, function: Callable[[], T]) -> T:
        """Do something in every process and return each its own; when it raises in one, all raise what the first such did.

        The function must not itself wait for the others.
        """
        if self.one:
            return function()
        value, error = self._tried(function)
        wrong = self.all(error and _portable(error))
        failed = [rank for rank, one in enumerate(wrong) if one is not None]
        if not failed:
            return value  # type: ignore[return-value]
        theirs = wrong[failed[0]]
        assert theirs is not None
        if 0 in failed:  # most likely all
            raise shared(error or theirs)
        place = self.places()[failed[0]]
        raise shared(_of(theirs, f"in {place}: {theirs}")) from theirs

    def asked(self, function: Callable[..., T]) -> Callable[..., T]:
        """Return the function with the first one's answers: sums taken by other numbers of threads differ in their last bits."""
        return function if self.one else _Asked(function, self)

    def apart(self, value: Any) -> int | None:
        """Return the number of the first process whose value is not process 0's; None where all are one."""
        found = self.all(value)
        return next((rank for rank, one in enumerate(found) if one != found[0]), None)

    def places(self) -> list[str]:
        """Return how each is called in messages: its number and its host."""
        return self.all(_place(self.rank, self.size))

    def _tried(self, function: Callable[[], T]) -> tuple[T | None, Exception | None]:
        try:
            return function(), None
        except Exception as error:
            return None, error

    def _carrier(self, tensor: Tensor) -> Any:
        """Return the device over which a tensor travels: its own where the group can, else one that it can."""
        import torch

        able = [device.type for device in getattr(self.group, "_device_types", [])] or ["cpu"]
        if tensor.device.type in able:
            return tensor.device
        return torch.device("cuda", torch.cuda.current_device()) if "cuda" in able else torch.device("cpu")


ALONE = Ranks()


class _Asked:
    """A function whose answers are those of the first process."""

    def __init__(self, function: Callable[..., Any], ranks: Ranks) -> None:
        self.function, self.ranks = function, ranks

    def __call__(self, *args: Any) -> Any:
        return self.ranks.same(self.function(*args))

    def __str__(self) -> str:
        return str(self.function)


def of(model: nn.Module) -> Ranks:
    """Return the processes that train a model: those of its `DistributedDataParallel`; for any other model this one alone."""
    from torch import distributed

    spread = _spread(model)
    if spread is None:
        return ALONE
    group = spread.process_group
    size = distributed.get_world_size(group)
    return ALONE if size == 1 else Ranks(distributed.get_rank(group), size, group)


def _spread(model: Any) -> Any:
    """Return the `DistributedDataParallel` around a model, which `torch.compile` may be around; None where there is none."""
    from torch import nn

    if type(model).__name__ == "OptimizedModule":
        model = model._modules.get("_orig_mod")
    return model if isinstance(model, nn.parallel.DistributedDataParallel) else None


def within(model: nn.Module) -> nn.Module:
    """Return the model that one process may call by itself: `DistributedDataParallel` may wait for the others when it is called."""
    spread = _spread(model)
    return model if spread is None else spread.module


def level_buffers(model: nn.Module, *, only_running: bool = False) -> None:
    """Bring the buffers of all processes together: batch normalisation's running statistics to their mean, others to the first's.

    Each process normalises by its own share of a batch, so that its running statistics are of that alone.

    Args:
        model: the model; without `DistributedDataParallel` nothing is done.
        only_running: leave the others, which hardly any model changes at every step.
    """
    ranks = of(model)
    if ranks.one:
        return
    import torch
    from torch import distributed, nn

    inner = within(model)
    averaged = {
        id(buffer)
        for module in inner.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    }
    buffers = list(inner.buffers())
    running = [buffer for buffer in buffers if id(buffer) in averaged]
    with torch.no_grad():
        if running:
            mean = ranks.total(torch.cat([b.reshape(-1).double() for b in running])) / ranks.size
            for buffer, part in zip(running, mean.split([b.numel() for b in running]), strict=True):
                buffer.copy_(part.view_as(buffer))
        source = distributed.get_global_rank(ranks.group, 0)
        for buffer in () if only_running else buffers:
            if id(buffer) not in averaged and buffer.numel():
                carried = buffer.to(ranks._carrier(buffer)).contiguous()
                with linked(ranks):
                    distributed.broadcast(carried, src=source, group=ranks.group)
                buffer.copy_(carried)


def divides_itself(batches: Any) -> bool:
    """Say whether a data loader gives each process its own share, by a `DistributedSampler` or one that has its fields."""
    samplers = [getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    return any(hasattr(sampler, "num_replicas") and hasattr(sampler, "rank") for sampler in samplers)


def launched() -> bool:
    """Say whether torchrun, or what sets the same variables, has started this process with others."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdigit() and int(size) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def number() -> int:
    """Return this process's number among those that were started with it; 0 for one alone."""
    return int(os.environ["RANK"]) if launched() and os.environ["RANK"].isdigit() else 0


def local() -> int | None:
    """Return this process's number among those on its host; None for one that was started alone."""
    place = os.environ.get("LOCAL_RANK", "")
    return int(place) if launched() and place.isdigit() else None


def restarted() -> bool:
    """Say whether torchrun has started the processes again after one had failed (`--max-restarts`)."""
    return launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def _patience() -> float:
    said = os.environ.get("INCOP_RANK_TIMEOUT", "")
    try:
        seconds = float(said) if said else PATIENCE
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise InputError(f"INCOP_RANK_TIMEOUT={said!r}: give the seconds to wait for other processes, 1 to 86400")
    return seconds


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that were started with this one by torchrun, and part from them at the end; alone, do nothing."""
    global _notes
    if not launched():
        yield ALONE
        return
    # or torch shows its own frames where another process has ended
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import torch
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    if distributed.is_initialized():  # by whoever calls this
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD)
        return
    wait = timedelta(seconds=_patience())
    gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=wait)))
        store.set_timeout(wait)
        # those that torchrun starts again are given the store of the first ones
        store = PrefixStore(f"incop/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        _notes = store
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=wait,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"the {os.environ['WORLD_SIZE']} processes that torchrun started did not meet within {_patience():g} s "
            f"({_first_line(error)}): check that all hosts reach MASTER_ADDR={os.environ['MASTER_ADDR']} and each other, and name "
            "the interface with GLOO_SOCKET_IFNAME where a host has several"
        ) from error
    ours = Ranks(rank, size, distributed.group.WORLD)
    try:
        yield ours
        with linked(ours):
            distributed.barrier(group=ours.group)  # who leaves first may break the others off
    except BaseException as error:
        _leave_note(ours, error)
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()
        _notes = None


@contextlib.contextmanager
def linked(ranks: Ranks) -> Iterator[None]:
    """Say in a sentence that another process has ended or cannot be reached, where torch raises what its network said."""
    if ranks.one:
        yield
        return
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TrainingError) or not _is_of_the_link(error):
            raise
        raise Lost(_lost(ranks, error)) from error


def _is_of_the_link(error: RuntimeError) -> bool:
    from torch import distributed

    if isinstance(error, getattr(distributed, "DistError", ())):
        return True
    text = str(error)
    return type(error) is RuntimeError and UNREACHABLE.search(text) is not None and "gloo" in text.lower()


def _lost(ranks: Ranks, error: RuntimeError) -> str:
    text = _first_line(error)
    ended = _read_notes(ranks)
    if ended:
        return f"{ended[0]}, and with it the search of all {ranks.size} processes"
    where = re.search(r"\[([0-9a-fA-F.:]+)\]:\d+", text)
    far = where is not None and not where[1].startswith(("127.", "::1", "::ffff:127."))
    who = f"a process at {where[1]}" if where and far else f"another of the {ranks.size} processes"
    if re.search(r"timed? ?out", text, re.I):
        return (
            f"{who} has not answered for {_patience():g} s: it hangs, or the network between the hosts is down "
            "(INCOP_RANK_TIMEOUT says how long to wait)"
        )
    return f"{who} has ended or cannot be reached any more: it was killed, or the network between the hosts broke off"


def _leave_note(ranks: Ranks, error: BaseException) -> None:
    """Tell those who wait why this process ends; nothing is told that they know or that came of their own end."""
    if _notes is None or isinstance(error, Lost | SystemExit) or getattr(error, "shared", False):
        return
    said = f"{_place(ranks.rank, ranks.size)} has ended: {_first_line(error)}"
    _within_time(lambda: _notes.set(f"{NOTE}{ranks.rank}", said))


def _read_notes(ranks: Ranks) -> list[str]:
    store = _notes
    if store is None:
        return []

    def read() -> list[str]:
        keys = [f"{NOTE}{rank}" for rank in range(ranks.size)]
        return [store.get(key).decode(errors="replace") for key in keys if store.check([key])]

    return _within_time(read) or []


def _within_time(function: Callable[[], T]) -> T | None:
    """Return what a function of the store gives; None where it does not answer soon."""
    found: list[T] = []

    def call() -> None:
        with contextlib.suppress(Exception):
            found.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(ASK_STORE)
    return found[0] if found else None


def _place(rank: int, size: int) -> str:
    return f"process {rank} of {size} on {platform.node() or 'its host'}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _portable(error: Exception) -> Exception:
    """Return an error that can be told to another process: one of incop's own, with the sentence of any other."""
    if type(error) in (InputError, TrainingError, Diverged, MissingExtra, IncopError):
        return error
    kind = InputError if isinstance(error, InputError) else TrainingError
    return kind(str(error) if isinstance(error, IncopError) else f"{type(error).__name__}: {_first_line(error)}")


def _of(error: Exception, sentence: str) -> Exception:
    return InputError(sentence) if isinstance(error, ValueError) else TrainingError(sentence)


def shared(error: Exception) -> Exception:
    """Return an error that all processes raise, marked so that one of them tells it."""
    error.shared = True  # type: ignore[attr-defined]
    return error
