"""What the forms of a ticket take: the section of a run that `incop bench-export` has measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from incop.errors import InputError, quoted
from incop.reports.page import Section
from incop.reports.tables import Table
from incop.rundir import RunDir, is_file, read_json

SCHEMA = 2  # 1 held more numbers of each form, and is read all the same
MAX_FORMS, MAX_BATCHES, MAX_SIGNS = 100, 20, 2000
MAX_NUMBER = 2**60


def exported(path: Path) -> Section | None:
    """Return the section of a run folder; None where nothing was measured."""
    file = RunDir(path).bench_file
    if not is_file(file):
        return None
    found = read_json(file)
    try:
        return _section(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{str(file)!r}: {error}") from error
        raise InputError(f"{str(file)!r} is no result of `incop bench-export`") from error


def absent(not_made: Mapping[str, str]) -> str:
    """Return one line on the forms that could not be made, those of one reason together.

    Args:
        not_made: why, by the form's word.
    """
    together: dict[str, list[str]] = {}
    for word, why in not_made.items():
        together.setdefault(why, []).append(word)
    return "; ".join(f"{', '.join(words)} ({why})" for why, words in together.items())


def _section(found: Any) -> Section:
    """Show what `incop bench-export` writes, or raise: the file may be a stranger's."""
    schema, rows = found["schema"], found["rows"]
    if type(schema) is int and schema > SCHEMA:
        raise InputError(f"it was written by a newer incop (schema {quoted(schema)}): upgrade")
    if type(schema) is not int or not isinstance(rows, list) or not 0 < len(rows) <= MAX_FORMS:
        raise ValueError
    settings, about, not_made = (_short(found[name]) for name in ("settings", "about", "not_made"))
    text = [
        f"{_text(found['verdict']).rstrip('.')}.",
        "“Times as fast” is against the dense network in PyTorch, from the same rounds: the median and its 95 % interval; below 1 "
        "is slower. “In its runtime” is against the dense network in ONNX Runtime: what the pruning gained, without the runtime.",
        f"Memory: {settings.get('memory', 'unknown')}.",
    ]
    if not_made:
        text.append(f"Not made: {absent(not_made)}.")
    said = {"level": "unknown", "sparsity": "unknown", "threads": "unknown"} | settings | about
    note = f"Level {said['level']}, sparsity {said['sparsity']}, threads: {said['threads']}."
    machine = [{"key": key, "value": value} for key, value in (settings | _short(found["environment"])).items()]
    return Section(
        "Export",
        text,
        tables=[Table("Forms of the ticket", [cells for row in rows for cells in _cells(row)], note)],
        folded=[Table(f"How it was measured, {_text(found['date'])}", machine)],
    )


def _cells(row: Any) -> list[dict[str, Any]]:
    """Return one row of the table for each batch size."""
    speeds, memory = row["speeds"], row["memory"]
    if not isinstance(speeds, list) or not 0 < len(speeds) <= MAX_BATCHES:
        raise ValueError
    return [
        {
            "form": _text(row["form"]),
            "batch": _number(speed["batch"]),
            "times as fast": _interval(speed["against_dense"]),
            "in its runtime": _interval(speed["against_runtime"]),
            "ms": _number(speed["ms"]),
            "bytes": _number(row["bytes"]),
            "memory, MiB": None if memory is None else round(_number(memory) / 2**20, 2),
        }
        for speed in speeds
    ]


def _interval(ratio: Mapping[str, Any] | None) -> str | None:
    if ratio is None:
        return None
    median, low, high = (_number(ratio[name]) for name in ("median", "low", "high"))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _number(value: Any) -> float:
    if type(value) not in (int, float) or math.isnan(value) or not 0 <= value < MAX_NUMBER:
        raise ValueError
    return value  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_SIGNS:
        raise ValueError
    return value


def _short(value: Any) -> dict[str, Any]:
    """Return a small mapping, its values as numbers or short text."""
    if not isinstance(value, dict) or len(value) > MAX_FORMS:
        raise ValueError
    return {str(key)[:100]: _word(entry) for key, entry in value.items()}


def _word(value: Any) -> Any:
    if value is None:
        return "unknown"
    if type(value) in (int, float) and abs(value) < MAX_NUMBER:
        return float(f"{value:g}") if isinstance(value, float) else value
    return value[:MAX_SIGNS] if isinstance(value, str) else quoted(value, 200)
