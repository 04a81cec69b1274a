"""`incop show`: what a run folder holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from incop.cli.tables import level_table, plain_console, printable, spent_lines, table
from incop.records import only_incop
from incop.rundir import RunDir


def show(run: Path, /, *, json_: bool = False, debug: bool = False) -> None:
    """Show a run: its levels, what was spent, how it was made, and the command that repeats it.

    Parameters
    ----------
    run
        Folder of the run.
    json_
        Print its summary as JSON.
    debug
        Show where an error came from.
    """
    folder = RunDir.open(run)
    summary = folder.read_summary()
    if json_:
        json.dump(summary.to_json(), sys.stdout, indent=1, ensure_ascii=False)
        print()
        return
    console = plain_console()
    title = f"{summary.method} · {summary.model} · {summary.data} · seed {summary.seed} · {summary.status}"
    console.print(level_table(summary.levels, title=title))
    for line in spent_lines(summary):
        console.print(printable(line), highlight=False)
    console.print()
    console.print(table("plan", ("key", "value"), [(k, str(v)) for k, v in folder.read_plan().items()]))
    console.print(table("environment", ("key", "value"), [(k, str(v)) for k, v in summary.environment.items()]))
    command = only_incop(summary.command) or "its record holds no command of incop alone; use its plan.toml"
    console.print(f"repeat: {command}", highlight=False, soft_wrap=True)
