"""What another rule would have done on a run: its table, and its figure on the run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from incop.reports.drawing import Style
from incop.reports.page import Figure, Section
from incop.reports.plots import Series, bars, lines
from incop.reports.tables import Table


@dataclass(frozen=True)
class Replay:
    """A rule applied to recorded checks, as plain rows.

    Args:
        rule: the rule, or the family of rules of a curve, in words.
        levels: a row a level: level, epochs, full_epochs, saved, accuracy, stopped, reason, estimate.
        curve: a row a tolerance: within, epochs, full_epochs, accuracy, levels.
    """

    rule: str
    levels: Sequence[Mapping[str, Any]] = ()
    curve: Sequence[Mapping[str, Any]] = ()

    @property
    def table(self) -> Table:
        """The rows with readable columns."""
        if self.curve:
            rows = [
                {
                    "within": row["within"],
                    "search epochs": row["epochs"],
                    "recorded": row["full_epochs"],
                    "mean validation accuracy at the stops": row["accuracy"],
                    "levels stopped by it": row["levels"],
                }
                for row in self.curve
            ]
        else:
            rows = [
                {
                    "level": row["level"],
                    "epochs": row["epochs"],
                    "recorded": row["full_epochs"],
                    "saved": row["saved"],
                    "validation accuracy": row["accuracy"],
                    "estimate": row["estimate"],
                    "why": row["reason"],
                }
                for row in self.levels
            ]
        return Table(f"Replay: {self.rule}", rows)


def section(replays: Sequence[Replay]) -> Section:
    """Return the section of a run's page on what other rules would have done."""
    return Section(
        "Replay",
        (
            "What another rule would have done on the recorded checks, without training. Exact up to the first level that "
            "would have ended elsewhere than it did; after it the weights would have been others: those are estimates.",
        ),
        figures=[_figure(one, f"replay{number}") for number, one in enumerate(replays)],
    )


def _figure(replay: Replay, key: str) -> Figure:
    if replay.curve:
        return _curve(replay, key)
    rows = [
        (
            f"level {row['level']}{' (estimate)' if row['estimate'] else ''}",
            (row["epochs"], row["full_epochs"] - row["epochs"]),
        )
        for row in replay.levels
    ]
    total, full = sum(row["epochs"] for row in replay.levels), sum(row["full_epochs"] for row in replay.levels)
    return Figure(
        f"Where “{replay.rule}” would have stopped",
        f"{total:g} epochs instead of the {full:g} recorded.",
        picture=bars(
            key,
            f"Bar chart of the epochs of {len(rows)} levels under another rule; the numbers are in the table below.",
            rows,
            parts=("trained", "saved"),
            x_label="epochs",
        ),
        table=replay.table,
    )


def _curve(replay: Replay, key: str) -> Figure:
    known = sorted((row for row in replay.curve if row["accuracy"] is not None), key=lambda row: row["epochs"])
    picture = lines(
        key,
        f"Line chart of validation accuracy against search epochs for {len(known)} tolerances; "
        "the numbers are in the table below.",
        [Series("flow within X", [row["epochs"] for row in known], [row["accuracy"] for row in known], Style.of(0))],
        x_label="epochs of all search levels",
        y_label="mean validation accuracy at the stops",
    )
    return Figure(
        "Trade-off of the tolerance",
        f"{replay.rule}: each mark is one tolerance, from the loosest (left) to the tightest.",
        picture=picture if known else None,
        table=replay.table,
    )
