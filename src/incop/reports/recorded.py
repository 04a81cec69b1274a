"""Comparisons: from folders to plain rows, one for each method, seed, data set, model and sparsity asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from incop.errors import IncopError, InputError, quoted
from incop.record_json import MAX_COUNT
from incop.records import Check, Level, Run, Spent
from incop.reports.costs import TicketCost, costs_of_ticket
from incop.rundir import RunDir, inside, is_file, read_json, read_toml

TOLERANCE = 0.0051  # two sparsities are the same target when they are no further apart
JOBS, SETTINGS = "jobs.json", "comparison.toml"
FULL = 1e-6  # epochs are sums of fractions
MAX_JOBS = 10_000  # runs of a comparison


@dataclass(frozen=True)
class RunEntry:
    """One run of a comparison, done or not.

    Args:
        label: the method or control, as it is called in the comparison.
        seed: its seed.
        data: name of the data set.
        model: name of the model.
        folder: its run folder, relative to the comparison's.
        sparsity: the sparsity it was made for, in [0, 1]; None: it reports several.
        control_of: the methods that it is a control of; none for a method.
        state: "done", "failed" or "waiting".
        error: what ended it, when it failed.
    """

    label: str
    seed: int
    data: str
    model: str
    folder: str
    sparsity: float | None = None
    control_of: tuple[str, ...] = ()
    state: str = "done"
    error: str | None = None


@dataclass(frozen=True)
class RecordedRun:
    """A run folder as it was read: the plan, the summary, and how the run is called.

    Args:
        path: the folder.
        job: how the run is called, and what it was made for.
        plan: the keys of its plan.
        run: its summary; of a run that has none yet, what its levels tell.
    """

    path: Path
    job: RunEntry
    plan: Mapping[str, Any]
    run: Run

    @property
    def levels(self) -> tuple[Level, ...]:
        """The finished levels."""
        return self.run.levels

    def checks(self) -> list[Check]:
        """Read the checks."""
        return RunDir(self.path).checks()


@dataclass(frozen=True)
class TicketRow:
    """One reported ticket of a comparison.

    Args:
        label: the method or control.
        control_of: the methods that it is a control of; none for a method.
        data: name of the data set.
        model: name of the model.
        seed: the seed.
        target: the sparsity asked for, in [0, 1].
        sparsity: the ticket's sparsity, within 0.0051 of it.
        model_sparsity: the same over all parameters.
        level: the ticket's level.
        test_accuracy: in [0, 1].
        val_accuracy: in [0, 1], or None.
        dense_test_accuracy: the dense network's of the same seed, or None.
        epochs: of levels 1, 2, …: of the search, and in full for the ticket's own level.
        stop_reasons: why those levels ended.
        search: what the levels before the ticket's took.
        total: the same with the ticket's own full training: all after level 0.
        in_all: the same with the dense network.
        folder: the run folder.
    """

    label: str
    control_of: tuple[str, ...]
    data: str
    model: str
    seed: int
    target: float
    sparsity: float
    model_sparsity: float
    level: int
    test_accuracy: float
    val_accuracy: float | None
    dense_test_accuracy: float | None
    epochs: tuple[float, ...]
    stop_reasons: tuple[str, ...]
    search: TicketCost
    total: TicketCost
    in_all: TicketCost
    folder: str


@dataclass(frozen=True)
class RecordedComparison:
    """A comparison as its folders tell it.

    Args:
        title: what it is called.
        settings: the keys of its plan.
        jobs: all its runs, done or not.
        runs: the ones that could be read and are finished.
        rows: one for each reported ticket that was asked for.
        notices: sentences on what is missing: runs that failed, wait or are damaged, sparsities not reached.
    """

    title: str
    settings: Mapping[str, Any]
    jobs: tuple[RunEntry, ...]
    runs: tuple[RecordedRun, ...]
    rows: tuple[TicketRow, ...]
    notices: tuple[str, ...] = field(default=())

    @property
    def labels(self) -> tuple[str, ...]:
        """The methods and controls in the order in which the comparison names them, methods first."""
        first = dict.fromkeys(job.label for job in self.jobs if not job.control_of)
        return tuple(first | dict.fromkeys(job.label for job in self.jobs if job.control_of))

    @property
    def controls(self) -> Mapping[str, tuple[str, ...]]:
        """The methods that each control belongs to."""
        return {job.label: job.control_of for job in self.jobs if job.control_of}


def is_comparison(folder: Path) -> bool:
    """Say whether a folder holds a comparison."""
    return is_file(folder / JOBS)


def read(folders: Sequence[Path]) -> RecordedRun | RecordedComparison:
    """Read one run, one comparison, or several runs as a comparison.

    Raises:
        InputError: a folder is neither, or its files are damaged.
    """
    if not folders:
        raise InputError("there is nothing to report: give the folder of a run or of a comparison")
    if len(folders) == 1:
        return read_comparison(folders[0]) if is_comparison(folders[0]) else read_run(folders[0])
    if mixed := [folder for folder in folders if is_comparison(folder)]:
        raise InputError(f"{str(mixed[0])!r} is a comparison already: report it alone, or give run folders only")
    return together(folders)


def read_run(folder: Path, job: RunEntry | None = None) -> RecordedRun:
    """Read a run folder; a run that is not finished is told by the levels it has."""
    directory = RunDir(folder)
    if not is_file(directory.plan_file):
        raise InputError(
            f"{str(folder)!r} is neither a run folder (it has no plan.toml) nor a comparison (it has no {JOBS})"
        )
    plan = directory.read_plan()
    if is_file(directory.summary_file):
        run = directory.read_summary()
    else:
        levels = tuple(directory.levels())
        method, data, model = (str(plan.get(key, "unknown")) for key in ("method", "data", "model"))
        seed = plan.get("seed")
        dense = {"test_accuracy": levels[0].test_accuracy} if levels else {}
        spent = Spent.total(level.spent for level in levels)
        run = Run(method, data, model, seed if type(seed) is int else 0, "running", dense, levels, spent, None, {})
    called = job or RunEntry(run.method, run.seed, run.data, run.model, str(folder))
    return RecordedRun(Path(folder), called, plan, run)


def reported(levels: Sequence[Level]) -> list[Level]:
    """Return the levels whose tickets count: those with a test accuracy that were trained to their full budget.

    These are the levels that were trained on for it, those that took their whole budget, and the last.
    """
    pruned = [level for level in levels if level.level > 0]
    return [
        level
        for level in pruned
        if level.test_accuracy is not None
        and (
            level.search is not None
            or level is pruned[-1]
            or (level.max_epochs is not None and level.trained >= level.max_epochs - FULL)
        )
    ]


def read_comparison(folder: Path) -> RecordedComparison:
    """Read a comparison folder: `comparison.toml`, `jobs.json`, and the run folders it names."""
    settings_file = folder / SETTINGS
    settings = read_toml(inside(folder, settings_file)) if is_file(settings_file) else {}
    jobs = _jobs(inside(folder, folder / JOBS))
    notices: list[str] = []
    runs: list[RecordedRun] = []
    for job in jobs:
        name = f"{job.label} seed {job.seed} on {job.data}, {job.model}"
        if job.state != "done":
            notices.append(f"{name}: {job.state}{f': {job.error}' if job.error else ''}")
            continue
        try:
            recorded = read_run(inside(folder, folder / job.folder), job)
        except IncopError as error:
            notices.append(f"{name}: {error}")
            continue
        if recorded.run.status != "finished":
            notices.append(f"{name}: {recorded.run.status}{f': {recorded.run.error}' if recorded.run.error else ''}")
            continue
        runs.append(recorded)
        notices += [f"{name}: {sentence}" for sentence in _slowed(recorded.levels)]
    rows, missed = _rows(runs, _asked(settings))
    title = str(settings.get("name") or folder.resolve().name)
    return RecordedComparison(title, settings, tuple(jobs), tuple(runs), tuple(rows), (*notices, *missed))


def _slowed(levels: Sequence[Level]) -> list[str]:
    """Say from which level on a run was trained with a smaller learning rate than its plan's."""
    slower = [level for level in levels if level.lr_share < 1.0]
    return [
        f"training diverged: from level {slower[0].level} on it was trained with {slower[-1].lr_share:g} of the learning rate"
        for _ in slower[:1]
    ]


def together(folders: Iterable[Path]) -> RecordedComparison:
    """Read several runs as one comparison; tickets are compared where their sparsities agree."""
    runs: list[RecordedRun] = []
    seen: set[tuple[object, ...]] = set()
    paths: set[Path] = set()
    for folder in folders:
        if (resolved := folder.resolve()) in paths:
            raise InputError(f"the run folder {str(folder)!r} is named twice: name each run once")
        paths.add(resolved)
        run = read_run(folder).run
        label = run.method
        if (label, run.seed, run.data, run.model) in seen:  # the same method with other settings
            label = f"{run.method} ({folder.name})"
        seen.add((label, run.seed, run.data, run.model))
        state = {"finished": "done", "failed": "failed"}.get(run.status, "waiting")
        job = RunEntry(label, run.seed, run.data, run.model, str(folder), state=state, error=run.error)
        runs.append(read_run(folder, job))
    done = [recorded for recorded in runs if recorded.run.status == "finished"]
    notices = [
        f"{r.job.label} seed {r.job.seed}: {r.run.status}{f': {r.run.error}' if r.run.error else ''}"
        for r in runs
        if r.run.status != "finished"
    ]
    rows, missed = _rows(done, [])
    jobs = tuple(recorded.job for recorded in runs)
    return RecordedComparison(f"{len(runs)} runs", {}, jobs, tuple(done), tuple(rows), (*notices, *missed))


def _jobs(file: Path) -> list[RunEntry]:
    data = read_json(file)
    if not isinstance(data, list) or len(data) > MAX_JOBS:
        raise InputError(f"{str(file)!r} holds no list of at most {MAX_JOBS} runs: the file is damaged or was edited")
    return [_job(file, entry) for entry in data]


def _controlled(file: Path, value: object) -> tuple[str, ...]:
    given = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{str(file)!r} lists a run as a control of {quoted(value)}: the file is damaged")
    return tuple(given)


def _job(file: Path, entry: object) -> RunEntry:
    if not isinstance(entry, dict):
        raise InputError(f"{str(file)!r} lists {quoted(entry)}, which is no run: the file is damaged or was edited")

    def text(key: str) -> str:
        if not isinstance(entry.get(key), str):
            raise InputError(f"{str(file)!r} lists a run without a text under {key!r}: the file is damaged")
        return str(entry[key])

    seed: Any = entry.get("seed")
    sparsity: Any = entry.get("sparsity")
    ends = sparsity is None or (type(sparsity) in (int, float) and 0 <= sparsity <= 1)
    if type(seed) is not int or not 0 <= seed <= MAX_COUNT or not ends:
        raise InputError(
            f"{str(file)!r} lists a run with seed {quoted(seed)} and sparsity {quoted(sparsity)}: it is damaged"
        )
    control, error = entry.get("control_of"), entry.get("error")
    return RunEntry(
        text("label"),
        seed,
        text("data"),
        text("model"),
        text("folder"),
        float(sparsity) if isinstance(sparsity, int | float) else None,
        _controlled(file, control),
        text("state"),
        None if error is None else str(error),
    )


def _asked(settings: Mapping[str, Any]) -> list[float]:
    for key in ("sparsities", "sparsity", "ticket_at"):
        value = settings.get(key)
        values = value if isinstance(value, list) else [value]
        if numbers := [float(v) for v in values if _is_sparsity(v)]:
            return numbers
    return []


def _is_sparsity(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


Place = tuple[str, str]


def _rows(runs: Sequence[RecordedRun], asked: Sequence[float]) -> tuple[list[TicketRow], list[str]]:
    rows: dict[tuple[object, ...], TicketRow] = {}
    missed: list[str] = []
    targets = _targets(runs, asked)
    for recorded in runs:
        job = recorded.job
        tickets = reported(recorded.levels)
        if job.sparsity is not None:
            tickets = tickets[-1:]
        explicit, wanted = targets[job.data, job.model]
        for target in wanted if job.sparsity is None else [job.sparsity]:
            level = min(tickets, key=_distance_to(target), default=None)
            if level is None or abs(level.sparsity - target) > TOLERANCE:
                if explicit:
                    nearest = "none at all" if level is None else f"the nearest is at {level.sparsity:.4f}"
                    missed.append(
                        f"{job.label} seed {job.seed} on {job.data}, {job.model} "
                        f"has no ticket at sparsity {target:g}: {nearest}"
                    )
                continue
            key = (job.label, job.seed, job.data, job.model, target)
            if key in rows:
                missed.append(f"{job.label} seed {job.seed} has two tickets at sparsity {target:g}: the first counts")
                continue
            rows[key] = _row(recorded, level, target)
    return list(rows.values()), missed


def _distance_to(target: float) -> Callable[[Level], float]:
    return lambda level: abs(level.sparsity - target)


def _targets(runs: Sequence[RecordedRun], asked: Sequence[float]) -> dict[Place, tuple[bool, list[float]]]:
    """Return, for each data set and model, whether sparsities were asked for, and which; else those that were met."""
    named: dict[Place, list[float]] = {}
    met: dict[Place, list[float]] = {}
    for recorded in runs:
        place = (recorded.job.data, recorded.job.model)
        wanted, found = named.setdefault(place, list(asked)), met.setdefault(place, [])
        if recorded.job.sparsity is not None:
            wanted.append(recorded.job.sparsity)
        on_the_way = recorded.plan.get("ticket_at") or []
        if isinstance(on_the_way, list):
            wanted.extend(float(v) for v in on_the_way if _is_sparsity(v))
        found.extend(level.sparsity for level in reported(recorded.levels))
    return {
        place: (bool(named[place]), _apart(named[place] or [round(value, 4) for value in met[place]]))
        for place in named
    }


def _apart(values: Iterable[float]) -> list[float]:
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value - kept[-1] > TOLERANCE:
            kept.append(value)
    return kept


def _row(recorded: RecordedRun, level: Level, target: float) -> TicketRow:
    run, job = recorded.run, recorded.job
    search, total, in_all = costs_of_ticket(run.levels, level.level)
    before = [other for other in run.levels if 0 < other.level < level.level]
    dense = run.dense.get("test_accuracy")
    assert level.test_accuracy is not None
    return TicketRow(
        label=job.label,
        control_of=job.control_of,
        data=job.data,
        model=job.model,
        seed=job.seed,
        target=target,
        sparsity=level.sparsity,
        model_sparsity=level.model_sparsity,
        level=level.level,
        test_accuracy=level.test_accuracy,
        val_accuracy=level.val_accuracy,
        dense_test_accuracy=float(dense) if isinstance(dense, int | float) else None,
        epochs=(*(other.searched.epochs for other in before), level.epochs),
        stop_reasons=(*(other.stop_reason for other in before), level.stop_reason),
        search=search,
        total=total,
        in_all=in_all,
        folder=job.folder,
    )
