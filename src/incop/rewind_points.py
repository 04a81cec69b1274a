"""Remember a model's weights and buffers, put them back, and prove that they are back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from incop.errors import InputError, TrainingError, nearest
from incop.inspection import refuse_empty
from incop.masks import Masks
from incop.offload import Offload
from incop.records import Interval
from incop.wrappers import unwrapped

EXTRA = "_extra_state"  # torch's own name for what a module's get_extra_state returns
IN_JSON = ".json"  # after the name of one that is no tensor: a tensor of the bytes of its JSON stands for it

Kind = Literal["init", "early", "dense", "rate", "none"]


@dataclass(frozen=True)
class Snapshot:
    """Copies of all parameters, buffers and extra states of a model, by name; training cannot reach them.

    Args:
        tensors: by name, as in `named_parameters()` and `named_buffers()`, non-persistent buffers included; what a module's
            `get_extra_state` returns as its own tensor, or as the bytes of its JSON.
        epoch: how many epochs of level 0 they had been trained.

    Example:
        >>> import torch
        >>> from incop.rewind_points import Snapshot
        >>> net = torch.nn.Linear(2, 2)
        >>> before = Snapshot.of(net)
        >>> _ = net.weight.data.mul_(2)
        >>> before.rewind(net)
    """

    tensors: Mapping[str, Tensor]
    epoch: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, *, epoch: float = 0.0, offload: Offload | None = None) -> Snapshot:
        """Copy everything the model holds, to where `offload` says.

        Raises:
            InputError: it holds a lazy module that has not run, lies on the meta device, or has an extra state that is
                neither a tensor nor what JSON holds.
            TrainingError: the disk takes no more.
        """
        refuse_empty(model)
        extra = dict(_taken(name, module) for name, module in _extra(model).items())
        return cls((offload or Offload()).copy({**_tensors(model), **extra}), epoch)

    @torch.no_grad()
    def rewind(self, model: nn.Module, masks: Masks | None = None) -> None:
        """Put every parameter and buffer back in place, zero what the masks prune, and prove it.

        Raises:
            InputError: the snapshot or the masks are of another model; nothing has been written.
            TrainingError: a tensor does not come back bit for bit.
        """
        tensors = self._fitting(model, buffers=False)
        if masks is not None:
            masks.weights(model)
        for name, tensor in tensors.items():
            then = self.tensors[name]
            if tensor.shape != then.shape:  # a buffer that grew
                tensor.resize_(then.shape)
            tensor.copy_(then)
        put_extra_states(model, self.tensors)
        if masks is not None:
            masks.apply(model)
        self.prove(model, masks)

    def sums(self) -> dict[str, int]:
        """Return the sum of every tensor's bytes as whole numbers, to hold copies of it in other processes against."""
        # what a module counts beside its tensors may be each process's own
        of_all = {name: tensor for name, tensor in self.tensors.items() if EXTRA not in name}
        return {name: int(_bits(tensor).sum(dtype=torch.int64)) for name, tensor in of_all.items()}

    @torch.no_grad()
    def prove(self, model: nn.Module, masks: Masks | None = None) -> None:
        """Compare every tensor of the model with the snapshot, bit for bit; pruned weights with +0.0.

        Raises:
            InputError: the snapshot is of another model.
            TrainingError: one differs; the sentence names it.
        """
        for name, tensor in self._fitting(model).items():
            wanted = self.tensors[name].to(tensor.device)
            if masks is not None and name in masks:
                wanted = wanted.masked_fill(~masks[name].to(tensor.device), 0.0)
            if not torch.equal(_bits(tensor), _bits(wanted)):
                raise TrainingError(
                    f"rewinding {name!r} did not bring back its bits: something else writes to it "
                    "(a shared tensor, another thread, or a hook of the model)"
                )
        for name, module in _extra(model).items():
            key, now = _taken(name, module)
            if not _equal(now, self.tensors.get(key)):
                raise TrainingError(
                    f"rewinding {name!r} did not bring it back: set_extra_state of {type(module).__name__} does not put in place "
                    "what its get_extra_state returned"
                )

    def _fitting(self, model: nn.Module, *, buffers: bool = True) -> dict[str, Tensor]:
        """Return the model's tensors, which must be those of the snapshot; shapes of buffers may be let pass."""
        tensors, extra = _tensors(model), set(_extra(model))
        mine = {base if (base := name.removesuffix(IN_JSON)) in extra else name for name in self.tensors}
        if strange := sorted((set(tensors) | extra) ^ mine):
            raise InputError(f"the rewind point belongs to another model: they differ at {strange[0]!r}")
        weights = dict(unwrapped(model).named_parameters())
        for name, tensor in tensors.items():
            then = self.tensors[name]
            if (tensor.shape != then.shape and (buffers or name in weights)) or tensor.dtype != then.dtype:
                raise InputError(
                    f"the rewind point belongs to another model: {name!r} is {_form(tensor)} now and was {_form(then)}"
                )
        return tensors


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    model = unwrapped(model)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_extra_states(model: nn.Module) -> None:
    """Refuse a model whose modules have a state beside their tensors that could not be remembered, or not be put back."""
    for name, module in _extra(model).items():
        if type(module).set_extra_state is nn.Module.set_extra_state:
            raise InputError(
                f"{name!r} ({type(module).__name__}) has get_extra_state and no set_extra_state: neither rewinding nor a "
                "checkpoint can bring its state back"
            )
        key, before = _taken(name, module)
        put_extra_states(model, {key: before})
        if not _equal(_taken(name, module)[1], before):
            raise InputError(
                f"set_extra_state of {name!r} ({type(module).__name__}) does not put in place what its get_extra_state returned: "
                "neither rewinding nor a checkpoint can bring that back"
            )


def put_extra_states(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the extra states that are among a snapshot's tensors back; a module whose own is not among them keeps what it has."""
    for name, module in _extra(model).items():
        found = next((key for key in (name, name + IN_JSON) if key in tensors), None)
        if found is None:
            continue
        try:
            state = tensors[found].detach().clone()
            module.set_extra_state(state if found == name else json.loads(bytes(state.cpu().numpy())))
        except Exception as error:  # of the model's own kinds, where a file's is not what it once gave
            raise InputError(
                f"{type(module).__name__} does not take back the extra state {name!r}: {type(error).__name__}: {error}"
            ) from error


def without_extra_states(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not an extra state of this model, of its state dict or of a snapshot's tensors."""
    extra = _extra(model)
    return {name: value for name, value in state.items() if name.removesuffix(IN_JSON) not in extra}


def _extra(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with a state beside their tensors, by the name that it has in a state dict."""
    return {
        f"{name}.{EXTRA}" if name else EXTRA: module
        for name, module in unwrapped(model).named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def _taken(name: str, module: nn.Module) -> tuple[str, Tensor]:
    """Return a copy of an extra state as a tensor, under its name; under another name where it is JSON."""
    state: Any = module.get_extra_state()
    if isinstance(state, Tensor) and state.layout == torch.strided and not state.is_quantized:
        return name, state.detach().clone()
    try:
        text = json.dumps(state)
        whole = _same(json.loads(text), state)
    except (TypeError, ValueError, RecursionError):
        whole = False
    if not whole:
        kind = f"{type(state).__name__}{' that holds more than JSON does' if type(state) in (dict, list) else ''}"
        raise InputError(
            f"get_extra_state of {name!r} ({type(module).__name__}) returns a {kind}: neither rewinding nor a checkpoint can "
            "bring that back; let it return a tensor, or numbers, texts, lists and dicts of these"
        )
    return name + IN_JSON, torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()


def _same(one: Any, other: Any) -> bool:
    """Say whether JSON brought a value back as it was: a tuple becomes a list in it, and a number that is a key a text."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other)  # NaN is not equal to itself


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other.to(one.device)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


@dataclass(frozen=True)
class RewindPoint:
    """What a level's weights and learning-rate schedule start from.

    Args:
        kind: "init": the weights before any training; "early": those after a stretch of level 0, with the schedule from
            there on; "dense": those of the end of level 0; "rate": the weights stay and only the schedule starts
            again; "none": the weights stay and the schedule stays at its end.
        after: how far into level 0 the point lies, for "early" and only for it.

    Raises:
        InputError: the kind is unknown, or goes with another `after`.

    Source: init — Frankle & Carbin 2019; early — Frankle et al. 2020 ("rewinding"); rate — Renda et al. 2020
    ("learning-rate rewinding"); none — fine-tuning (Han et al. 2015).
    """

    kind: Kind
    after: Interval | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or (self.kind == "early") != isinstance(self.after, Interval):
            raise _unknown(self.kind if self.after is None else f"{self.kind}:{self.after}")

    @classmethod
    def parse(cls, text: str | RewindPoint) -> RewindPoint:
        """Read "init", "early:2", "early:0.5", "early:500steps", "dense", "rate" or "none".

        Raises:
            InputError: it is none of these.

        Example:
            >>> from incop.rewind_points import RewindPoint
            >>> str(RewindPoint.parse("early:500steps"))
            'early:500steps'
        """
        if isinstance(text, RewindPoint):
            return text
        kind, colon, after = str(text).partition(":")
        try:
            return cls(kind, Interval.parse(after) if colon else None)  # type: ignore[arg-type]  # it checks the word
        except InputError:
            raise _unknown(text) from None

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"early:{self.after}" if self.kind == "early" else self.kind

    @property
    def restores(self) -> bool:
        """Whether weights are put back at all."""
        return self.kind in ("init", "early", "dense")


def _unknown(text: object) -> InputError:
    kind = str(text).partition(":")[0]
    hint = "" if kind in get_args(Kind) else nearest(kind, get_args(Kind))
    return InputError(
        f"unknown rewind point {text!r}: {hint}use init, early:N (N > 0 epochs of level 0, or early:Nsteps), dense, "
        "rate or none"
    )
