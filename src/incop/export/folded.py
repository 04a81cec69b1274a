"""The folded form: the masks are multiplied into the weights, under the user's own names."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from incop.export.subject import Answers, Outputs, Subject, tensors_of
from incop.masks import Masks


def folded(model: nn.Module, masks: Masks | None = None) -> dict[str, Tensor]:
    """Return the state dict of the masked model: w ⊙ m under the model's own names, and all else as it is.

    `model.load_state_dict(…)` takes it, wherever the class of the model is at hand; incop is not needed there.

    Args:
        model: any module, or what wraps it to train it.
        masks: the weights that are left; by default those that are not exactly zero.

    Returns:
        Tensors on the CPU that share no memory with the model, nor with each other.

    Raises:
        InputError: the masks belong to another model.

    Example:
        >>> import torch
        >>> from incop import Masks
        >>> from incop.export import folded
        >>> net = torch.nn.Linear(2, 2)
        >>> state = folded(net, Masks({"weight": torch.eye(2, dtype=torch.bool)}))
        >>> int((state["weight"] == 0).sum()), list(state)
        (2, ['weight', 'bias'])
    """
    return weights_of(Subject.of(model, masks))


def weights_of(subject: Subject) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by name; a tied one under each of its names."""
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors_of(subject.model).items()}


class FoldedForm:
    """The state dict alone, as safetensors."""

    name = "folded"
    tolerance = 0.0

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `folded.safetensors`."""
        file = folder / "folded.safetensors"
        save_file(weights_of(subject), file, metadata={"format": "pt"})
        return [file]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the network that the file makes, as a function."""
        model = copy.deepcopy(subject.model)
        model.load_state_dict(load_file(file))
        return Answers(model)
