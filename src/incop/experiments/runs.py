"""Runs: from a plan to a search, and from a search to a run folder."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import incop
from incop import checkpoints, observing
from incop.errors import IncopError, InputError, unknown
from incop.experiments import datasets, methods, models
from incop.experiments.datasets import Dataset, crop_and_flip
from incop.experiments.plan import DEFAULTS, Plan
from incop.flow import Meter
from incop.loop import Dense, Ticket, search
from incop.masks import Masks
from incop.pruning import Target
from incop.records import Check, Interval, Level, Run, Spent
from incop.rundir import RunDir
from incop.snapshots import RewindPoint, Snapshot
from incop.stopping import Rule
from incop.training import Trainer

__all__ = [
    "DENSE_KEYS",
    "Parts",
    "Progress",
    "default_out",
    "dense_plan",
    "execute",
    "prepare",
    "put_weights",
    "rebuild",
    "resolve",
    "shared_dense",
]

FLOATS_IN_MEMORY = 2**29  # splits up to this size in bytes are normalised once instead of batch by batch


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


@dataclass(frozen=True)
class Parts:
    """A plan made real: data, network, trainer, and the arguments of the search."""

    plan: Plan
    data: Dataset
    model: nn.Module
    trainer: Trainer
    test: tuple[Tensor, Tensor]
    probe: list[tuple[Tensor, Tensor]]
    meter: Meter | None
    rule: Rule | None
    arguments: dict[str, Any]


def resolve(plan: Plan) -> Plan:
    """Say every key of a plan: the method's row, the model's recipe, then the defaults, under what is said.

    Raises:
        InputError: method or model is unknown, or a key is out of range.
    """
    plan = plan.over(Plan(**{k: v for k, v in DEFAULTS.items() if k in ("data", "model", "method")}))
    plan.check()
    assert plan.method is not None
    assert plan.model is not None
    row = methods.method(plan.method)
    if plan.method == "dense" and plan.levels:
        raise InputError(
            f"the method 'dense' has no pruning levels, and --levels {plan.levels} asks for some: choose lth, say"
        )
    recipe = models.entry(plan.model).recipe
    base = Plan(
        optimizer=recipe.optimizer,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        max_epochs=float(recipe.epochs),
    )
    levels = plan.levels if plan.levels is not None else row.get("levels", DEFAULTS["levels"])
    if plan.sparsity is not None and plan.amount is None:
        base = Plan(amount=f"to {plan.sparsity!r} in {levels}").over(base)
    full = plan.over(base).over(Plan(**row)).over(Plan(**DEFAULTS))
    return dataclasses.replace(full, model=models.entry(plan.model).name)


def prepare(plan: Plan) -> Parts:
    """Make a resolved plan real; whatever is wrong with it is found here, before any folder is made or step taken.

    Raises:
        InputError: a value cannot be used, data are missing or damaged, the probe is larger than the split.
    """
    device = _device(plan)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    seed = plan.seed or 0
    rule = methods.rule(_said(plan.rule))
    meter = methods.meter(_said(plan.meter), alive_only=bool(plan.alive_only))
    if rule is not None and "flow" in rule.wants and meter is None:
        raise InputError(
            f"the rule {str(rule)!r} watches the flow and --meter is none: choose --meter information or gradient"
        )
    amount = methods.amount(_said(plan.amount))
    selection = methods.selection(_said(plan.selection))
    rewind = RewindPoint.parse(_said(plan.rewind))
    every = Interval.parse(_said(plan.check_every))
    data = datasets.load(
        _said(plan.data), data_dir=plan.data_dir, seed=seed, validation=plan.validation or 0.1, limit=plan.limit
    )
    model = models.build(_said(plan.model), channels=data.channels, size=data.size, classes=data.classes, seed=seed)
    model.to(device)
    trainer, test, prepared = _trainer(plan, data, device)
    probe = _probe(plan, data, prepared, device)
    score = methods.score(_said(plan.score), batches=probe, seed=seed)
    Masks.full(model, skip=plan.skip or ())
    return Parts(
        plan,
        data,
        model,
        trainer,
        test,
        probe,
        meter,
        rule,
        {
            "levels": plan.levels,
            "probe": probe,
            "meter": meter,
            "rule": rule,
            "amount": amount,
            "rewind": rewind,
            "score": score,
            "selection": selection,
            "skip": plan.skip or (),
            "check_every": every,
            "check_before": bool(plan.check_before),
            "last_level_full": plan.last_level_full is not False,
            "sparsity": None if isinstance(amount, Target) else plan.sparsity,
            "ticket_at": plan.ticket_at or (),
            "keep": plan.keep or (),
        },
    )


def _said(value: str | None) -> str:
    assert value is not None, "the plan must be resolved first"
    return value


def _device(plan: Plan) -> torch.device:
    name = plan.device or "auto"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    return torch.device(name)


Prepare = Callable[[Tensor], Tensor]


def _trainer(plan: Plan, data: Dataset, device: torch.device) -> tuple[Trainer, tuple[Tensor, Tensor], Prepare]:
    mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=device).view(1, -1, 1, 1)

    def normalised(images: Tensor) -> Tensor:
        return (images.to(device).float() / 255 - mean) / std

    augmented = plan.augment if plan.augment is not None else data.augment == "crop-flip"
    splits = (data.train, data.validation, data.test)
    once = not augmented and sum(4 * split.images.numel() for split in splits) <= FLOATS_IN_MEMORY
    train, validation, test = (
        (normalised(split.images) if once else split.images.to(device), split.labels.to(device)) for split in splits
    )
    trainer = Trainer(
        train,
        validation,
        epochs=float(plan.max_epochs or 1.0),
        level_epochs=plan.level_epochs,
        batch_size=int(plan.batch_size or 1),
        optimizer=_said(plan.optimizer),
        lr=float(plan.lr or 0.0),
        momentum=float(plan.momentum or 0.0),
        weight_decay=float(plan.weight_decay or 0.0),
        schedule=_said(plan.schedule),
        clip=plan.clip,
        prepare=None if once else normalised,
        augment=crop_and_flip if augmented else None,
        seed=plan.seed or 0,
    )
    return trainer, test, normalised


def _probe(plan: Plan, data: Dataset, prepared: Prepare, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    available = len(data.train.labels)
    size = plan.probe_size if plan.probe_size is not None else min(1000, available)
    if size > available:
        raise InputError(
            f"--probe-size {size} is larger than the training split of {available} images"
            f"{f' (--limit {plan.limit})' if plan.limit else ''}: take at most {available}"
        )
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(plan.seed or 0))[:size]
    images, labels = data.train.images[chosen], data.train.labels[chosen].to(device)
    return [(prepared(part), wanted) for part, wanted in zip(images.split(1024), labels.split(1024), strict=True)]


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
    known = ticket.record.test_accuracy  # of a dense level that was trained before
    dense, left = _flops(parts, ticket.masks)
    level = dataclasses.replace(
        ticket.record,
        test_accuracy=known if known is not None else _test_accuracy(parts, ticket, model),
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


POINT = "point-"  # folders of rewind points beside the dense level's weights
DENSE_KEYS = (  # what the dense level depends on
    "data",
    "model",
    "seed",
    "max_epochs",
    "limit",
    "validation",
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "batch_size",
    "schedule",
    "clip",
    "augment",
)


def dense_plan(plan: Plan) -> Plan:
    """Return the plan of the dense level alone that a resolved plan begins with."""
    said = {key: getattr(plan, key) for key in (*DENSE_KEYS, "data_dir", "device", "threads")}
    return Plan(
        **said, method="dense", keep=(plan.rewind,) if plan.rewind and plan.rewind[:4] in ("init", "earl") else None
    )


def shared_dense(parts: Parts, run: RunDir) -> Dense:
    """Read a dense level that another run has trained.

    Raises:
        InputError: that run has none, or its plan differs in something that the dense level depends on.
    """
    other = resolve(Plan.from_mapping(run.read_plan(), source=str(run.plan_file)))
    for key in DENSE_KEYS:
        mine, theirs = getattr(parts.plan, key), getattr(other, key)
        if mine != theirs:
            raise InputError(
                f"the dense level of {str(run.path)!r} was trained with {key} = {theirs!r}, and this plan says {mine!r}: "
                "they cannot share it"
            )
    records = [record for record in run.levels() if record.level == 0]
    if not records:
        raise InputError(f"the run {str(run.path)!r} has no finished dense level")
    folder = run.level_dir(0)
    points = {}
    for path in sorted(folder.glob(f"{POINT}*")):
        name = path.name.removeprefix(POINT).replace("_", ":")
        points[name] = Snapshot(checkpoints.load_weights(path), _point_epoch(name, parts))
    return Dense(records[0], Snapshot(checkpoints.load_weights(folder), records[0].epochs), points)


def _point_epoch(name: str, parts: Parts) -> float:
    after = RewindPoint.parse(name).after
    if after is None:
        return 0.0
    return after.amount if after.unit == "epochs" else after.amount / parts.trainer.steps_per_epoch


def _summary(
    parts: Parts, levels: list[Level], status: str, error: str | None, environment: dict[str, Any], path: Path
) -> Run:
    plan = parts.plan
    dense = levels[0] if levels else None
    budgets = [level.max_epochs for level in levels]
    return Run(
        method=_said(plan.method),
        data=_said(plan.data),
        model=_said(plan.model),
        seed=plan.seed or 0,
        status=status,
        dense={
            "val_accuracy": dense.val_accuracy if dense else None,
            "test_accuracy": dense.test_accuracy if dense else None,
            "epochs": dense.epochs if dense else 0.0,
        },
        levels=tuple(levels),
        spent=Spent.total(level.spent for level in levels),
        full_epochs=None if None in budgets else sum(b for b in budgets if b is not None),
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


def rebuild(run: RunDir, level: int, said: Plan | None = None) -> tuple[Parts, Masks]:
    """Make a run's plan real again and put the weights of one of its levels in place.

    Args:
        run: the run.
        level: one of its finished levels.
        said: keys that go before the run's own, such as where the data are now.

    Raises:
        InputError: the run has no such level, or its files are damaged or do not fit the plan.
    """
    plan = Plan.from_mapping(run.read_plan(), source=str(run.plan_file))
    levels = [record.level for record in run.levels()]
    if level not in levels:
        have = f"levels 0 to {max(levels)}" if levels else "no finished level"
        raise InputError(f"the run {str(run.path)!r} has no level {level}: it has {have}")
    parts = prepare(resolve(said.over(plan) if said is not None else plan))
    weights = checkpoints.load_weights(run.level_dir(level))
    masks = checkpoints.load_masks(run.level_dir(level))
    put_weights(parts.model, weights, source=str(run.level_dir(level)))
    masks.weights(parts.model)
    return parts, masks


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Put weights into a model by name.

    Raises:
        InputError: they belong to another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"the weights of {source!r} do not fit this network: {first}") from error
