"""`incop compare`: methods against each other and against their controls, on the same seeds."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from incop import distributed
from incop.cli.tables import plain_console, table
from incop.cli.under_way import watch_comparison
from incop.errors import IncopError, InputError, MissingExtra
from incop.experiments import engines
from incop.experiments.dispatch import KEPT
from incop.experiments.plan import Plan
from incop.rundir import read_toml

if TYPE_CHECKING:
    from rich.console import Console

    from incop.experiments.comparison import Comparison, Job
    from incop.experiments.engines import Engine

NOTHING_SAID = Plan()


def compare(
    comparison_file: Path | None = None,
    /,
    *,
    methods: str | None = None,
    seeds: int | None = None,
    sparsities: str | None = None,
    pairs: str | None = None,
    controls: bool | None = None,
    on: str = "local",
    jobs: int | None = None,
    resources: str = "",
    out: Path | None = None,
    dry_run: bool = False,
    track: str | None = None,
    plan: Annotated[Plan, Parameter(name="*")] = NOTHING_SAID,
    debug: bool = False,
) -> None:
    """Compare methods on the same seeds, each against controls of the same cost.

    Every seed has one dense level that all methods start from. What is finished in the folder is not done again, so
    the same command continues a comparison that was cut off. `incop report` makes a page of it.

    Parameters
    ----------
    comparison_file
        A comparison.toml, such as the one in a comparison's folder; a flag overrides it.
    methods : str, with commas
        Methods and controls, with commas: lth-rate,incop,sap,incop-if,incop-gf, fixed:2, mask-settled, fixed:match=incop,
        oneshot=incop, gradual=incop, random=incop. Others are set against the first. Default: lth-rate,incop.
    seeds
        How many seeds, counting up from --seed. Default: 5.
    sparsities
        Sparsities at which tickets are trained in full and compared, with commas. Default: 0.8,0.9,0.95.
    pairs
        Pairs of data and network, with commas: mnist/lenet-300-100,fashion-mnist/lenet-5. Default: --data and --model.
    controls
        Add the default controls of the InCoP methods. Default: on.
    on
        Where the runs are carried out: local (processes of this machine), ray[:ADDRESS] (a Ray cluster) or slurm (jobs). Elsewhere
        than here the comparison's folder must lie on storage that all hosts share.
    jobs
        Runs at once at most. Default: 1 on this machine, where each has an equal share of the cores; else as many as there is
        room for.
    resources
        What ray or slurm gives each run: "cpus=2 gpus=1 mem=4 time=60 partition=gpu". mem is in GB, time in minutes; slurm also
        takes account, qos and constraint. Default: cpus=1, and of slurm time=60.
    out
        The comparison's folder. Default: runs/compare.
    dry_run
        Print the runs, how each stands in the folder, what would be handed to whom and an estimate of the cost, and stop.
    track
        Trackers that show every run, with commas: tensorboard, mlflow, wandb, trackio; grouped by the folder's name.
        Default: none.
    plan
        Keys that hold for every run, as in search.
    debug
        Show where an error came from.
    """
    if distributed.launched():
        raise InputError(
            "a comparison is many searches, each a process of its own, and torchrun makes several processes of one search: start "
            "`incop compare --jobs N` without torchrun"
        )
    plan.check()
    comparison = _comparison(comparison_file, methods, seeds, sparsities, pairs, controls, plan)
    engine = engines.named(on, jobs=jobs, resources=resources)
    comparison.check()
    console = plain_console()
    folder = out if out is not None else Path("runs") / "compare"
    if dry_run:
        _print_outlook(console, comparison, engine, folder)
        return
    ended = _carried_out(console, comparison, engine, folder, track)
    try:
        _print_results(console, folder)
    except MissingExtra as error:
        console.print(str(error), highlight=False)
    failed = [job for job in ended if job.state != "done"]
    console.print(
        f"comparison folder: {folder}   (a page of it: incop report {folder})", highlight=False, soft_wrap=True
    )
    if failed:
        raise IncopError(
            f"{len(failed)} of {len(ended)} runs failed, the first ({failed[0].label.text}): {failed[0].error}"
        )


def _carried_out(
    console: Console, comparison: Comparison, engine: Engine, folder: Path, track: str | None
) -> list[Job]:
    from incop.cli import tracking
    from incop.experiments import comparison_runs, runs  # imports torch

    follow = None
    if track is not None:
        tracking.tracked(runs.Progress(), track)  # what is missing or unknown is told before anything is trained
        follow = functools.partial(
            tracking.of_comparison, track, folder if engine.name == "local" else folder.absolute()
        )
    with watch_comparison(console, lines=engine.name != "local") as listeners:
        return comparison_runs.compare(comparison, folder, engine=engine, follow=follow, **listeners._asdict())


def _comparison(
    file: Path | None,
    methods: str | None,
    seeds: int | None,
    sparsities: str | None,
    pairs: str | None,
    controls: bool | None,
    plan: Plan,
) -> Comparison:
    from incop.experiments.comparison import Comparison  # imports torch

    told: dict[str, object] = {"methods": ["lth-rate", "incop"]}
    if file is not None:
        path = file / "comparison.toml" if file.is_dir() else file
        if not path.is_file():
            raise InputError(f"there is no comparison file {str(file)!r}")
        told |= read_toml(path)
    said = {
        "methods": None if methods is None else _parts(methods),
        "seeds": seeds,
        "sparsities": None if sparsities is None else [_number(part) for part in _parts(sparsities)],
        "pairs": None if pairs is None else _parts(pairs),
        "controls": controls,
    }
    told |= {key: value for key, value in said.items() if value is not None}
    keys = plan.written()
    data, model = keys.pop("data", None), keys.pop("model", None)
    said_here = pairs is not None or model is not None
    if pairs is not None and (data or model):
        raise InputError("--pairs names data and networks; leave --data and --model out")
    if data or model:
        told["pairs"] = [f"{data or 'digits'}/{model or 'lenet-300-100'}"]
    base = told.get("plan", {})
    told["plan"] = {**(base if isinstance(base, dict) else {}), **keys}
    comparison = Comparison.from_toml(told, source=str(file) if file is not None else "the flags")
    allowed = plan.run_code if plan.run_code is not None else (said_here or None)
    return replace(comparison, plan=replace(comparison.plan, run_code=allowed))


def _parts(text: str) -> list[str]:
    # a comma within pq:1,2 separates numbers, not methods; none of the lists here holds amounts
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--sparsities: {text!r} is no number") from None


def _print_outlook(console: Console, comparison: Comparison, engine: Engine, folder: Path) -> None:
    """Print what would be handed to the engine, and what it may cost; nothing is written."""
    from incop.experiments import estimates
    from incop.experiments.comparison import jobs_of
    from incop.experiments.comparison_runs import ComparisonRuns, MethodRun, scheduled_runs
    from incop.experiments.dispatch import outlook

    rates = {pair: estimates.seconds_per_epoch(comparison, *pair) for pair in comparison.pairs}
    runs = scheduled_runs(ComparisonRuns(comparison, folder, jobs_of(comparison), engine))
    stands = outlook(runs)
    states = [state for piece, state in stands if isinstance(piece, MethodRun)]
    rows, seconds = [], 0.0
    for (job, epochs), state in zip(estimates.estimates(comparison), states, strict=True):
        took = epochs * rates[job.data, job.model]
        seconds += 0.0 if state == KEPT else took
        ends = f"{job.sparsity:g}" if job.sparsity else ", ".join(f"{s:g}" for s in comparison.sparsities)
        rows.append([job.label.text, job.data, job.model, str(job.seed), ends, state, f"{epochs:.0f}", f"{took:.0f}"])
    columns = ("method", "data", "network", "seed", "sparsity", "now", "epochs at most", "seconds at most")
    dense = len(stands) - len(rows)
    console.print(table(f"{len(rows)} runs, and {dense} dense networks that they begin from", columns, rows, numbers=2))
    left = sum(state != KEPT for _, state in stands)
    clock = time.strftime("%H:%M:%S", time.gmtime(seconds / (engine.slots or 1)))
    at_once = f"with --jobs {engine.slots}" if engine.slots else "one after the other"
    for line in (
        f"{left} of these {len(stands)} would be handed to {engine.describe()}",
        f"at most {clock} h {at_once}, by a few timed steps on this machine; rules that stop early take less",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _print_results(console: Console, folder: Path) -> None:
    from incop import reports  # imports SciPy

    subject = reports.read([folder])
    assert isinstance(subject, reports.RecordedComparison)
    analysis = reports.analyse(subject)
    columns = (
        "data",
        "network",
        "sparsity",
        "method",
        "n",
        "test accuracy",
        "95 % interval",
        "search epochs",
        "epochs",
    )
    rows = [
        [
            one.data,
            one.model,
            f"{one.target:g}",
            one.label,
            str(one.accuracy.n),
            f"{one.accuracy.mean:.4f}",
            "–" if one.accuracy.low is None else f"{one.accuracy.low:.4f} … {one.accuracy.high:.4f}",
            f"{one.search_epochs.mean:.1f}",
            f"{one.total_epochs.mean:.1f}",
        ]
        for one in analysis.summaries
    ]
    title = "means over seeds; epochs after the dense level, every probed sample counted like a trained one"
    console.print(table(title, columns, rows, numbers=5))
