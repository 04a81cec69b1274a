"""`incop measure`: the flow of a network on a probe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from incop.cli.tables import plain_console, say_code, table
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.records import Flow
from incop.rundir import RunDir


def measure(
    run: Path | None = None,
    /,
    *,
    level: int | None = None,
    data: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    meter: str | None = None,
    alive_only: bool = False,
    probe_size: int | None = None,
    limit: int | None = None,
    data_dir: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    model_args: str | None = None,
    data_args: str | None = None,
    run_code: bool | None = None,
    json_: bool = False,
    debug: bool = False,
) -> None:
    """Measure the flow of a run's ticket, or of a network by name.

    Parameters
    ----------
    run
        Folder of a run; its data, network and probe are used, and its dense network is the reference.
    level
        Level of the run. Default: the last.
    data
        Without a run: the data set, as in search. Default: digits.
    model
        Without a run: the network, as in search. Default: lenet-300-100.
    weights
        Without a run: a safetensors file of the network's weights, or pretrained: the library's own. Default: drawn ones.
    meter
        information[:mean|absolute|square] or gradient[:norm|mean_abs]. Default: the run's, or information:mean.
    alive_only
        Average the information flow over living units only.
    probe_size
        Training samples to measure on. Default: the run's, or 1000.
    limit
        Without a run: use only so many training images.
    data_dir
        Folder that holds the data sets. Default: the environment variable INCOP_DATA.
    seed
        Without a run: seed of weights, split and probe. Default: 0.
    device
        auto, cpu or cuda.
    model_args
        Without a run: the network's arguments, as in search.
    data_args
        Without a run: the data's arguments, as in search.
    run_code
        Run the code that the run's plan names for its model, FILE.py:FACTORY or MODULE:FACTORY. Only if you trust it.
    json_
        Print the flow as JSON.
    debug
        Show where an error came from.
    """
    said = Plan(
        data=data,
        model=model,
        probe_size=probe_size,
        limit=limit,
        data_dir=data_dir,
        seed=seed,
        device=device,
        model_args=model_args,
        data_args=data_args,
        weights=weights,
        run_code=True if run_code is None and model is not None else run_code,
    )
    said.check()
    if run is None:
        if level is not None:
            raise InputError(f"--level {level} belongs to a run: give its folder")
        found, reference = _by_name(said, meter or "information:mean", alive_only=alive_only)
    else:
        keys = ("data", "model", "seed", "limit", "model_args", "data_args", "weights")
        strange = [f"--{key.replace('_', '-')}" for key in keys if getattr(said, key) is not None]
        if strange:
            raise InputError(f"{strange[0]} cannot go with a run folder, which says it itself")
        found, reference = _of_run(RunDir.open(run), level, meter, said, alive_only=alive_only)
    if json_:
        told = {"flow": found.to_json(), "distance": None if reference is None else found.distance(reference)}
        json.dump(told, sys.stdout, indent=1, ensure_ascii=False)
        print()
        return
    _print(found, reference)


def _print(found: Flow, reference: Flow | None) -> None:
    columns = ["layers", "flow"] + (["dense"] if reference is not None else [])
    rows = [
        [name, f"{value:.6g}"] + ([f"{reference.values[name]:.6g}"] if reference is not None else [])
        for name, value in found.values.items()
    ]
    console = plain_console()
    console.print(table(f"{found.meter}, {found.samples} samples", columns, rows, numbers=len(columns) - 1))
    if reference is not None:
        console.print(f"distance from dense: {found.distance(reference):.6g}", highlight=False)


def _by_name(said: Plan, meter: str, *, alive_only: bool) -> tuple[Flow, Flow | None]:
    import incop  # torch comes with its first use
    from incop.experiments.preparation import prepare, resolve
    from incop.flow import parse_meter

    found = parse_meter(meter, alive_only=alive_only)
    if found is None:
        raise InputError("--meter none measures nothing: choose information or gradient")
    resolved = resolve(said)
    say_code(resolved.plan)
    parts = prepare(resolved)
    return incop.measure(parts.model, parts.probe, found), None


def _of_run(
    run: RunDir, level: int | None, meter: str | None, said: Plan, *, alive_only: bool
) -> tuple[Flow, Flow | None]:
    import incop  # torch comes with its first use
    from incop.experiments.run_levels import plan_of, rebuild
    from incop.flow import parse_meter

    plan = plan_of(run)
    words = meter or ("information:mean" if plan.meter in (None, "none") else str(plan.meter))
    found = parse_meter(words, alive_only=alive_only or bool(plan.alive_only))
    if found is None:
        raise InputError("--meter none measures nothing: choose information or gradient")
    levels = [record.level for record in run.levels()]
    number = level if level is not None else max(levels, default=0)
    if said.run_code:
        say_code(plan)
    parts, masks = rebuild(run, number, said)
    flow = incop.measure(parts.model, parts.probe, found, masks=masks)
    parts, masks = rebuild(run, 0, said)
    return flow, incop.measure(parts.model, parts.probe, found, masks=masks)
