"""`incop replay`: what another rule would have done on a recorded run, without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from incop import stopping
from incop.cli.tables import plain_console, table
from incop.errors import InputError
from incop.experiments import replays
from incop.rundir import RunDir


def replay(
    run: Path,
    /,
    *,
    rule: str | None = None,
    grid: str | None = None,
    relative: bool = False,
    json_: bool = False,
    debug: bool = False,
) -> None:
    """Apply a rule to a run's recorded checks: where it would have stopped, what it would have saved.

    Exact up to the first level that would have ended elsewhere than it did; after it the weights would have been
    others, and the rows are marked as estimates. `incop report RUN --rule …` (or --grid) draws the same on a page.

    Parameters
    ----------
    run
        Folder of the run.
    rule
        A rule in words, such as 'flow within 0.05 or after 5 epochs'.
    grid
        Instead of a rule: tolerances of 'flow within X', as 'least:most:count' (evenly in the logarithm) or with commas.
    relative
        With --grid: tolerances relative to the dense flow.
    json_
        Print JSON.
    debug
        Show where an error came from.
    """
    if (rule is None) == (grid is None):
        raise InputError("say what to replay: either --rule 'flow within 0.05' or --grid 0.001:0.5:20")
    folder = RunDir.open(run)
    if grid is not None:
        points = replays.grid(folder, replays.tolerances(grid), relative=relative)
        if json_:
            _print_json([vars(point) for point in points])
        else:
            _print_points(folder, points)
        return
    assert rule is not None
    found = replays.replay(folder, stopping.parse(rule))
    if json_:
        _print_json([{**vars(one), "saved": one.saved} for one in found])
    else:
        _print_levels(folder, rule, found)


def _print_points(folder: RunDir, points: Sequence[replays.Grid]) -> None:
    rows = [
        [
            f"{p.within:.4g}",
            f"{p.epochs:g}",
            f"{p.full_epochs:g}",
            "–" if p.accuracy is None else f"{p.accuracy:.4f}",
        ]
        for p in points
    ]
    names = ("within", "search epochs", "recorded", "mean validation accuracy at the stops")
    plain_console().print(table(f"flow within X, replayed on {folder.path}", names, rows, numbers=4))


def _print_levels(folder: RunDir, rule: str, found: Sequence[replays.Replayed]) -> None:
    rows = [
        [
            f"{one.level}{' (estimate)' if one.estimate else ''}",
            f"{one.epochs:g}",
            f"{one.full_epochs:g}",
            f"{one.saved:g}",
            "–" if one.accuracy is None else f"{one.accuracy:.4f}",
            one.reason,
        ]
        for one in found
    ]
    columns = ("level", "epochs", "recorded", "saved", "validation", "why")
    console = plain_console()
    console.print(table(f"{rule}, replayed on {folder.path}", columns, rows))
    total, full = sum(one.epochs for one in found), sum(one.full_epochs for one in found)
    exact = sum(not one.estimate for one in found)
    console.print(
        f"{total:g} epochs instead of the {full:g} recorded; exact for the first {exact} of {len(found)} levels",
        highlight=False,
    )


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1)
    print()
