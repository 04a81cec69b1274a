"""The choice of CSR layers: linear layers that are measured to be faster so, on their own inputs and in the whole network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from incop.batches import Batch, call
from incop.errors import InputError
from incop.export.csr_layers import linear_layers, replaced, sparse_layer
from incop.export.differences import difference
from incop.export.subject import Answers, Subject, repeated
from incop.export.timing import ROUNDS, Ratio, in_turn
from incop.layers import Hooks
from incop.masks import Masks

BATCH_SIZES = (1, 64)
TOLERANCE = 1e-5  # relative; the sums run in another order
MIN_SPARSITY = 0.5  # sparsity below which nothing is measured: there CSR is slower by far
KINDS = (torch.float32, torch.float64)  # that the CPU multiplies


@dataclass(frozen=True)
class Choice:
    """What was measured of one linear layer, and what follows.

    Args:
        layer: its name.
        sparsity: of its weight.
        chosen: whether it becomes CSR.
        why: the reason, a sentence.
        ratios: how many times faster CSR is, by batch size; empty where nothing was measured.
    """

    layer: str
    sparsity: float
    chosen: bool
    why: str
    ratios: dict[int, Ratio] = field(default_factory=dict)


def csr_choices(
    model: nn.Module,
    masks: Masks | None = None,
    example: Any = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = ROUNDS,
) -> list[Choice]:
    """Measure every linear layer as it is and as CSR, on its own inputs, and choose those that are faster.

    A layer is chosen if it is faster at every batch size: the whole 95 % interval of the ratio lies more than 5 % above 1,
    and three rounds of four were won. At last the whole network is measured with all that were chosen; if it is slower
    at any batch size, none is. This holds for this machine and torch's present number of threads.

    Args:
        model: any module.
        masks: the weights that are left; by default those that are not exactly zero.
        example: a batch of inputs of any usual form; its samples are repeated where there are fewer than a batch size.
        batch_sizes: at which it should be faster.
        rounds: that each is timed in.

    Raises:
        InputError: there is no example, no batch size, or the masks belong to another model.

    Example:
        >>> import torch
        >>> from incop.export import csr_choices
        >>> csr_choices(torch.nn.Linear(4, 4), example=torch.ones(8, 4))
        [Choice(layer='', sparsity=0.0, chosen=False, why='its sparsity is 0.00', ratios={})]
    """
    return choose(Subject.of(model, masks, example=example), batch_sizes, rounds)


def with_csr(
    model: nn.Module,
    masks: Masks | None = None,
    example: Any = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    choices: Iterable[Choice] | None = None,
) -> nn.Module:
    """Return a copy of the masked model whose chosen linear layers are `CSRLinear`; all others stay dense.

    Args:
        model: any module.
        masks: the weights that are left; by default those that are not exactly zero.
        example: a batch of inputs; not needed where choices are given.
        batch_sizes: at which a layer should be faster.
        choices: as `csr_choices` measured them; by default they are measured now.

    Raises:
        InputError: there is no example, the masks belong to another model, or a choice names no linear layer of it.

    Example:
        >>> import torch
        >>> from incop.export import Choice, with_csr
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> with_csr(net, choices=[Choice("0", 0.9, True, "measured elsewhere")])
        Sequential(
          (0): CSRLinear(in_features=4, out_features=4, weights=16)
        )
    """
    subject = Subject.of(model, masks, example=example)
    if choices is None:
        choices = choose(subject, batch_sizes, ROUNDS)
    return replaced(subject.model, [choice.layer for choice in choices if choice.chosen])


def choose(subject: Subject, batch_sizes: Sequence[int], rounds: int) -> list[Choice]:
    """Measure and choose; see `csr_choices`."""
    if not batch_sizes:
        raise InputError("no batch size is given at which CSR should be faster: give 1, for instance")
    example = subject.needed_example("choosing CSR layers")
    linear = linear_layers(subject.model)
    sparse = {name: _sparsity(module.get_parameter("weight")) for name, module in linear.items()}
    wanted = {
        name: linear[name] for name in linear if sparse[name] >= MIN_SPARSITY and linear[name].weight.dtype in KINDS
    }
    inputs = {size: _inputs(subject.model, wanted, repeated(example, size)) for size in batch_sizes}
    found = []
    for name in linear:
        if name not in wanted:
            told = (
                f"its sparsity is {sparse[name]:.2f}" if sparse[name] < MIN_SPARSITY else "its weights are not float32"
            )
            found.append(Choice(name, sparse[name], False, told))
        elif any(name not in inputs[size] for size in batch_sizes):
            told = "it is not called as a module of its own: what holds it reads its weight"
            found.append(Choice(name, sparse[name], False, told))
        else:
            own = {size: inputs[size][name] for size in batch_sizes}
            found.append(_measured(name, wanted[name], sparse[name], own, rounds))
    return _whole(subject, found, batch_sizes, rounds)


def _sparsity(weight: Tensor) -> float:
    return 1 - int(weight.count_nonzero()) / weight.numel()


def _inputs(model: nn.Module, layers: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
    """Return what the layers are called with, the largest where one is called several times."""
    found: dict[str, Tensor] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and (name not in found or args[0].numel() > found[name].numel()):
            found[name] = args[0].detach().clone()

    with Hooks() as hooks, torch.inference_mode():
        for name, module in layers.items():
            hooks.before(module, partial(note, name))
        call(model, batch)
    return found


def _measured(name: str, module: nn.Module, sparsity: float, inputs: dict[int, Tensor], rounds: int) -> Choice:
    ratios = {}
    try:
        sparse = sparse_layer(module)
        for size, x in inputs.items():
            times = in_turn({"dense": partial(module, x), "csr": partial(sparse, x)}, rounds=rounds)
            ratios[size] = Ratio.of(times["dense"], times["csr"])
    except RuntimeError as error:  # a torch without MKL
        told = (str(error).strip() or "no reason given").splitlines()[0]
        return Choice(name, sparsity, False, f"this torch does not multiply it: {told}")
    said = ", ".join(f"{ratio.median:.2f} times as fast at batch {size}" for size, ratio in ratios.items())
    return Choice(name, sparsity, all(ratio.faster for ratio in ratios.values()), said, ratios)


def _whole(subject: Subject, found: list[Choice], batch_sizes: Sequence[int], rounds: int) -> list[Choice]:
    """Return the choices, none of them chosen where the network with all of them fails or is slower."""
    chosen = [choice.layer for choice in found if choice.chosen]
    if not chosen:
        return found
    model = replaced(subject.model, chosen)
    told = ""
    try:
        apart = difference(subject.outputs(subject.needed_example("CSR")), Answers(model)(subject.example))  # type: ignore[arg-type]
        told = "" if apart <= TOLERANCE else f"with CSR layers the network answers otherwise, by {apart:.1g}"
    except Exception as error:  # code of the user's that looks at a layer's weight
        told = f"with CSR layers the network does not run ({type(error).__name__})"
    for size in batch_sizes if not told else ():
        batch = repeated(subject.needed_example("CSR"), size)
        calls = {"dense": Answers(subject.model).ready(batch), "csr": Answers(model).ready(batch)}
        times = in_turn(calls, rounds=rounds)
        ratio = Ratio.of(times["dense"], times["csr"])
        if ratio.slower:
            told = f"the whole network would be slower, {ratio.median:.2f} times as fast at batch {size}"
    return (
        [replace(one, chosen=False, why=f"{one.why}; {told}") if one.chosen else one for one in found]
        if told
        else found
    )
