"""The masks themselves: which weights are left, as a value that validates and applies itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from incop.errors import InputError, unknown
from incop.layers import prunable
from incop.masks.bits import Bits
from incop.wrappers import unwrapped


class Masks(Mapping[str, Tensor]):
    """Boolean tensors by parameter name, True where a weight is left. A value: nothing writes to it.

    It takes a bit a weight; `masks[name]` unpacks one tensor, a fresh one every time.

    Args:
        masks: by parameter name, as in `model.named_parameters()`; each boolean and of its weight's shape. Copied.

    Raises:
        InputError: a mask is not a boolean tensor.

    Example:
        >>> import torch
        >>> from incop import Masks
        >>> net = torch.nn.Linear(4, 2)
        >>> masks = Masks.full(net)
        >>> masks.sparsity, masks.remaining
        (0.0, 8)
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._bits: dict[str, Bits] = dict(masks._bits) if isinstance(masks, Masks) else _packed(masks.items())

    @classmethod
    def _of(cls, bits: dict[str, Bits]) -> Self:
        made = cls({})
        made._bits = bits
        return made

    @classmethod
    def full(cls, model: nn.Module, *, skip: Iterable[str | type[nn.Module]] = (), frozen: bool = False) -> Self:
        """Return the masks of the dense network: every prunable weight is left, of frozen ones too if they are asked for."""
        weights = prunable(model, skip=skip, frozen=frozen)
        return cls._of(_packed((name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()))

    @classmethod
    def of(cls, model: nn.Module, *, skip: Iterable[str | type[nn.Module]] = (), frozen: bool = False) -> Self:
        """Return the masks a model shows: a weight is left where it is not exactly zero."""
        weights = prunable(model, skip=skip, frozen=frozen)
        return cls._of(_packed((name, weight.detach() != 0) for name, weight in weights.items()))

    def __getitem__(self, name: str) -> Tensor:
        return self._bits[name].unpacked()

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __eq__(self, other: object) -> bool:
        """Two masks are equal when they name the same weights and keep the same positions."""
        if not isinstance(other, Masks):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(self[n].cpu(), other[n].cpu()) for n in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} weights, {self.remaining} of {self.total} left, sparsity {self.sparsity:.4f})"

    @property
    def total(self) -> int:
        """Prunable weights in all."""
        return sum(bits.total for bits in self._bits.values())

    @property
    def remaining(self) -> int:
        """Prunable weights that are left."""
        return sum(bits.count for bits in self._bits.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero, in [0, 1]."""
        return (self.total - self.remaining) / self.total if self.total else 0.0

    def remaining_in(self, name: str) -> int:
        """Return how many weights of one tensor are left."""
        return self._bits[name].count

    def layer_sparsity(self) -> dict[str, float]:
        """Return the sparsity of every tensor, by parameter name."""
        return {name: (bits.total - bits.count) / max(bits.total, 1) for name, bits in self._bits.items()}

    def model_sparsity(self, model: nn.Module) -> float:
        """Return the fraction of all the model's parameters that the masks hold at zero, in [0, 1].

        Raises:
            InputError: the masks belong to another model.
        """
        self.weights(model)
        return (self.total - self.remaining) / max(sum(p.numel() for p in model.parameters()), 1)

    def intersect(self, other: Mapping[str, Tensor]) -> Masks:
        """Return the masks that keep what both keep; a pruned weight never returns.

        Raises:
            InputError: the other masks are of other weights, or not boolean.
        """
        self._fitting(other)
        return Masks._of(_packed((name, mask & other[name].to(mask.device)) for name, mask in self.items()))

    def within(self, other: Mapping[str, Tensor]) -> bool:
        """Say whether nothing is kept here that the other does not keep.

        Raises:
            InputError: the other masks are of other weights, or not boolean.
        """
        self._fitting(other)
        return all(not bool((mask & ~other[name].to(mask.device)).any()) for name, mask in self.items())

    def change(self, other: Mapping[str, Tensor]) -> float:
        """Return how far two masks are apart, in [0, 1]: positions kept by one only, per position kept by either.

        0 for equal masks, 1 for masks with nothing in common: the normalised Hamming distance of Early-Bird
        tickets (You et al. 2020, section 3), over the positions in question rather than all, so that it means the same
        at every sparsity.

        Raises:
            InputError: the other masks are of other weights, or not boolean.
        """
        self._fitting(other)
        apart = sum(int((mask ^ other[name].to(mask.device)).sum()) for name, mask in self.items())
        either = sum(int((mask | other[name].to(mask.device)).sum()) for name, mask in self.items())
        return apart / either if either else 0.0

    def digest(self) -> bytes:
        """Return 32 bytes that are the same for equal masks, in whatever order and on whatever device, and differ for others."""
        told = hashlib.sha256()
        for name in sorted(self._bits):
            content = self._bits[name].bytes.cpu().numpy().tobytes()
            told.update(f"{name} {tuple(self._bits[name].shape)} {len(content)} ".encode() + content)
        return told.digest()

    def bits(self, name: str) -> Bits:
        """Return one mask as it is kept, eight weights a byte."""
        return self._bits[name]

    def _fitting(self, other: Mapping[str, Tensor]) -> None:
        other = other if isinstance(other, Masks) else Masks(other)
        apart = sorted(set(self) ^ set(other)) or [n for n in self if self.bits(n).shape != other.bits(n).shape]
        if apart:
            raise InputError(f"two masks of other weights cannot be put together (they differ at {apart[0]!r})")

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's parameters that these masks belong to, by name.

        Raises:
            InputError: the model has no such parameter, or it has another shape.
        """
        parameters = dict(model.named_parameters())
        if any(name not in parameters for name in self):
            parameters = dict(_inner(model).named_parameters())
        for name, bits in self._bits.items():
            if name not in parameters:
                raise unknown("masked weight", name, parameters)
            if parameters[name].shape != bits.shape:
                shapes = f"shape {tuple(bits.shape)} and the weight {tuple(parameters[name].shape)}"
                raise InputError(f"the mask of {name!r} has {shapes}: these masks belong to another model")
        return {name: parameters[name] for name in self}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set the pruned weights of the model to zero (+0.0), in place.

        Raises:
            InputError: the masks belong to another model.
        """
        for name, weight in self.weights(model).items():
            weight.masked_fill_(~self[name].to(weight.device), 0.0)


def _inner(model: nn.Module) -> nn.Module:
    """Return the model within wrappers, a weight-averaging copy's among them."""
    model = unwrapped(model)
    return model.module if isinstance(model, torch.optim.swa_utils.AveragedModel) else model


def _packed(masks: Iterable[tuple[str, Tensor]]) -> dict[str, Bits]:
    """Pack masks one after the other, so that no two are whole at a time."""
    return {name: Bits.of(name, mask) for name, mask in masks}
