"""`incop resume`: go on with a run that was killed, interrupted or failed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from incop import distributed
from incop.cli.live import say, watch_progress
from incop.cli.tables import print_run
from incop.experiments.plan import Plan
from incop.rundir import RunDir


def resume(
    run: Path,
    /,
    *,
    data_dir: str | None = None,
    inexact: bool = False,
    run_code: bool = False,
    track: str | None = None,
    progress: Literal["auto", "lines", "off"] = "auto",
    debug: bool = False,
) -> None:
    """Go on with a run that was killed, interrupted or failed, and end it as if it had never been cut off, to the bit.

    Parameters
    ----------
    run
        Folder of the run.
    data_dir
        Folder that holds the data sets now. Default: as the run was told.
    inexact
        Go on also with another version of torch or another processor than the run was begun with: results then differ in
        their last bits from those of an uninterrupted run.
    run_code
        Run the code that the run's plan names for its model, FILE.py:FACTORY or MODULE:FACTORY. Only if you trust it.
    track
        Trackers that show the run, with commas: tensorboard, mlflow, wandb, trackio. One that showed its beginning goes on
        with it; another is told all of it. Default: none.
    progress
        auto: live on a terminal, silent elsewhere. lines: one line per level. off: silent.
    debug
        Show where an error came from.
    """
    with distributed.joined() as together:
        plan = together.once(lambda: _planned(run))
        from incop.cli.tracking import tracked
        from incop.experiments import runs  # imports torch

        with watch_progress(plan, progress if together.first else "off") as (console, listeners):
            listening = runs.Progress(*listeners, on_notice=say)
            listening = tracked(listening, track) if together.first else runs.Progress()
            folder = runs.resume(
                run, listening, data_dir=data_dir, inexact=inexact, run_code=run_code, together=together
            )
        if together.first:
            print_run(console, folder)


def _planned(run: Path) -> Plan:
    folder = RunDir.open(run)
    return Plan.from_mapping(folder.read_plan(), source=str(folder.plan_file))
