"""Preparation: a plan with every key, and then data, network, trainer, probe, and the arguments of the search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from incop import methods
from incop.distributed import local
from incop.errors import InputError, refuse
from incop.experiments import datasets, models, plan_checks
from incop.experiments.datasets import Dataset, crop_and_flip
from incop.experiments.models.making import Made, read_arguments
from incop.experiments.models.named import place
from incop.experiments.plan import DEFAULTS, Plan, filled
from incop.experiments.plan_words import READERS, ResolvedPlan, read_words, with_data
from incop.loop.combinations import as_flag, beyond_the_selection, ends_of
from incop.masks import Masks
from incop.pruning.cut import reach
from incop.recipe import USUAL, LevelRecipe
from incop.training import PROBE_BATCH, Trainer

RECIPE_KEYS = ("optimizer", "lr", "batch_size", "momentum", "weight_decay", "schedule")
TRAINER_KEYS = (
    *RECIPE_KEYS,
    "level_epochs",
    "clip",
    "seed",
    "precision",
    "search_batch_size",
    "search_lr",
    "keep_optimizer",
    "objective",
)
FLOATS_IN_MEMORY = 2**29  # splits up to this size in bytes are normalised once instead of batch by batch


@dataclass(frozen=True)
class PreparedRun:
    """Data, network, trainer, the arguments of the search, and what a reader of its records should know."""

    plan: Plan
    data: Dataset
    model: nn.Module
    trainer: Trainer
    test: tuple[Tensor, Tensor]
    probe: list[tuple[Tensor, Tensor]]
    arguments: dict[str, Any]
    notices: tuple[str, ...] = ()
    origin: str | None = None  # what made the model, where that was not incop


def resolve(given: Plan, *, problems: Iterable[str] = (), source: str = "") -> ResolvedPlan:
    """Fill in every key of a plan, from the method's row, the model's recipe and the defaults, and read its words.

    Args:
        given: the keys that the user gives; they go before all others.
        problems: what is known to be wrong with them already, such as keys of a file that are none.
        source: the file they are in, for the error.
    """
    words, unread = read_words(given)
    refuse([*problems, *plan_checks.key_problems(given), *unread], source)
    plan = _filled(given)
    others, unread = read_words(plan, known=words)
    refuse(unread)
    resolved = ResolvedPlan(plan, **words, **others)
    refuse(plan_checks.combinations(resolved, given))
    return replace(
        resolved, plan=replace(plan, model=models.full_name(filled(plan.model)), weights=_in_full(plan.weights))
    )


def _filled(plan: Plan) -> Plan:
    """Return the plan with every key, each where it is not given that of the method, the model's recipe or the default."""
    plan = plan.over(Plan(**{key: DEFAULTS[key] for key in ("data", "model", "method")}))
    if plan.method == "dense" and plan.levels:
        raise InputError(
            f"the method 'dense' has no pruning levels, and --levels {plan.levels} asks for some: choose lth, say"
        )
    recipe = models.recipe(filled(plan.model))
    plan = plan.over(Plan(max_epochs=float(recipe.epochs), **{key: getattr(recipe, key) for key in RECIPE_KEYS}))
    row = methods.arguments(
        filled(plan.method),
        sparsity=plan.sparsity,
        levels=plan.levels,
        epochs=plan.level_epochs or filled(plan.max_epochs),
        batch_size=filled(plan.batch_size),
        max_drop=plan.max_drop,
    )
    return plan.over(Plan(**row)).over(Plan(**DEFAULTS))


def _in_full(weights: str | None) -> str | None:
    if weights in (None, "none", "pretrained"):
        return None if weights == "none" else weights
    return str(place(str(weights)).resolve())


def prepare(resolved: ResolvedPlan) -> PreparedRun:
    """Load the data and make the network; whatever is wrong with them is found here, before any folder is made or step taken."""
    plan = resolved.plan
    device = _device(plan)
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    data = _data(resolved)
    made = _model(plan, data, device)
    model = made.model
    trainer, test, prepared = _trainer(plan, data, device)
    trainer.check_batches(model, resolved.check_every)
    probe = _probe(plan, data, prepared, device)
    arguments = _arguments(resolved, probe)
    selection = arguments["selection"]
    if plan.keep_zeros:
        arguments["masks"] = Masks.of(model, skip=plan.skip or ())
    masks = Masks.full(model, skip=plan.skip or ())
    ends, most = ends_of(plan.sparsity, plan.ticket_at or ()), reach(model, masks, selection)
    refuse(beyond_the_selection(ends, masks.total, most, selection, as_flag))
    about = (selection.about(model),) if hasattr(selection, "about") else ()
    notices = (*plan_checks.notices(plan, data), *about, *made.notices)
    return PreparedRun(plan, data, model, trainer, test, probe, arguments, notices, made.origin)


def _arguments(resolved: ResolvedPlan, probe: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return the arguments of the search."""
    plan = resolved.plan
    return {
        **{key: getattr(resolved, key) for key in READERS},
        **{key: getattr(plan, key) for key in ("levels", "sparsity", "check_before", "last_level_full")},
        "probe": probe,
        "score": with_data(resolved.score, probe),
        "selection": with_data(resolved.selection, probe),
        "skip": plan.skip or (),
        "ticket_at": plan.ticket_at or (),
        "on_collapse": plan.on_collapse or "tell",
        "on_divergence": plan.on_divergence or "stop",
        "trained": bool(plan.trained),
        "max_drop": plan.max_drop,
        "last_recipe": _last_recipe(plan),
    }


def _last_recipe(plan: Plan) -> LevelRecipe:
    """Return how the last level is trained where its epochs are given: as the search is."""
    if plan.last_epochs is None:
        return USUAL
    usual, batch = plan.level_epochs or filled(plan.max_epochs), filled(plan.batch_size)
    return LevelRecipe(plan.last_epochs / usual, (plan.search_batch_size or batch) / batch, filled(plan.search_lr))


def _data(resolved: ResolvedPlan) -> Dataset:
    plan = resolved.plan
    data = datasets.load(
        filled(plan.data),
        data_dir=plan.data_dir,
        seed=filled(plan.seed),
        validation=filled(plan.validation),
        limit=plan.limit,
        arguments=read_arguments(plan.data_args, "data_args"),
    )
    refuse(plan_checks.of_data(resolved, data))
    return data


def _model(plan: Plan, data: Dataset, device: torch.device) -> Made:
    made = models.make(
        filled(plan.model),
        channels=data.channels,
        size=data.size,
        classes=data.classes,
        seed=filled(plan.seed),
        arguments=read_arguments(plan.model_args),
        weights=plan.weights or "none",
        run_code=bool(plan.run_code),
    )
    made.model.to(device)
    if device.type == "cpu":
        # with one channel the layout of the input says nothing, that of the weights does: LeNet-5's step takes 0.87 of its time
        made.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot to type it
    return made


def _device(plan: Plan) -> torch.device:
    name = filled(plan.device)
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
        epochs=filled(plan.max_epochs),
        prepare=(laid_out if by_pixel else None) if once else normalised,
        augment=crop_and_flip if augmented else None,
        **{key: getattr(plan, key) for key in TRAINER_KEYS},
    )
    return trainer, test, normalised


def _probe(plan: Plan, data: Dataset, prepared: Prepare, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    available = len(data.train.labels)
    size = plan.probe_size if plan.probe_size is not None else min(1000, available)
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(filled(plan.seed)))[:size]
    images, labels = data.train.images[chosen], data.train.labels[chosen].to(device)
    return [
        (prepared(part), wanted)
        for part, wanted in zip(images.split(PROBE_BATCH), labels.split(PROBE_BATCH), strict=True)
    ]
