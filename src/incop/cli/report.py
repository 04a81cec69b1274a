"""`incop report`: a run, a comparison or a replay as one page, or as plain tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from incop import reports, stopping
from incop.cli.tables import printable
from incop.errors import InputError
from incop.experiments import replays
from incop.rundir import RunDir, write_atomically


def report(
    folder: Path,
    /,
    *more: Path,
    format: Literal["html", "csv", "md", "json"] = "html",
    out: Path | None = None,
    margin: float = reports.MARGIN,
    rule: str | None = None,
    grid: str | None = None,
    debug: bool = False,
) -> None:
    """Report a run, a comparison or a replay: one self-contained HTML page, or its tables.

    Parameters
    ----------
    folder
        Folder of a run or of a comparison.
    more
        Further runs, to be set side by side with the first.
    format
        html is written to FOLDER/report.html, the others to standard output, unless --out says where.
    out
        File to write.
    margin
        Accuracy that may be lost and still be called no loss; 0.005 is half a point.
    rule
        Of one run: add what this rule would have done, as `incop replay --rule` tells it.
    grid
        Of one run: add the whole trade-off curve of a tolerance, as `incop replay --grid` tells it.
    debug
        Show where an error came from.
    """
    if format == "html" and out is None:
        if more:
            raise InputError("several runs have no folder in common for their page: say --out FILE")
        out = folder / "report.html"
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{str(out)!r} cannot be written: there is no folder {str(out.parent)!r}")
    if out is not None and out.is_dir():
        raise InputError(f"{str(out)!r} is a folder: --out names the file to write")
    if not 0 < margin < 1:
        raise InputError(f"--margin {margin:g} is no fraction of accuracy: half a point is 0.005")
    for path in (folder, *more):
        if not path.is_dir():
            raise InputError(f"there is no folder {str(path)!r}: name a run or a comparison")
    subject = reports.read([folder, *more])
    content = _content(subject, _replays(subject, rule, grid), format, margin)
    if out is None:
        sys.stdout.write(printable(content) if sys.stdout.isatty() else content)
        return
    write_atomically(out, content.encode("utf-8", "replace"))
    print(f"report: {out}")


def _replays(
    subject: reports.RecordedRun | reports.RecordedComparison, rule: str | None, grid: str | None
) -> list[reports.Replay]:
    if rule is None and grid is None:
        return []
    if not isinstance(subject, reports.RecordedRun):
        raise InputError("--rule and --grid replay the checks of one run: name the folder of one run, not a comparison")
    folder, found = RunDir.open(subject.path), []
    if rule is not None:
        levels = [{**vars(one), "saved": one.saved} for one in replays.replay(folder, stopping.parse(rule))]
        found.append(reports.Replay(rule, levels=levels))
    if grid is not None:
        points = [vars(point) for point in replays.grid(folder, replays.tolerances(grid))]
        found.append(reports.Replay(f"flow within {grid}", curve=points))
    return found


def _content(
    subject: reports.RecordedRun | reports.RecordedComparison, again: list[reports.Replay], format_: str, margin: float
) -> str:
    if format_ == "html":
        return reports.html(subject, margin=margin, replays=again)
    parts = reports.tables(subject, margin=margin) | {f"replay of {one.rule}": one.table for one in again}
    if format_ == "json":
        return reports.as_json(subject, parts)
    return reports.as_markdown(parts) if format_ == "md" else reports.as_csv(list(parts.values())[-1])
