"""The one place that imports Lightning, under either of its names: `lightning` or, older, `pytorch_lightning`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from incop.errors import InputError, MissingExtra

NAMES = ("lightning.pytorch", "pytorch_lightning")


def _imported() -> ModuleType:
    """Return the package that is installed, the newer name first."""
    for package in NAMES:
        try:
            return importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name not in (package, package.partition(".")[0]):
                raise  # Lightning is there, and something that it needs is not
    raise MissingExtra("lightning", "lightning", "searching with Lightning")


Callback: Any = _imported().Callback


def package_of(model: Any) -> Any:
    """Return the package whose LightningModule a model is: its own Trainer must train it, the other's refuses it."""
    for name in NAMES:  # a package that nobody has imported can have made no module
        package = sys.modules.get(name)
        if package is not None and isinstance(model, package.LightningModule):
            return package
    raise InputError(
        f"the model is a {type(model).__name__}, not a LightningModule, and Lightning trains no other: search the "
        "LightningModule that holds it, or give search another trainer"
    )
