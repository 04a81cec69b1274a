"""Losses of language models, and a model's own: how many numbers a mean is over, so that means of batches can be joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from incop.batches import output_tensor
from incop.errors import InputError

IGNORED = -100  # the label that torch's cross-entropy leaves out by default


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy of every labelled token, the mean over all of them.

    Args:
        shift: the output at a token is for the token after it, as in GPT-2; False: for the token itself, as in BERT.
        ignored: the label of tokens that do not count.

    Example:
        >>> import torch
        >>> from incop.flow import TokenLoss
        >>> logits, labels = torch.zeros(2, 4, 10), torch.tensor([[1, 2, 3, -100], [4, 5, -100, -100]])
        >>> loss = TokenLoss()
        >>> round(float(loss(logits, labels)), 4), loss.weight(logits, labels)
        (2.3026, 3)
    """

    shift: bool = True
    ignored: int = IGNORED

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        """Return the mean loss of logits (n, T, words) with labels (n, T)."""
        logits, labels = self.aligned(output, target)
        if not bool((labels != self.ignored).any()):
            raise InputError(f"no token of a batch has a label other than {self.ignored}: leave the batch out")
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=self.ignored)

    def weight(self, output: Any, target: Tensor) -> int:
        """Return how many tokens the mean is over."""
        return int((self.aligned(output, target)[1] != self.ignored).sum())

    def aligned(self, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        """Return the logits and the labels that belong together: each token's output, and what it is to say.

        Raises:
            InputError: the shapes do not fit.
        """
        logits = output_tensor(output, where="the model")
        if not isinstance(target, Tensor) or logits.dim() != 3 or logits.shape[:2] != target.shape:
            wanted = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise InputError(
                f"a loss of tokens needs logits (samples, tokens, words) and labels (samples, tokens), not "
                f"{tuple(logits.shape)} and {wanted}"
            )
        return (logits[:, :-1], target[:, 1:]) if self.shift else (logits, target)


@dataclass(frozen=True)
class OwnLoss:
    """The loss that a model works out itself when it is called with its labels, as those of transformers do.

    The batch's target goes to the model under its own name ("labels", unless the batch calls it otherwise), and `.loss` of
    the output is taken.

    Example:
        >>> import torch
        >>> import incop
        >>> from incop import flow
        >>> class Model(torch.nn.Sequential):
        ...     def forward(self, x, labels):
        ...         logits = super().forward(x)
        ...         return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}
        >>> _ = torch.manual_seed(0)
        >>> net = Model(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> probe = {"x": torch.randn(64, 4), "labels": torch.randint(3, (64,))}
        >>> list(incop.measure(net, probe, flow.GradientFlow(flow.OwnLoss())).values)
        ['0', '2']
    """

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Return the loss in a model's output."""
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if loss is None and isinstance(output, tuple) and output:
            loss = output[0]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                f"the model returned a {type(output).__name__} without a loss: give its labels in the batch "
                "({…, 'labels': …}), or use a loss of (output, target)"
            )
        return loss.reshape(())

    def weight(self, output: Any, target: Any) -> int | None:
        """Return how many tokens a loss of tokens is the mean over; None where it is over the samples.

        Whether the model predicts the next token or the token itself is seen by working the loss out both ways.
        """
        if not isinstance(target, Tensor) or target.dim() != 2 or target.is_floating_point():
            return None
        loss = self(output, target).detach()
        with torch.no_grad():
            for tokens in (TokenLoss(shift=True), TokenLoss(shift=False)):
                try:
                    same = torch.allclose(tokens(output, target).to(loss.dtype), loss, rtol=1e-3, atol=1e-5)
                except (InputError, RuntimeError, IndexError):
                    continue
                if same:
                    return tokens.weight(output, target)
        return None
