"""Rows: what trackers are told, made from a run's records in the order in which they were written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from incop.records import Check, Level, Spent

OF_CHECK = ("level", "distance", "accuracy", "loss", "sparsity")
OF_LEVEL = (
    *("level", "sparsity", "model_sparsity", "remaining", "epochs", "seconds", "probe_seconds"),
    *("val_accuracy", "test_accuracy", "distance", "flops"),
)


@dataclass(frozen=True)
class TrackedRow:
    """One check or one finished level: numbers and sentences by name, at the optimizer steps of all levels so far."""

    key: tuple[int, int | None]  # level and number of a check, or level and None: a run has each once
    step: int
    values: Mapping[str, float]
    texts: Mapping[str, str]


def row_of(record: Check | Level, spent: dict[int, Spent]) -> TrackedRow:
    """Return a record's row, and note what its level has spent so far, so that the x axis never goes back.

    Where no optimizer steps were counted, a row stands at thousandths of epochs.
    """
    spent[record.level] = record.spent
    total = Spent.total(part for level, part in spent.items() if level <= record.level)
    step = total.steps or round(1000 * total.epochs)
    if isinstance(record, Level):
        values = _values(record, OF_LEVEL, "level/") | _tidied("layers/", record.layers)
        texts = {"level/stop_reason": record.stop_reason, "level/rewind": record.rewind}
        if record.notices:
            texts["level/notices"] = "; ".join(record.notices)
        return TrackedRow((record.level, None), step, values, texts)
    values, texts = _values(record, OF_CHECK), {}
    values |= {"epoch_in_level": record.epoch, "step_in_level": record.step}
    values |= {f"spent/{name}": value for name, value in total.to_json().items()}
    if record.mask_changes:
        values["mask_change"] = record.mask_changes[0]
    if record.flow is not None:
        values |= _tidied("flow/", record.flow.values)
    if record.verdict is not None:
        values["stop"], texts["verdict"] = float(record.verdict.stop), record.verdict.reason
    return TrackedRow((record.level, record.number), step, values, texts)


def _values(record: Check | Level, names: tuple[str, ...], prefix: str = "") -> dict[str, float]:
    found = {f"{prefix}{name}": getattr(record, name) for name in names}
    return {name: float(value) for name, value in found.items() if value is not None}


def _tidied(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        tidied = prefix + tidy(name)
        while tidied in found:
            tidied += "_"  # two names never become one
        found[tidied] = value
    return found


def tidy(name: str) -> str:
    """Return a name of letters, digits and - _ . alone, 200 at most: MLflow takes few others and 250."""
    return re.sub(r"[^\w.-]", "_", name.replace("->", "-to-"), flags=re.ASCII)[:200]
