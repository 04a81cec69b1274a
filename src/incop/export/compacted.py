"""The compacted form: units and channels that nobody needs are gone, and the answers are the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from incop.batches import first_samples
from incop.export.compaction import Answering, Compaction, compact, exported, sizes, tolerance_of
from incop.export.differences import SIZES, difference
from incop.export.exporters import quiet
from incop.export.folded import weights_of
from incop.export.resizing import resized
from incop.export.subject import Answers, Outputs, Subject
from incop.masks import Masks


def compacted(model: nn.Module, masks: Masks | None, example: Any) -> nn.Module:
    """Return the masked model without its dead units: the same class and forward pass, with smaller layers.

    A unit is dead where all weights into it are pruned (it puts out a constant, which the next layer's bias takes up) or all
    weights out of it (nobody hears it), where this is exact. What is not understood stays whole. The answers are proven equal
    on the example, on one sample of it, and on other values: to 1e-12 in float64, where the model runs in it.

    Args:
        model: any module, or what wraps it to train it; it stays as it is.
        masks: the weights that are left; None: those that are not exactly zero.
        example: a batch of any usual form, see `incop.batches.unpack`.

    Returns:
        A model on the CPU, in evaluation mode. It is made for that: a branch that only training takes was not seen.

    Raises:
        InputError: the model cannot be followed, or the masks belong to another.

    Example:
        >>> import torch
        >>> from incop import Masks
        >>> from incop.export import compacted
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> masks = Masks({"0.weight": torch.tensor([[True] * 4, [False] * 4, [True] * 4])})
        >>> compacted(net, masks, torch.randn(8, 4))[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    return compact(Subject.of(model, masks, example=example)).model


class CompactedForm:
    """The small network's state dict, and a program of it that needs no class.

    Attributes:
        details: after writing: what went, and why there is no program, if there is none.
    """

    name = "compacted"
    again = frozenset({"compacted.pt2"})
    tolerance = 1e-5

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `compacted.safetensors`, and `compacted.pt2` where torch can export the network."""
        self.tolerance = tolerance_of(subject.model)
        found = compact(subject)
        file, program = folder / "compacted.safetensors", folder / "compacted.pt2"
        save_file(weights_of(Subject(found.model, subject.masks)), file, metadata=_metadata(subject, found))
        why = self._programmed(found.model, subject, program)
        self.details = {**told(found), "program": why is None, "program_lacks": why}
        return [file] if why else [file, program]

    def outputs(self, file: Path, subject: Subject) -> Outputs:
        """Return the network that the state dict makes of a fresh copy of the model, as a function."""
        return Answers(resized(copy.deepcopy(subject.model), file))

    def _programmed(self, small: nn.Module, subject: Subject, file: Path) -> str | None:
        """Write the program, proven; return why not, if it cannot be."""
        example = subject.needed_example("the compacted form")
        try:
            with quiet():
                torch.export.save(exported(Answering(small, _plain), example), file)
                answers = Answers(torch.export.load(file).module())
                for size in SIZES:
                    batch = example if size is None else first_samples(example, size)
                    if not difference(subject.outputs(batch), answers(batch)) <= self.tolerance:
                        raise ValueError("its answers differ")
        except Exception as error:
            file.unlink(missing_ok=True)
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        return None


def _plain(value: Any) -> Any:
    """Return an answer in tensors, tuples, lists and dictionaries alone, so that its program needs no library."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, tuple | list):
        return (
            type(value)(_plain(part) for part in value) if type(value) in (tuple, list) else tuple(map(_plain, value))
        )
    return value


def told(found: Compaction) -> dict[str, Any]:
    """Return what went, as JSON values."""
    return {
        "layers": [asdict(change) for change in found.layers],
        "units": found.units,
        "parameters": list(found.parameters),
        "macs": None if found.macs is None else list(found.macs),
        "held_back": list(found.held_back),
        "sentence": _sentence(found),
    }


def _sentence(found: Compaction) -> str:
    if not found.units:
        if found.held_back:
            return (
                f"nothing could go: without what seemed dead at {', '.join(found.held_back)} the answers would differ"
            )
        return "nothing could go: every unit is still read; pruning whole units (neurons, channels) makes dead ones"
    before, after = found.parameters
    layers = len({change.layer for change in found.layers if change.units[0] != change.units[1]})
    macs = "" if found.macs is None else f", multiplications of a sample {found.macs[0]:,} → {found.macs[1]:,}"
    kept = f"; {', '.join(found.held_back)} stayed whole, since the answers would differ" if found.held_back else ""
    return f"{found.units:,} units gone from {layers} layers: parameters {before:,} → {after:,}{macs}{kept}"


def _metadata(subject: Subject, found: Compaction) -> dict[str, str]:
    old: Mapping[str, Tensor] = subject.model.state_dict()
    new: Mapping[str, Tensor] = found.model.state_dict()
    changed = {name.rpartition(".")[0] for name in found.removal.kept}
    modules = dict(found.model.named_modules())
    return {
        "format": "pt",
        "form": "compacted",
        "sizes": json.dumps({name: sizes(modules[name]) for name in sorted(changed) if sizes(modules[name])}),
        "shapes": json.dumps({name: [list(old[name].shape), list(new[name].shape)] for name in found.removal.kept}),
        "kept": json.dumps(
            {name: {axis: kept.tolist() for axis, kept in axes.items()} for name, axes in found.removal.kept.items()}
        ),
        "about": json.dumps(dict(subject.about)),
    }
