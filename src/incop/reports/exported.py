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

__all__ = ["exported"]

SCHEMA = 1
MOST_FORMS, MOST_BATCHES, LONGEST = 100, 20, 2000
COUNTS = ("bytes", "zipped", "parameters", "nonzero", "macs", "macs_nonzero")
MOST = 2**60


def exported(path: Path) -> Section | None:
    """Return the section of a run folder; None where nothing was measured.

    Raises:
        InputError: the file is damaged, or of a newer incop.
    """
    found = _read(path)
    if found is None:
        return None
    settings, about = found["settings"], found["about"]
    text = [
        f"{found['verdict'].rstrip('.')}.",
        "“Times as fast” is against the dense network in PyTorch, from the same rounds: the median and its 95 % interval; below 1 "
        "is slower. “In its runtime” is against the dense network in ONNX Runtime: what the pruning gained, without the runtime.",
        f"Memory: {_word(settings.get('memory'))}.",
    ]
    rows = [cells for row in found["rows"] for cells in _cells(row)]
    note = f"Level {_word(about.get('level'))}, sparsity {_word(about.get('sparsity'))}, threads: {_word(settings.get('threads'))}."
    told = [{"form": word, "why": why} for word, why in found["not_made"].items()]
    environment = [{"key": key, "value": value} for key, value in (settings | found["environment"]).items()]
    folded = [Table("Forms that could not be made", told)] if told else []
    folded.append(Table(f"How it was measured, {_word(found['date'])}", environment))
    return Section("Export", text, tables=[Table("Forms of the ticket", rows, note)], folded=folded)


def _cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row of the table for each batch size."""
    cells = []
    for speed in row["speeds"]:
        dense, own = speed["against_dense"], speed["against_runtime"]
        cells.append(
            {
                "form": row["form"],
                "batch": speed["batch"],
                "times as fast": _interval(dense),
                "in its runtime": _interval(own),
                "ms": speed["ms"],
                "quartiles": f"{speed['q1']:.3g} to {speed['q3']:.3g}",
                "samples a second": float(f"{speed['per_second']:.4g}"),
                "bytes": row["bytes"],
                "zipped": row["zipped"],
                "weights": row["parameters"],
                "not zero": row["nonzero"],
                "MACs": row["macs"],
                "by not zero": row["macs_nonzero"],
                "memory, MiB": None if row["memory"] is None else round(row["memory"] / 2**20, 2),
                "difference": row["difference"],
                "same answers": row["same_answers"],
            }
        )
    return cells


def _interval(ratio: Mapping[str, float] | None) -> str | None:
    return None if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _word(value: object) -> str:
    return (
        f"{value:g}"
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
        else value[:LONGEST]
        if isinstance(value, str)
        else "unknown"
    )


def _read(path: Path) -> dict[str, Any] | None:
    """Read the file and see that it is what `incop bench-export` writes: it may be a stranger's."""
    file = RunDir(path).bench_file
    if not is_file(file):
        return None
    data = read_json(file)
    try:
        return _checked(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{str(file)!r}: {error}") from error
        raise InputError(f"{str(file)!r} is no result of `incop bench-export`") from error


def _checked(data: Any) -> dict[str, Any]:
    schema = data["schema"]
    if type(schema) is int and schema > SCHEMA:
        raise InputError(f"it was written by a newer incop (schema {quoted(schema)}): upgrade")
    rows = data["rows"]
    if type(schema) is not int or not isinstance(rows, list) or not 0 < len(rows) <= MOST_FORMS:
        raise ValueError
    return {
        "rows": [_row(row) for row in rows],
        "not_made": {_text(word): _text(why) for word, why in _few(data["not_made"]).items()},
        "verdict": _text(data["verdict"]),
        "settings": _few(data["settings"]),
        "environment": _few(data["environment"]),
        "about": _few(data["about"]),
        "date": _text(data["date"]),
    }


def _row(row: Any) -> dict[str, Any]:
    speeds = row["speeds"]
    if not isinstance(speeds, list) or not 0 < len(speeds) <= MOST_BATCHES:
        raise ValueError
    return {
        "form": _text(row["form"]),
        **{name: _whole(row[name]) for name in COUNTS},
        "memory": None if row["memory"] is None else _whole(row["memory"]),
        "difference": None if row["difference"] is None else _number(row["difference"]),
        "same_answers": None if row["same_answers"] is None else _number(row["same_answers"], 1.0),
        "speeds": [_speed(speed) for speed in speeds],
    }


def _speed(speed: Any) -> dict[str, Any]:
    return {
        "batch": _whole(speed["batch"]),
        **{name: _number(speed[name]) for name in ("ms", "q1", "q3", "per_second")},
        **{name: _ratio(speed[name]) for name in ("against_dense", "against_runtime")},
    }


def _ratio(ratio: Any) -> dict[str, float] | None:
    return None if ratio is None else {name: _number(ratio[name]) for name in ("median", "low", "high")}


def _number(value: Any, most: float = 1e18) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most or math.isnan(value):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError
    return value


def _few(value: Any) -> dict[str, Any]:
    """Return a small mapping, its values as short text."""
    if not isinstance(value, dict) or len(value) > MOST_FORMS:
        raise ValueError
    return {str(key)[:100]: _short(entry) for key, entry in value.items()}


def _short(value: Any) -> Any:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return _word(value) if isinstance(value, str) else value if abs(value) < MOST else "unknown"
    return quoted(value, 200) if value is not None else None
