"""Benchmark: what each form of a ticket takes in time, on disk and in memory, against the dense network in the same run."""

from __future__ import annotations

import copy
import datetime
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import incop
from incop.batches import Batch
from incop.errors import InputError
from incop.export.folded import weights_of
from incop.export.forms import FORMS
from incop.export.forms import form as form_of
from incop.export.memory import HOW, growth
from incop.export.subject import Answers, Outputs, Subject, repeated
from incop.export.timing import MIN_ROUNDS, ROUNDS, Ratio, clock_of, in_turn
from incop.export.writing import write

DENSE, ONNX = "dense", "onnx"
SCHEMA = 2
HELP = (
    "What would help: a search that removes whole units or channels, exported as compacted; or wider linear layers or a higher "
    "sparsity, for CSR"
)


@dataclass(frozen=True)
class Speed:
    """How fast a form answers a batch of one size.

    Args:
        batch: samples.
        ms: median time of one batch.
        against_dense: how many times faster than the dense network in torch, from the same rounds; None for itself.
        against_runtime: of a form `…+onnx` the same against the form `onnx`, the dense network in ONNX Runtime; else None.
    """

    batch: int
    ms: float
    against_dense: Ratio | None = None
    against_runtime: Ratio | None = None


@dataclass(frozen=True)
class MeasuredForm:
    """What was measured of a form.

    Args:
        form: its word, or `dense`.
        bytes: its files.
        memory: bytes by which a process grows that holds it and answers the largest batch; None where unknown.
        speeds: by batch size.
    """

    form: str
    bytes: int
    memory: int | None
    speeds: tuple[Speed, ...] = ()

    def gains(self) -> Iterator[tuple[int, Ratio]]:
        """Yield batch sizes and what the pruning gains at them: against the dense network in the same runtime."""
        for speed in self.speeds:
            ratio = speed.against_runtime if ONNX in self.form else speed.against_dense
            if ratio is not None:
                yield speed.batch, ratio


@dataclass(frozen=True)
class Bench:
    """What `bench` has measured.

    Args:
        rows: the dense network first, then the forms that could be made.
        not_made: why the others could not, by word.
        verdict: what got faster, or that nothing did and what would help.
        settings: rounds, threads, clock, samples, how memory is counted.
        environment: machine, versions, load.
        about: of the subject.
        date: of the day.
    """

    rows: tuple[MeasuredForm, ...]
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
    """Return the words of all forms, CSR chosen by these batch sizes, and of those on top of the compacted network."""
    csr = form_of("csr@" + "/".join(map(str, batch_sizes))).name
    return [*(word for word in FORMS if word != "csr"), csr, f"compacted+{ONNX}", f"compacted+{csr}"]


def bench(
    subject: Subject,
    forms: Iterable[str] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    rounds: int = ROUNDS,
    threads: int = 1,
) -> Bench:
    """Measure forms of a subject against the dense network, all in turn in one run.

    The dense network is the masked one, whose zeros are stored and multiplied like other numbers.

    Args:
        subject: the masked network with an example; its samples are repeated where there are fewer than a batch size.
        forms: words, see `form`; by default `default_forms`. With `compacted+onnx` also `onnx` is measured, to compare it with.
        batch_sizes: samples that are answered at a time.
        rounds: that each is timed in, at least 7.
        threads: of torch and of onnxruntime; torch's are set back afterwards.

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
        >>> [row.form for row in found.rows], found.rows[0].bytes == found.rows[1].bytes
        (['dense', 'folded'], False)
    """
    _refuse(batch_sizes, rounds, threads)
    example = subject.needed_example("bench")
    words = default_forms(batch_sizes) if forms is None else list(forms)
    if any(word.endswith(f"+{ONNX}") for word in words):
        words = [ONNX, *words]
    words = list(dict.fromkeys(words))
    for word in words if forms is not None else ():
        form_of(word)  # what is no form is refused before anything is measured
    clock, clock_name = clock_of(threads)
    machine = environment()  # its load is that of before
    with _threads(threads), tempfile.TemporaryDirectory(prefix="incop-bench.") as folder:
        made, not_made = _made(subject, words, Path(folder))
        times = {
            size: in_turn(
                {one.word: _ready(one.answers, repeated(example, size)) for one in made}, rounds=rounds, clock=clock
            )
            for size in batch_sizes
        }
        largest = repeated(example, max(batch_sizes))
        rows = [MeasuredForm(one.word, one.size, _memory(one, largest), _speeds(one.word, times)) for one in made]
    settings = {"rounds": rounds, "threads": threads, "clock": clock_name, "samples": example.samples, "memory": HOW}
    today = str(datetime.date.today())
    return Bench(tuple(rows), not_made, verdict(rows), settings, machine, dict(subject.about), today)


@dataclass(frozen=True)
class _Made:
    """A form that lies on the disk and can be loaded."""

    word: str
    size: int
    load: Callable[[], Outputs]
    answers: Outputs


def _refuse(batch_sizes: Sequence[int], rounds: int, threads: int) -> None:
    if not batch_sizes or any(type(size) is not int or size < 1 for size in batch_sizes):
        raise InputError(f"batch sizes {list(batch_sizes)} cannot be measured: give whole numbers of at least 1")
    if rounds < MIN_ROUNDS:
        raise InputError(f"{rounds} rounds give no spread: give at least {MIN_ROUNDS}")
    if not 1 <= threads <= 1024:
        raise InputError(f"{threads} threads cannot be used: give 1 to 1024")


def _made(subject: Subject, words: list[str], folder: Path) -> tuple[list[_Made], dict[str, str]]:
    file = folder / "dense.safetensors"
    save_file(weights_of(subject), file)
    made = [_Made(DENSE, file.stat().st_size, lambda: Answers(copy.deepcopy(subject.model)), Answers(subject.model))]
    not_made: dict[str, str] = {}
    for number, word in enumerate(words):
        try:
            form = form_of(word)
            written = write(subject, form, folder / str(number))
        except (InputError, ImportError) as error:  # a form that this network or this machine cannot have
            not_made[word] = str(error)
            continue
        load = partial(form.outputs, written.files[0], subject)
        made.append(_Made(word, written.size, load, load()))
    return made, not_made


def _ready(answers: Outputs, batch: Batch) -> Callable[[], Any]:
    ready = getattr(answers, "ready", None)
    return ready(batch) if ready is not None else partial(answers, batch)


def _memory(one: _Made, batch: Batch) -> int | None:
    return growth(lambda: _ready(one.load(), batch))


def _speeds(word: str, times: Mapping[int, Mapping[str, list[float]]]) -> tuple[Speed, ...]:
    def ratio(base: str, found: Mapping[str, list[float]]) -> Ratio | None:
        return Ratio.of(found[base], found[word]) if base in found and base != word else None

    runtime = ONNX if word.endswith(f"+{ONNX}") else word
    return tuple(
        Speed(size, 1000 * statistics.median(found[word]), ratio(DENSE, found), ratio(runtime, found))
        for size, found in times.items()
    )


def verdict(rows: Sequence[MeasuredForm]) -> str:
    """Say in one sentence what got faster by pruning, or that nothing did and what would help."""
    best: dict[int, tuple[float, str]] = {}
    for row in rows:
        for batch, ratio in row.gains():
            if ratio.faster:
                best[batch] = max(best.get(batch, (0.0, "")), (ratio.median, row.form))
    if best:
        parts = [
            f"at batch {batch} {form} is {ratio:.2f} times as fast as the dense network"
            + (" in the same runtime" if ONNX in form else "")
            for batch, (ratio, form) in sorted(best.items())
        ]
        return f"Faster by pruning: {', '.join(parts)}"
    runtime = next((row.form for row in rows for s in row.speeds if s.against_dense and s.against_dense.faster), None)
    other = f" ({runtime} is faster than torch, but so is the dense network there)" if runtime else ""
    return f"No form is faster than the dense network{other}. {HELP}"


def environment() -> dict[str, Any]:
    """Describe the machine by what decides its speed, the versions, and the load."""
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
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
