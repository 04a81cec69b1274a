"""The CSR form: a network with CSR layers in a file, where these were measured to be faster."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from incop.errors import InputError, quoted
from incop.export.csr_choice import BATCH_SIZES, TOLERANCE, Choice, choose
from incop.export.csr_layers import CSRLinear, checked_csr, put, replaced
from incop.export.dense_file import opened
from incop.export.subject import Answers, Subject, tensors_of
from incop.export.timing import ROUNDS
from incop.rundir import is_file

PARTS = ("crow_indices", "col_indices", "values")


class CSRForm:
    """The network with CSR layers, as safetensors: crow, col and values of these, all else dense.

    Args:
        batch_sizes: at which a layer should be faster.
    """

    tolerance = TOLERANCE

    def __init__(self, batch_sizes: Sequence[int] = BATCH_SIZES) -> None:
        self.batch_sizes = tuple(batch_sizes)
        sizes = "/".join(map(str, self.batch_sizes))
        self.name = "csr" if self.batch_sizes == BATCH_SIZES else f"csr@{sizes}"

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `csr.safetensors`."""
        choices = choose(subject, self.batch_sizes, ROUNDS)
        chosen = [choice.layer for choice in choices if choice.chosen]
        if not chosen:
            raise InputError(_none(choices))
        tensors_of(subject.model)  # refuses what is no tensor
        model = replaced(subject.model, chosen)
        tensors: dict[str, Tensor] = {}
        shapes: dict[str, list[int]] = {}
        for name, tensor in model.state_dict().items():
            if tensor.layout == torch.sparse_csr:
                shapes[name] = list(tensor.shape)
                parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
                tensors.update({f"{name}.{what}": part.clone() for what, part in zip(PARTS, parts, strict=True)})
            else:
                tensors[name] = tensor.detach().contiguous().clone()
        told = {"about": json.dumps(dict(subject.about)), "csr": json.dumps(shapes), "format": "pt"}
        file = folder / "csr.safetensors"
        save_file(tensors, file, metadata=told)
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Answers:
        """Return the network that the file makes, as a function."""
        return Answers(read_csr(file, subject.model))


def _none(choices: Sequence[Choice]) -> str:
    if not choices:
        return "the network has no linear layer that CSR could stand in for: it helps linear layers alone"
    tried = [choice for choice in choices if choice.ratios] or choices
    best = max(tried, key=lambda choice: min((ratio.median for ratio in choice.ratios.values()), default=0.0))
    name = f"layer {best.layer!r}" if best.layer else "the layer"
    return (
        f"no linear layer is faster as CSR here at every batch size asked for; the best, {name} at sparsity "
        f"{best.sparsity:.2f}: {best.why}"
    )


def read_csr(file: str | Path, model: nn.Module) -> nn.Module:
    """Return a copy of a model with the layers and weights of a file that the form `csr` wrote.

    Args:
        file: the file.
        model: the network that was exported, with any weights; it stays as it is.

    Raises:
        InputError: the file cannot be read, is no such file, is damaged, or belongs to another model.

    Example:
        >>> from incop.export import read_csr
        >>> read_csr("absent.safetensors", None)
        Traceback (most recent call last):
        ...
        incop.errors.InputError: 'absent.safetensors' cannot be read as the CSR form: there is no such file
    """
    tensors, shapes = _opened(Path(file))
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        of, _, part = name.rpartition(".")
        if not (of in shapes and part in PARTS):
            state[name] = tensor
    layers = {}
    model = copy.deepcopy(model).cpu().eval()
    modules = dict(model.named_modules())
    for name, shape in shapes.items():
        layer = name.removesuffix("weight").removesuffix(".")
        try:
            crow, col, values = (tensors[f"{name}.{part}"] for part in PARTS)
            weight = checked_csr(crow, col, values, shape)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{str(file)!r} is damaged: {quoted(name)} is no matrix in CSR") from error
        if layer not in modules:
            raise InputError(f"{str(file)!r} belongs to another model: it has no layer {quoted(layer)}")
        layers[layer] = CSRLinear(weight, state.get(f"{layer}.bias" if layer else "bias"))
        state[name] = weight
    model = put(model, layers)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"{str(file)!r} belongs to another model: {first}") from error
    return model


def _opened(file: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    where = f"{str(file)!r} cannot be read as the CSR form"
    if not is_file(file):
        raise InputError(f"{where}: there is no such file")
    try:
        tensors, metadata = opened(file)
        shapes = json.loads(metadata["csr"])
    except KeyError as error:
        raise InputError(f"{where}: it does not say which of its tensors are CSR") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from error
    whole = isinstance(shapes, dict) and all(
        isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and 0 < size < 2**31 for size in shape)
        for shape in shapes.values()
    )
    if not whole:
        raise InputError(f"{where}: its shapes are damaged")
    return tensors, shapes
