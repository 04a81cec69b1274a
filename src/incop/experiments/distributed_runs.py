"""Runs by several processes: what must be the same in all of them, and what their number changes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from incop import inspection
from incop.batches import output_tensor
from incop.distributed import Ranks, shared
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.experiments.preparation import PreparedRun
from incop.flat_state import State
from incop.locks import Lock

_SYNC_BUFFERS = next(  # torch has given it another name
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(nn.parallel.DistributedDataParallel).parameters
)
OWN = ("data_dir", "threads")  # of a plan: these may be other in every process


@contextlib.contextmanager
def by_the_first(lock: Lock, together: Ranks) -> Iterator[None]:
    """Let the first process hold a folder's lock."""
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(lock)

        together.once(take)
        yield


def check_one_plan(plan: Plan, together: Ranks) -> None:
    """Refuse processes that were started with different plans, as from two hosts with different flags."""
    mine = {key: value for key, value in dataclasses.asdict(plan).items() if key not in OWN}
    found = together.all(mine)
    for rank, theirs in enumerate(found):
        for key, value in theirs.items():
            if value != found[0][key]:
                sentence = f"process {rank} was started with {key} = {value!r} and process 0 with {found[0][key]!r}"
                raise shared(InputError(f"{sentence}: start all with the same flags and plan file"))


def distributed(prepared: PreparedRun, together: Ranks) -> nn.Module:
    """Return the run's model as these processes train it: in a `DistributedDataParallel`; alone as it is."""
    model = prepared.model
    if together.one:
        return model
    apart = together.apart(prepared.data.fingerprint)
    if apart is not None:
        sentence = f"the data of process {apart} are not those of process 0: give all hosts the same files"
        raise shared(InputError(sentence))
    device = inspection.device_of(model)
    unused = together.same(together.together(lambda: _unused(prepared)))
    kept_apart: dict[str, Any] = {_SYNC_BUFFERS: False}  # they are brought together after every step
    wrapped = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        process_group=together.group,
        **kept_apart,
        find_unused_parameters=unused,
    )
    _warm(wrapped, prepared)
    return wrapped


def _loss(model: nn.Module, prepared: PreparedRun) -> torch.Tensor:
    inputs, labels = prepared.probe[0]
    return prepared.trainer.loss(output_tensor(model(inputs[:4]), where=type(prepared.model).__name__), labels[:4])


def _unused(prepared: PreparedRun) -> bool:
    """Say whether a parameter has no part in the loss, for which DistributedDataParallel would wait in vain."""
    model = prepared.model
    with inspection.undisturbed(model), torch.enable_grad():
        wanted = [p for p in model.parameters() if p.requires_grad]
        return any(g is None for g in torch.autograd.grad(_loss(model, prepared), wanted, allow_unused=True))


def _warm(wrapped: nn.Module, prepared: PreparedRun) -> None:
    """Go forward and backward once, as a run that is gone on with has not and one that went on has.

    After the first time torch lays gradients out in another order, in which sums of more than two processes are taken otherwise.
    """
    with inspection.undisturbed(prepared.model), torch.enable_grad():
        _loss(wrapped, prepared).backward()


def environment(prepared: PreparedRun, together: Ranks) -> dict[str, Any]:
    """Return what a record should say of the processes; nothing of one alone."""
    if together.one:
        return {}
    device = inspection.device_of(prepared.model)
    found = together.all((platform.node(), torch.get_num_threads(), str(device)))
    return {
        "processes": together.size,
        "hosts": [host for host, _, _ in found],
        "process_threads": [threads for _, threads, _ in found],
        "process_devices": [where for _, _, where in found],
        "backend": "nccl" if device.type == "cuda" else "gloo",
    }


def threads_of(then: Mapping[str, Any], together: Ranks) -> int:
    """Return how many threads this process had when the run began."""
    threads = then.get("process_threads")
    if isinstance(threads, list) and len(threads) == together.size and type(threads[together.rank]) is int:
        return max(1, min(int(threads[together.rank]), 1024))
    return int(then["threads"])


def _processes(environment: Mapping[str, Any]) -> int:
    found = environment.get("processes", 1)
    return found if type(found) is int else 1


def command(environment: Mapping[str, Any]) -> str:
    """Return how a run by so many processes is started."""
    size = _processes(environment)
    return "incop" if size == 1 else f"torchrun --nproc-per-node {size} -m incop"


def since(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the processes of a run are now, where they were as many or are others."""
    if _processes(then) == _processes(now):
        return {}
    earlier = then.get("processes_before")
    before = [*(earlier if isinstance(earlier, list) else []), _processes(then)]
    kept = {key: now.get(key) for key in ("processes", "hosts", "process_threads", "process_devices", "backend")}
    return {**kept, "processes": _processes(now), "processes_before": before}


def check_processes(then: Mapping[str, Any], together: Ranks, state: State | None) -> list[str]:
    """Return a sentence when a run goes on with another number of processes, and put it among the notices of its level."""
    before = _processes(then)
    if before == together.size:
        return []
    sentence = (
        f"begun by {before} process{'' if before == 1 else 'es'} and gone on with by {together.size}: batches and sums are divided "
        "otherwise from here on, so that results are not to the bit those of either number"
    )
    if state is not None:
        state["notices"] = [*state["notices"], sentence]
    return [sentence]
