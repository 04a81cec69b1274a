"""One run is one folder: file names, atomic writes, reading back. The only room that knows the names; no torch."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from incop.errors import InputError
from incop.records import SCHEMA, Check, Level, Run

__all__ = ["RunDir"]


class RunDir:
    """The folder of one run.

    `plan.toml` (everything needed to repeat it), `levels.jsonl` (one record a level), `checks.jsonl` (one record a check),
    `summary.json`, `level_03/` (weights and masks of a level).

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
        except OSError as error:
            raise InputError(f"the run folder {str(path)!r} cannot be made: {error.strerror or error}") from error
        return run

    def refuse_existing(self) -> None:
        """Refuse a folder that holds anything: a run never overwrites.

        Raises:
            InputError: the path exists and is not an empty folder.
        """
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        if self.path.exists() or self.path.is_symlink():
            what = "already holds a run" if (self.path / "plan.toml").exists() else "already exists and is not empty"
            raise InputError(f"the run folder {str(self.path)!r} {what}: choose another with --out, or remove it first")

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """Open the folder of an existing run.

        Raises:
            InputError: there is no run.
        """
        run = cls(path)
        if not run.plan_file.is_file():
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
        text = json.dumps(run.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.summary_file, text.encode())

    def read_summary(self) -> Run:
        """Read `summary.json`.

        Raises:
            InputError: it is absent, torn, or of a newer incop.
        """
        data = _json(self.summary_file, _read(self.summary_file))
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise InputError(f"{str(self.summary_file)!r} is no summary of a run")
        if data["schema"] > SCHEMA:
            raise InputError(
                f"{str(self.summary_file)!r} was written by a newer incop (schema {data['schema']}): upgrade"
            )
        return Run.from_json(data)

    def append(self, record: Check | Level) -> None:
        """Add one record to `checks.jsonl` or `levels.jsonl`."""
        file = self.checks_file if isinstance(record, Check) else self.levels_file
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n")

    def levels(self) -> list[Level]:
        """Read `levels.jsonl`."""
        return [Level.from_json(data) for data in _lines(self.levels_file)]

    def checks(self) -> list[Check]:
        """Read `checks.jsonl`."""
        return [Check.from_json(data) for data in _lines(self.checks_file)]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{str(file)!r} is damaged at line {error.lineno}: {error.msg}") from error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in _read(file).splitlines():
        yield _json(file, line)


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
    """Write a file so that a reader sees the old or the new content, never a part: write aside, sync, rename."""
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
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
