"""Runs: carry out a plan, and write its run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from incop.checkpoint_files import Checkpoints
from incop.distributed import ALONE, Lost, Ranks, linked
from incop.errors import IncopError, TrainingError
from incop.experiments import distributed_runs, models
from incop.experiments.distributed_runs import by_the_first, check_one_plan
from incop.experiments.plan import Plan
from incop.experiments.plan_words import ResolvedPlan
from incop.experiments.preparation import PreparedRun, prepare
from incop.experiments.run_checkpoints import (
    CheckpointInterval,
    CheckpointWriter,
    UnfinishedRun,
    check_exact,
    check_same_data,
    environment,
)
from incop.experiments.run_levels import shared_dense
from incop.experiments.run_records import chosen_of, is_reported, summary_of, test_accuracy_of, write_level
from incop.experiments.signals import Signals
from incop.flat_state import State
from incop.locks import Lock, LockLost
from incop.loop import Dense, Search, Ticket, search
from incop.records import Check, Level
from incop.rewind_points import check_extra_states
from incop.rundir import RunDir

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
    resolved: ResolvedPlan,
    out: str | Path,
    progress: Progress | None = None,
    *,
    dense: str | Path | None = None,
    together: Ranks = ALONE,
) -> RunDir:
    """Carry out a plan and write its run folder.

    The folder is made when everything is known to be usable. A run that fails or is interrupted keeps what it has,
    its summary says how it ended, and `resume` goes on with it.

    Args:
        resolved: the plan with every key; see `resolve`.
        out: the folder to make.
        progress: who is told.
        dense: a run folder whose dense level is used instead of training one; its plan must agree in all that the dense
            level depends on.
        together: the processes that carry it out, all by this call; the first of them writes, and its `progress` is told.
    """
    progress = progress if progress and together.first else Progress()  # one tells
    run = RunDir(out)
    together.once(run.refuse_existing)
    check_one_plan(resolved.plan, together)
    prepared, given = together.together(lambda: _prepared(resolved, dense))
    around = {**environment(prepared), **distributed_runs.environment(prepared, together)}
    if dense is not None:
        around["dense"] = os.path.relpath(dense, run.path)  # for a run that is killed before its first checkpoint
    work = _Work(run, prepared, progress, Checkpoints(run.checkpoint_dir), around, together)
    tickets = together.together(lambda: work.search(dense=given))

    def begin() -> None:
        if run.plan_file.exists():
            run.refuse_existing()  # another process was faster
        run.sweep()
        run.write_plan(resolved.plan.written())

    together.once(lambda: _nothing(RunDir.create(out)))
    lock = Lock(run.path)
    with by_the_first(lock, together):
        work.under(lock)
        together.once(begin)
        work.carry_out(tickets, [])
    return run


def _nothing(value: object) -> None:
    """Take what a process cannot tell another."""


def _prepared(resolved: ResolvedPlan, dense: str | Path | None) -> tuple[PreparedRun, Dense | None]:
    with _within_memory(resolved.plan):
        prepared = prepare(resolved)
    check_extra_states(prepared.model)
    return prepared, None if dense is None else shared_dense(prepared, RunDir.open(dense))


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
    """
    progress = progress if progress and together.first else Progress()
    notice = progress.on_notice or _unheard
    run = RunDir(out)
    together.once(lambda: _nothing(RunDir.open(out)))
    lock = Lock(run.path, patience=patience)
    with by_the_first(lock, together):
        given = Plan(data_dir=data_dir, run_code=run_code or None)
        left = together.once(lambda: UnfinishedRun.of(run, given))
        if left is None:
            notice(f"the run {str(run.path)!r} is finished: there is nothing to go on with")
            return run
        if (code := models.code_of(left.resolved.plan.model)) is not None:
            notice(f"the model is code, which is run: {code}")
        work, tickets, changed = _taken_up(run, left, progress, dense, inexact, together)
        work.under(lock)
        together.once(lambda: left.cut_back(run))
        for sentence in (*left.damaged, *changed):
            notice(sentence)
        notice(f"the run {str(run.path)!r} goes on from {left.at}")
        work.carry_out(tickets, together.once(run.levels))
    return run


def _taken_up(
    run: RunDir, left: UnfinishedRun, progress: Progress, dense: str | Path | None, inexact: bool, together: Ranks
) -> tuple[_Work, Search, list[str]]:
    """Prepare a run as it was left; return its search and what has changed since, a sentence each."""
    then = left.environment
    folder = dense if dense is not None else run.path / then["dense"] if "dense" in then else None
    prepared, given = together.together(lambda: _prepared(left.resolved, folder if left.state is None else None))
    if "threads" in then:  # sums are taken in another order by another number of threads
        torch.set_num_threads(distributed_runs.threads_of(then, together))
    now = {**environment(prepared), **distributed_runs.environment(prepared, together)}
    together.together(lambda: check_same_data(run, then, now))
    changed = together.together(lambda: check_exact(run, then, now, inexact=inexact))
    changed += distributed_runs.check_processes(then, together, left.state)
    resumed = [*then.get("resumed", ()), now["started"]]
    around = {**now, **then, "resumed": resumed, **distributed_runs.since(then, now)}
    work = _Work(run, prepared, progress, Checkpoints(run.checkpoint_dir), around, together)
    return work, together.together(lambda: work.search(dense=given, resume=left.state)), changed


@dataclass
class _Work:
    """A run being carried out."""

    run: RunDir
    prepared: PreparedRun
    progress: Progress
    files: Checkpoints
    environment: dict[str, Any]
    together: Ranks = ALONE

    def __post_init__(self) -> None:
        self.model = distributed_runs.distributed(self.prepared, self.together)
        self.signals = Signals(f"ended at once: {self.run.resume_command} goes on from the last checkpoint")
        due = CheckpointInterval.parse(self.prepared.plan.checkpoint_every)
        self.saving = CheckpointWriter(self.run, due, self.files, self.signals, self.environment, self.together)

    def under(self, lock: Lock) -> None:
        """Stop where a checkpoint could be written when the folder is no longer this run's."""
        if self.together.first:
            self.saving.check = lock.check

    def search(self, *, dense: Dense | None = None, resume: State | None = None) -> Search:
        """Begin the search; what cannot be used is found now, and nothing is trained yet."""
        # torch's first optimizer imports its compiler, a second or two that is no cost of training
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()
        offload: str | Path | None = self.prepared.plan.offload
        if offload == "disk":  # another host may not see the run's folder
            offload = self.run.path if self.together.first else Path(tempfile.gettempdir())
        return search(
            self.model,
            self.prepared.trainer,
            **self.prepared.arguments,
            offload=offload,
            dense=dense,
            resume=resume,
            on_check=_both(lambda check: self.together.once(lambda: self.run.append(check)), self.progress.on_check),
            on_step=self.progress.on_step,
            on_notice=self.progress.on_notice,
            on_state=self.saving,
        )

    def carry_out(self, tickets: Search, levels: list[Level]) -> None:
        """Go through the tickets and write each down; the summary says at every moment how it stands."""

        def summarise(status: str, error: str | None = None) -> None:
            chosen = chosen_of(tickets, levels)
            told = summary_of(self.prepared, levels, status, error, self.environment, self.run.path, chosen)
            self.run.write_summary(told)

        try:
            with self.signals, _within_memory(self.prepared.plan), linked(self.together):
                self.together.once(lambda: summarise("running"))
                self._tell(self.progress.on_begin)
                for ticket in tickets:
                    level = self._kept(ticket)
                    del ticket  # its weights are as large as the network
                    levels.append(level)
                    self.together.once(lambda: summarise("running"))
                    if self.progress.on_level is not None:
                        self.progress.on_level(level)
                judged = self._judge(tickets, levels)
                self.together.once(lambda: summarise("finished"))
                if judged:  # after the summary, by which a run that is killed here is mended
                    self.together.once(lambda: self.run.rewrite_levels(levels))
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

    def _judge(self, tickets: Search, levels: list[Level]) -> bool:
        """Read the test split once, for the ticket that a search with `max_drop` has chosen; say whether there is one."""
        if tickets.edge is None or tickets.edge.chosen is None:
            return False
        ticket = tickets.chosen
        accuracy = test_accuracy_of(self.prepared, ticket, self.model)
        place = next(n for n, level in enumerate(levels) if level.level == ticket.level)
        levels[place] = dataclasses.replace(levels[place], test_accuracy=accuracy)
        return True

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
        if accuracy is None and (self.prepared.plan.test_levels or is_reported(self.prepared, ticket.record)):
            accuracy = test_accuracy_of(self.prepared, ticket, self.model)
        return self.together.once(lambda: write_level(self.run, self.prepared, ticket, accuracy))


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
