"""The two ways in which the published networks draw their first weights; biases start at zero."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def glorot(model: M) -> M:
    """Draw all convolution and linear weights from N(0, 2 / (fan_in + fan_out)).

    Args:
        model: changed in place; its biases become zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def kaiming(model: M) -> M:
    """Draw all convolution and linear weights from N(0, 2 / fan_in); BatchNorm starts at scale 1 and shift 0.

    Args:
        model: changed in place; its biases become zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model  # torch's own BatchNorm start is already scale 1, shift 0
