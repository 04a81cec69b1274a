"""Parts: a plan made real: data, network, trainer, probe, and the arguments of the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from incop.errors import InputError
from incop.experiments import datasets, methods, models, problems
from incop.experiments.datasets import Dataset, crop_and_flip
from incop.experiments.models.making import Made, read_arguments
from incop.experiments.models.named import place
from incop.experiments.plan import DEFAULTS, Plan
from incop.masks import Masks
from incop.ranks import local
from incop.records import Interval
from incop.snapshots import RewindPoint
from incop.training import Trainer

__all__ = ["Parts", "prepare", "resolve", "said"]

PLANNED_SPARSITY = 0.9  # of a planned method when none is said: lottery tickets are as good as dense networks there
PROBE_BATCH = 256  # on a CPU half as long as in one batch of 1,024, whose activations leave the caches
FLOATS_IN_MEMORY = 2**29  # splits up to this size in bytes are normalised once instead of batch by batch


@dataclass(frozen=True)
class Parts:
    """A plan made real: data, network, trainer, the arguments of the search, and what a reader of its records should know."""

    plan: Plan
    data: Dataset
    model: nn.Module
    trainer: Trainer
    test: tuple[Tensor, Tensor]
    probe: list[tuple[Tensor, Tensor]]
    arguments: dict[str, Any]
    notices: tuple[str, ...] = ()
    origin: str | None = None  # what made the model, where that was not incop


def resolve(plan: Plan) -> Plan:
    """Say every key of a plan: the method's row, the model's recipe, then the defaults, under what is said.

    Raises:
        InputError: keys are out of range or cannot be read, or do not go together; all of these in one sentence.
    """
    problems.refuse(problems.said_wrong(plan))
    plan = plan.over(Plan(**{k: v for k, v in DEFAULTS.items() if k in ("data", "model", "method")}))
    assert plan.method is not None
    assert plan.model is not None
    row = methods.method(plan.method)
    if plan.method == "dense" and plan.levels:
        raise InputError(
            f"the method 'dense' has no pruning levels, and --levels {plan.levels} asks for some: choose lth, say"
        )
    recipe = models.recipe(plan.model)
    base = Plan(
        optimizer=recipe.optimizer,
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        max_epochs=float(recipe.epochs),
    )
    if methods.is_planned(plan.method):
        plan = plan.over(Plan(sparsity=PLANNED_SPARSITY)).over(base)
        assert plan.sparsity is not None
        budget = plan.level_epochs or plan.max_epochs or 1.0
        row |= methods.planned(plan.sparsity, budget, plan.batch_size or 1, plan.levels)
    elif plan.sparsity is not None:
        levels = plan.levels if plan.levels is not None else row.get("levels", DEFAULTS["levels"])
        row |= {"amount": f"to {plan.sparsity!r} in {levels}"}
    full = plan.over(base).over(Plan(**row)).over(Plan(**DEFAULTS))
    problems.refuse(problems.combinations(full))
    return replace(full, model=models.full_name(said(plan.model)), weights=_in_full(full.weights))


def _in_full(weights: str | None) -> str | None:
    if weights in (None, "none", "pretrained"):
        return None if weights == "none" else weights
    return str(place(str(weights)).resolve())


def prepare(plan: Plan) -> Parts:
    """Make a resolved plan real; whatever is wrong with it is found here, before any folder is made or step taken.

    Raises:
        InputError: a value cannot be used, data are missing or damaged, the probe is larger than the split.
    """
    device = _device(plan)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    words = _words(plan)
    data = _data(plan)
    made = _model(plan, data, device)
    model = made.model
    trainer, test, prepared = _trainer(plan, data, device)
    trainer.check_batches(model, words["check_every"])
    probe = _probe(plan, data, prepared, device)
    score = methods.score(said(plan.score), batches=probe, seed=plan.seed or 0)
    selection = methods.selection(said(plan.selection), batches=probe)
    masks = Masks.full(model, skip=plan.skip or ())
    problems.refuse(problems.of_model(plan, model, masks, selection))
    return Parts(
        plan,
        data,
        model,
        trainer,
        test,
        probe,
        {**words, "probe": probe, "score": score, "selection": selection},
        (*problems.notices(plan, data), *problems.told(model, selection), *made.notices),
        made.origin,
    )


def _words(plan: Plan) -> dict[str, Any]:
    """Return the arguments of the search that are read from the plan's words alone."""
    return {
        "levels": plan.levels,
        "meter": methods.meter(said(plan.meter), alive_only=bool(plan.alive_only)),
        "rule": methods.rule(said(plan.rule)),
        "amount": methods.amount(said(plan.amount)),
        "rewind": RewindPoint.parse(said(plan.rewind)),
        "skip": plan.skip or (),
        "check_every": Interval.parse(said(plan.check_every)),
        "check_before": bool(plan.check_before),
        "last_level_full": plan.last_level_full is not False,
        "sparsity": plan.sparsity,
        "ticket_at": plan.ticket_at or (),
        "on_collapse": plan.on_collapse or "tell",
        "on_divergence": plan.on_divergence or "stop",
        "keep": plan.keep or (),
    }


def _data(plan: Plan) -> Dataset:
    data = datasets.load(
        said(plan.data),
        data_dir=plan.data_dir,
        seed=plan.seed or 0,
        validation=plan.validation or 0.1,
        limit=plan.limit,
        arguments=read_arguments(plan.data_args, "data_args"),
    )
    problems.refuse(problems.of_data(plan, data))
    return data


def _model(plan: Plan, data: Dataset, device: torch.device) -> Made:
    made = models.make(
        said(plan.model),
        channels=data.channels,
        size=data.size,
        classes=data.classes,
        seed=plan.seed or 0,
        arguments=read_arguments(plan.model_args),
        weights=plan.weights or "none",
        run_code=bool(plan.run_code),
    )
    made.model.to(device)
    if device.type == "cpu":
        # with one channel the layout of the input says nothing, that of the weights does: LeNet-5's step takes 0.87 of its time
        made.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot to type it
    return made


def said(value: str | None) -> str:
    """Return a key that `resolve` has filled in."""
    assert value is not None, "the plan must be resolved first"
    return value


def _device(plan: Plan) -> torch.device:
    name = plan.device or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    if name == "cuda" and (place := local()) is not None:
        if place >= torch.cuda.device_count():
            raise InputError(
                f"process {place} of this host has no GPU of its own, torch sees {torch.cuda.device_count()}: start one for "
                "each GPU, or give --device cpu"
            )
        torch.cuda.set_device(place)
        return torch.device("cuda", place)
    return torch.device(name)


Prepare = Callable[[Tensor], Tensor]


def _trainer(plan: Plan, data: Dataset, device: torch.device) -> tuple[Trainer, tuple[Tensor, Tensor], Prepare]:
    mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=device).view(1, -1, 1, 1)
    by_pixel = device.type == "cpu" and data.channels > 1

    def laid_out(images: Tensor) -> Tensor:
        # oneDNN's convolutions and torch's pooling follow the layout of their input: on a CPU a step of ResNet-20 takes 0.81
        # of its time with the channels innermost, of Conv-2 0.84. One channel has no layout.
        return images.contiguous(memory_format=torch.channels_last) if by_pixel else images

    def normalised(images: Tensor) -> Tensor:
        return laid_out((images.to(device).float() / 255 - mean) / std)

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
        optimizer=said(plan.optimizer),
        lr=float(plan.lr or 0.0),
        momentum=float(plan.momentum or 0.0),
        weight_decay=float(plan.weight_decay or 0.0),
        schedule=said(plan.schedule),
        clip=plan.clip,
        prepare=(laid_out if by_pixel else None) if once else normalised,
        augment=crop_and_flip if augmented else None,
        seed=plan.seed or 0,
        precision=said(plan.precision),
        search_batch_size=plan.search_batch_size,
        search_lr=float(plan.search_lr or 1.0),
        keep_optimizer=bool(plan.keep_optimizer),
    )
    return trainer, test, normalised


def _probe(plan: Plan, data: Dataset, prepared: Prepare, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    available = len(data.train.labels)
    size = plan.probe_size if plan.probe_size is not None else min(1000, available)
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(plan.seed or 0))[:size]
    images, labels = data.train.images[chosen], data.train.labels[chosen].to(device)
    return [
        (prepared(part), wanted)
        for part, wanted in zip(images.split(PROBE_BATCH), labels.split(PROBE_BATCH), strict=True)
    ]
