"""The dense network as a frozen copy, for a trainer that trains towards its outputs."""

from __future__ import annotations

import copy

from torch import nn

from incop.errors import InputError
from incop.loop.progress import SearchProgress
from incop.loop.settings import SearchSettings
from incop.rewind_points import Snapshot
from incop.wrappers import unwrapped


def frozen_copy(settings: SearchSettings) -> nn.Module | None:
    """Return a copy of the model that is never trained, where the trainer needs one; it is given the dense weights later.

    It is made before any training, because a model that holds activations after a step cannot be copied.

    Raises:
        InputError: the model cannot be copied.
    """
    if not settings.needs_dense_network:
        return None
    model = unwrapped(settings.model)
    try:
        found = copy.deepcopy(model)
    except Exception as error:  # of the model's own kinds
        raise InputError(
            f"{type(model).__name__} cannot be copied, and training without labels keeps a copy of the dense network: "
            f"copy.deepcopy(model) must work ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    return found.eval().requires_grad_(False)


def hand_over(settings: SearchSettings, progress: SearchProgress) -> None:
    """Give the trainer the dense network, at the end of level 0 or when a later level is gone on with."""
    network = progress.dense_network
    if network is None:
        return
    point = progress.points["dense"]
    point.rewind(network)  # proves itself
    if settings.offload.to is None:  # its weights are in memory once, as the rewind point and in the copy
        weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
        progress.points["dense"] = Snapshot({**point.tensors, **weights}, point.epoch)
    settings.trainer.dense_network = network  # type: ignore[attr-defined]  # it says that it needs it


def take_back(settings: SearchSettings) -> None:
    """Take the dense network of an earlier search from a trainer that is used again."""
    if settings.needs_dense_network:
        settings.trainer.dense_network = None  # type: ignore[attr-defined]
