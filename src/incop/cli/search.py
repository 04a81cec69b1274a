"""`incop search`: from real data to a sparse network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from incop import distributed
from incop.cli.live import say, watch_progress
from incop.cli.resume import resume
from incop.cli.tables import print_run, say_code
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.rundir import RunDir, read_toml

if TYPE_CHECKING:
    from incop.experiments.plan_words import ResolvedPlan

NOTHING_GIVEN = Plan()


def search(
    plan_file: Path | None = None,
    /,
    *,
    out: Path | None = None,
    plan: Annotated[Plan, Parameter(name="*")] = NOTHING_GIVEN,
    dense: Path | None = None,
    track: str | None = None,
    progress: Literal["auto", "lines", "off"] = "auto",
    debug: bool = False,
) -> None:
    """Find a sparse network: train, then prune, rewind and retrain level by level, and write a run folder.

    Every flag can stand in a plan file under the same name (with _ for -); a flag overrides the file. Started by torchrun, as
    `torchrun --nproc-per-node 2 -m incop search …`, the processes carry out one search together.

    Parameters
    ----------
    plan_file
        A plan.toml, such as the one in a run folder: repeats that run.
    out
        Folder of the run; it must not exist or be empty. Default: a new one under runs/.
    plan
        What the run is made of.
    dense
        Folder of a run whose dense level is used instead of training one. Default: train one.
    track
        Trackers that show the run, with commas: tensorboard, mlflow, wandb, trackio. Default: none.
    progress
        auto: live on a terminal, silent elsewhere. lines: one line per level. off: silent.
    debug
        Show where an error came from.
    """
    with distributed.joined() as together:
        if out is not None and distributed.restarted() and together.once(lambda: RunDir(out).plan_file.exists()):
            resume(out, data_dir=plan.data_dir, run_code=plan.model is not None, track=track, progress=progress)
            return
        full = together.together(lambda: _resolved(plan_file, plan, None if distributed.launched() else out))
        if together.first:
            say_code(full.plan)
        from incop.cli.tracking import tracked
        from incop.experiments import runs  # imports torch

        folder = out if out is not None else Path(together.once(lambda: str(runs.default_out(full.plan))))
        mode = progress if together.first else "off"
        with watch_progress(full.plan, mode) as (console, listeners):
            listening = runs.Progress(*listeners, on_notice=say)
            listening = tracked(listening, track) if together.first else listening
            run = runs.execute(full, folder, listening, dense=dense, together=together)
        if together.first:
            print_run(console, run)


def _resolved(plan_file: Path | None, plan: Plan, out: Path | None) -> ResolvedPlan:
    given, source = plan, ""
    wrong: list[str] = []
    if plan_file is not None:
        file = plan_file / "plan.toml" if plan_file.is_dir() else plan_file
        if not file.is_file():
            raise InputError(f"there is no plan file {str(plan_file)!r}")
        from_file, wrong = Plan.read(read_toml(file))
        given, source = plan.over(from_file), str(file)
    if plan.model is not None and plan.run_code is None:
        given = replace(given, run_code=True)  # who names a model on the command line means it
    if out is not None:
        RunDir(out).refuse_existing()  # before torch is imported
    from incop.experiments.preparation import resolve  # imports torch

    return resolve(given, problems=wrong, source=source)
