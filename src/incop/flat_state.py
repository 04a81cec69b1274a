"""States: what can be gone on from, as one flat mapping from names to tensors and plain values; random states, optimizers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from incop.errors import InputError

__all__ = ["optimizer_state", "random_states", "restore_optimizer", "restore_random"]

State = dict[str, Any]  # names, with / between their parts, to tensors and to what JSON holds


def under(prefix: str, state: Mapping[str, Any]) -> State:
    """Return the state with `prefix/` before every name."""
    return {f"{prefix}/{name}": value for name, value in state.items()}


def part(prefix: str, state: Mapping[str, Any]) -> State:
    """Return what stands under `prefix/`, without it; empty when nothing does."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


@contextlib.contextmanager
def restoring(what: str) -> Iterator[None]:
    """Say in a sentence that a state does not fit: its hash tells of damage, not of an edit."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(f"the {what} to go on from is incomplete or was edited: {reason}") from error


def random_states() -> State:
    """Return the states of Python's, NumPy's and torch's generators, those of CUDA devices where one is in use."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: State = {
        "python": [version, gauss],
        "python_words": torch.tensor(words, dtype=torch.int64),
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
        "numpy_words": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state |= {f"cuda{number}": one for number, one in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_random(state: Mapping[str, Any]) -> None:
    """Put the states of the generators back.

    Raises:
        InputError: the state is none of `random_states`.
    """
    try:
        version, gauss = state["python"]
        random.setstate((version, tuple(state["python_words"].tolist()), gauss))
        name, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, state["numpy_words"].numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"])
        for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if f"cuda{number}" in state:
                torch.cuda.set_rng_state(state[f"cuda{number}"], number)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the random states to go on from are incomplete or damaged: {error}") from error


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Return copies of what a torch optimizer has gathered for each of its parameters, by their order.

    Its settings (rate, weight decay, …) are not in it: whoever makes the optimizer gives them.

    Example:
        >>> import torch
        >>> from incop.flat_state import optimizer_state
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> net(torch.ones(1, 1)).sum().backward()
        >>> sgd.step()
        >>> optimizer_state(sgd)
        {'0/momentum_buffer': tensor([[1.]])}
    """
    return {
        f"{number}/{name}": value.detach().clone() if isinstance(value, Tensor) else value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer what another of its kind had gathered, for parameters of the same order and shapes.

    Not `load_state_dict`, which casts Adam's count of steps to the weights' type.

    Raises:
        InputError: the state is of another optimizer, or of other parameters.
    """
    parameters = _parameters(optimizer)
    for key, value in state.items():
        number, _, name = key.partition("/")
        if not number.isdigit() or int(number) >= len(parameters):
            raise InputError(f"the optimizer's state names {key!r}, and this one trains {len(parameters)} parameters")
        parameter = parameters[int(number)]
        if isinstance(value, Tensor) and value.dim():
            if value.shape != parameter.shape:
                raise InputError(f"the optimizer's state {key!r} has another shape than the parameter it belongs to")
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)  # in the parameter's memory order
        elif isinstance(value, Tensor):
            value = value.to(parameter.device, copy=True)
        optimizer.state[parameter][name] = value
    kinds = {frozenset(optimizer.state[p]) for p in parameters if optimizer.state.get(p)}
    if len(kinds) > 1:
        raise InputError("the optimizer's state holds more for some parameters than for others: it was edited")


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
