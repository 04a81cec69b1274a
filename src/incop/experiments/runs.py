"""Runs: carry out a plan, and write its run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from incop import checkpoints, observing
from incop.checkpoints import Checkpoint, Checkpoints
from incop.errors import IncopError, TrainingError
from incop.experiments import models, spread
from incop.experiments.parts import Parts, prepare, resolve, said
from incop.experiments.plan import Plan
from incop.experiments.saving import Due, Saving, check_exact, check_same_data, check_told, environment
from incop.experiments.signals import Signals
from incop.experiments.tickets import POINT, shared_dense
from incop.locks import Lock, LockLost
from incop.loop import Dense, Ticket, search
from incop.masks import Masks
from incop.ranks import ALONE, Lost, Ranks, linked
from incop.records import Check, Level, Run, Spent, full_retraining
from incop.rundir import RunDir
from incop.snapshots import Snapshot, check_extra_states
from incop.states import State

__all__ = ["Progress", "default_out", "execute", "resume"]

# of torch's allocator on a CPU, and of oneDNN, which calls it so when there is no room for its scratchpad
NO_MEMORY = "(not enough|can't allocate) memory|could not create a (primitive|memory)"


@dataclass
class Progress:
    """Who is told what happens while a run goes on; each may be None.

    Args:
        on_check: every check, as it is made.
        on_level: every finished level.
        on_step: (level, epoch, step), after every step.
        on_notice: a sentence that the user should know, such as that a checkpoint was damaged or a level is begun again.
        on_begin: the run's folder, when it is there and before anything is trained; that of a run that is gone on with
            holds the records from which it goes on.
        on_end: the run's folder, when its summary says how it ended.
    """

    on_check: Callable[[Check], None] | None = None
    on_level: Callable[[Level], None] | None = None
    on_step: Callable[[int, float, int], None] | None = None
    on_notice: Callable[[str], None] | None = None
    on_begin: Callable[[RunDir], None] | None = None
    on_end: Callable[[RunDir], None] | None = None


def default_out(plan: Plan) -> Path:
    """Return a run folder under `runs/` that does not exist yet, named after the plan."""
    named = "-".join(Path(str(part)).name for part in (plan.data, plan.model, plan.method) if part)
    name = re.sub(r"[^\w.+-]+", "-", named)  # a colon is no part of a file's name everywhere
    stem = Path("runs") / f"{name}-seed{plan.seed or 0}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


def execute(
    plan: Plan,
    out: str | Path,
    progress: Progress | None = None,
    *,
    dense: str | Path | None = None,
    together: Ranks = ALONE,
) -> RunDir:
    """Carry out a resolved plan and write its run folder.

    The folder is made when everything is known to be usable. A run that fails or is interrupted keeps what it has,
    its summary says how it ended, and `resume` goes on with it.

    Args:
        plan: every key said; see `resolve`.
        out: the folder to make.
        progress: who is told.
        dense: a run folder whose dense level is used instead of training one; its plan must agree in all that the dense
            level depends on.
        together: the processes that carry it out, all by this call; the first of them writes, and its `progress` is told.

    Raises:
        InputError: the plan or the folder cannot be used; nothing has been written.
        TrainingError: training went wrong; `summary.json` says where.
        Interrupted: a signal came; a checkpoint was written.
    """
    progress = progress if progress and together.first else Progress()  # one tells
    run = RunDir(out)
    together.once(run.refuse_existing)
    spread.check_one_plan(plan, together)
    parts, given = together.together(lambda: _made(plan, dense))
    around = {**environment(parts), **spread.environment(parts, together)}
    if dense is not None:
        around["dense"] = os.path.relpath(dense, run.path)  # for a run that is killed before its first checkpoint
    work = _Work(run, parts, progress, Checkpoints(run.checkpoint_dir), around, together)
    tickets = together.together(lambda: work.search(dense=given))

    def begin() -> None:
        if run.plan_file.exists():
            run.refuse_existing()  # another process was faster
        run.sweep()
        run.write_plan(plan.written())

    together.once(lambda: _nothing(RunDir.create(out)))
    lock = Lock(run.path)
    with spread.by_the_first(lock, together):
        work.under(lock)
        together.once(begin)
        work.carry_out(tickets, [])
    return run


def _nothing(value: object) -> None:
    """Take what a process cannot tell another."""


def _made(plan: Plan, dense: str | Path | None) -> tuple[Parts, Dense | None]:
    with _within_memory(plan):
        parts = prepare(plan)
    check_extra_states(parts.model)
    return parts, None if dense is None else shared_dense(parts, RunDir.open(dense))


def resume(
    out: str | Path,
    progress: Progress | None = None,
    *,
    data_dir: str | None = None,
    dense: str | Path | None = None,
    inexact: bool = False,
    patience: float = 0.0,
    run_code: bool = False,
    together: Ranks = ALONE,
) -> RunDir:
    """Go on with a run that was killed, interrupted or failed, from its last checkpoint, and end it as if nothing had been.

    Weights, masks and records are those of a run that was never cut off, to the bit, on the same machine with the same
    versions. Records that were written after the checkpoint are made again.

    Args:
        out: its folder.
        progress: who is told.
        data_dir: where the data are now, if elsewhere.
        dense: a run folder with its dense level, for a run that was killed before its first checkpoint.
        inexact: go on also with another version of torch or another processor, though results then differ in their last bits.
        patience: seconds to wait for another process to let go of the folder.
        run_code: whether the code that the run's plan names for its model may be run.
        together: the processes that carry it out, all by this call. As many as before end with the same records; with another
            number of them sums are taken in other parts, which the records say. Only the first reads the folder.

    Raises:
        InputError: there is no run, it is in use, its data have changed, or it cannot be gone on with exactly; the folder is
            as it was.
        TrainingError: training went wrong; `summary.json` says where.
        Interrupted: a signal came; a checkpoint was written.
    """
    progress = progress if progress and together.first else Progress()
    notice = progress.on_notice or (lambda sentence: None)
    run = RunDir(out)
    together.once(lambda: _nothing(RunDir.open(out)))
    lock = Lock(run.path, patience=patience)
    with spread.by_the_first(lock, together):
        files = Checkpoints(run.checkpoint_dir)
        left = together.once(lambda: _left(run, files, Plan(data_dir=data_dir, run_code=run_code or None)))
        if left is None:
            notice(f"the run {str(run.path)!r} is finished: there is nothing to go on with")
            return run
        plan, then, found, damaged = left
        if (code := models.code_of(plan.model)) is not None:
            notice(f"the model is code, which is run: {code}")
        folder = dense if dense is not None else run.path / then["dense"] if "dense" in then else None
        parts, given = together.together(lambda: _made(plan, folder if found is None else None))
        if "threads" in then:  # sums are taken in another order by another number of threads
            torch.set_num_threads(spread.threads_of(then, together))
        now = {**environment(parts), **spread.environment(parts, together)}
        changed = together.together(lambda: _changed(run, then, now, inexact))
        changed += spread.check_processes(then, together, None if found is None else found.state)
        around = {**now, **then, "resumed": [*then.get("resumed", ()), now["started"]], **spread.since(then, now)}
        work = _Work(run, parts, progress, files, around, together)
        work.under(lock)
        state = None if found is None else found.state
        tickets = together.together(lambda: work.search(dense=given, resume=state))

        def begin() -> None:
            run.cut_back({} if found is None else found.about["records"])
            run.sweep()

        together.once(begin)
        for sentence in (*damaged, *changed):
            notice(sentence)
        at = (
            "the beginning"
            if found is None
            else f"level {found.state['level']}, epoch {found.state['watch/epoch']:.4g}"
        )
        notice(f"the run {str(run.path)!r} goes on from {at}")
        work.carry_out(tickets, together.once(run.levels))
    return run


def _changed(run: RunDir, then: Mapping[str, Any], now: Mapping[str, Any], inexact: bool) -> list[str]:
    check_same_data(run, then, now)
    return check_exact(run, then, now, inexact=inexact)


def _left(
    run: RunDir, files: Checkpoints, said: Plan
) -> tuple[Plan, Mapping[str, Any], Checkpoint | None, tuple[str, ...]] | None:
    """Return a run's plan, the environment and checkpoint it was left with and what is damaged; None of one that is finished."""
    then: Mapping[str, Any] = {}
    if run.summary_file.exists():
        summary = run.read_summary()
        if summary.status == "finished":
            Checkpoints(run.checkpoint_dir).remove()  # killed while it did so itself
            run.sweep()
            return None
        then = summary.environment
    plan = Plan.from_mapping(run.read_plan(), source=str(run.plan_file))
    plan = resolve(said.over(plan))
    found, damaged = files.newest()
    if found is not None:
        plan = dataclasses.replace(plan, weights=None)  # those it began with need not be there any more
    told = then if found is None else found.about.get("environment")
    then = told if isinstance(told, Mapping) else {"threads": None}
    check_told(run, found, then)
    return plan, then, found, damaged


@dataclass
class _Work:
    """A run being carried out."""

    run: RunDir
    parts: Parts
    progress: Progress
    files: Checkpoints
    environment: dict[str, Any]
    together: Ranks = ALONE

    def __post_init__(self) -> None:
        self.model = spread.spread_out(self.parts, self.together)
        self.signals = Signals(f"ended at once: {self.run.resume_command} goes on from the last checkpoint")
        due = Due.parse(self.parts.plan.checkpoint_every)
        self.saving = Saving(self.run, due, self.files, self.signals, self.environment, self.together)

    def under(self, lock: Lock) -> None:
        """Stop where a checkpoint could be written when the folder is no longer this run's."""
        if self.together.first:
            self.saving.check = lock.check

    def search(self, *, dense: Dense | None = None, resume: State | None = None) -> Iterator[Ticket]:
        """Begin the search; what cannot be used is found now, and nothing is trained yet."""
        # torch's first optimizer imports its compiler, a second or two that is no cost of training
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()
        offload: str | Path | None = self.parts.plan.offload
        if offload == "disk":  # another host may not see the run's folder
            offload = self.run.path if self.together.first else Path(tempfile.gettempdir())
        return search(
            self.model,
            self.parts.trainer,
            **self.parts.arguments,
            offload=offload,
            dense=dense,
            resume=resume,
            on_check=_both(lambda check: self.together.once(lambda: self.run.append(check)), self.progress.on_check),
            on_step=self.progress.on_step,
            on_notice=self.progress.on_notice,
            on_state=self.saving,
        )

    def carry_out(self, tickets: Iterator[Ticket], levels: list[Level]) -> None:
        """Go through the tickets and write each down; the summary says at every moment how it stands."""

        def summarise(status: str, error: str | None = None) -> None:
            self.run.write_summary(_summary(self.parts, levels, status, error, self.environment, self.run.path))

        try:
            with self.signals, _within_memory(self.parts.plan), linked(self.together):
                self.together.once(lambda: summarise("running"))
                self._tell(self.progress.on_begin)
                for ticket in tickets:
                    level = self._kept(ticket)
                    del ticket  # its weights are as large as the network
                    levels.append(level)
                    self.together.once(lambda: summarise("running"))
                    if self.progress.on_level is not None:
                        self.progress.on_level(level)
                self.together.once(lambda: summarise("finished"))
        except LockLost:
            raise  # the folder is another's now
        except BaseException as error:
            if isinstance(error, Lost):
                error.args = (f"{error}; {self.run.resume_command} goes on from the last checkpoint",)
            if self.together.first:  # it notes how the run ended, if it is still there
                self._note(error, summarise)
            raise
        if self.together.first:
            self.files.remove()
            self.run.sweep()  # copies on the disk: a process of a comparison ends without what runs at exit
        self._tell(self.progress.on_end)

    def _tell(self, listener: Callable[[RunDir], None] | None) -> None:
        if listener is not None:
            listener(self.run)

    def _note(self, error: BaseException, summarise: Callable[[str, str], None]) -> None:
        """Say in the summary why the run ended before its end."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        known = isinstance(error, IncopError | KeyboardInterrupt)
        try:
            summarise(status, (str(error) or "interrupted") if known else repr(error))
        except (IncopError, OSError) as second:
            if _reason(second) != _reason(error):  # else the disk is full or the folder gone, as `error` says
                (self.progress.on_notice or _unheard)(f"besides, how the run ended could not be noted: {second}")
        self._tell(self.progress.on_end)

    def _kept(self, ticket: Ticket) -> Level:
        """Read the test split, once for this ticket, and let one process write the ticket down."""
        accuracy = ticket.record.test_accuracy  # of a dense level that was trained before
        if accuracy is None and (self.parts.plan.test_levels or _counts(self.parts, ticket.record)):
            accuracy = _test_accuracy(self.parts, ticket, self.model)
        return self.together.once(lambda: _keep(self.run, self.parts, ticket, accuracy))


@contextlib.contextmanager
def _within_memory(plan: Plan) -> Iterator[None]:
    """Say what to lower when there is not enough memory; torch says it by a RuntimeError on a CPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(NO_MEMORY, text)):
            raise
        tried = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        size = plan.probe_size if plan.probe_size is not None else "1000 at most"
        raise TrainingError(
            f"out of memory{f' where {tried[1]} more were needed' if tried else ''}: lower --batch-size ({plan.batch_size}) or "
            f"--probe-size ({size}), use --limit or a smaller network than {plan.model}, or more memory"
        ) from error


def _reason(error: BaseException) -> int | None:
    """Return the system's number for why something could not be written; None for any other error."""
    known = error if isinstance(error, OSError) else error.__cause__
    return known.errno if isinstance(known, OSError) else None


def _unheard(sentence: str) -> None:
    """Stands for a listener where there is none."""


def _both(first: Callable[[Check], None], second: Callable[[Check], None] | None) -> Callable[[Check], None]:
    def call(check: Check) -> None:
        first(check)
        if second is not None:
            second(check)

    return call


def _keep(run: RunDir, parts: Parts, ticket: Ticket, accuracy: float | None) -> Level:
    """Write a ticket down."""
    dense, left = _flops(parts, ticket.masks)
    level = dataclasses.replace(
        ticket.record,
        test_accuracy=accuracy,
        flops=left,
        dense_flops=dense,
        notices=tuple(dict.fromkeys([*ticket.record.notices, *(parts.notices if ticket.level == 0 else ())])),
    )
    folder = run.level_dir(level.level)
    checkpoints.save_weights(folder, ticket.weights)
    checkpoints.save_masks(folder, ticket.masks)
    for name in parts.plan.keep or ():
        if name in ticket.points:
            checkpoints.save_weights(folder / f"{POINT}{name.replace(':', '_')}", ticket.points[name].tensors)
    run.append(level)
    return level


def _counts(parts: Parts, level: Level) -> bool:
    """Say whether a level is a ticket to report, not a step on the way: it was trained in full, or it is the last."""
    full = level.max_epochs is None or level.trained >= level.max_epochs - 1e-6
    last = level.level == parts.plan.levels or level.sparsity >= (parts.plan.sparsity or 1.0) - 1e-6
    return full or last or level.search is not None


def _test_accuracy(parts: Parts, ticket: Ticket, model: nn.Module) -> float:
    now = Snapshot.of(model)
    Snapshot(ticket.weights).rewind(model)  # a reported level's ticket is not what the search goes on from
    accuracy = parts.trainer.evaluate(model, parts.test)
    now.rewind(model)
    return accuracy


def _flops(parts: Parts, masks: Masks) -> tuple[int, int]:
    """Return the forward pass's operations for one sample, dense and over the weights that are left."""
    sample = parts.probe[0][0][:1]
    with observing.undisturbed(parts.model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        parts.model(sample)
    total = counter.get_total_flops()
    root = type(parts.model).__name__
    by_module = {name.removeprefix(f"{root}."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    saved = sum(
        by_module.get(name.removesuffix(".weight"), 0) * sparsity for name, sparsity in masks.layer_sparsity().items()
    )
    return total, round(total - saved)


def _summary(
    parts: Parts, levels: list[Level], status: str, error: str | None, environment: dict[str, Any], path: Path
) -> Run:
    plan = parts.plan
    dense = levels[0] if levels else None
    full = full_retraining(levels)
    return Run(
        method=said(plan.method),
        data=said(plan.data),
        model=said(plan.model),
        seed=plan.seed or 0,
        status=status,
        dense={
            "val_accuracy": dense.val_accuracy if dense else None,
            "test_accuracy": dense.test_accuracy if dense else None,
            "epochs": dense.epochs if dense else 0.0,
        },
        levels=tuple(levels),
        spent=Spent.total(level.spent for level in levels),
        full_epochs=None if full is None or dense is None or dense.max_epochs is None else dense.max_epochs + full,
        environment=environment,
        command=f"{spread.command(environment)} search {shlex.quote(str(path / 'plan.toml'))} --out NEW_FOLDER",
        error=error,
    )
