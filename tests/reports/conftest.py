"""Run folders and comparison folders with known numbers, written without training."""

import json
import math
from pathlib import Path

import pytest
import tomli_w

from incop.records import Check, Flow, Level, Run, Spent, Verdict
from incop.rundir import RunDir

SAMPLES = 1000  # of the training split
BUDGET = 20.0
PAIRS = ("conv1->conv2", "conv2->fc1", "fc1->fc2")
LAYERS = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")


def ledger(epochs, *, probes=0):
    return Spent(
        epochs=epochs,
        steps=int(10 * epochs),
        samples=int(SAMPLES * epochs),
        seconds=0.5 * epochs,
        probe_seconds=0.02 * probes,
        probe_samples=500 * probes,
        record_seconds=0.01,
        record_samples=100,
    )


def flow_at(level, number=0):
    values = {name: 0.01 * (place + 1) * (1 - 0.07 * level) - 0.002 * number for place, name in enumerate(PAIRS)}
    return Flow(values, meter="information flow (mean correlation)", samples=500)


def level_of(number, *, sparsity, epochs, accuracy, search=None, flow=True, reason="", flops=1_000_000, probes=2):
    spent = ledger(epochs, probes=probes)
    return Level(
        level=number,
        sparsity=sparsity,
        model_sparsity=sparsity * 0.99,
        remaining=int(100_000 * (1 - sparsity)),
        epochs=spent.epochs,
        steps=spent.steps,
        samples=spent.samples,
        seconds=spent.seconds,
        probe_seconds=spent.probe_seconds,
        probe_samples=spent.probe_samples,
        record_seconds=spent.record_seconds,
        record_samples=spent.record_samples,
        metric_value=min(accuracy + 0.004, 1.0),
        test_accuracy=accuracy,
        stop_reason=reason or "full budget",
        rewind="init",
        max_epochs=BUDGET,
        distance=0.01 * number if flow and number else None,
        flow=flow_at(number) if flow else None,
        layers={name: sparsity * (0.7 + 0.1 * place) for place, name in enumerate(LAYERS)},
        search=search,
        flops=None if flops is None else int(flops * (1 - sparsity)),
        dense_flops=flops,
    )


def write_run(
    folder,
    *,
    method="incop-if",
    data="digits",
    model="lenet-5",
    seed=0,
    epochs=2.0,
    sparsities=(0.5, 0.8, 0.9),
    accuracies=(0.95, 0.94, 0.92),
    dense=0.96,
    ticket_at=(),
    status="finished",
    error=None,
    flow=True,
    rule="flow within 0.11 or accuracy restored",
    nan=False,
    environment=None,
):
    """Write a run: levels of `epochs` epochs, the last and those of `ticket_at` trained to the full budget."""
    run = RunDir.create(folder)
    run.write_plan(
        {
            "data": data,
            "model": model,
            "method": method,
            "seed": seed,
            "levels": len(sparsities),
            "rule": rule,
            "max_epochs": BUDGET,
            "ticket_at": list(ticket_at) or None,
        }
    )
    levels = [level_of(0, sparsity=0.0, epochs=BUDGET, accuracy=dense, flow=flow, reason="dense network")]
    for number, (sparsity, accuracy) in enumerate(zip(sparsities, accuracies, strict=True), 1):
        reported = any(abs(sparsity - t) < 0.005 for t in ticket_at)
        whole = reported or number == len(sparsities)
        search = ledger(epochs, probes=1) if reported and number < len(sparsities) and epochs < BUDGET else None
        level = level_of(
            number,
            sparsity=sparsity,
            epochs=BUDGET if whole else epochs,
            accuracy=accuracy,
            search=search,
            flow=flow,
            reason=f"flow within 0.11 of dense ({0.01 * number:.3g})" if epochs < BUDGET else "full budget",
        )
        levels.append(level)
    for level in levels:
        run.append(level)
        for number in range(1, int(level.epochs / 2) + 1):
            distance = math.nan if nan and number == 1 else 0.3 / number + 0.01 * level.level
            run.append(
                Check(
                    level.level,
                    number,
                    2.0 * number,
                    flow=flow_at(level.level, number) if flow else None,
                    distance=distance if level.level and flow else None,
                    metric_value=level.metric_value,
                    verdict=Verdict(2.0 * number == epochs and level.level > 0, "flow 0.2 from dense", rule),
                )
            )
    run.write_summary(
        Run(
            method=method,
            data=data,
            model=model,
            seed=seed,
            status=status,
            dense={"val_accuracy": dense, "test_accuracy": dense, "epochs": BUDGET},
            levels=tuple(levels),
            spent=Spent.total(level.spent for level in levels),
            full_epochs=BUDGET * len(levels),
            environment=environment or {"incop": "0", "torch": "2", "cores": 2, "threads": 1},
            command=f"incop search {folder.name}/plan.toml --out NEW_FOLDER",
            error=error,
        )
    )
    return folder


METHODS = {  # label → control of, epochs of a level, points lost at each sparsity
    "lth": (None, BUDGET, (0.1, 0.3, 0.8)),
    "sap": (None, BUDGET, (0.1, 0.4, 1.1)),
    "incop-if": (None, 2.0, (0.2, 0.5, 1.2)),
    "incop-gf": (None, 4.0, (0.1, 0.4, 0.9)),
    "fixed:match=incop-if": ("incop-if", 2.0, (0.2, 0.5, 1.2)),
    "oneshot=incop-if": ("incop-if", 6.0, (0.3, 0.8, 2.4)),
    "random=incop-if": ("incop-if", 2.0, (1.4, 4.0, 9.0)),
    "mask-settled=incop-gf": ("incop-gf", 6.0, (0.2, 0.5, 0.9)),
    "fixed:match=incop-gf": ("incop-gf", 4.0, (0.2, 0.4, 1.0)),
}
TARGETS = (0.5, 0.8, 0.9)


def wobble(label, seed, place):
    """A small number that looks random and is the same every time."""
    return 0.002 * math.sin(37.0 * seed + 11.0 * place + sum(map(ord, label)))


def write_comparison(folder, *, seeds=5, places=(("digits", "lenet-5"),), methods=None, settings=None, targets=TARGETS):
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for data, model in places:
        for label, (control_of, epochs, lost) in (methods or METHODS).items():
            for seed in range(seeds):
                name = f"runs/{len(jobs):03d}"
                same = wobble("all", seed, 0)
                write_run(
                    folder / name,
                    method=label.partition(":")[0].partition("=")[0],
                    data=data,
                    model=model,
                    seed=seed,
                    epochs=epochs,
                    dense=0.97 + same,
                    sparsities=targets,
                    accuracies=[
                        0.97 + same - points / 100 + (wobble(label, seed, place) if points else 0.0)
                        for place, points in enumerate(lost)
                    ],
                    ticket_at=targets,
                    flow=label.startswith("incop"),
                    rule="flow within 0.11 or accuracy restored" if label.startswith("incop") else "none",
                )
                jobs.append(
                    {
                        "label": label,
                        "seed": seed,
                        "data": data,
                        "model": model,
                        "sparsity": None,
                        "folder": name,
                        "control_of": control_of,
                        "state": "done",
                        "error": None,
                    }
                )
    write_jobs(folder, jobs)
    told = settings or {"methods": ["lth", "sap", "incop-if", "incop-gf"], "seeds": seeds, "sparsities": list(targets)}
    (folder / "comparison.toml").write_text(tomli_w.dumps(told))
    return folder


def write_jobs(folder, jobs):
    (Path(folder) / "jobs.json").write_text(json.dumps(jobs))


def read_jobs(folder):
    return json.loads((Path(folder) / "jobs.json").read_text())


@pytest.fixture(scope="session")
def comparison_folder(tmp_path_factory):
    return write_comparison(tmp_path_factory.mktemp("comparison") / "study")


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "run", ticket_at=(0.8,))
