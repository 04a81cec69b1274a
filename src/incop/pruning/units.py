"""Units: whole outputs of layers go, rows of linear layers and filters of convolutions, with the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from incop import batches, inspection
from incop.batches import Batch
from incop.errors import IncopError, InputError
from incop.layers import Removable, removable, unit_and_input
from incop.wrappers import as_written, unwrapped

NEVER = torch.iinfo(torch.int32).max  # the place of what stays
SAID = 3  # layers that are named as examples
SAMPLES = 8  # with which the network is followed


@dataclass(frozen=True)
class Units:
    """Whole units go: all weights into a unit, and the weights of the next layers that read it.

    A unit is a row of a linear layer (a column of transformers' `Conv1D`) or a filter of a convolution, also of a transposed
    one or one with groups. Its score is the mean of the scores of the weights into it that are left; with `Magnitude` that
    is the L1 norm of a filter over its size, so that layers of different size compete fairly. The unit with the lowest goes
    first, of equals the first by layer and position.

    When a unit goes, its mask takes its weights on both sides, so that nothing reads it any more: the sparsity is what a
    network without the unit has, and `export` can take it out. Only units of which that is certain compete (see
    `layers.removable`): in a chain all but the output layer's; in a residual network those within the blocks; in a transformer
    those of the hidden layer of its feed-forward part. Other layers keep all their units, and lose only the weights that
    read units which are gone. Every layer keeps at least one unit.

    The amount is a count of weights, and units are whole: the fewest units go, in order, that hold at least as many weights (on
    both sides, each counted once). A sparsity to reach is reached, and passed by less than one unit.

    Args:
        example: a batch of inputs of any usual form, to follow the network with; its values do not matter. See
            `incop.batches.unpack`.
        each_layer: every layer gives up the same share of its units, instead of the units of all layers competing.

    Raises:
        InputError: when it cuts: there is no example, the network cannot be run on it, or has no unit that could go.

    Example:
        >>> import torch
        >>> from incop import pruning
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[1].fill_(0.001)
        >>> masks = pruning.prune(net, amount=0.1, selection=pruning.Units(torch.ones(8, 4)))
        >>> masks["0.weight"].any(1).tolist(), masks["2.weight"].any(0).tolist(), masks.remaining
        ([True, False, True], [True, False, True], 12)

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3 (L1 norm, filter and the kernels that read it).
    """

    example: Any = field(compare=False, repr=False)
    each_layer: bool = False
    by_amount: ClassVar[bool] = True

    def with_data(self, batches: Any) -> Units:
        """Return the same selection with the first of these batches as its example."""
        return replace(self, example=next(iter(batches), None))

    def groups(self, names: list[str]) -> list[tuple[list[str], float]]:
        """Return one group."""
        return [(names, 1.0)]

    def line(self, model: nn.Module, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the place of each weight: that of its unit or of the unit it reads, whichever goes first."""
        found = self.removable(model)
        layers = {layer: numbers for layer, numbers in found.layers.items() if _weight(layer) in masks}
        if not layers:
            raise InputError(
                f"no unit of {type(model).__name__} could go: {_reasons(found)}; use a selection of single weights, such as "
                "global"
            )
        names = list(masks)  # ties go by this order, which does not depend on the example
        ordered = dict(sorted(layers.items(), key=lambda one: names.index(_weight(one[0]))))
        total = max(numbers.stop for numbers in found.layers.values())
        place = self._places(model, scores, masks, ordered, total)
        line = {name: torch.full_like(mask, NEVER, dtype=torch.int32) for name, mask in masks.items()}
        for layer in {*layers, *found.readers}:
            if (name := _weight(layer)) not in masks:
                continue
            unit, read = _unit_and_input(model, layer)
            if layer in layers:
                line[name] = torch.minimum(line[name], place[layers[layer].start + unit].to(line[name].device))
            if layer in found.readers:
                line[name] = torch.minimum(line[name], place[found.readers[layer][read]].to(line[name].device))
        return {name: places.masked_fill(places == NEVER, -1) for name, places in line.items()}

    def about(self, model: nn.Module) -> str:
        """Say which layers' units compete, and which layers keep all of theirs and why.

        Raises:
            InputError: there is no example, or the network cannot be run on it.
        """
        found = self.removable(model)
        few = list(found.whole.items())[:SAID]
        kept = "; ".join(f"{layer} ({why})" for layer, why in few)
        more = f"; and {len(found.whole) - SAID} more" if len(found.whole) > SAID else ""
        layers = ", ".join(found.layers)
        return f"the units of {len(found.layers)} layers compete: {layers}. {len(found.whole)} keep all of theirs: {kept}{more}"

    def removable(self, model: nn.Module) -> Removable:
        """Return the units that compete, who reads them, and why the other layers stay whole; the model is left as it was.

        Raises:
            InputError: there is no example, or the network cannot be run on it.
        """
        if self.example is None:
            raise InputError("Units follow the network with a batch of inputs: give one, Units(example)")
        model = unwrapped(model)
        dtype = torch.float32 if inspection.half_precision(model) else None
        batch = batches.placed(batches.unpack(self.example), device=inspection.device_of(model), dtype=dtype)
        small = batches.first_samples(batch, SAMPLES)
        with inspection.undisturbed(model), as_written():
            for part in (small,) if small is batch else (small, batch):  # a model may insist on its batch size
                try:
                    return removable(model, part, lambda part: _run(model, part))
                except (IncopError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    failed = error
        first = next(iter(str(failed).splitlines()), "no message")
        raise InputError(
            f"{type(model).__name__} cannot be followed on the example of Units ({type(failed).__name__}: {first}): give a batch "
            "as the model is called with, see incop.batches.unpack"
        ) from failed

    def _places(
        self,
        model: nn.Module,
        scores: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        layers: Mapping[str, range],
        total: int,
    ) -> Tensor:
        """Return the place of every unit by its number; of the last one of a layer, and of no unit (−1), NEVER."""
        goes, numbers = [], []
        for layer, own in layers.items():
            name = _weight(layer)
            mean = _means(_unit_and_input(model, layer)[0], len(own), scores[name], masks[name])
            ranked = mean.argsort(stable=True)
            order = torch.empty_like(ranked)
            order[ranked] = torch.arange(len(ranked))
            share = (order + 0.5) / len(order)
            last = order == len(order) - 1
            goes.append((share if self.each_layer else mean)[~last])
            numbers.append((own.start + torch.arange(len(own)))[~last])
        number = torch.cat(numbers)[torch.cat(goes).argsort(stable=True)]
        place = torch.full((total + 1,), NEVER, dtype=torch.int32)
        place[number] = torch.arange(len(number), dtype=torch.int32)
        return place

    def __str__(self) -> str:
        return "units:layer" if self.each_layer else "units"


def _run(model: nn.Module, batch: Batch) -> Any:
    return inspection.full_precision(model, batch) if inspection.half_precision(model) else batches.call(model, batch)


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _unit_and_input(model: nn.Module, layer: str) -> tuple[Tensor, Tensor]:
    found = unit_and_input(model.get_submodule(layer))
    assert found is not None, "only such layers are removable or readers"
    return found


def _means(unit: Tensor, units: int, scores: Tensor, mask: Tensor) -> Tensor:
    """Return the mean score of the weights left into each unit, −∞ where there are none: (units,), on the CPU."""
    unit = unit.to(scores.device).expand(scores.shape)[mask]
    sums = torch.zeros(units, dtype=torch.float64, device=scores.device).index_add(0, unit, scores[mask].double())
    counts = torch.bincount(unit, minlength=units)
    return torch.where(counts > 0, (sums / counts).nan_to_num(torch.inf, torch.inf, -torch.inf), -torch.inf).cpu()


def _reasons(found: Removable) -> str:
    said = [f"{layer or 'the layer'}: {why}" for layer, why in list(found.whole.items())[:SAID]]
    return "; ".join(said) or "no layer of a known kind runs within it"
