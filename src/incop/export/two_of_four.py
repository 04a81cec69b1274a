"""The 2:4 form: of every four weights in a row along a layer's inputs at most two are left, and only these are kept.

Layout of a weight in the file, this project's own: the weight is flattened to rows of one unit each, (units, inputs); of
transformers' `Conv1D` it is turned first. Whole groups of four along a row, G a row, give `NAME.values`, (units, G, 2) in the
weight's own type, and `NAME.positions`, bytes, two groups each, the first in the low half: of a group's four bits the low two
are the place (0 to 3) of its first value, the high two of its second. What is left of a row, fewer than four weights,
is `NAME.tail`, (units, inputs mod 4), whole. A group with fewer weights left is filled up with zeros from its first free places.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from incop.errors import InputError, quoted
from incop.export.marked import marked
from incop.export.subject import Answers, Subject, outputs_of, tensors_of
from incop.layers import is_conv1d
from incop.masks import Masks

__all__ = ["SemiStructuredForm", "packed", "read_semi_structured", "semi_structured", "unpacked"]

M, N = 4, 2
PARTS = ("values", "positions", "tail")
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CAPABILITY = (8, 0)


def packed(weight_UI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pack a matrix of which every group of four along a row has at most two numbers that are not +0.0.

    Args:
        weight_UI: (units, inputs), any type; a −0.0 counts as a number.

    Returns:
        Values (units, G, 2), positions (⌈units · G / 2⌉,) bytes, and the tail (units, inputs mod 4), with G = ⌊inputs / 4⌋.

    Raises:
        InputError: a group has more than two.

    Example:
        >>> import torch
        >>> from incop.export import two_of_four as room
        >>> values, positions, tail = room.packed(torch.tensor([[0.0, 5.0, 0.0, 7.0, 9.0]]))
        >>> values.tolist(), f"{int(positions[0]):04b}", tail.tolist()
        ([[[5.0, 7.0]]], '1101', [[9.0]])
    """
    units, inputs = weight_UI.shape
    groups = inputs // M
    w_UGM = _bits(weight_UI[:, : groups * M].reshape(units, groups, M))  # as whole numbers: a NaN keeps its bits
    there = w_UGM != 0
    if bool((there.sum(-1) > N).any()):
        raise InputError(f"a group of {M} has more than {N} weights left")
    # stable: those that are there come first, each part in its order; then in order of place
    chosen = (~there).to(torch.uint8).argsort(dim=-1, stable=True)[..., :N].sort(dim=-1).values
    values = w_UGM.gather(-1, chosen).contiguous().view(weight_UI.dtype)
    halves = (chosen[..., 0] | chosen[..., 1] << 2).reshape(-1).to(torch.uint8)
    if len(halves) % 2:
        halves = torch.cat([halves, halves.new_zeros(1)])
    return values, halves[0::2] | halves[1::2] << 4, weight_UI[:, groups * M :].clone()


def unpacked(values: Tensor, positions: Tensor, tail: Tensor) -> Tensor:
    """Return the matrix that `packed` has packed, the same to the bit.

    Raises:
        InputError: the parts do not fit each other.

    Example:
        >>> import torch
        >>> from incop.export import two_of_four as room
        >>> weight = torch.tensor([[0.0, 5.0, 0.0, 7.0, 9.0]])
        >>> torch.equal(room.unpacked(*room.packed(weight)), weight)
        True
    """
    fit = values.dim() == 3 and values.shape[2] == N and tail.dim() == 2 and tail.shape[0] == values.shape[0]
    units, groups = values.shape[:2] if fit else (0, 0)
    if not fit or tail.shape[1] >= M or tail.dtype != values.dtype:
        raise InputError("values and tail are not those of a 2:4 weight")
    if positions.dtype != torch.uint8 or positions.shape != (math.ceil(units * groups / 2),):
        raise InputError("the positions are not those of a 2:4 weight")
    halves = torch.stack([positions & 15, positions >> 4], dim=1).reshape(-1)[: units * groups].reshape(units, groups)
    places = torch.stack([halves & 3, halves >> 2], dim=-1).long()
    if bool((places[..., 0] >= places[..., 1]).any()):
        raise InputError("two values of a group have one place")
    v_UGN = _bits(values)
    w_UGM = v_UGN.new_zeros(units, groups, M).scatter_(-1, places, v_UGN).view(values.dtype)
    return torch.cat([w_UGM.reshape(units, groups * M), tail], dim=1)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(BITS[tensor.element_size()])


def _turned(model: nn.Module) -> set[str]:
    """Return the names of the weights that are (inputs, units)."""
    return {f"{name}.weight" if name else "weight" for name, module in model.named_modules() if is_conv1d(module)}


def refuse_unfit(model: nn.Module, masks: Masks) -> None:
    """Refuse masks that leave more than two of any four weights along a layer's inputs.

    Raises:
        InputError: the first such layer is named.
    """
    turned = _turned(model)
    for name, mask in masks.items():
        rows = (mask.T if name in turned else mask).flatten(1)
        if rows.shape[1] < M:
            continue
        whole = rows[:, : rows.shape[1] // M * M].unflatten(1, (-1, M)).sum(-1)
        if bool((whole > N).any()):
            groups = int((whole > N).sum())
            raise InputError(
                f"{name!r} is not 2:4: {groups} of its {whole.numel()} groups of four weights along its inputs keep more than "
                "two; search with selection NofM(2, 4), on the command line --method lth --selection 2:4, or leave the layer "
                "out with skip"
            )


class SemiStructuredForm:
    """The weights of a 2:4 ticket, packed as this module says, and all else dense, as safetensors."""

    name = "2:4"
    tolerance = 0.0

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `semi_structured.safetensors`.

        Raises:
            InputError: a layer is not 2:4.
        """
        refuse_unfit(subject.model, subject.masks)
        turned = _turned(subject.model)
        tensors: dict[str, Tensor] = {}
        shapes: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors_of(subject.model).items():
            if name not in subject.masks:
                tensors[name] = tensor.detach().contiguous().clone()
                continue
            rows = (tensor.detach().T if name in turned else tensor.detach()).flatten(1)
            parts = dict(zip(PARTS, packed(rows), strict=True))
            tensors.update({f"{name}.{part}": value for part, value in parts.items()})
            shapes[name] = {"shape": list(tensor.shape), "turned": name in turned}
        told = {"about": json.dumps(dict(subject.about)), "2:4": json.dumps(shapes), "format": "pt"}
        file = folder / "semi_structured.safetensors"
        save_file(tensors, file, metadata=told)
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Answers:
        """Return the network that the file makes, as a function; on a CPU its weights are dense again."""
        model = copy.deepcopy(subject.model)
        model.load_state_dict(read_semi_structured(file))
        return outputs_of(model)


def read_semi_structured(file: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a file that the form `2:4` wrote, dense and the same to the bit.

    Raises:
        InputError: the file cannot be read, is no such file, or is damaged.

    Example:
        >>> from incop.export import read_semi_structured
        >>> read_semi_structured("absent.safetensors")
        Traceback (most recent call last):
        ...
        incop.errors.InputError: 'absent.safetensors' cannot be read as the 2:4 form: there is no such file
    """
    file = Path(file)
    where = f"{str(file)!r} cannot be read as the 2:4 form"
    state, shapes = marked(file, "2:4", "2:4")
    for name, said in shapes.items():
        parts: list[Any] = [state.pop(f"{name}.{part}", None) for part in PARTS]
        try:
            rows = unpacked(*parts)
            shape = said["shape"]
            state[name] = rows.T.contiguous().reshape(shape) if said["turned"] else rows.reshape(shape)
        except (InputError, AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(f"{where}: {quoted(name)} is damaged") from error
    return state


def semi_structured(model: nn.Module, masks: Masks | None = None) -> nn.Module:
    """Return a copy of the masked model on the GPU whose linear layers run on sparse tensor cores.

    The weights of `nn.Linear` become torch's semi-structured tensors where their type and shape allow it: of float16 and
    bfloat16, say, both sizes must be multiples of 16 to 64 (torch's library decides). All other layers stay dense; which is
    which, `semi_structured_layers` of the returned model says.

    Args:
        model: any module, float16 or bfloat16 for a gain.
        masks: the weights that are left; by default those that are not exactly zero.

    Raises:
        InputError: a layer is not 2:4, there is no GPU of compute capability 8.0 or newer, or no layer can be converted.

    Example:
        >>> import torch
        >>> from incop import InputError
        >>> from incop.export import semi_structured
        >>> try:
        ...     semi_structured(torch.nn.Linear(8, 8))
        ... except InputError as error:
        ...     print(str(error)[:20])
        'weight' is not 2:4:
    """
    subject = Subject.of(model, masks)
    refuse_unfit(subject.model, subject.masks)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < CAPABILITY:
        found = f"this one has {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "this machine has none"
        raise InputError(
            f"2:4 speeds up on an NVIDIA GPU of compute capability 8.0 or newer (Ampere), and {found}: the form '2:4' can be "
            "written anywhere"
        )
    moved = subject.model.cuda()
    done: dict[str, str] = {}
    for name, module in moved.named_modules():
        weight = f"{name}.weight" if name else "weight"
        if isinstance(module, nn.Linear) and weight in subject.masks:
            done[name] = _converted(module)
    if "converted" not in done.values():
        told = "; ".join(f"{name!r}: {why}" for name, why in list(done.items())[:3]) or "it has no masked linear layer"
        raise InputError(f"no layer can be converted to 2:4 on this GPU ({told})")
    moved.semi_structured_layers = done  # type: ignore[assignment]
    return moved


def _converted(module: nn.Linear) -> str:
    """Convert one layer in place and return "converted", or torch's reason why not."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="The PyTorch API of SparseSemiStructuredTensor", category=UserWarning
            )
            sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
    except (RuntimeError, ValueError) as error:  # its type, or a shape that is no multiple of what the library wants
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    module.weight = nn.Parameter(sparse, requires_grad=False)
    return "converted"
