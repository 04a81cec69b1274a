"""Writing: a form is made aside, read back, held against the masked network, and only then put in place."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from incop.batches import Batch, first_samples
from incop.errors import IncopError, InputError, TrainingError
from incop.export.differences import SIZES, difference
from incop.export.forms import form as form_of
from incop.export.subject import Form, Outputs, Subject
from incop.locks import LOCK, STALE, Lock, holder

ASIDE = ".export."  # what hidden folders are called in which forms are made


@dataclass(frozen=True)
class Written:
    """A form that was written.

    Args:
        form: its word.
        files: its files, the main one first.
        size: bytes of the files, but for those in `again`.
        difference: the largest distance of its answers from the masked network's on the example, relative to the largest
            of these; None where there was no example.
        details: what the form tells of itself, as JSON values.
        again: those of the files that hold the same once more, for another reader.
    """

    form: str
    files: tuple[Path, ...]
    size: int
    difference: float | None
    details: Mapping[str, Any] = field(default_factory=dict)
    again: tuple[Path, ...] = ()


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
    return write_all(subject, [to], folder, replace=replace)[0]


def write_all(
    subject: Subject, to: Sequence[str | Form], folder: str | Path, *, replace: bool = False
) -> list[Written]:
    """Write several forms of a subject into a folder, as `write` does one; either the files of all are there, or none.

    Args:
        subject: what is exported.
        to: the forms, or their words; none twice.
        folder: made where it is absent.
        replace: write over files of the same names.

    Raises:
        InputError: a form is named twice, two of them have files of one name, or as `write` does.
        MissingExtra: as `write` does.
        TrainingError: as `write` does.

    Example:
        >>> import tempfile, torch
        >>> from incop import export
        >>> subject = export.Subject.of(torch.nn.Linear(2, 2), example=torch.ones(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [one.files[0].name for one in export.write_all(subject, ["folded", "safetensors"], folder)]
        ['folded.safetensors', 'model.safetensors']
    """
    forms = [form_of(one) if isinstance(one, str) else one for one in to]
    names = [form.name for form in forms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the form {twice!r} is named twice: once is enough")
    folder = Path(folder)
    made = _made(folder)
    try:
        with _aside(folder) as aside:
            written: list[Written] = []
            files: list[Path] = []
            for number, form in enumerate(forms):
                (own := aside / str(number)).mkdir()
                new = _written(form, subject, own)
                again = [file for file in new if file.name in getattr(form, "again", ())]
                size = sum(file.stat().st_size for file in new if file not in again)
                apart = _proven(form, new[0], subject)
                placed, doubles = (tuple(folder / file.name for file in some) for some in (new, again))
                written.append(Written(form.name, placed, size, apart, dict(getattr(form, "details", {})), doubles))
                files += reversed(new)
            _placed(files, folder, aside, replace)
            return written
    except BaseException as error:
        with contextlib.suppress(OSError):  # nothing is left of what failed
            for empty in made:
                empty.rmdir()
        if isinstance(error, OSError | SafetensorError):
            why = getattr(error, "strerror", None) or error
            raise TrainingError(
                f"{str(folder)!r} cannot be written to: {why}; make room, or see to the folder's permissions: nothing was "
                "written"
            ) from error
        raise


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Make a hidden folder, locked while it is used; those of processes that were killed are swept away."""
    for left in folder.glob(f"{ASIDE}*"):
        old = not (left / LOCK).exists() and time.time() - left.lstat().st_mtime > STALE  # killed before it was locked
        if left.is_dir() and not left.is_symlink() and (old or ((left / LOCK).exists() and holder(left) is None)):
            shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=ASIDE))
    try:
        with Lock(aside):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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


def _placed(files: list[Path], folder: Path, aside: Path, replace: bool) -> None:
    """Move files into the folder in their order, a form's main file last: it says that all are there. Undone where one fails."""
    wanted = [folder / file.name for file in files]
    names = [file.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two of the forms are files named {twice!r}: write them into two folders")
    there = [file for file in wanted if file.exists() or file.is_symlink()]
    folders = [file for file in there if file.is_dir() and not file.is_symlink()]
    if folders:
        raise InputError(f"{str(folders[0])!r} is a folder: choose another with --out, or remove it first")
    if there and not replace:
        raise InputError(f"{str(there[0])!r} is already there: choose another folder, or write over it with --replace")
    (old := aside / "old").mkdir()
    placed: list[Path] = []
    try:
        for file, to in zip(files, wanted, strict=True):
            os.chmod(file, 0o644)
            placed.append(to)
            if to in there:
                _kept(to, old / to.name)
            os.replace(file, to)
    except BaseException:
        for to in placed:
            with contextlib.suppress(OSError):
                if (before := old / to.name).exists() or before.is_symlink():
                    os.replace(before, to)
                elif to not in there:
                    to.unlink(missing_ok=True)
        raise


def _kept(file: Path, to: Path) -> None:
    try:
        os.link(file, to, follow_symlinks=False)
    except OSError:  # a file system without links, or a file of somebody else
        shutil.copy2(file, to, follow_symlinks=False)


def _proven(form: Form, file: Path, subject: Subject) -> float | None:
    if subject.example is None:
        return None
    answers = form.outputs(file, subject)
    largest = 0.0
    for size in SIZES:
        batch = subject.example if size is None else first_samples(subject.example, size)
        expected = _expected(subject, batch, whole=size is None)
        if expected is not None:
            largest = max(largest, difference(expected, _answered(answers, batch, form.name)))
    if not largest <= form.tolerance:
        raise TrainingError(
            f"the form {form.name!r} answers otherwise than the masked network, by {largest:.2g} of its largest output, where "
            f"{form.tolerance:.2g} is allowed: nothing was written; please report this with the model"
        )
    return largest


def _expected(subject: Subject, batch: Batch, *, whole: bool) -> list[Tensor] | None:
    """Return what the masked network answers; None where it takes no other number of samples than the example's."""
    try:
        return subject.outputs(batch)
    except Exception as error:
        if not whole:
            return None
        first = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(f"the network does not answer the example ({type(error).__name__}: {first})") from error


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
