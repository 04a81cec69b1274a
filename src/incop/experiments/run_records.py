"""Records of a run: what is written of each ticket, and the summary."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from incop import checkpoint_files, inspection
from incop.experiments import distributed_runs
from incop.experiments.plan import filled
from incop.experiments.preparation import PreparedRun
from incop.experiments.run_levels import POINT
from incop.loop import Search, Ticket
from incop.masks import Masks
from incop.records import ChosenTicket, Level, Run, Spent, full_retraining
from incop.rewind_points import Snapshot
from incop.rundir import RunDir


def write_level(run: RunDir, prepared: PreparedRun, ticket: Ticket, accuracy: float | None) -> Level:
    """Write a ticket down: its weights, masks, rewind points and record."""
    dense, left = _flops(prepared, ticket.masks)
    level = dataclasses.replace(
        ticket.record,
        test_accuracy=accuracy,
        flops=left,
        dense_flops=dense,
        notices=tuple(dict.fromkeys([*ticket.record.notices, *(prepared.notices if ticket.level == 0 else ())])),
    )
    folder = run.level_dir(level.level)
    checkpoint_files.save_weights(folder, ticket.weights)
    checkpoint_files.save_masks(folder, ticket.masks)
    for name in prepared.plan.keep or ():
        if name in ticket.points:
            checkpoint_files.save_weights(folder / f"{POINT}{name.replace(':', '_')}", ticket.points[name].tensors)
    run.append(level)
    return level


def chosen_of(search: Search, levels: list[Level]) -> ChosenTicket | None:
    """Return what a search for the sparsest ticket has found so far; None where there was no such search."""
    edge = search.edge
    if edge is None:
        return None
    dense = levels[0] if levels else None
    per_epoch = dense.samples / dense.epochs if dense is not None and dense.epochs else _samples_of_an_epoch(levels)
    spent = Spent.total(level.spent for level in levels[1:])
    epochs = spent.epochs + (spent.probe_samples / per_epoch if per_epoch else 0.0)
    found = next((one for one in levels if edge.chosen is not None and one.level == edge.chosen.level), None)
    if found is None:
        return ChosenTicket(edge.verdict, edge.max_drop, epochs_after_dense=epochs)
    return ChosenTicket(
        edge.verdict,
        edge.max_drop,
        found.level,
        found.sparsity,
        found.val_accuracy,
        found.test_accuracy,
        found.drop,
        found.drop_low,
        found.drop_high,
        epochs,
    )


def _samples_of_an_epoch(levels: list[Level]) -> float:
    """Return the training samples of an epoch, from what levels trained; 0 where none did."""
    spent = Spent.total(level.spent for level in levels)
    return spent.samples / spent.epochs if spent.epochs else 0.0


def is_reported(prepared: PreparedRun, level: Level) -> bool:
    """Say whether a level is a ticket to report, not a step on the way: it was trained in full, or it is the last."""
    if prepared.plan.max_drop is not None:  # the test split is read for the chosen ticket alone
        return level.level == 0
    full = level.max_epochs is None or level.trained >= level.max_epochs - 1e-6
    last = level.level == prepared.plan.levels or level.sparsity >= (prepared.plan.sparsity or 1.0) - 1e-6
    return full or last or level.search is not None


def test_accuracy_of(prepared: PreparedRun, ticket: Ticket, model: nn.Module) -> float:
    """Read the test split with a ticket's weights; the model is left as it was."""
    now = Snapshot.of(model)
    Snapshot(ticket.weights).rewind(model)  # a reported level's ticket is not what the search goes on from
    accuracy = prepared.trainer.evaluate(model, prepared.test)
    now.rewind(model)
    return accuracy


def _flops(prepared: PreparedRun, masks: Masks) -> tuple[int, int]:
    """Return the forward pass's operations for one sample, dense and over the weights that are left."""
    sample = prepared.probe[0][0][:1]
    with inspection.undisturbed(prepared.model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        prepared.model(sample)
    total = counter.get_total_flops()
    root = type(prepared.model).__name__
    by_module = {name.removeprefix(f"{root}."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    saved = sum(
        by_module.get(name.removesuffix(".weight"), 0) * sparsity for name, sparsity in masks.layer_sparsity().items()
    )
    return total, round(total - saved)


def summary_of(
    prepared: PreparedRun,
    levels: list[Level],
    status: str,
    error: str | None,
    environment: dict[str, Any],
    path: Path,
    chosen: ChosenTicket | None = None,
) -> Run:
    """Return how a run stands."""
    plan = prepared.plan
    dense = levels[0] if levels else None
    full = full_retraining(levels)
    return Run(
        method=filled(plan.method),
        data=filled(plan.data),
        model=filled(plan.model),
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
        command=f"{distributed_runs.command(environment)} search {shlex.quote(str(path / 'plan.toml'))} --out NEW_FOLDER",
        error=error,
        chosen=chosen,
    )
