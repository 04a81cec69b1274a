"""Runs: carry out a plan, and write its run folder."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import incop
from incop import checkpoints, observing
from incop.errors import IncopError
from incop.experiments.parts import Parts, prepare, said
from incop.experiments.plan import Plan
from incop.experiments.tickets import POINT, shared_dense
from incop.loop import Ticket, search
from incop.masks import Masks
from incop.records import Check, Level, Run, Spent, full_retraining
from incop.rundir import RunDir
from incop.snapshots import Snapshot

__all__ = ["Progress", "default_out", "execute"]


@dataclass
class Progress:
    """Who is told what happens while a run goes on; each may be None.

    Args:
        on_check: every check, as it is made.
        on_level: every finished level.
        on_step: (level, epoch, step), after every step.
    """

    on_check: Callable[[Check], None] | None = None
    on_level: Callable[[Level], None] | None = None
    on_step: Callable[[int, float, int], None] | None = None


def default_out(plan: Plan) -> Path:
    """Return a run folder under `runs/` that does not exist yet, named after the plan."""
    name = "-".join(Path(str(part)).name for part in (plan.data, plan.model, plan.method) if part)
    stem = Path("runs") / f"{name}-seed{plan.seed or 0}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


def execute(
    plan: Plan, out: str | Path, progress: Progress | None = None, *, dense: str | Path | None = None
) -> RunDir:
    """Carry out a resolved plan and write its run folder.

    The folder is made when everything is known to be usable. A run that fails or is interrupted keeps what it has,
    and its summary says how it ended.

    Args:
        plan: every key said; see `resolve`.
        out: the folder to make.
        progress: who is told.
        dense: a run folder whose dense level is used instead of training one; its plan must agree in all that the dense
            level depends on.

    Raises:
        InputError: the plan or the folder cannot be used; nothing has been written.
        TrainingError: training went wrong; `summary.json` says where.
    """
    progress = progress or Progress()
    run = RunDir(out)
    run.refuse_existing()
    parts = prepare(plan)
    given = None if dense is None else shared_dense(parts, RunDir.open(dense))
    # torch's first optimizer imports its compiler, a second or two that is no cost of training
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()
    tickets = search(
        parts.model,
        parts.trainer,
        **parts.arguments,
        dense=given,
        on_check=_both(run.append, progress.on_check),
        on_step=progress.on_step,
    )
    run = RunDir.create(out)
    run.write_plan(plan.told())
    environment = _environment(parts)
    levels: list[Level] = []

    def summarise(status: str, error: str | None = None) -> None:
        run.write_summary(_summary(parts, levels, status, error, environment, run.path))

    summarise("running")
    try:
        for ticket in tickets:
            level = _keep(run, parts, ticket)
            levels.append(level)
            summarise("running")
            if progress.on_level is not None:
                progress.on_level(level)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        known = isinstance(error, IncopError)
        summarise("interrupted" if stopped else "failed", str(error) if known else repr(error))
        raise
    summarise("finished")
    return run


def _both(first: Callable[[Check], None], second: Callable[[Check], None] | None) -> Callable[[Check], None]:
    def call(check: Check) -> None:
        first(check)
        if second is not None:
            second(check)

    return call


def _keep(run: RunDir, parts: Parts, ticket: Ticket) -> Level:
    """Read the test split, once for this ticket, and write the ticket down."""
    model = parts.model
    accuracy = ticket.record.test_accuracy  # of a dense level that was trained before
    if accuracy is None and (parts.plan.test_levels or _counts(parts, ticket.record)):
        accuracy = _test_accuracy(parts, ticket, model)
    dense, left = _flops(parts, ticket.masks)
    level = dataclasses.replace(
        ticket.record,
        test_accuracy=accuracy,
        flops=left,
        dense_flops=dense,
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
    full = level.max_epochs is None or level.epochs >= level.max_epochs - 1e-6
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
        command=f"incop search {shlex.quote(str(path / 'plan.toml'))} --out NEW_FOLDER",
        error=error,
    )


def _environment(parts: Parts) -> dict[str, Any]:
    device = next(parts.model.parameters()).device
    return {
        "incop": incop.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else (platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data_fingerprint": parts.data.fingerprint,
        "arguments": shlex.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }
