"""One run is one folder: file names, atomic writes, reading back. The only room that knows the names; no torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import tomli_w

from incop.distributed import launched
from incop.errors import InputError, TrainingError, quoted
from incop.locks import LOCK
from incop.record_json import MAX_DEPTH, Record
from incop.records import SCHEMA, Check, Level, Run

__all__ = ["RunDir"]

R = TypeVar("R", bound=Record)

# What is read at most, in bytes, before memory is taken for it. JSON of nothing but brackets takes 24 times its size.
MAX_TOML = 2**16  # a plan is 1 kB
MAX_JSON = 2**24  # a summary of 100 levels of ResNet-56 is 0.7 MB
MAX_RECORDS = 2**28  # 10,000 checks of ResNet-56 are 30 MB; they are read line by line
MAX_LINE = 2**22  # one record
TAIL = 2**18  # from the end of a file, where its last record is wanted; one of ResNet-56 is 3 kB
MAX_DOTS = 256  # in a line of TOML: a key of n parts takes n² steps


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
                begun = (LOCK, ".plan.toml.")  # all that a process leaves that was killed before its run began
                others = (entry for entry in self.path.iterdir() if not entry.name.startswith(begun))
                what = "already exists and is not empty" if any(others) else ""
                what = "already holds a run" if self.plan_file.exists() else what
            else:
                what = "is a file" if self.path.exists() else "is a broken link" if self.path.is_symlink() else ""
        except (OSError, ValueError) as error:
            raise InputError(f"the run folder {str(self.path)!r} cannot be used: {_why(error)}") from error
        if what:
            goes_on = f"; {self.resume_command} goes on with one that was cut off" if what.endswith("a run") else ""
            raise InputError(
                f"the run folder {str(self.path)!r} {what}: choose another with --out, or remove it first{goes_on}"
            )

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
        return inside(self.path, self.path / "plan.toml")

    @property
    def summary_file(self) -> Path:
        """The run's summary."""
        return inside(self.path, self.path / "summary.json")

    @property
    def levels_file(self) -> Path:
        """One record a level."""
        return inside(self.path, self.path / "levels.jsonl")

    @property
    def checks_file(self) -> Path:
        """One record a check."""
        return inside(self.path, self.path / "checks.jsonl")

    @property
    def checkpoint_dir(self) -> Path:
        """What a run that is not finished goes on from."""
        return inside(self.path, self.path / "checkpoint")

    @property
    def trackers_dir(self) -> Path:
        """What trackers keep of the run."""
        return inside(self.path, self.path / "trackers")

    @property
    def bench_file(self) -> Path:
        """What forms of a ticket take, as `incop bench-export` has measured it last."""
        return inside(self.path, self.path / "export" / "bench.json")

    @property
    def report_file(self) -> Path:
        """The run's page."""
        return inside(self.path, self.path / "report.html")

    @property
    def resume_command(self) -> str:
        """The command that goes on with the run."""
        words = f"incop resume {shlex.quote(str(self.path))}"
        return f"`torchrun … -m {words}`" if launched() else f"`{words}`"

    def level_dir(self, level: int) -> Path:
        """Return the folder of one level's weights and masks."""
        return inside(self.path, self.path / f"level_{level:02d}")

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
        data = read_json(self.summary_file)
        if not isinstance(data, dict) or type(data.get("schema")) is not int:
            raise InputError(f"{str(self.summary_file)!r} is no summary of a run")
        if data["schema"] > SCHEMA:
            raise InputError(
                f"{str(self.summary_file)!r} was written by a newer incop (schema {quoted(data['schema'])}): upgrade"
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

    def rewrite_levels(self, levels: Iterable[Level]) -> None:
        """Write `levels.jsonl` anew, whole or not at all.

        Raises:
            TrainingError: the file cannot be written.
        """
        write_atomically(self.levels_file, b"".join(_encoded(level) + b"\n" for level in levels))

    def synced(self) -> dict[str, int]:
        """Bring the records to the disk and return the sizes of their files, for `cut_back`.

        Raises:
            TrainingError: a file cannot be written.
        """
        return {file.name: _synced(file) for file in (self.levels_file, self.checks_file)}

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Drop the records that were written after `synced` gave these sizes; all of a file that is not named.

        Raises:
            InputError: a file is shorter than it was then, or cannot be written.
        """
        for file in (self.levels_file, self.checks_file):
            size = int(sizes.get(file.name, 0))
            try:
                have = file.stat().st_size if file.exists() else 0
                if have < size:
                    raise InputError(
                        f"{str(file)!r} has {have} bytes and had {size} when the checkpoint was written: it was edited or cut "
                        "short, so that the run cannot go on exactly; start anew from its plan.toml"
                    )
                if have > size:
                    os.truncate(file, size)
            except OSError as error:
                raise InputError(f"{str(file)!r} cannot be written: {_why(error)}") from error

    def sweep(self) -> None:
        """Remove what a killed process left of files it was writing."""
        for folder in (self.path, *self.path.glob("level_*"), *self.path.glob("level_*/*/")):
            if not folder.resolve().is_relative_to(self.path.resolve()):
                continue  # by a stranger's link
            for file in folder.glob(".*.*.????????"):
                file.unlink(missing_ok=True)
        for folder in self.path.glob(".offload.????????"):
            if not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)

    def levels(self) -> list[Level]:
        """Read `levels.jsonl`; empty when there is none yet.

        Raises:
            InputError: a line is damaged; a last line that a killed run left unfinished is passed over.
        """
        return _records(Level, self.levels_file)

    def newest_check(self) -> Check | None:
        """Read the last check alone, of a run that may be under way; None when there is none, or none that can be read."""
        try:
            with _opened(self.checks_file, MAX_RECORDS) as stream:
                stream.seek(max(stream.seek(0, os.SEEK_END) - TAIL, 0))
                lines = stream.read().rpartition(b"\n")[0].rsplit(b"\n", 1)
            return Check.from_json(json.loads(lines[-1]))
        except (InputError, OSError, ValueError, RecursionError):
            return None

    def checks(self) -> list[Check]:
        """Read `checks.jsonl`, of a level that was begun again those of the last time; empty when there is none yet.

        Raises:
            InputError: a line is damaged; a last line that a killed run left unfinished is passed over.
        """
        found = _records(Check, self.checks_file)
        last: dict[int, int] = {}
        for check in found:
            last[check.level] = max(check.attempt, last.get(check.level, 0))
        return [check for check in found if check.attempt == last[check.level]]


def inside(folder: Path, file: Path) -> Path:
    """Return a file of a folder, unless a link or its name leads out of the folder: it may be a stranger's."""
    try:
        if file.resolve().is_relative_to(folder.resolve()):
            return file
    except (OSError, ValueError, RuntimeError) as error:  # Python 3.11 raises RuntimeError for links in a circle
        raise InputError(f"{str(file)!r} cannot be read: {_why(error)}") from error
    raise InputError(
        f"{str(file)!r} leads out of the folder {str(folder)!r}, by a link or by its name: put the file itself there"
    )


def _opened(file: Path, most: int) -> BinaryIO:
    """Open a regular file that is not larger than may be read; a pipe would block, a device never end."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{str(file)!r} cannot be read: it is no regular file")
        if about.st_size > most:
            raise InputError(
                f"{str(file)!r} has {about.st_size} bytes, and at most {most} are read: it is not what its name says"
            )
        return file.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(file)!r} cannot be read: {_why(error)}") from error


def _read(file: Path, most: int) -> str:
    with _opened(file, most) as stream:
        try:
            return stream.read(most).decode()
        except (OSError, ValueError) as error:
            raise InputError(f"{str(file)!r} cannot be read: {_why(error)}") from error


def read_json(file: Path) -> Any:
    """Read a JSON file."""
    return _json(file, _read(file, MAX_JSON))


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _synced(file: Path) -> int:
    try:
        with file.open("ab") as out:
            os.fsync(out.fileno())
            return out.tell()
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> TrainingError:
    if not file.parent.is_dir():
        return TrainingError(
            f"{str(file)!r} cannot be written: the folder {str(file.parent)!r} is gone, moved or removed while it was in use"
        )
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
    found = []
    with _opened(file, MAX_RECORDS) as stream:
        for number in itertools.count(1):
            line = stream.readline(MAX_LINE + 1)  # not splitlines(), which also cuts at U+2028 within a string
            if len(line) > MAX_LINE:
                raise InputError(f"{str(file)!r} is damaged at line {number}: it has more than {MAX_LINE} bytes")
            if not line.endswith(b"\n"):
                break
            try:
                text = line[:-1].decode()
            except ValueError as error:
                raise InputError(f"{str(file)!r} cannot be read: line {number}: {error}") from error
            found.append(_record(kind, _json(file, text, number), where=f"{str(file)!r}, line {number}"))
    if line[:1] not in (b"{", b""):
        raise InputError(f"{str(file)!r} cannot be read: its last line is no record")
    return found


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
    """Say whether there is such a file."""
    try:
        return file.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {_why(error)}") from error


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file."""
    text = _read(file, MAX_TOML)
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise InputError(
            f"{str(file)!r} has a line with more than {MAX_DOTS} dots: it is no plan; write lists on several"
        )
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{str(file)!r} is not a TOML file: {error}") from error
    _plain_toml(file, found)
    return found


def _plain_toml(file: Path, value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"{str(file)!r} is nested more than {MAX_DEPTH} levels deep: it is no plan")
    if isinstance(value, int) and abs(value) > 2**63:  # in hexadecimal they may be of any length
        raise InputError(f"{str(file)!r} has a whole number of more than 64 bits, which TOML does not allow")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _plain_toml(file, part, depth + 1)


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part: write aside, sync, rename.

    A link is replaced by the file; what it points to stays as it is.
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
