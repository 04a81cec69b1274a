"""The runs of a comparison: what each waits for, its plan, its folder; each is a process of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from incop.errors import IncopError, InputError
from incop.experiments import engines, runs
from incop.experiments.comparison import Comparison, Job, jobs_of
from incop.experiments.controls import Cost, Label
from incop.experiments.dispatch import Dispatcher, ScheduledRun
from incop.experiments.engines import Engine, Task, worker
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.experiments.run_levels import dense_plan
from incop.experiments.signals import Signals
from incop.locks import LOCK, Lock
from incop.rundir import RunDir, inside, write_atomically

GUESS = Cost(1.0, 1, 1.0)  # stands for a cost that is not known yet, where only other keys matter
# where the data lie, how many cores work and how often a checkpoint is written do not change what a run is
NOT_IDENTITY = ("data_dir", "threads", "checkpoint_every", "run_code")
Follow = Callable[[], runs.Progress]  # makes the listeners of one run


def identity(plan: Plan) -> str:
    """Return the hash of a resolved plan that its folder is named by."""
    told = {key: value for key, value in plan.given().items() if key not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class ComparisonRuns:
    """A comparison being carried out, or looked at before it is."""

    comparison: Comparison
    out: Path
    jobs: list[Job]
    engine: Engine
    follow: Follow | None = None
    told: Callable[[Job], None] = lambda job: None

    def __post_init__(self) -> None:
        same_machine = self.engine.name == "local"
        self._incop = "" if same_machine else worker.fingerprint()
        self._home = "" if same_machine else os.getcwd()

    def task(self, plan: Plan, folder: str, dense: str | None = None) -> Task:
        """Return one run of it as it is sent to a worker."""
        return Task(
            plan=dataclasses.replace(plan, threads=plan.threads or self.engine.threads),
            folder=self.out / folder,
            whole=self.out,
            dense=None if dense is None else self.out / dense,
            follow=self.follow,
            incop=self._incop,
            home=self._home,
        )

    def write_jobs(self) -> None:
        """Write `jobs.json`: how every run stands."""
        entries = [job.to_json() for job in self.jobs]
        write_atomically(self.out / "jobs.json", (json.dumps(entries, indent=1) + "\n").encode())


@dataclass
class DenseRun:
    """The dense level that all runs of a place share, with every rewind point they need."""

    whole: ComparisonRuns
    place: tuple[str, str, int]
    folder: str = ""
    done: bool = False

    @property
    def name(self) -> str:
        """What it is called on a terminal."""
        return f"the dense network · seed {self.place[2]}"

    def ready(self) -> bool:
        """It waits for nothing."""
        return True

    def task(self) -> Task:
        """Return its task: that of the first plan that can be made real, with the rewind points of all."""
        data, model, seed = self.place
        comparison = self.whole.comparison
        keep: dict[str, None] = {}
        plan = Plan()
        for text in comparison.labels():
            try:
                full = resolve(
                    comparison.plan_of(Label.parse(text), GUESS, max(comparison.sparsities), data, model, seed)
                ).plan
            except IncopError:
                continue  # its own run will say why
            plan = dense_plan(full)
            keep.update(dict.fromkeys(plan.keep or ()))
        plan = resolve(Plan(keep=tuple(keep) or None).over(plan)).plan
        self.folder = f"runs/dense-{seed}-{identity(plan)}"
        return self.whole.task(plan, self.folder)

    def ended(self, error: str | None) -> None:
        """Let the runs of the place begin, or fail with it."""
        self.done = True
        for job in self.whole.jobs if error is not None else ():
            if job.place == self.place:
                job.state, job.error = "failed", f"its dense level failed: {error}"


@dataclass
class MethodRun:
    """A run of a method or a control."""

    whole: ComparisonRuns
    job: Job
    dense: DenseRun
    other: MethodRun | None = None  # whose cost it matches

    @property
    def name(self) -> str:
        """What it is called on a terminal."""
        return self.job.name

    def ready(self) -> bool:
        """Say whether its dense level is there, and the run whose cost it matches has ended."""
        return self.dense.done and (self.other is None or self.other.job.state in ("done", "failed"))

    def task(self) -> Task:
        """Return its task."""
        job, whole = self.job, self.whole
        if job.error is not None:
            raise InputError(job.error)
        sparsity = job.sparsity if job.sparsity is not None else max(whole.comparison.sparsities)
        cost = None if self.other is None else self._cost(self.other.job, sparsity)
        plan = resolve(whole.comparison.plan_of(job.label, cost, sparsity, job.data, job.model, job.seed)).plan
        name = job.label.text.replace(":", "_").replace("=", "_")
        job.folder = f"runs/{name}-{job.seed}-{identity(plan)}"
        job.state = "running"
        return whole.task(plan, job.folder, self.dense.folder)

    def _cost(self, other: Job, sparsity: float) -> Cost:
        if other.state != "done":
            raise InputError(f"{other.label.text}, whose cost it matches, failed: {other.error}")
        return Cost.of(RunDir.open(self.whole.out / other.folder).levels(), sparsity)

    def ended(self, error: str | None) -> None:
        """Write down how."""
        self.job.state, self.job.error = ("done", None) if error is None else ("failed", error)
        self.whole.told(self.job)


def scheduled_runs(whole: ComparisonRuns) -> list[ScheduledRun]:
    """Return the dense levels and the runs of a comparison, in the order in which they are begun where nothing waits."""
    dense = {place: DenseRun(whole, place) for place in dict.fromkeys(job.place for job in whole.jobs)}
    runs_ = [MethodRun(whole, job, dense[job.place]) for job in whole.jobs]
    for one in runs_:
        if one.job.label.needs_cost:
            # a method that takes a run for each sparsity has one at the same
            one.other = next(
                other
                for other in runs_
                if (other.job.place, other.job.label.text) == (one.job.place, one.job.label.of)
                and other.job.sparsity in (None, one.job.sparsity)
            )
    return [*dense.values(), *runs_]


def compare(
    comparison: Comparison,
    out: str | Path,
    *,
    jobs: int | None = None,
    engine: Engine | None = None,
    tell: Callable[[Job, int, int], None] | None = None,
    follow: Follow | None = None,
    notice: Callable[[str], None] | None = None,
    look: Callable[[Sequence[tuple[str, Task]]], None] | None = None,
) -> list[Job]:
    """Carry out a comparison, or what is missing of it, and return its jobs with how each ended.

    Every run is a process of its own and a folder under `out/runs`, named by the hash of its plan: what is finished there
    is not done again, what was cut off is gone on with, what another process is at is waited for. A run that fails or dies does
    not stop the others. At ctrl-C or SIGTERM the runs write their checkpoints; at a second they are ended at once.

    Args:
        comparison: what is compared.
        out: the comparison's folder; made when it is absent, continued when it holds one.
        jobs: how many runs at once on this machine; each has an equal share of the cores. Default: one.
        engine: what carries the runs out, in place of this machine; see `engines.named`.
        tell: called with (job, how many are done, how many there are) when a job ends.
        follow: gives the listeners of a run, within its own process, to which it is sent: a function of a module.
        notice: told in a sentence when a worker was lost, or a run is waited for.
        look: called every second with the names and tasks that are under way.
    """
    comparison.check()
    engine = engine if engine is not None else engines.named("local", jobs=jobs)
    # another host is in another working directory
    folder = _folder(Path(out) if engine.name == "local" else Path(out).absolute())
    whole = ComparisonRuns(comparison, folder, jobs_of(comparison), engine, follow)
    ended = 0

    def told(job: Job) -> None:
        nonlocal ended
        whole.write_jobs()
        ended += 1
        if tell is not None:
            tell(job, ended, len(whole.jobs))

    whole.told = told
    with Lock(folder), Signals("interrupted: the same command goes on with what is missing") as signals:
        write_atomically(folder / "comparison.toml", tomli_w.dumps(comparison.to_toml()).encode())
        whole.write_jobs()
        engine.open(folder)
        try:
            Dispatcher(scheduled_runs(whole), engine, notice=notice, look=look).carry_out(signals)
        finally:
            for job in whole.jobs:
                job.state = "waiting" if job.state == "running" else job.state
            whole.write_jobs()
            engine.close()
    return whole.jobs


def _folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file: choose another folder with --out")
    entries = [entry for entry in out.iterdir() if not entry.name.startswith(LOCK)] if out.is_dir() else []
    if entries and not (out / "comparison.toml").is_file():
        raise InputError(f"the folder {str(out)!r} is not empty and holds no comparison: choose another with --out")
    if out.is_dir():  # what is cut off is removed and trained again: never through a stranger's link
        for entry in (out / "runs", *((out / "runs").glob("*"))):
            inside(out, entry)
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {str(out)!r} cannot be made: {error.strerror or error}") from error
    return out
