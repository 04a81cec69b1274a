"""One run is one folder: file names, atomic writes, reading back. The only room that knows the names; no torch."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import tomli_w

from incop.errors import InputError, TrainingError
from incop.records import SCHEMA, Check, Level, Record, Run

__all__ = ["RunDir", "is_file", "read_toml", "write_atomically"]

R = TypeVar("R", bound=Record)


class RunDir:
    """The folder of one run.

    `plan.toml` (everything needed to repeat it), `levels.jsonl` (one record a level), `checks.jsonl` (one record a
    check), `summary.json`, `level_03/` (weights and masks of a level).

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """Make the folder of a new run.

        Raises:
            InputError: the folder is in use, or cannot be made.
        """
        run = cls(path)
        run.refuse_existing()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InputError(f"the run folder {str(path)!r} cannot be made: {_why(error)}") from error
        if not os.access(run.path, os.W_OK | os.X_OK):
            raise InputError(f"the run folder {str(path)!r} cannot be written to: permission denied")
        return run

    def refuse_existing(self) -> None:
        """Refuse a folder that holds anything: a run never overwrites.

        Raises:
            InputError: the path exists and is not an empty folder, or cannot be looked at.
        """
        try:
            if self.path.is_dir():
                what = "already exists and is not empty" if any(self.path.iterdir()) else ""
                what = "already holds a run" if self.plan_file.exists() else what
            else:
                what = "is a file" if self.path.exists() else "is a broken link" if self.path.is_symlink() else ""
        except (OSError, ValueError) as error:
            raise InputError(f"the run folder {str(self.path)!r} cannot be used: {_why(error)}") from error
        if what:
            raise InputError(f"the run folder {str(self.path)!r} {what}: choose another with --out, or remove it first")

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """Open the folder of an existing run.

        Raises:
            InputError: there is no run.
        """
        run = cls(path)
        if not is_file(run.plan_file):
            raise InputError(f"{str(path)!r} is no run folder: it has no plan.toml")
        return run

    @property
    def plan_file(self) -> Path:
        """Everything needed to repeat the run."""
        return self.path / "plan.toml"

    @property
    def summary_file(self) -> Path:
        """The run's summary."""
        return self.path / "summary.json"

    @property
    def levels_file(self) -> Path:
        """One record a level."""
        return self.path / "levels.jsonl"

    @property
    def checks_file(self) -> Path:
        """One record a check."""
        return self.path / "checks.jsonl"

    def level_dir(self, level: int) -> Path:
        """Return the folder of one level's weights and masks."""
        return self.path / f"level_{level:02d}"

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write `plan.toml`; keys without a value are left out."""
        told = {key: value for key, value in plan.items() if value is not None}
        write_atomically(self.plan_file, tomli_w.dumps(told).encode())

    def read_plan(self) -> dict[str, Any]:
        """Read `plan.toml`."""
        return read_toml(self.plan_file)

    def write_summary(self, run: Run) -> None:
        """Write `summary.json`."""
        write_atomically(self.summary_file, _encoded(run, indent=1))

    def read_summary(self) -> Run:
        """Read `summary.json`.

        Raises:
            InputError: it is absent, torn, or of a newer incop.
        """
        data = _json(self.summary_file, _read(self.summary_file))
        if not isinstance(data, dict) or type(data.get("schema")) is not int:
            raise InputError(f"{str(self.summary_file)!r} is no summary of a run")
        if data["schema"] > SCHEMA:
            raise InputError(
                f"{str(self.summary_file)!r} was written by a newer incop (schema {data['schema']}): upgrade"
            )
        return _record(Run, data, where=repr(str(self.summary_file)))

    def append(self, record: Check | Level) -> None:
        """Add one record to `checks.jsonl` or `levels.jsonl`; a last line that was left unfinished is cut off first.

        Raises:
            TrainingError: the file cannot be written.
        """
        file = self.checks_file if isinstance(record, Check) else self.levels_file
        try:
            with file.open("a+b") as out:
                _drop_unfinished(out)
                out.write(_encoded(record) + b"\n")
        except OSError as error:
            raise _unwritable(file, error) from error

    def levels(self) -> list[Level]:
        """Read `levels.jsonl`; empty when there is none yet.

        Raises:
            InputError: a line is damaged; a last line that a killed run left unfinished is passed over.
        """
        return _records(Level, self.levels_file)

    def checks(self) -> list[Check]:
        """Read `checks.jsonl`; empty when there is none yet.

        Raises:
            InputError: a line is damaged; a last line that a killed run left unfinished is passed over.
        """
        return _records(Check, self.checks_file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _unwritable(file: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{str(file)!r} cannot be written: {_why(error)}; make room, or see to the folder's permissions"
    )


def _json(file: Path, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{str(file)!r} is damaged at line {line - 1 + error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{str(file)!r} is damaged at line {line}: {error}") from error


def _encoded(record: Record, indent: int | None = None) -> bytes:
    text = json.dumps(record.to_json(), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # half a surrogate, from a file name, becomes JSON's own \udcxx


def _record(kind: type[R], data: Any, *, where: str) -> R:
    try:
        return kind.from_json(data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _records(kind: type[R], file: Path) -> list[R]:
    if not is_file(file):
        return []
    finished, _, _ = _read(file).rpartition("\n")
    lines = finished.split("\n") if finished else []  # not splitlines(), which also cuts at U+2028 within a string
    return [
        _record(kind, _json(file, text, number), where=f"{str(file)!r}, line {number}")
        for number, text in enumerate(lines, 1)
    ]


def _drop_unfinished(out: BinaryIO) -> None:
    end = out.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - 4096, 0)
        out.seek(start)
        at = out.read(end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if out.seek(0, os.SEEK_END) > end:
        out.truncate(end)


def is_file(file: Path) -> bool:
    """Say whether there is such a file.

    Raises:
        InputError: the path cannot be looked at.
    """
    try:
        return file.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {_why(error)}") from error


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: it is absent or not TOML.
    """
    try:
        return tomllib.loads(_read(file))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{str(file)!r} is not a TOML file: {error}") from error


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part: write aside, sync, rename.

    A link is replaced by the file; what it points to stays as it is.

    Raises:
        TrainingError: it cannot be written; the old content is still there.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(file, error) from error
    with contextlib.suppress(OSError):  # the content is in place; some file systems cannot sync a folder
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
