"""Making a model of a library or of the user's code: tried on two images, and given the weights it starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from incop import checkpoint_files
from incop.batches import output_tensor
from incop.errors import IncopError, InputError, nearest, quoted
from incop.experiments.models import code, libraries
from incop.experiments.models.named import Named, Wanted, place
from incop.rewind_points import put_extra_states, without_extra_states

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
TOKENS = 4  # of a trial sequence


@dataclass(frozen=True)
class Made:
    """A network, and what a reader of its records should know of it.

    Args:
        model: on the CPU and in training mode.
        origin: what it was made by: a library with its version, or a file of code with its hash; None of incop's own.
        notices: sentences, such as which layer was drawn afresh.
    """

    model: nn.Module
    origin: str | None = None
    notices: tuple[str, ...] = ()


def read_arguments(text: str | Mapping[str, Any] | None, what: str = "model_args") -> dict[str, Any]:
    """Read keyword arguments: a mapping, or an object in JSON."""
    flag = f"--{what.replace('_', '-')}"
    if text is None:
        return {}
    try:
        found = json.loads(text) if isinstance(text, str) else dict(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{flag} {quoted(text)} is no JSON ({error}): write an object such as '{{\"width\": 8}}'"
        ) from None
    if not isinstance(found, dict):
        raise InputError(
            f"{flag} {quoted(text)} is a {type(found).__name__}: write an object such as '{{\"width\": 8}}'"
        )
    strange = [key for key in found if not str(key).isidentifier()]
    if strange:
        raise InputError(f"{flag} has the key {quoted(strange[0])}, which is no name of an argument")
    return found


def check_weights(weights: str) -> None:
    """Refuse weights that are neither a word nor a file that can be read, without reading it."""
    if weights in ("none", "pretrained"):
        return
    path = place(weights)
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"--weights {quoted(weights)} is a pickle, which may run code when it is opened, and is not read: if you trust it, "
            "convert it once with safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
        )
    if not path.is_file():
        near = nearest(weights, ("none", "pretrained"))
        raise InputError(
            f"--weights {quoted(weights)}: there is no file of that name; {near}give none, pretrained, or a safetensors file"
        )


def make(
    named: Named, wanted: Wanted, *, arguments: Mapping[str, Any], weights: str, most: int, within: Callable[[], Any]
) -> Made:
    """Make a network of a library or of the user's code, and try it on two samples.

    Args:
        named: the model.
        wanted: what it must take and give.
        arguments: further keyword arguments of its factory.
        weights: "none", "pretrained", or a safetensors file.
        most: parameters that a library's network may have.
        within: a context in which the first weights are drawn: the seed's.
    """
    said = f"{named.place or named.source}:{named.name}"
    notices: list[str] = []
    fetched = weights == "pretrained" and named.source in ("timm", "hf")
    if named.is_code:
        if weights == "pretrained":
            raise InputError(
                f"{said} is code of your own, which has no pretrained weights: load them there, or name their file"
            )
        with within():  # the file's own lines may draw weights, too
            factory, origin = code.factory(named)
            model = code.run(factory, named, wanted, arguments)
        notices.append(f"the model is code that was run: {origin[:-48]}…")
    else:
        build = libraries.maker(named, wanted, arguments, fetch=fetched)
        origin = libraries.version(named)
        if not fetched:
            _check_size(build, said, most)
        with within():
            model = _built(build, said, fetched)
        if fetched:
            notices.append(
                f"the model began with the pretrained weights that {named.source} holds ready for {named.name}"
            )
    with within():  # a lazy layer draws its weights in its first forward pass
        _try(model, said, wanted)
    if weights == "pretrained" and not fetched:
        notices += start(model, libraries.pretrained(named, model), f"torchvision's pretrained {named.name}")
    elif weights not in ("none", "pretrained"):
        notices += _started(model, weights, named)
    return Made(model.train(), origin, tuple(notices))


def _started(model: nn.Module, weights: str, named: Named) -> list[str]:
    try:
        return start_from_file(model, weights)
    except InputError as error:
        if named.source != "hf" or "do not fit" not in str(error):
            raise
        # transformers renames tensors on their way into a file of its own
        raise InputError(
            f"{error}; a folder that save_pretrained() wrote is read by hf:FOLDER --weights pretrained"
        ) from error


def _built(build: Callable[[], nn.Module], said: str, fetched: bool) -> nn.Module:
    try:
        return build()
    except IncopError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises at arguments that it cannot use
        if (unfit := libraries.mismatch(error)) is not None:
            raise unfit from error
        if fetched and isinstance(error, OSError | ValueError):
            raise libraries.no_download(said, error) from error
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{said} cannot be built ({type(error).__name__}: {reason}): check --model-args and the images"
        ) from error


def _check_size(build: Callable[[], nn.Module], said: str, most: int) -> None:
    """Count what would be built without memory for it; what cannot be built so is built for real."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            count = sum(p.numel() for p in build().parameters())
    except Exception:
        return  # it asks for numbers that are not there; the real building says what is wrong, if anything is
    if count > most:
        raise InputError(
            f"{said} would have {count} parameters, more than {most}: choose a smaller one, or lower --model-args"
        )


def _try(model: nn.Module, said: str, wanted: Wanted) -> None:
    """Run two samples of nothing through the network: whether it takes them, and what it gives."""
    if wanted.task == "images":
        samples = torch.zeros(2, wanted.channels, *wanted.size)
    else:
        samples = torch.zeros(2, TOKENS, dtype=torch.int64)
    model.eval()
    try:
        with torch.no_grad():
            output = output_tensor(model(samples), where=said)
    except InputError:
        raise
    except Exception as error:  # the network may be anybody's
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{said} cannot take {wanted} ({type(error).__name__}: {reason}): give its size by --model-args, or take another"
        ) from error
    finally:
        model.train()
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{said} has no weight that could be trained")
    if wanted.task == "language":
        return
    if output.shape != (2, wanted.classes):
        raise InputError(
            f"{said} gives an output of shape {tuple(output.shape)} for two samples of {wanted.classes} classes, where "
            f"(2, {wanted.classes}) belongs: give the number of classes by --model-args"
        )


def start_from_file(model: nn.Module, file: str) -> list[str]:
    """Put the weights of a safetensors file in place; return what is to be told."""
    check_weights(file)
    weights = checkpoint_files.load_weights(place(file))
    digest = hashlib.sha256(place(file).read_bytes()).hexdigest()
    return [f"the model began with the weights of {file} (sha256 {digest[:16]}…)", *start(model, weights, file)[1:]]


def start(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Put weights in place by name; one layer may be of another shape, such as that of the classes, and stays as it was drawn."""
    own = without_extra_states(model, model.state_dict())
    extra, weights = weights, without_extra_states(model, weights)
    there = [own[name] for name in weights if name in own]
    tied = {name for name in own if name not in weights and any(_same(own[name], tensor) for tensor in there)}
    missing, strange = sorted(set(own) - set(weights) - tied), sorted(set(weights) - set(own))
    if missing or strange:
        lacks = f"lacks {missing[0]!r}" if missing else f"has {strange[0]!r}, which the network does not"
        raise InputError(f"the weights of {source} do not fit this network: it {lacks}: they belong to another")
    other = sorted(name for name in weights if weights[name].shape != own[name].shape)
    if len({name.rpartition(".")[0] for name in other}) > 1:
        shapes = f"{tuple(weights[other[0]].shape)} against {tuple(own[other[0]].shape)}"
        raise InputError(
            f"the weights of {source} do not fit this network: {len(other)} tensors have other shapes, {other[0]!r} {shapes}"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            if name not in other:
                own[name].copy_(tensor)
    put_extra_states(model, extra)  # of a run's own files; others have none
    told = [f"the model began with the weights of {source}"]
    if other:
        told.append(f"the layer of {' and '.join(other)} has another shape in {source} and began with drawn weights")
    return told


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.numel() > 0
