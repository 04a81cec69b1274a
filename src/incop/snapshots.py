"""Remember a model's weights and buffers, put them back, and prove that they are back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from incop.errors import InputError, TrainingError, nearest
from incop.masks import Masks
from incop.observing import refuse_empty
from incop.offload import Offload
from incop.records import Interval
from incop.wrappers import unwrapped

__all__ = ["RewindPoint", "Snapshot"]

Kind = Literal["init", "early", "dense", "rate", "none"]


@dataclass(frozen=True)
class Snapshot:
    """Copies of all parameters and buffers of a model, by name; training cannot reach them.

    Args:
        tensors: by name, as in `named_parameters()` and `named_buffers()`, non-persistent buffers included.
        epoch: how many epochs of level 0 they had been trained.

    Example:
        >>> import torch
        >>> from incop.snapshots import Snapshot
        >>> net = torch.nn.Linear(2, 2)
        >>> before = Snapshot.of(net)
        >>> _ = net.weight.data.mul_(2)
        >>> before.rewind(net)
    """

    tensors: Mapping[str, Tensor]
    epoch: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, *, epoch: float = 0.0, offload: Offload | None = None) -> Snapshot:
        """Copy everything the model holds, to where `offload` says.

        Raises:
            InputError: it holds a lazy module that has not run, or lies on the meta device.
            TrainingError: the disk takes no more.
        """
        refuse_empty(model)
        return cls((offload or Offload()).copy(_tensors(model)), epoch)

    @torch.no_grad()
    def rewind(self, model: nn.Module, masks: Masks | None = None) -> None:
        """Put every parameter and buffer back in place, zero what the masks prune, and prove it.

        Raises:
            InputError: the snapshot or the masks are of another model; nothing has been written.
            TrainingError: a tensor does not come back bit for bit.
        """
        tensors = self._fitting(model, buffers=False)
        if masks is not None:
            masks.weights(model)
        for name, tensor in tensors.items():
            then = self.tensors[name]
            if tensor.shape != then.shape:  # a buffer that grew
                tensor.resize_(then.shape)
            tensor.copy_(then)
        if masks is not None:
            masks.apply(model)
        self.prove(model, masks)

    def sums(self) -> dict[str, int]:
        """Return the sum of every tensor's bytes as whole numbers, to hold copies of it in other processes against."""
        return {name: int(_bits(tensor).sum(dtype=torch.int64)) for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def prove(self, model: nn.Module, masks: Masks | None = None) -> None:
        """Compare every tensor of the model with the snapshot, bit for bit; pruned weights with +0.0.

        Raises:
            InputError: the snapshot is of another model.
            TrainingError: one differs; the sentence names it.
        """
        for name, tensor in self._fitting(model).items():
            wanted = self.tensors[name].to(tensor.device)
            if masks is not None and name in masks:
                wanted = wanted.masked_fill(~masks[name].to(tensor.device), 0.0)
            if not torch.equal(_bits(tensor), _bits(wanted)):
                raise TrainingError(
                    f"rewinding {name!r} did not bring back its bits: something else writes to it "
                    "(a shared tensor, another thread, or a hook of the model)"
                )

    def _fitting(self, model: nn.Module, *, buffers: bool = True) -> dict[str, Tensor]:
        """Return the model's tensors, which must be those of the snapshot; shapes of buffers may be let pass."""
        tensors = _tensors(model)
        if strange := sorted(set(tensors) ^ set(self.tensors)):
            raise InputError(f"the rewind point belongs to another model: they differ at {strange[0]!r}")
        weights = dict(unwrapped(model).named_parameters())
        for name, tensor in tensors.items():
            then = self.tensors[name]
            if (tensor.shape != then.shape and (buffers or name in weights)) or tensor.dtype != then.dtype:
                raise InputError(
                    f"the rewind point belongs to another model: {name!r} is {_form(tensor)} now and was {_form(then)}"
                )
        return tensors


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    model = unwrapped(model)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


@dataclass(frozen=True)
class RewindPoint:
    """What a level's weights and learning-rate schedule start from.

    Args:
        kind: "init": the weights before any training; "early": those after a stretch of level 0, with the schedule from
            there on; "dense": those of the end of level 0; "rate": the weights stay and only the schedule starts
            again; "none": the weights stay and the schedule stays at its end.
        after: how far into level 0 the point lies, for "early" and only for it.

    Raises:
        InputError: the kind is unknown, or goes with another `after`.

    Source: init — Frankle & Carbin 2019; early — Frankle et al. 2020 ("rewinding"); rate — Renda et al. 2020
    ("learning-rate rewinding"); none — fine-tuning (Han et al. 2015).
    """

    kind: Kind
    after: Interval | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or (self.kind == "early") != isinstance(self.after, Interval):
            raise _unknown(self.kind if self.after is None else f"{self.kind}:{self.after}")

    @classmethod
    def parse(cls, text: str | RewindPoint) -> RewindPoint:
        """Read "init", "early:2", "early:0.5", "early:500steps", "dense", "rate" or "none".

        Raises:
            InputError: it is none of these.

        Example:
            >>> from incop.snapshots import RewindPoint
            >>> str(RewindPoint.parse("early:500steps"))
            'early:500steps'
        """
        if isinstance(text, RewindPoint):
            return text
        kind, colon, after = str(text).partition(":")
        try:
            return cls(kind, Interval.parse(after) if colon else None)  # type: ignore[arg-type]  # it checks the word
        except InputError:
            raise _unknown(text) from None

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"early:{self.after}" if self.kind == "early" else self.kind

    @property
    def restores(self) -> bool:
        """Whether weights are put back at all."""
        return self.kind in ("init", "early", "dense")


def _unknown(text: object) -> InputError:
    kind = str(text).partition(":")[0]
    hint = "" if kind in get_args(Kind) else nearest(kind, get_args(Kind))
    return InputError(
        f"unknown rewind point {text!r}: {hint}use init, early:N (N > 0 epochs of level 0, or early:Nsteps), dense, "
        "rate or none"
    )
