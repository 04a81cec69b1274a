"""The ONNX form: one file that a runtime without torch answers from, for any number of samples."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from incop.batches import Batch, call, first_samples, mapped, walk
from incop.errors import InputError, MissingExtra
from incop.export.differences import difference
from incop.export.exporters import DEPENDS_ON_VALUES, depends_on_values, quiet, told
from incop.export.subject import Subject, repeated

TOLERANCE = 1e-5  # relative; another runtime sums in another order
NEEDED = ("onnx", "onnxscript", "onnxruntime")
MAX_IN_ONE = 1_900_000_000  # bytes of weights; protobuf holds less than 2 GiB in one file, the graph included
SAMPLES = 3  # the network is followed with; of 1 torch would take the number for part of the network
KEY = "incop"  # of the metadata: JSON of what a reader should know


class OnnxForm:
    """The network as ONNX, by torch's exporter of whole graphs: the batch is dynamic, and the length of sequences of tokens.

    `subject.about` is JSON in the file's metadata under the key "incop". Inputs have the names that the model's forward pass
    gives them, outputs those of its dictionary, or `output`, `output_0`, ….
    """

    name = "onnx"
    tolerance = TOLERANCE

    def write(self, subject: Subject, folder: Path) -> list[Path]:
        """Write `model.onnx`; a network of more than 1.9 GB keeps its weights in `model.onnx.data` beside it."""
        for package in NEEDED:
            _load(package)
        example = subject.needed_example("ONNX")
        _refuse_half(subject.model)
        batch = first_samples(repeated(example, max(example.samples, 2)), SAMPLES)
        file = folder / "model.onnx"
        tokens = _tokens(batch)
        if tokens is not None:
            try:
                self._export(subject, batch, file, tokens)
                if self._answers_other_length(subject, batch, file, tokens):
                    return _files(file)
            except InputError:
                pass  # a length that is written into it leaves the number of samples free all the same
            for part in folder.iterdir():
                part.unlink()
        self._export(subject, batch, file, None)
        return _files(file)

    def outputs(self, file: Path, subject: Subject) -> OnnxAnswers:
        """Return onnxruntime's answers from the file, as a function."""
        return OnnxAnswers(file, subject.model)

    def _export(self, subject: Subject, batch: Batch, file: Path, tokens: int | None) -> None:
        named = dict(_named_inputs(subject.model, batch))
        answer = _answer(subject.model, batch)
        outputs = _names(answer, "output")
        outputs = [f"{name}_out" if name in named else name for name in outputs]
        size, length = torch.export.Dim("batch"), torch.export.Dim("sequence")
        shapes = []
        for tensor in named.values():
            free: dict[int, Any] = {}
            if tensor.dim() and tensor.shape[0] == batch.samples:
                free[0] = size
            if tokens is not None and tensor.dim() > 1 and tensor.shape[1] == tokens:
                free[1] = length
            shapes.append(free)
        try:
            with quiet(), torch.no_grad():
                program: Any = torch.onnx.export(
                    _Flat(subject.model, batch).eval(),
                    tuple(named.values()),
                    dynamo=True,
                    dynamic_shapes={"tensors": tuple(shapes)},
                    input_names=list(named),
                    output_names=outputs,
                    verbose=False,
                )
        except Exception as error:
            raise InputError(_why(error, type(subject.model).__name__, batch.samples)) from error
        if any(
            0 in free and isinstance(given.shape[0], int)
            for free, given in zip(shapes, program.model.graph.inputs, strict=True)
        ):
            raise InputError(_frozen(type(subject.model).__name__, batch.samples))
        _own_names(program.model.graph, {*named, *outputs})
        program.model.metadata_props[KEY] = json.dumps(dict(subject.about))
        held = (one for one in subject.model.state_dict().values() if isinstance(one, Tensor))
        weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
        program.save(str(file), external_data=weights > MAX_IN_ONE)
        _load("onnx.checker").check_model(str(file))

    def _answers_other_length(self, subject: Subject, batch: Batch, file: Path, tokens: int) -> bool:
        def cut(t: Tensor) -> Tensor:
            return t[:, : tokens - 1].contiguous() if t.dim() > 1 and t.shape[1] == tokens else t

        shorter = replace(batch, args=mapped(batch.args, cut), kwargs=mapped(dict(batch.kwargs), cut))
        try:
            return difference(subject.outputs(shorter), self.outputs(file, subject)(shorter)) <= TOLERANCE
        except Exception:  # the network itself, or the runtime, takes no other length
            return False


class OnnxAnswers:
    """onnxruntime's answers from a file, on torch's number of threads.

    Args:
        file: the .onnx file.
        model: the network that it holds, to be counted.
    """

    def __init__(self, file: Path, model: nn.Module) -> None:
        runtime = _load("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.model = model

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Return all tensors of the answer, in order."""
        return [torch.from_numpy(answer) for answer in self.session.run(None, self._feed(batch))]

    def ready(self, batch: Batch) -> Callable[[], Any]:
        """Return the call that answers one batch and nothing else, for who measures its time."""
        feed = self._feed(batch)
        return lambda: self.session.run(None, feed)

    def _feed(self, batch: Batch) -> dict[str, Any]:
        inputs = [tensor.detach().contiguous().numpy() for tensor in walk((batch.args, batch.kwargs))]
        return dict(zip((one.name for one in self.session.get_inputs()), inputs, strict=True))


class _Flat(nn.Module):
    """A model as a function of tensors alone, to tensors alone."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.model = model
        self.batch = batch

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args = mapped(self.batch.args, lambda _: next(given))
        kwargs = mapped(dict(self.batch.kwargs), lambda _: next(given))
        return tuple(walk(self.model(*args, **kwargs)))


def _load(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtra(package.partition(".")[0], "onnx", "the ONNX form") from error


def _files(file: Path) -> list[Path]:
    return [file, *sorted(part for part in file.parent.iterdir() if part != file)]


def _refuse_half(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout != torch.strided:
            raise InputError(
                f"{name!r} is a sparse tensor, which ONNX's exporter does not take: export the dense model"
            )
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{name!r} is {kind}, in which answers cannot be held against the masked network's: export model.float()"
            )


def _tokens(batch: Batch) -> int | None:
    """Return how many tokens a sequence of the batch has: the second size of a matrix of whole numbers among its inputs."""
    for tensor in walk((batch.args, batch.kwargs)):
        if tensor.dim() == 2 and not tensor.is_floating_point() and tensor.shape[1] > 2:
            return int(tensor.shape[1])
    return None


def _named_inputs(model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield every input tensor with a name of its own, in the order in which `walk` finds them."""
    places: list[str] = []
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            places.append(parameter.name)
    taken: set[str] = set()
    values = [(places[i] if i < len(places) else f"input_{i}", value) for i, value in enumerate(batch.args)]
    for name, value in (*values, *batch.kwargs.items()):
        found = list(walk(value))
        names = _names(value, str(name))
        for own, tensor in zip(names, found, strict=True):
            unique = own
            while unique in taken:
                unique += "_"
            taken.add(unique)
            yield unique, tensor


def _names(value: Any, name: str) -> list[str]:
    """Return a name for every tensor in a value, in the order in which `walk` finds them."""
    return [_identifier(path) or name for path in _paths(value, "" if name == "output" else name, name)]


def _paths(value: Any, path: str, name: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield path
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple | list):
        parts = [(f"{name}_{i}" if not path else str(i), part) for i, part in enumerate(value)]
        if len(value) == 1 and not path:
            parts = [(name, value[0])]
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(part.name, getattr(value, part.name)) for part in fields(value)]
    for key, part in parts:
        yield from _paths(part, f"{path}_{key}" if path else str(key), name)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _own_names(graph: Any, taken: set[str]) -> None:
    """Give the weights in the file the names they have in the model."""
    for name in list(graph.initializers):
        own = name.removeprefix("model.")
        if own != name and own not in taken and own not in graph.initializers:
            value = graph.initializers.pop(name)
            value.name = own
            graph.initializers[own] = value


def _answer(model: nn.Module, batch: Batch) -> Any:
    try:
        with torch.no_grad():
            return call(model, batch)
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(
            f"{type(model).__name__} does not answer {batch.samples} samples of the example ({type(error).__name__}: {first}), and "
            "ONNX is written for any number of them"
        ) from error


def _frozen(model: str, samples: int) -> str:
    return (
        f"{model} cannot be written as ONNX for any number of samples: its forward pass depends on how many there are "
        f"(tried with {samples}), as by x.view(4, -1) instead of x.view(x.shape[0], -1)"
    )


def _why(error: Exception, model: str, samples: int) -> str:
    """Say in one sentence why a network cannot be written as ONNX."""
    texts = told(error)
    whole = "\n".join(texts)
    if operator := re.search(r"No ONNX function found for <OpOverload\(op='([\w:.]+)'", whole):
        known = operator[1].replace("::", ".")
        return f"{model} cannot be written as ONNX: it uses the operator {known}, for which there is no ONNX operator"
    if "Constraints violated" in whole or "specialized" in whole:
        return _frozen(model, samples)
    if depends_on_values(error):
        return f"{model} cannot be written as ONNX: {DEPENDS_ON_VALUES}"
    last = next((line.strip() for line in (texts[-1] if texts else "").splitlines() if line.strip()), "no reason given")
    return f"{model} cannot be written as ONNX: {last[:300]}"
