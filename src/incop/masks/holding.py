"""Holding: pruned weights stay at exactly zero while an optimizer trains the others."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from incop.errors import InputError
from incop.masks.bits import Bits
from incop.masks.value import Masks

# The integer of the same size: x & bits is x itself where all bits are set, and +0.0 where none is.
BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


# Optimizers whose every term is a weight's own gradient, what was gathered of it, or the weight times a number:
# of a zero weight with zero gradients they make zero. Exactly these classes; a subclass may do anything.
FOLLOW_GRADIENTS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
FEW = 1024  # of so few numbers one plain call is done before a second has begun
# So many weights of a network are held by integers of their own, which takes 5 bytes a weight and is quickest: ResNet-20 whole.
# All beyond are unpacked from their bits at every step, a chunk at a time.
AT_HAND = 2**19


class _Zero:
    """Sets the pruned positions of a tensor to +0.0 in place, whatever stands there, NaN included.

    It runs at every step for every layer, so the way of the usual case (CPU, no gradients recorded) is kept short:
    on LeNet-5 each 10 µs a layer are 1 % of a step.
    """

    def __init__(self, bits: Bits, weight: Tensor, *, at_hand: bool) -> None:
        self._bits = bits.to(weight.device)
        self._at_hand = at_hand
        self._pruned = ~self._bits.unpacked() if at_hand else None
        self._words: dict[torch.dtype, tuple[torch.dtype, Tensor]] = {}
        self._strides = weight.stride()
        self._few = weight.is_cpu and weight.numel() <= FEW
        self._gradient: Tensor | None = None  # the one masked last, until the step
        self._version = -1  # in which it was left
        self._untouched = False  # whether nobody wrote to the weight between the last step and this one
        self._left_at = -1  # the weight's version after the last step

    @property
    def pruned(self) -> Tensor:
        """The positions, as a boolean tensor."""
        return ~self._bits.unpacked() if self._pruned is None else self._pruned

    def __call__(self, tensor: Tensor) -> None:
        # CPU: `masked_fill_` branches at every position, 25 times slower than `&` (48,000 weights: 130 against 5 µs).
        # With gradients recorded (create_graph) the plain operation is the one autograd knows.
        known = self._words.get(tensor.dtype) or self._words_for(tensor)
        if known is not None and tensor.is_cpu and not torch.is_grad_enabled():
            tensor.view(known[0]).bitwise_and_(known[1])
            return
        kind = BITS.get(tensor.dtype)
        alike = kind is not None and tensor.is_contiguous() and tensor.device == self._bits.bytes.device
        if not self._at_hand and alike and not torch.is_grad_enabled():
            self._bits.keep(tensor, kind)  # type: ignore[arg-type]  # alike: it is there
            return
        tensor.masked_fill_(self.pruned.to(tensor.device), 0.0)

    def _words_for(self, tensor: Tensor) -> tuple[torch.dtype, Tensor] | None:
        kind = BITS.get(tensor.dtype) if self._at_hand and self._bits.bytes.is_cpu and not self._few else None
        if kind is None:
            return None
        pruned = torch.empty_strided(self._bits.shape, self._strides, dtype=torch.bool).copy_(self.pruned)
        self._words[tensor.dtype] = known = (kind, torch.where(pruned, 0, -1).to(kind))  # in the weight's memory order
        return known

    def gradient(self, weight: Tensor) -> None:
        """Do so to the weight's gradient; called when it has just been accumulated."""
        gradient = weight.grad
        if gradient is None:
            return
        known = self._words.get(gradient.dtype)
        if known is not None and gradient.is_cpu and not torch.is_grad_enabled():
            gradient.view(known[0]).bitwise_and_(known[1])
        elif self._few and gradient.is_cpu:
            gradient.masked_fill_(self.pruned, 0.0)
        else:
            self(gradient)
        self._gradient, self._version = gradient, gradient._version

    def _as_masked(self, weight: Tensor) -> bool:
        gradient = self._gradient
        return gradient is not None and weight.grad is gradient and gradient._version == self._version

    def before_step(self, weight: Tensor) -> None:
        """Note whether nobody wrote to the weight since the last step."""
        self._untouched = weight._version == self._left_at

    def weight(self, weight: Tensor, *, follows_gradient: bool) -> None:
        """Do so to the weight itself, after a step that may have moved it.

        An optimizer that moves a weight by its gradient and what it gathered of it leaves zeros at zero, if nobody wrote to
        the weight before the step, nor to the gradient since it was masked (clipping does).
        """
        if not (follows_gradient and self._untouched and self._as_masked(weight)):
            self(weight)
        self._gradient, self._untouched, self._left_at = None, False, weight._version


class Hold:
    """Keeps pruned weights at exactly zero while an optimizer trains the others; made by `hold`.

    Three things make it exact for any optimizer: gradients of pruned weights are zeroed as they are
    computed (so clipping by norm, accumulation and scalers never see them), the optimizer's state for them
    is zeroed at the start and when it is loaded (momentum that was gathered before the cut would move them), and
    the weights are set to zero again after every step that may have moved them: of an optimizer that does not
    follow gradients alone, or after somebody wrote to a gradient or a weight.
    """

    def __init__(
        self, masks: Masks, model: nn.Module, optimizer: torch.optim.Optimizer, *, gradients: bool = True
    ) -> None:
        weights = masks.weights(model)
        optimizer = _within_wrapper(optimizer)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if masks.remaining < masks.total and not any(id(p) in trained for p in model.parameters()):
            raise InputError(
                f"the optimizer trains no parameter of this {type(model).__name__}: it was made for another model, or "
                "before this one was copied"
            )
        masks.apply(model)
        pruned, left = [], AT_HAND
        for name, weight in weights.items():
            if masks.remaining_in(name) < weight.numel():  # a dense layer needs no holding
                at_hand = weight.numel() <= left
                left -= weight.numel() if at_hand else 0
                pruned.append((weight, _Zero(masks.bits(name), weight, at_hand=at_hand)))
        _forget_momentum(optimizer, pruned)
        self._handles: list[RemovableHandle] = []
        if gradients:
            self._handles += [
                weight.register_post_accumulate_grad_hook(zero.gradient)
                for weight, zero in pruned
                if weight.requires_grad
            ]
        if pruned:
            if gradients:
                self._handles.append(optimizer.register_step_pre_hook(_before_step(pruned)))
            self._handles.append(optimizer.register_step_post_hook(_zero_weights(pruned)))
            self._handles.append(
                optimizer.register_load_state_dict_post_hook(lambda optimizer: _forget_momentum(optimizer, pruned))
            )

    def release(self) -> None:
        """Stop holding; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _within_wrapper(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that takes the step: accelerate's wrapper calls itself one and has no hooks of its own.

    An optimizer that has hooks is held itself, whatever it wraps: it may write to the weights after the inner one's step.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_post_hooks"):
        if not hasattr(inner, "optimizer"):
            raise InputError(
                f"weights are held through a torch optimizer, not a {type(optimizer).__name__}: "
                "pass the optimizer that it wraps"
            )
        inner = inner.optimizer
    return inner  # type: ignore[no-any-return]


Pruned = list[tuple[nn.Parameter, _Zero]]


@torch.no_grad()
def _forget_momentum(optimizer: torch.optim.Optimizer, pruned: Pruned) -> None:
    if pruned and isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()  # its history is of all weights at once, and of a function that is no more
    for weight, zero in pruned:
        for value in optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                zero(value)
        zero.gradient(weight)


def _before_step(pruned: Pruned) -> Callable[..., None]:
    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for weight, zero in pruned:
            zero.before_step(weight)

    return before_step


def _zero_weights(pruned: Pruned) -> Callable[..., None]:
    def zero_weights(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # where Adam's eps is nothing (in half precision 1e-8 is), it divides zero by zero
        follows = type(optimizer) in FOLLOW_GRADIENTS and all(
            group.get("eps", 1.0) >= 1e-30 for group in optimizer.param_groups
        )
        with torch.no_grad():
            for weight, zero in pruned:
                zero.weight(weight, follows_gradient=follows and weight.dtype.itemsize >= 4)

    return zero_weights


def hold(masks: Masks, model: nn.Module, optimizer: torch.optim.Optimizer, *, gradients: bool = True) -> Hold:
    """Keep pruned weights at exactly zero while an optimizer trains the model.

    Works with any `torch.optim.Optimizer`: momentum, weight decay, Adam(W), L-BFGS, gradient accumulation,
    clipping and scaling. All masked weights of the model are held, also those the optimizer is given later.
    Call it again after masks or optimizer change, and release the earlier hold; two holds keep what both keep.

    Write to a held weight under `torch.no_grad()`, not through `weight.data`: torch does not count such writes, so that with SGD,
    Adam and AdamW a pruned weight that was written to stays so until another write is seen or `masks.apply(model)` is called. With
    `gradients=False` every step zeroes it, whoever wrote. A search proves its zeros after every level.

    Args:
        masks: the weights that are left.
        model: the model, or what wraps it to train it (DistributedDataParallel, torch.compile, `accelerator.prepare`); its
            pruned weights are set to zero at once.
        optimizer: the optimizer that trains it, or accelerate's wrapper of it.
        gradients: zero the gradients of pruned weights too, as they are computed: for clipping by norm, scalers and whoever
            else reads gradients. Without it only the weights are zeroed after every step, which costs less; the weights
            that are left train the same, to the bit, with optimizers that treat every weight by itself.

    Returns:
        A `Hold`; use it as a context manager, or call `release()` at the end.

    Raises:
        InputError: the masks belong to another model, or the optimizer trains none of its parameters.

    Example:
        >>> import torch
        >>> from incop import Masks, hold
        >>> net = torch.nn.Linear(4, 2)
        >>> masks = Masks({"weight": torch.eye(4, dtype=torch.bool)[:2]})
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        >>> with hold(masks, net, sgd):
        ...     for _ in range(3):
        ...         sgd.zero_grad()
        ...         net(torch.ones(1, 4)).sum().backward()
        ...         sgd.step()
        >>> int((net.weight != 0).sum())
        2
    """
    return Hold(masks, model, optimizer, gradients=gradients)
