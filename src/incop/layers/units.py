"""Units: which outputs of which layers could be taken out of a network one by one, and which inputs read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from incop import batches as batches_room
from incop.batches import Batch
from incop.layers.calls import Call, CallNames, calls, module_of
from incop.layers.hooks import Hooks
from incop.layers.kinds import is_conv1d, is_layer

DRAWS = 16  # samples in all rounds together: a change behind a ReLU stays unseen with a chance of 4^-16


@dataclass(frozen=True)
class Removable:
    """The units that can be taken out one by one, numbered through all their layers.

    Args:
        layers: the numbers of each layer's units, by the layer's name, in the order in which the forward pass runs them.
        readers: by the name of each layer that reads such units: for every one of its inputs the number of the unit it
            reads, −1 where it reads none of them. Shape (inputs,).
        whole: why each other layer that runs keeps all its units, by its name.
    """

    layers: Mapping[str, range]
    readers: Mapping[str, Tensor] = field(repr=False)
    whole: Mapping[str, str] = field(repr=False)


def unit_and_input(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return which unit each weight of a layer belongs to and which input it reads, two tensors that broadcast to its shape.

    None for layers of other kinds than linear ones (transformers' `Conv1D` among them), convolutions and transposed
    convolutions, with groups or without.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or isinstance(module, nn.Bilinear):
        return None
    across, down = torch.arange(weight.shape[0])[:, None], torch.arange(weight.shape[1])[None, :]
    if is_conv1d(module):
        return down, across
    if isinstance(module, nn.Linear):
        return across, down
    if not isinstance(module, nn.modules.conv._ConvNd):
        return None
    groups = module.groups
    # the group of a weight follows from its first index; the second counts within the group
    within = torch.div(across, weight.shape[0] // groups, rounding_mode="floor") * weight.shape[1] + down
    found = (within, across) if module.transposed else (across, within)
    spread = [1] * (weight.dim() - 2)
    return found[0].reshape(*found[0].shape, *spread), found[1].reshape(*found[1].shape, *spread)


def removable(model: nn.Module, batch: Batch, forward: Callable[[Batch], Any] | None = None) -> Removable:
    """Find the units that can be taken out of a network one by one, by what the network does, not by what it is called.

    A unit (a row of a linear layer, a filter of a convolution) can be taken out when whoever reads it reads it as such:
    every reader is a linear layer or a convolution, each of whose inputs depends on one unit of one layer and on nothing
    else. Activations, pooling, flattening, normalisation by channel, concatenation and permutations lie between them as they
    like. It is found out by trying: the outputs of all layers are replaced by random numbers, those of one half of the units are
    drawn anew, and an input that changes with the halves of exactly one number's bits reads the unit of that number: 2 log₂ N
    passes for all N units together. A depthwise convolution has no units of its own: a filter goes with the unit it reads, and
    whoever reads the filter reads that unit.

    So these keep all their units: the layers whose outputs the model returns; whoever writes to a stream that others
    write to as well (the last layer of a residual block, its shortcut, whatever feeds it), because the others would keep its
    channels alive; queries, keys and values, gates, and what goes through a normalisation over units; recurrent modules and
    torch's attention, and what these read; convolutions in groups of several channels, which could not stay equal; layers that
    run twice or share their weight.

    Args:
        model: the model, in evaluation mode.
        batch: some samples; their values do not matter but to layers before the first.
        forward: how to run the model on a batch, when it is not by calling it.
    """
    run = calls(model, batch, forward)
    odd = _odd(model, run)
    names = [call.name for call in run if call.name]
    trial = _Trial(model, {name: 1 if name in odd else _units(model, name) for name in names})
    rounds = max(math.ceil(DRAWS / batch.samples), 2)
    reads = trial.decoded(
        (lambda: batches_room.call(model, batch)) if forward is None else lambda: forward(batch), rounds
    )
    whole = {**odd, **dict.fromkeys(sorted(run[-1].sources & set(names)), "the network returns it")}
    for call in run[:-1]:
        why = _unclear(call, odd, reads, names)
        whole = {**dict.fromkeys(sorted(call.sources & set(names)), why), **whole} if why else whole
    read = {number for numbers in reads.values() if numbers is not None for number in numbers.tolist()}
    for name in names:
        if name not in whole and read.isdisjoint(trial.numbers[name]):
            whole[name] = "no layer was seen to read it"
    follow = {call.name: call.sources for call in run[:-1] if _depthwise(model.get_submodule(module_of(call.name)))}
    _hold_together(follow, names, reads, whole)
    return _numbered(model, trial.numbers, follow, reads, whole)


def _odd(model: nn.Module, run: list[Call]) -> dict[str, str]:
    """Return the calls of layers whose weights do not belong to one unit and one input, and why."""
    shared: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            shared[id(weight)] = shared.get(id(weight), 0) + 1
    twice = {module_of(call.name) for call in run if module_of(call.name) != call.name}
    odd = {}
    for call in run[:-1]:
        module = model.get_submodule(module_of(call.name))
        if unit_and_input(module) is None:
            odd[call.name] = "it is recurrent, attention or bilinear"
        elif getattr(module, "groups", 1) > 1 and not _depthwise(module):
            odd[call.name] = "it is a convolution in groups of several channels"
        elif module_of(call.name) in twice:
            odd[call.name] = "it runs more than once"
        elif shared.get(id(module.weight), 1) > 1:
            odd[call.name] = "it shares its weight with another module"
    return odd


def _unclear(call: Call, odd: Mapping[str, str], reads: Mapping[str, Tensor | None], names: list[str]) -> str:
    """Say why a call does not read its sources unit by unit; nothing, where it does."""
    if call.name in odd:
        return f"{call.name!r} reads it, of which {odd[call.name]}"
    if not call.sources <= set(names):
        return f"{call.name!r} reads it together with an input or an embedding"
    if reads.get(call.name) is None:
        return f"{call.name!r} reads it mixed with other units"
    return ""


def _depthwise(module: nn.Module) -> bool:
    """Say whether each filter of a layer reads one channel, all others being read by other filters."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1


def _hold_together(
    follow: Mapping[str, frozenset[str]], names: list[str], reads: Mapping[str, Tensor | None], whole: dict[str, str]
) -> None:
    """Let a depthwise convolution and what it reads keep their units together."""
    for name, sources in follow.items():
        if not sources or not sources <= set(names) or reads.get(name) is None:
            whole.setdefault(name, "it reads by channel what keeps all of its units")
    before = -1
    while before != len(whole):
        before = len(whole)
        for name, sources in follow.items():
            if name in whole:
                for source in sorted(sources & set(names)):
                    whole.setdefault(source, f"{name!r} reads it by channel, and {whole[name]}")
            elif kept := sorted(sources & set(whole)):
                whole[name] = f"it reads {kept[0]!r} by channel, and {whole[kept[0]]}"


def _units(model: nn.Module, name: str) -> int:
    found = unit_and_input(model.get_submodule(name))
    return 1 if found is None else int(found[0].max()) + 1


def _numbered(
    model: nn.Module,
    numbers: Mapping[str, range],
    follow: Collection[str],
    reads: Mapping[str, Tensor | None],
    whole: Mapping[str, str],
) -> Removable:
    """Number the units that can be removed anew, from 0, and let the readers speak of those alone."""
    new = torch.full((max((old.stop for old in numbers.values()), default=0) + 1,), -1)  # the last place answers for −1
    readers = {name: found for name, found in reads.items() if found is not None}
    layers: dict[str, range] = {}
    at = 0
    for name in (name for name in numbers if name not in whole):
        old = numbers[name]
        if name in follow:  # its filters are called by the numbers of what they read, which ran before
            new[old.start : old.stop] = new[readers[name][_input_of_each(model.get_submodule(name))]]
        else:
            layers[name] = range(at, at + len(old))
            new[old.start : old.stop] = torch.arange(at, at + len(old))
            at += len(old)
    readers = {name: new[found] for name, found in readers.items()}
    return Removable(layers, {name: found for name, found in readers.items() if bool((found >= 0).any())}, whole)


def _input_of_each(module: nn.Module) -> Tensor:
    """Return which input each filter of a depthwise convolution reads."""
    found = unit_and_input(module)
    assert found is not None, "a convolution"
    unit, read = (part.flatten(1) for part in torch.broadcast_tensors(*found))
    return torch.empty(unit.numel(), dtype=torch.long).scatter_(0, unit.flatten(), read.flatten())


class _Trial:
    """Runs of the model in which every layer puts out random numbers, and what each layer then finds at its inputs.

    Args:
        model: the model.
        units: how many units to tell apart in each call's output; 1 where it is taken as a whole.
    """

    def __init__(self, model: nn.Module, units: Mapping[str, int]) -> None:
        self._layers = {name: module for name, module in model.named_modules() if is_layer(module)}
        self._readers = {name for name, module in self._layers.items() if unit_and_input(module) is not None}
        self.numbers: dict[str, range] = {}
        at = 0
        for name, count in units.items():
            self.numbers[name] = range(at, at + count)
            at += count
        self._total = at
        self._bits = max(at - 1, 1).bit_length()
        self._made: dict[str, Any] = {}  # what each call puts out, without values
        self._stock: list[Tensor] = []  # random numbers: plain ones and those drawn anew

    def decoded(self, run: Callable[[], Any], rounds: int) -> dict[str, Tensor | None]:
        """Return for each input of every call which number it reads, −1 for none; None where it is not one, or unclear."""
        self._look(run)
        changed: dict[str, Tensor] = {}  # (bits, 2, inputs)
        strange: set[str] = set()
        for seed in range(rounds):
            self._stock_up(seed)
            plain = self._seen(run, None, 0)
            for bit, side in product(range(self._bits), (0, 1)):
                seen = self._seen(run, bit, side)
                for name, found in plain.items():
                    now = seen.get(name)
                    if found is None or now is None or now.shape != found.shape:
                        strange.add(name)
                        continue
                    if name not in changed:
                        changed[name] = torch.zeros(self._bits, 2, *found.shape, dtype=torch.bool)
                    changed[name][bit, side] |= (now != found).cpu()
        return {name: None if name in strange else self._number(found) for name, found in changed.items()}

    def _number(self, changed_b2C: Tensor) -> Tensor | None:
        one = (changed_b2C[:, 0] ^ changed_b2C[:, 1]).all(0)
        none = ~changed_b2C.any(0).any(0)
        number = (changed_b2C[:, 1].long() * 2 ** torch.arange(self._bits)[:, None]).sum(0)
        if not bool((none | (one & (number < self._total))).all()):
            return None
        return torch.where(none, -1, number)

    def _look(self, run: Callable[[], Any]) -> None:
        """Run the model once as it is, and note what shapes its layers put out."""
        names = CallNames()

        def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
            self._made[names.of(name)] = batches_room.mapped(output, lambda t: torch.empty_like(t, device="meta"))

        with Hooks() as hooks, torch.no_grad():
            for name, module in self._layers.items():
                hooks.after(module, partial(note, name))
            run()

    def _stock_up(self, seed: int) -> None:
        largest = max((t.numel() for made in self._made.values() for t in batches_room.walk(made)), default=0)
        generator = torch.Generator().manual_seed(seed)
        self._stock = []
        for _ in range(2):  # of many sizes: some pass every threshold, some saturate no sigmoid
            size = 10.0 ** torch.randint(4, (largest + self._total,), generator=generator)
            self._stock.append(torch.randn(size.shape, generator=generator, dtype=torch.float32).pow(3) * size)

    def _seen(self, run: Callable[[], Any], bit: int | None, side: int) -> dict[str, Tensor | None]:
        """Run the model, the units whose number has this bit on this side drawn anew, and return marks of all inputs.

        The layers themselves are not run: their outputs are drawn.
        """
        seen: dict[str, Tensor | None] = {}
        names = CallNames()

        def drawing(name: str, module: nn.Module) -> Callable[..., Any]:
            plain = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                call = names.of(name)
                first = next(batches_room.walk((args, kwargs)), None)
                seen[call] = None if first is None or name not in self._readers else _marks(module, first)
                if call not in self._made or first is None:
                    return plain(*args, **kwargs)
                numbers = self.numbers.get(call, range(1))
                return batches_room.mapped(
                    self._made[call], lambda t: self._drawn(module, t, numbers, bit, side, first.device)
                )

            return forward

        own = {name: vars(module).get("forward") for name, module in self._layers.items()}
        try:
            with Hooks() as hooks, torch.no_grad():
                for name, module in self._layers.items():
                    # torch's transformer layers go past their own layers in one kernel unless these have hooks
                    hooks.before(module, lambda module, args: None)
                    module.forward = drawing(name, module)
                run()
        finally:
            for name, module in self._layers.items():
                vars(module).pop("forward", None)
                if own[name] is not None:
                    module.forward = own[name]
        return seen

    def _drawn(
        self, module: nn.Module, like: Tensor, numbers: range, bit: int | None, side: int, device: torch.device
    ) -> Tensor:
        """Return random numbers in place of an output, always the same, but for the units that are drawn anew."""
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype, device=device)
        # a piece of the stock, which begins where no other layer's does
        drawn, anew = (s[numbers.start : numbers.start + like.numel()].view(like.shape) for s in self._stock)
        if bit is not None:
            axis = _axis(module, like) if len(numbers) > 1 else 0
            chosen = (torch.arange(numbers.start, numbers.stop) >> bit & 1) == side
            drawn = torch.where(chosen.reshape(-1, *[1] * (like.dim() - 1 - axis)), anew, drawn)
        return drawn.to(device=device, dtype=like.dtype, copy=True)


def _axis(module: nn.Module, tensor: Tensor) -> int:
    """Return the dimension of a layer's input or output in which its channels lie; the sample dimension may be absent."""
    spatial = module.weight.dim() - 2 if isinstance(module, nn.modules.conv._ConvNd) else 0
    return tensor.dim() - 1 - spatial


def _marks(module: nn.Module, tensor: Tensor) -> Tensor | None:
    """Return one number for every input of a layer, which is another where anything of that input is another; or None."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.dtype.itemsize)
    if not tensor.is_floating_point() or kind is None or bool(tensor.sum().isnan()):
        return None
    rows_PC = (tensor.detach() + 0.0).movedim(_axis(module, tensor), -1)  # + 0.0: −0.0 is 0.0
    rows_PC = rows_PC.reshape(-1, rows_PC.shape[-1]).contiguous()
    weights = torch.randint(2**40, (rows_PC.shape[0], 1), generator=torch.Generator().manual_seed(0)) * 2 + 1
    return (rows_PC.view(kind).long() * weights.to(rows_PC.device)).sum(0)
