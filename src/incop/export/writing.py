"""Writing: a form is made aside, read back, held against the masked network, and only then put in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from incop.batches import first_samples
from incop.errors import IncopError, InputError, TrainingError
from incop.export.forms import Form
from incop.export.forms import form as form_of
from incop.export.subject import Outputs, Subject

__all__ = ["Written", "write"]

SIZES = (None, 1)  # a form is tried with the whole example and with one sample: a size that was frozen into it shows


@dataclass(frozen=True)
class Written:
    """A form that was written.

    Args:
        form: its word.
        files: its files, the main one first.
        size: their bytes in all.
        difference: the largest distance of its answers from the masked network's on the example, relative to the largest
            of these; None where there was no example.
        details: what the form tells of itself, as JSON values.
    """

    form: str
    files: tuple[Path, ...]
    size: int
    difference: float | None
    details: Mapping[str, Any] = field(default_factory=dict)


def write(subject: Subject, to: str | Form, folder: str | Path, *, replace: bool = False) -> Written:
    """Write a form of a subject into a folder, proven on its example; either all of its files are there, or none.

    Args:
        subject: what is exported.
        to: the form, or its word; see `FORMS`.
        folder: made where it is absent.
        replace: write over files of the same names.

    Returns:
        What was written.

    Raises:
        InputError: there is no such form, this network cannot have it, or a file is already there.
        MissingExtra: the form needs a library that is absent.
        TrainingError: the files cannot be written, or do not answer as the masked network does.

    Example:
        >>> import tempfile, torch
        >>> from incop import Masks, export
        >>> net = torch.nn.Linear(2, 2)
        >>> subject = export.Subject.of(net, Masks({"weight": torch.eye(2) > 0}), example=torch.ones(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export.write(subject, "folded", folder)
        >>> written.files[0].name, written.difference
        ('folded.safetensors', 0.0)
    """
    form = form_of(to) if isinstance(to, str) else to
    folder = Path(folder)
    made = _made(folder)
    try:
        aside = Path(tempfile.mkdtemp(dir=folder, prefix=f".{form.name.replace(':', '-of-')}."))
        try:
            files = _written(form, subject, aside)
            difference = _proven(form, files[0], subject)
            size = sum(file.stat().st_size for file in files)
            details = dict(getattr(form, "details", {}))
            return Written(form.name, _placed(files, folder, replace), size, difference, details)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException as error:
        for empty in made:  # nothing is left of what failed
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
        if isinstance(error, OSError):
            raise TrainingError(f"{str(folder)!r} cannot be written to: {error.strerror or error}") from error
        raise


def _made(folder: Path) -> list[Path]:
    """Make a folder and return those that were made, the innermost first."""
    absent = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"the folder {str(folder)!r} cannot be made: {why}") from error
    return absent


def _written(form: Form, subject: Subject, aside: Path) -> list[Path]:
    files = form.write(subject, aside)
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return files


def _placed(files: list[Path], folder: Path, replace: bool) -> tuple[Path, ...]:
    wanted = tuple(folder / file.name for file in files)
    there = [str(file) for file in wanted if file.exists() or file.is_symlink()]
    if there and not replace:
        raise InputError(f"{there[0]!r} is already there: choose another folder, or write over it with --replace")
    for file, to in zip(
        reversed(files), reversed(wanted), strict=True
    ):  # the main file last: it says that all are there
        os.chmod(file, 0o644)
        os.replace(file, to)
    return wanted


def _proven(form: Form, file: Path, subject: Subject) -> float | None:
    if subject.example is None:
        return None
    answers = form.outputs(file, subject)
    largest = 0.0
    for size in SIZES:
        batch = subject.example if size is None else first_samples(subject.example, size)
        largest = max(largest, difference(subject.outputs(batch), _answered(answers, batch, form.name)))
    if not largest <= form.tolerance:
        raise TrainingError(
            f"the form {form.name!r} answers otherwise than the masked network, by {largest:.2g} of its largest output, where "
            f"{form.tolerance:.2g} is allowed: nothing was written; please report this with the model"
        )
    return largest


def _answered(answers: Outputs, batch: object, name: str) -> list[Tensor]:
    try:
        return answers(batch)  # type: ignore[arg-type]
    except IncopError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise TrainingError(
            f"the form {name!r} does not run ({type(error).__name__}: {first}): nothing was written"
        ) from error


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return max |a − b| / max |a| over all pairs of tensors; 0 only for the same bits, infinite for other shapes or kinds.

    Example:
        >>> import torch
        >>> from incop.export.writing import difference
        >>> difference([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.5])])
        0.25
    """
    if len(expected) != len(found) or any(
        a.shape != b.shape or a.dtype != b.dtype for a, b in zip(expected, found, strict=True)
    ):
        return float("inf")
    largest = 0.0
    for a, b in zip(expected, found, strict=True):
        if torch.equal(a, b) or a.numel() == 0:
            continue
        if not a.is_floating_point():
            return float("inf")
        same = (a == b) | (a.isnan() & b.isnan())
        apart = (a.double() - b.double()).abs().masked_fill(same, 0.0)
        scale = float(a.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
        largest = max(largest, float((apart / scale).nan_to_num(float("inf")).max()))
    return largest
