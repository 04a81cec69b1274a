"""Comparisons: methods × seeds × (data, model), one dense level per seed, each run a process and a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tomli_w

from incop.errors import IncopError, InputError
from incop.experiments import runs
from incop.experiments.controls import Cost, Label, default_controls
from incop.experiments.parts import resolve
from incop.experiments.plan import Plan
from incop.experiments.signals import Interrupted, Signals
from incop.experiments.tickets import dense_plan
from incop.locks import LOCK, Lock
from incop.rundir import RunDir, inside, write_atomically

__all__ = ["GUESS", "Comparison", "Job", "compare", "jobs_of"]

GUESS = Cost(1.0, 1, 1.0)  # stands for a cost that is not known yet, where only other keys matter
# A fork of a server that has imported torch once starts in milliseconds; importing it in every run takes seconds.
# Forking this process itself would carry over its threads' locks.
PROCESSES: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
# where the data lie, how many cores work and how often a checkpoint is written do not change what a run is
NOT_IDENTITY = ("data_dir", "threads", "checkpoint_every", "run_code")
PATIENCE = 60.0  # seconds for the runs of a comparison that was killed to write their checkpoints and end
Follow = Callable[[], runs.Progress]  # makes the listeners of one run
MOST_LEVELS = 100  # a method that has not reached the sparsity by then is stopped and reported so


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        methods: methods and controls, as `controls.Label` reads them; the first is what others are set against.
        seeds: how many seeds; they count up from the plan's seed.
        sparsities: at which tickets are trained in full and compared, each in (0, 1).
        pairs: (data, model) pairs.
        controls: add the default controls of the InCoP methods.
        plan: keys that hold for every run.
    """

    methods: tuple[str, ...]
    seeds: int = 5
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95)
    pairs: tuple[tuple[str, str], ...] = (("digits", "lenet-300-100"),)
    controls: bool = True
    plan: Plan = field(default_factory=Plan)

    def check(self) -> None:
        """Find what cannot be compared.

        Raises:
            InputError: all problems in one sentence.
        """
        problems = []
        if not self.methods:
            problems.append("no method is named: --methods lth-rate,incop")
        if not 1 <= self.seeds <= 1000:
            problems.append(f"--seeds {self.seeds} must be between 1 and 1000")
        if not self.sparsities or any(not 0 < s < 1 for s in self.sparsities):
            problems.append(
                f"--sparsities {', '.join(map(str, self.sparsities))} must lie between 0 and 1, both excluded"
            )
        if len(set(self.methods)) < len(self.methods):
            problems.append("a method is named twice in --methods")
        for text in self.labels() if self.methods else ():
            label = Label.parse(text)
            if label.needs_cost and label.of not in self.methods:
                problems.append(f"the control {text!r} needs {label.of} among the methods, whose cost it matches")
        strange = [
            k for k in ("data", "model", "method", "sparsity", "ticket_at", "keep") if getattr(self.plan, k) is not None
        ]
        if strange:
            problems.append(f"the key {strange[0]!r} is the comparison's own: use --pairs, --methods or --sparsities")
        if problems:
            raise InputError("; ".join(problems))
        for data, model in self.pairs:
            for text in self.methods:
                label = Label.parse(text)
                if not label.needs_cost:
                    resolve(self.plan_of(label, None, max(self.sparsities), data, model, self.plan.seed or 0))

    def controlled_by(self, label: Label) -> tuple[str, ...]:
        """Return the methods a control belongs to: the one it names, or every method that stops early."""
        if label.kind == "method":
            return ()
        if "=" in label.text:
            return (label.of,)
        return tuple(name for name in self.methods if Label.parse(name).stops_early)

    def labels(self) -> list[str]:
        """Return methods and controls by name, in order."""
        more = default_controls(self.methods) if self.controls else []
        return list(dict.fromkeys([*self.methods, *more]))

    def plan_of(self, label: Label, cost: Cost | None, sparsity: float, data: str, model: str, seed: int) -> Plan:
        """Return the plan of one run: what is said for all runs, over the label's own keys."""
        own = label.plan(cost, sparsity)
        on_the_way = None if label.each_sparsity else tuple(sorted(self.sparsities))[:-1] or None
        frame = Plan(data=data, model=model, seed=seed, sparsity=sparsity, ticket_at=on_the_way)
        # A method's own keys give way to what the user says for all runs; a control's keys are what makes it one.
        said = self.plan if label.kind == "method" else Plan()
        return frame.over(said).over(own).over(self.plan).over(Plan(levels=MOST_LEVELS))

    def to_toml(self) -> dict[str, Any]:
        """Return the keys of `comparison.toml`."""
        return {
            "methods": list(self.methods),
            "seeds": self.seeds,
            "sparsities": list(self.sparsities),
            "pairs": [f"{data}/{model}" for data, model in self.pairs],
            "controls": self.controls,
            "plan": self.plan.written(),
        }

    @classmethod
    def from_toml(cls, values: Mapping[str, Any], *, source: str) -> Comparison:
        """Build a comparison from a file's keys.

        Raises:
            InputError: a key is unknown or of the wrong type.
        """
        known: dict[str, Callable[[Any], bool]] = {
            "methods": _texts,
            "seeds": lambda v: isinstance(v, int) and not isinstance(v, bool),
            "sparsities": lambda v: isinstance(v, list) and all(isinstance(x, int | float) for x in v),
            "pairs": _texts,
            "controls": lambda v: isinstance(v, bool),
            "plan": lambda v: isinstance(v, dict),
        }
        problems = [f"unknown key {key!r}" for key in values if key not in known]
        problems += [
            f"{key} = {values[key]!r} has the wrong type"
            for key in known
            if key in values and not known[key](values[key])
        ]
        if problems:
            raise InputError(f"{source}: {'; '.join(problems)} (known: {', '.join(known)})")
        told = dict(values)
        told["plan"] = Plan.from_mapping(told.get("plan", {}), source=source)
        for key in ("methods", "sparsities"):
            if key in told:
                told[key] = tuple(told[key])
        if "pairs" in told:
            told["pairs"] = tuple(pair(text) for text in told["pairs"])
        return cls(**{"methods": (), **told})


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def pair(text: str) -> tuple[str, str]:
    """Read a pair of data and model: "mnist/lenet-300-100".

    Raises:
        InputError: it has no model.
    """
    # a model may have slashes of its own, behind the name of its library
    named = re.fullmatch(r"(.+)/((?:torchvision|timm|hf):.+)", text)
    data, model = named.groups() if named else text.rpartition("/")[::2]
    if not data or not model:
        raise InputError(f"the pair {text!r} cannot be read: give data/model, such as mnist/lenet-300-100")
    return data, model


@dataclass
class Job:
    """One run of a comparison.

    Args:
        label: method or control.
        seed: its seed.
        data: its data.
        model: its model.
        sparsity: the one sparsity it ends at, or None when it reports all on its way.
        folder: of its run, relative to the comparison's; known when its plan is.
        control_of: the methods it controls; none for a method.
        state: waiting, running, done or failed.
        error: what ended it.
    """

    label: Label
    seed: int
    data: str
    model: str
    sparsity: float | None
    folder: str = ""
    control_of: tuple[str, ...] = ()
    state: str = "waiting"
    error: str | None = None

    @property
    def place(self) -> tuple[str, str, int]:
        """What it shares a dense level with."""
        return self.data, self.model, self.seed

    def to_json(self) -> dict[str, Any]:
        """Return its entry in `jobs.json`."""
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "label": self.label.text}


def jobs_of(comparison: Comparison) -> list[Job]:
    """Return all runs of a comparison, in the order of its methods."""
    jobs = []
    for data, model in comparison.pairs:
        for text in comparison.labels():
            label = Label.parse(text)
            ends = comparison.sparsities if label.each_sparsity else (None,)
            jobs += [
                Job(label, seed, data, model, end, control_of=comparison.controlled_by(label))
                for seed in range(comparison.plan.seed or 0, (comparison.plan.seed or 0) + comparison.seeds)
                for end in ends
            ]
    return jobs


def identity(plan: Plan) -> str:
    """Return the hash of a resolved plan that its folder is named by."""
    told = {key: value for key, value in plan.told().items() if key not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class _Work:
    """A comparison being carried out."""

    comparison: Comparison
    out: Path
    jobs: list[Job]
    threads: int
    tell: Callable[[Job, int, int], None]
    follow: Follow | None = None
    dense: dict[tuple[str, str, int], str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    running: set[BaseProcess] = field(default_factory=set)


def compare(
    comparison: Comparison,
    out: str | Path,
    *,
    jobs: int = 1,
    tell: Callable[[Job, int, int], None] | None = None,
    follow: Follow | None = None,
) -> list[Job]:
    """Carry out a comparison, or what is missing of it, and return its jobs with how each ended.

    Every run is a process of its own and a folder under `out/runs`, named by the hash of its plan: what is finished there
    is not done again, what was cut off is gone on with. A run that fails or dies does not stop the others. At ctrl-C or
    SIGTERM the runs write their checkpoints; at a second they are ended at once.

    Args:
        comparison: what is compared.
        out: the comparison's folder; made when it is absent, continued when it holds one.
        jobs: how many runs at once; each has an equal share of the cores.
        tell: called with (job, how many are done, how many there are) when a job ends.
        follow: gives the listeners of a run, within its own process, to which it is sent: a function of a module.

    Raises:
        InputError: the comparison cannot be carried out, or the folder is in other use.
        Interrupted: a signal came.
    """
    comparison.check()
    folder = _folder(Path(out))
    cores = os.cpu_count() or 1
    told = tell or (lambda job, done, of: None)
    work = _Work(comparison, folder, jobs_of(comparison), max(cores // jobs, 1), told, follow)
    if hasattr(PROCESSES, "set_forkserver_preload"):
        PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo"])
    interrupted = Signals("interrupted: the same command goes on with what is missing", at_once=True)
    with Lock(folder), interrupted, ThreadPoolExecutor(jobs) as pool:
        write_atomically(folder / "comparison.toml", tomli_w.dumps(comparison.to_toml()).encode())
        _write_jobs(work)
        try:
            _carry_out(work, pool)
        except BaseException:
            work.stopping.set()
            for process in list(work.running):
                process.terminate()
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:  # a second signal
                for process in list(work.running):
                    process.kill()
                raise
            raise
        finally:
            _write_jobs(work)
    return work.jobs


def _folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file: choose another folder with --out")
    entries = [entry for entry in out.iterdir() if entry.name != LOCK] if out.is_dir() else []
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


def _carry_out(work: _Work, pool: ThreadPoolExecutor) -> None:
    waiting = list(work.jobs)
    running: dict[Future[None], Job] = {}
    places = list(dict.fromkeys(job.place for job in work.jobs))
    dense = {place: pool.submit(_dense, work, place) for place in places}
    ended = 0
    while waiting or running:
        for job in [job for job in waiting if _ready(work, job, dense)]:
            waiting.remove(job)
            running[pool.submit(_run, work, job)] = job
        open_ = [*running, *(future for future in dense.values() if not future.done())]
        done, _ = wait(open_, return_when=FIRST_COMPLETED)
        for future in done & set(running):
            job = running.pop(future)
            future.result()
            _write_jobs(work)
            ended += 1
            work.tell(job, ended, len(work.jobs))


def _ready(work: _Work, job: Job, dense: Mapping[tuple[str, str, int], Future[None]]) -> bool:
    if not dense[job.place].done():
        return False
    if not job.label.needs_cost:
        return True
    return _other(work, job).state in ("done", "failed")


def _other(work: _Work, job: Job) -> Job:
    """Return the run whose cost a control matches; a method that takes a run for each sparsity has one at the same."""
    return next(
        j
        for j in work.jobs
        if j.place == job.place and j.label.text == job.label.of and j.sparsity in (None, job.sparsity)
    )


def _dense(work: _Work, place: tuple[str, str, int]) -> None:
    """Train the dense level that all runs of a place share, with every rewind point they need."""
    data, model, seed = place
    keep: dict[str, None] = {}
    plan = Plan()
    for text in work.comparison.labels():
        label = Label.parse(text)
        try:
            full = resolve(work.comparison.plan_of(label, GUESS, max(work.comparison.sparsities), data, model, seed))
        except IncopError:
            continue  # its own job will say why
        plan = dense_plan(full)
        keep.update(dict.fromkeys(plan.keep or ()))
    plan = resolve(Plan(keep=tuple(keep) or None).over(plan))
    folder = f"runs/dense-{seed}-{identity(plan)}"
    error = _process(work, plan, work.out / folder, dense=None)
    if error is None:
        work.dense[place] = folder
    else:
        for job in work.jobs:
            if job.place == place:
                job.state, job.error = "failed", f"its dense level failed: {error}"


def _run(work: _Work, job: Job) -> None:
    if job.state == "failed" or work.stopping.is_set():
        return
    job.state = "running"
    try:
        plan = resolve(_plan(work, job))
    except IncopError as error:
        job.state, job.error = "failed", str(error)
        return
    name = job.label.text.replace(":", "_").replace("=", "_")
    job.folder = f"runs/{name}-{job.seed}-{identity(plan)}"
    job.error = _process(work, plan, work.out / job.folder, dense=work.out / work.dense[job.place])
    job.state = "waiting" if work.stopping.is_set() else "done" if job.error is None else "failed"


def _plan(work: _Work, job: Job) -> Plan:
    sparsity = job.sparsity if job.sparsity is not None else max(work.comparison.sparsities)
    cost = None
    if job.label.needs_cost:
        other = _other(work, job)
        if other.state != "done":
            raise InputError(f"{other.label.text}, whose cost it matches, failed: {other.error}")
        cost = Cost.of(RunDir.open(work.out / other.folder).levels(), sparsity)
    return work.comparison.plan_of(job.label, cost, sparsity, job.data, job.model, job.seed)


def _process(work: _Work, plan: Plan, folder: Path, *, dense: Path | None) -> str | None:
    """Carry out one plan in a process of its own, unless it is done; return what went wrong, if anything."""
    with work.lock:
        if _finished(folder):
            return None
        again = RunDir(folder).plan_file.is_file()
        if folder.exists() and not again:
            shutil.rmtree(folder)  # a run of this comparison that was killed before it began
    plan = dataclasses.replace(plan, threads=plan.threads or work.threads)
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_alone, args=(plan, folder, dense, again, theirs, work.follow), daemon=True)
    with work.lock:
        process.start()
        work.running.add(process)
    theirs.close()
    try:
        if work.stopping.is_set():
            process.terminate()
        error = ours.recv() if ours.poll(None) else None
    except EOFError:
        error = "its process ended without a word"
    finally:
        process.join()
        work.running.discard(process)
    status = process.exitcode or 0
    if status < 0 and not _finished(folder):
        why = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{why}: the same command goes on with it"
    if error is None and not _finished(folder):
        return f"its process ended with status {status}"
    return error


def _alone(plan: Plan, folder: Path, dense: Path | None, again: bool, tell: Connection, follow: Follow | None) -> None:
    """Carry out one plan, in a process of its own, and tell in a sentence what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle: it ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        progress = runs.Progress() if follow is None else follow()
        if again:
            runs.resume(
                folder, progress, data_dir=plan.data_dir, dense=dense, patience=PATIENCE, run_code=bool(plan.run_code)
            )
        else:
            runs.execute(plan, folder, progress, dense=dense)
        tell.send(None)
    except (IncopError, Interrupted) as error:
        with contextlib.suppress(OSError):  # nobody is there any more to be told
            tell.send(str(error))
    except BaseException as error:
        with contextlib.suppress(OSError):
            tell.send(f"unexpected {type(error).__name__}: {error}")
        raise


def _end_with_parent() -> None:
    """Write a checkpoint and end when the comparison's own process is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _finished(folder: Path) -> bool:
    try:
        return RunDir.open(folder).read_summary().status == "finished"
    except InputError:
        return False


def _write_jobs(work: _Work) -> None:
    with work.lock:
        entries = [job.to_json() for job in work.jobs]
        write_atomically(work.out / "jobs.json", (json.dumps(entries, indent=1) + "\n").encode())
