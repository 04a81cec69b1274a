"""Benching: what each form of a ticket takes on disk, in memory and in time, against the dense network in the same run."""

from __future__ import annotations

import copy
import datetime
import os
import platform
import statistics
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import incop
from incop.errors import InputError
from incop.export.counting import count
from incop.export.folded import weights_of
from incop.export.forms import FORMS
from incop.export.forms import form as form_of
from incop.export.memory import HOW, growth
from incop.export.subject import Answers, Outputs, Subject, outputs_of
from incop.export.timing import FEWEST, ROUNDS, Clock, Ratio, clock_of, in_turn, resized
from incop.export.writing import write

__all__ = ["DENSE", "Bench", "Row", "Speed", "bench", "default_forms"]

DENSE = "dense"
RUNTIME = "dense, onnx"  # the control of forms that another runtime answers from
SCHEMA = 1
HELP = (
    "What would help: a search that removes whole units or channels, exported as compacted; wider linear layers or a higher "
    "sparsity, for CSR; or a GPU of compute capability 8.0 or newer, with a search by --method lth --selection 2:4"
)


@dataclass(frozen=True)
class Speed:
    """How fast a form answers a batch of one size.

    Args:
        batch: samples.
        ms: median time of one batch.
        q1: its lower quartile.
        q3: its upper quartile.
        per_second: samples a second, at the median.
        against_dense: how many times faster than the dense network in torch, from the same rounds; None for itself.
        against_runtime: the same against the dense network in the runtime of this form, where that is not torch.
    """

    batch: int
    ms: float
    q1: float
    q3: float
    per_second: float
    against_dense: Ratio | None = None
    against_runtime: Ratio | None = None

    @property
    def gain(self) -> Ratio | None:
        """What the pruning has gained: against the dense network in the same runtime."""
        return self.against_runtime or self.against_dense


@dataclass(frozen=True)
class Row:
    """What was measured of a form.

    Args:
        form: its word, or `dense`.
        bytes: its files.
        zipped: the same after zip's compression (deflate).
        parameters: weights that are stored, zeros among them.
        nonzero: weights that are not zero.
        macs: multiplications by weights for one sample, as the form does them.
        macs_nonzero: those by weights that are not zero.
        memory: bytes by which a process grows that holds it and answers the largest batch; None where unknown.
        difference: the largest distance of its answers from the masked network's, relative to the largest of these.
        same_answers: fraction of the example's samples whose largest output is the same one; None where outputs are no scores.
        speeds: by batch size.
    """

    form: str
    bytes: int
    zipped: int
    parameters: int
    nonzero: int
    macs: int
    macs_nonzero: int
    memory: int | None
    difference: float | None
    same_answers: float | None
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What `bench` has measured.

    Args:
        rows: the dense network first, then the forms that could be made.
        not_made: why the others could not, by word.
        verdict: what got faster, or that nothing did and what would help.
        settings: rounds, threads, clock, samples, how memory is counted, what the dense network is.
        environment: machine, versions, load.
        about: of the subject.
        date: of the day.
    """

    rows: tuple[Row, ...]
    not_made: Mapping[str, str]
    verdict: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"schema": SCHEMA, **asdict(self), "rows": [asdict(row) for row in self.rows]}


def default_forms(batch_sizes: Sequence[int] = (1, 64)) -> list[str]:
    """Return the words of all forms, of CSR chosen by each batch size alone, and of those on top of the compacted network."""
    at = "/".join(map(str, batch_sizes))
    csr = ["csr" if at == "1/64" else f"csr@{at}", *(f"csr@{size}" for size in batch_sizes if len(batch_sizes) > 1)]
    return [*(word for word in FORMS if word != "csr"), *csr, "compacted+onnx", "compacted+csr"]


def bench(
    subject: Subject,
    forms: Iterable[str] | None = None,
    *,
    dense: nn.Module | None = None,
    batch_sizes: Sequence[int] = (1, 64),
    rounds: int = ROUNDS,
    threads: int = 1,
    clock: Clock | None = None,
) -> Bench:
    """Measure forms of a subject against the dense network, all in turn in one run.

    Args:
        subject: the masked network with an example; its samples are repeated where there are fewer than a batch size.
        forms: words, see `form`; by default `default_forms`.
        dense: the network before pruning; by default the subject's with random numbers where weights were pruned.
        batch_sizes: samples that are answered at a time.
        rounds: that each is timed in, at least 7.
        threads: of torch and of onnxruntime; torch's are set back afterwards.
        clock: returns seconds; by default processor time on one thread, the wall's on several.

    Returns:
        One row for the dense network and for each form that could be made, and why the others could not.

    Raises:
        InputError: there is no example, no such form, or a number is out of range.
        TrainingError: a form was made and does not answer as the masked network does.

    Example:
        >>> import torch
        >>> from incop.export import Subject, bench
        >>> subject = Subject.of(torch.nn.Linear(8, 4), example=torch.ones(4, 8))
        >>> found = bench(subject, ["folded"], batch_sizes=[1], rounds=7)
        >>> [row.form for row in found.rows], found.rows[1].parameters, found.rows[1].same_answers
        (['dense', 'folded'], 36, 1.0)
    """
    words = list(dict.fromkeys(default_forms(batch_sizes) if forms is None else forms))
    _refuse(batch_sizes, rounds, threads)
    example = subject.needed_example("bench")
    for word in words if forms is not None else ():
        form_of(word)
    whole = dense if dense is not None else _filled(subject)
    dense_subject = Subject(copy.deepcopy(whole).cpu().eval(), subject.masks, subject.example, subject.about)
    told, clock = clock_of(threads)[1] if clock is None else "given", clock or clock_of(threads)[0]
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    with _threads(threads), tempfile.TemporaryDirectory(prefix="incop-bench.") as folder:
        made, not_made = _made(subject, dense_subject, words, Path(folder))
        times = {size: _timed(made, resized(example, size), rounds, clock) for size in batch_sizes}
        rows = [_row(one, subject, times, max(batch_sizes)) for one in made if one.word != RUNTIME]
    settings = {
        "rounds": rounds,
        "threads": threads,
        "clock": told,
        "samples": example.samples,
        "memory": HOW,
        "dense": "the network before pruning" if dense is not None else "pruned weights filled with random numbers",
    }
    return Bench(
        tuple(rows),
        not_made,
        verdict(rows),
        settings,
        environment(load),
        dict(subject.about),
        str(datetime.date.today()),
    )


@dataclass(frozen=True)
class _Made:
    """A form that lies on the disk and can be loaded."""

    word: str
    size: int
    zipped: int
    difference: float | None
    load: Callable[[], Outputs]
    answers: Outputs


def _refuse(batch_sizes: Sequence[int], rounds: int, threads: int) -> None:
    if not batch_sizes or any(type(size) is not int or size < 1 for size in batch_sizes):
        raise InputError(f"batch sizes {list(batch_sizes)} cannot be measured: give whole numbers of at least 1")
    if rounds < FEWEST:
        raise InputError(f"{rounds} rounds give no spread: give at least {FEWEST}")
    if not 1 <= threads <= 1024:
        raise InputError(f"{threads} threads cannot be used: give 1 to 1024")


def _filled(subject: Subject) -> nn.Module:
    """Return the network with random numbers of the size of a layer's other weights where weights were pruned."""
    model = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in subject.masks.weights(model).items():
            left = weight[subject.masks[name]].float()
            scale = float(left.std()) if left.numel() > 1 else 1.0
            drawn = torch.randn(weight.shape, generator=generator).mul_(scale or 1.0).to(weight.dtype)
            weight.copy_(torch.where(subject.masks[name], weight, drawn))
    return model


def _made(subject: Subject, dense: Subject, words: list[str], folder: Path) -> tuple[list[_Made], dict[str, str]]:
    file = folder / "dense.safetensors"
    save_file(weights_of(dense), file)

    def load() -> Answers:
        return outputs_of(copy.deepcopy(dense.model))

    made = [_Made(DENSE, file.stat().st_size, _zipped([file]), None, load, load())]
    not_made: dict[str, str] = {}
    for number, word in enumerate([*words, RUNTIME] if any("onnx" in word for word in words) else words):
        of, name = (dense, "onnx") if word == RUNTIME else (subject, word)
        try:
            form = form_of(name)
            written = write(of, form, folder / str(number))
        except (InputError, ImportError) as error:  # a form that this network or this machine cannot have
            not_made[word] = str(error)
            continue

        def load_form(form: Any = form, main: Path = written.files[0], of: Subject = of) -> Outputs:
            answers: Outputs = form.outputs(main, of)
            return answers

        made.append(
            _Made(
                word,
                written.size,
                _zipped([file for file in written.files if file not in written.again]),
                written.difference,
                load_form,
                load_form(),
            )
        )
    not_made.pop(RUNTIME, None)
    return made, not_made


def _timed(made: Sequence[_Made], batch: Any, rounds: int, clock: Clock) -> dict[str, list[float]]:
    return in_turn({one.word: _ready(one.answers, batch) for one in made}, rounds=rounds, clock=clock)


def _ready(answers: Outputs, batch: Any) -> Callable[[], Any]:
    ready = getattr(answers, "ready", None)
    return ready(batch) if ready is not None else lambda: answers(batch)


def _row(one: _Made, subject: Subject, times: Mapping[int, Mapping[str, list[float]]], largest: int) -> Row:
    example = subject.needed_example("bench")
    model = getattr(one.answers, "model", subject.model)
    counts = count(model, resized(example, 1))
    batch = resized(example, largest)
    return Row(
        one.word,
        one.size,
        one.zipped,
        counts.parameters,
        counts.nonzero,
        counts.macs,
        counts.macs_nonzero,
        growth(lambda: _ready(one.load(), batch)),
        one.difference,
        None if one.word == DENSE else _same(subject.outputs(example), one.answers(example)),
        tuple(_speed(one.word, size, own) for size, own in times.items()),
    )


def _speed(word: str, batch: int, times: Mapping[str, list[float]]) -> Speed:
    q1, middle, q3 = statistics.quantiles(times[word], n=4, method="inclusive")
    elsewhere = "onnx" in word and RUNTIME in times
    return Speed(
        batch,
        1000 * middle,
        1000 * q1,
        1000 * q3,
        batch / max(middle, 1e-12),
        None if word == DENSE else Ratio.of(times[DENSE], times[word]),
        Ratio.of(times[RUNTIME], times[word]) if elsewhere else None,
    )


def _same(expected: list[Tensor], found: list[Tensor]) -> float | None:
    """Return the fraction of places along all but the last dimension where the largest score is the same one."""
    a, b = expected[0], found[0]
    if a.dim() < 2 or a.shape[-1] < 2 or not a.is_floating_point() or a.shape != b.shape or not a.numel():
        return None
    return float((a.argmax(-1) == b.argmax(-1)).double().mean())


def verdict(rows: Sequence[Row]) -> str:
    """Say in one sentence what got faster by pruning, or that nothing did and what would help."""
    gains = [
        (speed.gain.median, row.form, speed)
        for row in rows
        for speed in row.speeds
        if speed.gain is not None and speed.gain.faster
    ]
    best: dict[int, tuple[float, str, Speed]] = {}
    for gain in sorted(gains, key=lambda gain: gain[0]):
        best[gain[2].batch] = gain
    if best:
        parts = [
            f"at batch {batch} {form} is {ratio:.2f} times as fast as the dense network"
            + (" in the same runtime" if speed.against_runtime else "")
            for batch, (ratio, form, speed) in sorted(best.items())
        ]
        return f"Faster by pruning: {', '.join(parts)}"
    runtime = next((row.form for row in rows for s in row.speeds if s.against_dense and s.against_dense.faster), None)
    other = f" ({runtime} is faster than torch, but so is the dense network there)" if runtime else ""
    return f"No form is faster than the dense network{other}. {HELP}"


def environment(load: list[float] | None = None) -> dict[str, Any]:
    """Describe the machine by what decides its speed, the versions, and the load before measuring."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = {"python": platform.python_version(), "incop": incop.__version__, "torch": torch.__version__}
    for package in ("onnx", "onnxruntime"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "load": [round(value, 2) for value in load] if load is not None else None,
    }


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _zipped(files: Iterable[Path]) -> int:
    size = 0
    for file in files:
        packer = zlib.compressobj(6)
        with file.open("rb") as stream:
            while part := stream.read(2**20):
                size += len(packer.compress(part))
        size += len(packer.flush())
    return size
