"""Levels of runs, read back: the dense level that runs share, and the network of any level."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from incop import checkpoint_files
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.experiments.preparation import PreparedRun, prepare, resolve
from incop.loop import Dense
from incop.masks import Masks
from incop.rewind_points import RewindPoint, Snapshot
from incop.rundir import RunDir

POINT = "point-"  # folders of rewind points beside the dense level's weights
DENSE_KEYS = (  # what the dense level depends on
    "data",
    "data_args",
    "model",
    "model_args",
    "weights",
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
    "precision",
    "augment",
)


NOTHING_GIVEN = Plan()


def plan_of(run: RunDir) -> Plan:
    """Return a run's plan."""
    return Plan.from_mapping(run.read_plan(), source=str(run.plan_file))


def dense_plan(plan: Plan) -> Plan:
    """Return the plan of the dense level alone that a resolved plan begins with."""
    others = ("data_dir", "device", "threads", "on_divergence", "offload", "run_code")
    kept = {key: getattr(plan, key) for key in (*DENSE_KEYS, *others)}
    return Plan(
        **kept, method="dense", keep=(plan.rewind,) if plan.rewind and plan.rewind[:4] in ("init", "earl") else None
    )


def shared_dense(prepared: PreparedRun, run: RunDir) -> Dense:
    """Read a dense level that another run has trained."""
    given = Plan(run_code=prepared.plan.run_code)  # nothing is run: the model is made already
    other = resolve(given.over(plan_of(run))).plan
    for key in DENSE_KEYS:
        mine, theirs = getattr(prepared.plan, key), getattr(other, key)
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
        points[name] = Snapshot(checkpoint_files.load_weights(path), _point_epoch(name, prepared))
    return Dense(records[0], Snapshot(checkpoint_files.load_weights(folder), records[0].epochs), points)


def _point_epoch(name: str, prepared: PreparedRun) -> float:
    after = RewindPoint.parse(name).after
    if after is None:
        return 0.0
    return after.amount if after.unit == "epochs" else after.amount / prepared.trainer.steps_per_epoch


def rebuild(run: RunDir, level: int, given: Plan = NOTHING_GIVEN) -> tuple[PreparedRun, Masks]:
    """Make a run's plan real again and put the weights of one of its levels in place.

    Args:
        run: the run.
        level: one of its finished levels.
        given: keys that go before the run's own, such as where the data are now.
    """
    levels = [record.level for record in run.levels()]
    if level not in levels:
        have = f"levels 0 to {max(levels)}" if levels else "no finished level"
        raise InputError(f"the run {str(run.path)!r} has no level {level}: it has {have}")
    begun = Plan(weights="none")  # the level's weights take their place
    prepared = prepare(resolve(begun.over(given).over(plan_of(run))))
    weights = checkpoint_files.load_weights(run.level_dir(level))
    masks = checkpoint_files.load_masks(run.level_dir(level))
    put_weights(prepared.model, weights, source=str(run.level_dir(level)))
    masks.weights(prepared.model)
    return prepared, masks


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Put a level's weights into a model as they were remembered: tied ones once, buffers that no state dict has too."""
    try:
        Snapshot(weights).rewind(model)
    except InputError as error:
        reason = str(error).removeprefix("the rewind point belongs to another model: ")
        raise InputError(f"the weights of {source!r} do not fit this network: {reason}") from error
