"""Hooks: the only place that hooks the modules of a model, and takes every hook off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn


class Hooks:
    """Forward hooks that are gone when the `with` block is left, also where the model throws."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args)` before every forward pass of a module."""
        self._handles.append(module.register_forward_pre_hook(hook))

    def after(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Call `hook(module, args, output)` after every forward pass of a module, or `hook(module, args, kwargs, output)`."""
        self._handles.append(module.register_forward_hook(hook, with_kwargs=with_kwargs))

    def remove(self) -> None:
        """Take all of these hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
