"""Resizing: a freshly built model takes the shapes of a compacted file. Needs torch and safetensors alone: it may be copied."""

from __future__ import annotations

import json
from os import PathLike

import torch
from safetensors import safe_open
from torch import nn


def resized(model: nn.Module, file: str | PathLike[str]) -> nn.Module:
    """Make a freshly built model the compacted one of a file, in place, and return it.

    Args:
        model: built as the one that was exported, with any weights.
        file: `compacted.safetensors`.

    Raises:
        ValueError: the file was made from another model, or is none of a compacted form.

    Example:
        >>> import tempfile, torch
        >>> from incop import export
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> _ = net[0].weight.data[1].zero_()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export.write(export.Subject.of(net, example=torch.randn(8, 4)), "compacted", folder)
        ...     fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        ...     print(export.resized(fresh, written.files[0])[0])
        Linear(in_features=4, out_features=2, bias=True)
    """
    with safe_open(file, framework="pt") as opened:
        sizes = (opened.metadata() or {}).get("sizes")
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    modules = dict(model.named_modules())
    own = model.state_dict()
    if sizes is None or set(own) != set(state) or not set(json.loads(sizes)) <= set(modules):
        strange = sorted(set(own) ^ set(state)) or ["sizes"]
        raise ValueError(
            f"{file} is not the compacted form of this {type(model).__name__} (they differ at {strange[0]!r})"
        )
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            owner, _, leaf = name.rpartition(".")
            old = modules[owner]._parameters.get(leaf)
            if old is not None:
                empty = torch.empty_like(tensor, dtype=old.dtype, device=old.device)
                modules[owner]._parameters[leaf] = nn.Parameter(empty, requires_grad=old.requires_grad)
            else:
                modules[owner]._buffers[leaf] = torch.empty_like(tensor, device=own[name].device)
    for owner, numbers in json.loads(sizes).items():
        for attribute, number in numbers.items():
            if isinstance(getattr(modules[owner], attribute, None), int) and isinstance(number, int):
                setattr(modules[owner], attribute, number)
    model.load_state_dict(state)
    return model
