"""The objective of training without labels: pruned levels are trained towards the dense network's outputs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from incop import distributed, inspection
from incop.batches import call, first_samples, mapped, placed, walk
from incop.distillation import DistillationLoss, OutputError, compared, real_part, token_masks
from incop.errors import InputError, unknown
from incop.flow.gradient import mean_loss
from incop.flow.losses import TokenLoss
from incop.loaders import Loader
from incop.tensor_split import TensorSplit
from incop.watch import Watch

OBJECTIVES = ("labels", "dense")
KEPT_BYTES = 2**28  # of outputs on a split that are kept; larger ones are computed batch by batch


class DenseOutputs:
    """The dense network with its outputs, which are kept where a split lies in memory and they are small.

    Args:
        network: the dense network, frozen and in evaluation mode.

    Example:
        >>> import torch
        >>> from incop.objective import DenseOutputs
        >>> from incop.tensor_split import TensorSplit
        >>> split = TensorSplit(torch.randn(50, 4), torch.arange(50))
        >>> dense = DenseOutputs(torch.nn.Linear(4, 3).eval())
        >>> dense.keep(split)
        50
        >>> dense.of(split, split.inputs[:7], torch.arange(7)).shape, dense.keep(split)
        (torch.Size([7, 3]), 0)
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.counted = False  # whether the samples that `keep` took are in a ledger already
        self._kept: dict[str, Any] = {}

    def keeps(self, split: Any) -> bool:
        """Say whether the outputs on a split are kept."""
        return self._kept.get(split.what) is not None

    def keep(self, split: TensorSplit) -> int:
        """Compute the outputs on a split and keep them, unless they are large; return how many samples that took."""
        if split.what in self._kept:
            return 0
        chunks, taken = [], 0
        with inspection.undisturbed(self.network), torch.no_grad():
            torch.manual_seed(0)  # of a network that draws; `undisturbed` puts the random state back
            for inputs, _, count in split.once(inspection.device_of(self.network), distributed.ALONE):
                chunks.append(called(self.network, inputs))
                taken += count
                if taken == count and not _small(chunks[0], count, len(split.inputs)):
                    chunks = []
                    break
        self._kept[split.what] = _joined(chunks) if chunks else None
        return taken

    def of(self, split: Any, inputs: Any, places: Any) -> Any:
        """Return the outputs on a batch: those kept, at the samples' places in their split, or computed now."""
        kept = self._kept.get(split.what)
        if kept is not None:
            return mapped(kept, lambda t: t.index_select(0, places))
        with torch.no_grad():
            return called(self.network, inputs)


def called(model: Callable[..., Any], inputs: Any) -> Any:
    """Return all that a model puts out for a batch."""
    return model(inputs) if isinstance(inputs, Tensor) else call(model, inputs)


def _small(output: Any, count: int, samples: int) -> bool:
    """Say whether outputs can be kept: every tensor is one of samples, in plain tuples, lists and dictionaries."""
    reached: list[Tensor] = []
    mapped(output, lambda t: reached.append(t) or t)  # type: ignore[func-returns-value]
    tensors = list(walk(output))
    if len(reached) != len(tensors) or any(t.dim() == 0 or len(t) != count for t in tensors):
        return False
    return sum(t.nbytes for t in tensors) / count * samples <= KEPT_BYTES


def _joined(chunks: list[Any]) -> Any:
    columns = iter([torch.cat(column) for column in zip(*map(walk, chunks), strict=True)])
    return mapped(chunks[0], lambda _: next(columns))


class Objective:
    """What pruned levels are trained towards where it is not labels, and what a network is judged by without them.

    Args:
        given: "dense", a `DistillationLoss` or `OutputError`, or a function (output, dense_output).
        loss: of labels; it says whether outputs are class scores, where `given` does not: cross-entropies are of class scores.

    Raises:
        InputError: it is none of these.

    Example:
        >>> import torch
        >>> from incop.flow import TokenLoss
        >>> from incop.objective import Objective
        >>> Objective("dense", TokenLoss()).comparison, Objective("dense", torch.nn.functional.mse_loss).comparison
        (DistillationLoss(dim=-1, temperature=2.0), OutputError())
    """

    def __init__(self, given: Any, loss: Any) -> None:
        if isinstance(given, str) and given not in OBJECTIVES:
            raise unknown("objective", given, OBJECTIVES)
        if not callable(given) and not isinstance(given, str):
            raise InputError(f"objective={given!r}: give 'labels', 'dense' or a function (output, dense_output)")
        self.comparison = _comparison(given, loss)
        self._own = None if isinstance(given, str) or given is self.comparison else given
        self.dense: DenseOutputs | None = None

    def loss(self, model: nn.Module, inputs: Any, output: Any, dense_output: Any) -> tuple[Tensor, Callable[[], float]]:
        """Return a batch's loss, and what returns how much of the batch it is the mean over, in units of all processes.

        Raises:
            InputError: it cannot be taken of these outputs.
        """
        masks = token_masks(model, inputs, output) if self._own is None else {}
        aim = functools.partial(self.comparison, masks=masks) if self._own is None else self._own
        first = compared(output)[0] if self._own is None else next(walk(output), torch.ones(1))
        return mean_loss(aim, output, dense_output), lambda: float(real_part(first, first, masks)[0].numel())

    def try_on(self, model: nn.Module, split: TensorSplit | Loader, *, judged: bool) -> None:
        """Take the loss of a few samples' outputs and themselves; `judged`: what the network is judged by, too.

        Raises:
            InputError: it cannot be taken.
        """
        few: Any
        if isinstance(split, TensorSplit):
            few = split.prepared(split.inputs[:2])
        else:
            few = placed(first_samples(split.first, 2), device=inspection.device_of(model))
        with inspection.undisturbed(model), torch.no_grad():
            output = called(distributed.within(model), few)
            self.loss(model, few, output, output)
            if judged:
                self.comparison.totals(output, output, token_masks(model, few, output))

    def prepared(
        self, watch: Watch, split: TensorSplit | Loader, validation: TensorSplit | Loader
    ) -> TensorSplit | Loader:
        """Return the split that a level is trained on, when the dense network's outputs are computed that are kept.

        Raises:
            InputError: level 0 is to be trained without labels, or a level after it without the dense network.
        """
        if watch.level == 0:
            if not split.labelled:
                raise InputError(
                    f"{split.what} has no targets, and a network that is not trained yet learns from them in level 0: give a "
                    "trained one with trained=True, or the targets"
                )
            return split
        dense, began = self.dense, time.perf_counter()
        if dense is None:
            raise InputError(
                "the trainer needs the dense network: let incop.search train, or set trainer.dense_network"
            )
        watch.pause()
        samples = 0
        if isinstance(split, TensorSplit):
            split = split.by_place()
            samples += 0 if split.augment is not None else dense.keep(split)
        if isinstance(validation, TensorSplit) and not validation.labelled:
            samples += dense.keep(validation)
        if not dense.counted:  # else a state that was gone on from has counted them
            watch.charge(samples, time.perf_counter() - began)
        dense.counted = True
        watch.start()
        return split

    def judge(self, model: nn.Module, split: TensorSplit | Loader) -> tuple[float, int]:
        """Return how near a model's outputs on a split are to the dense network's, and how many samples that took.

        Before there is a dense network they are compared with themselves.
        """
        together, inner, dense = distributed.of(model), distributed.within(model), self.dense
        totals, seen = torch.zeros(()), 0
        with inspection.undisturbed(model), torch.no_grad():
            for inputs, places, count in split.once(inspection.device_of(model), together):
                output = called(inner, inputs)
                wanted = output if dense is None else dense.of(split, inputs, places)
                totals = totals + self.comparison.totals(output, wanted, token_masks(inner, inputs, output))
                seen += count if dense is None or dense.keeps(split) else 2 * count
        found = [one for one in together.all(totals) if one.dim()]
        return self.comparison.value(torch.stack(found).sum(0)), sum(together.all(seen))


def _comparison(given: Any, loss: Any) -> DistillationLoss | OutputError:
    """Return how outputs are compared: as the objective says, or as the loss does."""
    if isinstance(given, DistillationLoss | OutputError):
        return given
    if isinstance(loss, TokenLoss):
        return DistillationLoss(dim=-1)
    if loss is functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss):
        return DistillationLoss()
    return OutputError()
