"""Rows: what trackers are told, made of a run's records in the order in which they were written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from incop.records import Check, Level, Spent

__all__ = ["Key", "Row", "Rows", "tidy"]

LONGEST = 200  # signs of a name; MLflow takes 250

Key = tuple[int, int | None]  # level and number of a check, or level and None: a run has each once


@dataclass(frozen=True)
class Row:
    """One check or one finished level, as trackers show it.

    Args:
        key: of the record; a run has it once, also when the record is made again after a checkpoint.
        at: the x axis: optimizer steps trained so far over all levels; of a loop that counts none, thousandths of epochs.
        spent: the level's ledger so far.
        values: numbers by name.
        texts: sentences by name.
    """

    key: Key
    at: int
    spent: Spent
    values: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)


class Rows:
    """Turns records into rows; it keeps what was spent, so that the x axis goes on from level to level.

    Example:
        >>> from incop.integrations.trackers.rows import Rows
        >>> from incop.records import Check, Flow, Spent
        >>> rows = Rows()
        >>> rows.check(Check(level=0, number=1, epoch=1.0, step=40, spent=Spent(1.0, 40))).at
        40
        >>> row = rows.check(Check(level=1, number=1, epoch=0.5, step=20, flow=Flow({"a->b": 0.2}), spent=Spent(0.5, 20)))
        >>> row.at, row.values["flow/a-to-b"]
        (60, 0.2)
    """

    def __init__(self, spent: Mapping[int, Spent] | None = None) -> None:
        self._spent = dict(spent or {})
        self._names: dict[str, str] = {}

    def check(self, check: Check) -> Row:
        """Return a check's row."""
        total = self._total(check.level, check.spent)
        values: dict[str, float] = {"level": check.level, "epoch_in_level": check.epoch, "step_in_level": check.step}
        if check.flow is not None:
            values |= {f"flow/{self._named(name)}": value for name, value in check.flow.values.items()}
        some = {
            "distance": check.distance,
            "accuracy": check.accuracy,
            "loss": check.loss,
            "sparsity": check.sparsity,
            "mask_change": check.mask_changes[0] if check.mask_changes else None,
        }
        values |= {name: value for name, value in some.items() if value is not None}
        values |= {f"spent/{name}": value for name, value in total.to_json().items()}
        texts = {}
        if check.verdict is not None:
            values["stop"] = float(check.verdict.stop)
            texts["verdict"] = check.verdict.reason
        return Row((check.level, check.number), _at(total), check.spent, values, texts)

    def level(self, level: Level) -> Row:
        """Return a finished level's row."""
        total = self._total(level.level, level.spent)
        some = {
            "level/level": level.level,
            "level/sparsity": level.sparsity,
            "level/model_sparsity": level.model_sparsity,
            "level/remaining": level.remaining,
            "level/epochs": level.epochs,
            "level/seconds": level.seconds,
            "level/probe_seconds": level.probe_seconds,
            "level/val_accuracy": level.val_accuracy,
            "level/test_accuracy": level.test_accuracy,
            "level/distance": level.distance,
            "level/flops": level.flops,
        }
        values = {name: float(value) for name, value in some.items() if value is not None}
        values |= {f"layers/{self._named(name)}": value for name, value in level.layers.items()}
        texts = {"level/stop_reason": level.stop_reason, "level/rewind": level.rewind}
        if level.notices:
            texts["level/notices"] = "; ".join(level.notices)
        return Row((level.level, None), _at(total), level.spent, values, texts)

    def _total(self, level: int, spent: Spent) -> Spent:
        self._spent[level] = spent
        return Spent.total(before for number, before in self._spent.items() if number <= level)

    def _named(self, name: str) -> str:
        """Return the name in signs that all trackers take; two names never become the same."""
        if name not in self._names:
            plain = tidy(name)
            same = sum(tidy(other) == plain for other in self._names)
            self._names[name] = f"{plain}_{same + 1}" if same else plain
        return self._names[name]


def tidy(name: str) -> str:
    """Return a name of letters, digits and - _ . alone: MLflow takes few others, TensorBoard replaces them itself.

    Example:
        >>> from incop.integrations.trackers.rows import tidy
        >>> tidy("features.0->classifier")
        'features.0-to-classifier'
    """
    return re.sub(r"[^\w.-]", "_", name.replace("->", "-to-"), flags=re.ASCII)[:LONGEST]


def _at(total: Spent) -> int:
    return total.steps or round(1000 * total.epochs)
