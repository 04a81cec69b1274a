"""A plan: everything a run is made of, given by flags or by `plan.toml`, checked all together; no torch."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from incop.errors import quoted, refuse, unknown
from incop.records import shortest

DEFAULTS: Mapping[str, Any] = {
    "data": "digits",
    "model": "lenet-300-100",
    "method": "incop",
    "seed": 0,
    "validation": 0.1,
    "alive_only": False,
    "score": "magnitude",
    "check_before": False,
    "last_level_full": True,
    "skip": (),
    "precision": "float32",
    "objective": "labels",
    "search_lr": 1.0,
    "keep_optimizer": False,
    "test_levels": True,
    "device": "auto",
}

TABLES = ("model_args", "data_args")  # a file may hold a table where the command line takes JSON
NOT_IN_FILES = ("run_code",)  # only who runs a plan may give it, never who wrote it

# key → least, most, whether the limits themselves are allowed; None: any finite number
RANGES: Mapping[str, tuple[float, float | None, bool]] = {
    "seed": (0, 2**31 - 1, True),
    "levels": (1, 10_000, True),
    "sparsity": (0, 1, False),
    "ticket_at": (0, 1, False),
    "max_drop": (0, None, True),
    "last_epochs": (1e-6, 1e6, True),
    "max_epochs": (1e-6, 1e6, True),
    "level_epochs": (1e-6, 1e6, True),
    "validation": (0, 1, False),
    "limit": (10, 10_000_000, True),
    "probe_size": (2, 10_000_000, True),
    "lr": (1e-12, None, True),
    "momentum": (0, 0.9999, True),
    "weight_decay": (0, None, True),
    "batch_size": (1, 10_000_000, True),
    "clip": (1e-12, None, True),
    "search_batch_size": (1, 10_000_000, True),
    "search_lr": (1e-12, None, True),
    "threads": (1, 1024, True),  # more than the machine can start end the process without a word
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is made of. A key that is not given is the method's, the model's, or the default."""

    data: str | None = None
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, or a path (idx, parquet, .npz, image folder);
    or hf:FOLDER_OR_NAME[:CONFIG] of Hugging Face datasets, torchvision:NAME such as torchvision:KMNIST. Default: digits."""

    data_args: str | None = None
    """Arguments of --data hf: or torchvision:, in JSON: {"image_column": "img"}, {"size": 500}. Default: none."""

    model: str | None = None
    """Network: see `incop list models`; or torchvision:NAME, timm:NAME, hf:FOLDER_OR_TYPE, FILE.py:FACTORY, MODULE:FACTORY.
    Default: lenet-300-100."""

    model_args: str | None = None
    """Keyword arguments of such a network, in JSON: {"width": 8}. Default: none."""

    weights: str | None = None
    """What the network's weights begin as: none (drawn by the seed), pretrained (fetched by the network's library), or a
    safetensors file. Default: none."""

    trained: bool | None = None
    """The network is trained already, by --weights or by its own code: level 0 measures it and trains nothing.
    Default: off."""

    keep_zeros: bool | None = None
    """Weights that are zero already stay zero. Default: off."""

    run_code: bool | None = None
    """Run the code that a plan or a run folder names for its model, FILE.py:FACTORY or MODULE:FACTORY. Only on the command
    line; a model named there itself needs no further word. Default: off."""

    method: str | None = None
    """Method: see `incop list methods`; a row of the arguments below. Default: incop."""

    levels: int | None = None
    """Pruning levels after the dense one, at least 1. Default: of method incop, by the sparsity; of the others, 10."""

    sparsity: float | None = None
    """Sparsity to reach, in (0, 1): evenly in the given levels; with --amount, the level that reaches it is the last.
    Default: of method incop, 0.9; of the others, what the levels lead to."""

    max_drop: float | None = None
    """Find the sparsest ticket whose validation accuracy is at most so much below the dense network's: 0.005 is half a point. In
    place of --sparsity. Default: none."""

    ticket_at: tuple[float, ...] | None = None
    """Sparsities on the way, in (0, 1), whose tickets are trained in full and reported too. Default: none."""

    seed: int | None = None
    """Seed of the network's weights, the validation split, the probe and the order of samples. Default: 0."""

    max_epochs: float | None = None
    """Epochs of the dense network, and of a level at most. Default: the model's recipe."""

    level_epochs: float | None = None
    """Epochs of a pruned level at most. Default: --max-epochs."""

    last_epochs: float | None = None
    """Epochs of the last level, trained at the search's rate and batch size. Default: with --max-drop a quarter of a level's
    budget, else a level's whole budget, trained as the dense network was."""

    limit: int | None = None
    """Use only so many training images, and at most so many test images. Default: all."""

    validation: float | None = None
    """Fraction of the training images carved off for validation. Default: 0.1."""

    data_dir: str | None = None
    """Folder that holds the data sets. Default: the environment variable INCOP_DATA."""

    optimizer: str | None = None
    """sgd, adam or adamw. Default: the model's recipe."""

    lr: float | None = None
    """Learning rate at the schedule's start. Default: the model's recipe."""

    momentum: float | None = None
    """Momentum of sgd. Default: the model's recipe."""

    weight_decay: float | None = None
    """Weight decay. Default: the model's recipe."""

    batch_size: int | None = None
    """Samples a step. Default: the model's recipe."""

    search_batch_size: int | None = None
    """Samples a step while a rule may still end a level. Default: the method's, else --batch-size."""

    search_lr: float | None = None
    """What the learning rate is multiplied by while a rule may still end a level. Default: the method's, else 1."""

    keep_optimizer: bool | None = None
    """Search levels that keep their weights keep their optimizer too. Default: the method's, else off."""

    test_levels: bool | None = None
    """Read the test split after every level, not only for the tickets trained in full. Default: the method's, else on."""

    objective: str | None = None
    """What pruned levels are trained towards: labels, or the dense network's outputs (dense), without labels. Default: labels."""

    schedule: str | None = None
    """Learning-rate schedule: constant, cosine or step. Default: the model's recipe."""

    clip: float | None = None
    """Largest norm of a step's gradient. Default: none."""

    precision: str | None = None
    """Arithmetic of training: float32 or bfloat16, which pays for convolutions where the processor has it. Default: float32."""

    augment: bool | None = None
    """Random crops and flips of training images. Default: on for CIFAR, off for others."""

    probe_size: int | None = None
    """Training samples that the meter sees at every check. Default: 1000, or all if there are fewer."""

    meter: str | None = None
    """Flow to measure: information[:mean|absolute|square], gradient[:norm|mean_abs] or none. Default: the method's."""

    alive_only: bool | None = None
    """Average the information flow over living units only. Default: off."""

    rule: str | None = None
    """When a level ends, in words: 'flow within 0.11 or accuracy restored', 'after 5 epochs', none. Default: the method's."""

    check_every: str | None = None
    """How often the rule is asked: epochs (2, 0.1) or steps (50steps). Default: the method's."""

    check_before: bool | None = None
    """Ask the rule once before any training of a level. Default: off."""

    amount: str | None = None
    """How many weights go per level: a fraction of those left (0.2), pq:p,q, 'to 0.98 in 10', or 'flow to 0.98 in 40'.
    Default: the method's."""

    selection: str | None = None
    """Who competes: global, layer, layer:0.5 (output layer at half the rate), units (whole rows and filters), units:layer (each
    layer's among themselves), or n:m such as 2:4. Default: the method's."""

    score: str | None = None
    """Which weights go first: magnitude, saliency (size times gradients met while training), random or gradient. Default: the
    method's, else magnitude."""

    skip: tuple[str, ...] | None = None
    """Layers that are not pruned, by name or pattern. Default: none."""

    rewind: str | None = None
    """What a level starts from: init, early:N, dense, rate or none. Default: the method's."""

    keep: tuple[str, ...] | None = None
    """Rewind points of the dense level to keep on disk, for runs that share it. Default: none."""

    on_collapse: str | None = None
    """When a cut leaves a layer without weights: tell (in the level's notices) or refuse (before it is trained). Default: tell."""

    on_divergence: str | None = None
    """When a loss or a weight becomes NaN or infinite: stop, or retry (begin the level again with half the learning rate, for it
    and all levels after it, at most three times in a run). Default: stop."""

    last_level_full: bool | None = None
    """Give the last level its full budget. Default: on."""

    offload: str | None = None
    """Where the rewind point and tickets are kept while the run goes on: cpu, or disk (in the run's folder). Default: beside the
    network, on its device."""

    device: str | None = None
    """auto, cpu or cuda. Default: auto."""

    threads: int | None = None
    """Threads torch may use. Default: torch's own choice."""

    checkpoint_every: str | None = None
    """How often what is needed to go on is written: seconds (60s) or steps (500steps). Default: 60s, or more seldom where
    writing would take 2 % of the time."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "the plan") -> Plan:
        """Build a plan from a file's keys."""
        plan, problems = cls.read(values)
        refuse([*problems, *plan.problems()], source)
        return plan

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> tuple[Plan, list[str]]:
        """Build a plan of the keys that can be read, and return a sentence about each of the others."""
        kinds = typing.get_type_hints(cls)
        problems = []
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name in TABLES and isinstance(value, Mapping):
                value, wrong = _written(str(key), value)
                problems += wrong
            if name in NOT_IN_FILES:
                problems.append(f"{key} cannot stand in a file, only on the command line: --{name.replace('_', '-')}")
            elif name not in kinds:
                problems.append(str(unknown("plan key", str(key), kinds)))
            elif (fitted := _fitted(value, kinds[name])) is None:
                problems.append(f"{key} = {quoted(value)} must be {_kind(kinds[name])}")
            else:
                given[name] = fitted
        return cls(**given), problems

    def given(self) -> dict[str, Any]:
        """Return the keys that the plan has, with their values."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in pairs if value is not None}

    def written(self) -> dict[str, Any]:
        """Return the keys that the plan has and that a file may hold."""
        return {name: value for name, value in self.given().items() if name not in NOT_IN_FILES}

    def over(self, base: Plan) -> Plan:
        """Return the plan in which this one's keys go before those of a base."""
        return Plan(**{**base.given(), **self.given()})

    def check(self) -> None:
        """Check every key's range together."""
        refuse(self.problems())

    def problems(self) -> list[str]:
        """Return a sentence with the range for every key that is out of it."""
        problems = []
        for key, value in self.given().items():
            if key not in RANGES:
                continue
            dense = key == "levels" and value == 0 and self.method == "dense"
            problems += [
                f"--{key.replace('_', '-')} {one if isinstance(one, float) else quoted(one)} must be {_span(*RANGES[key])}"
                for one in (value if isinstance(value, tuple) else (value,))
                if not _inside(one, *RANGES[key]) and not dense
            ]
        return problems


Value = TypeVar("Value")


def filled(value: Value | None) -> Value:
    """Return the value of a key that every plan with all its keys has."""
    assert value is not None, "the plan must be resolved first"
    return value


def _written(key: str, table: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """Return a table as JSON, in which it stands in a plan, or what is wrong with it."""
    try:
        return json.dumps(table), []
    except (TypeError, ValueError) as error:  # a date of TOML, or a table nested without end
        return "{}", [f"{key} holds what JSON cannot: {error}"]


def _inside(value: float, least: float, most: float | None, closed: bool) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    below = most is None or (value <= most if closed else value < most)
    return below and (value >= least if closed else value > least)


def _span(least: float, most: float | None, closed: bool) -> str:
    if most is None:
        return f"a number of at least {shortest(least)}" if closed else f"a number above {shortest(least)}"
    return f"between {shortest(least)} and {shortest(most)}{'' if closed else ', both excluded'}"


def _fitted(value: Any, hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            of = typing.get_args(kind)[0]
            if isinstance(value, list | tuple) and all(_fitted(part, of | None) is not None for part in value):
                return tuple(_fitted(part, of | None) for part in value)
        elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if isinstance(value, float) or abs(value) <= 2**63 else None
        elif (kind is int and isinstance(value, int) and not isinstance(value, bool)) or (
            kind in (str, bool) and isinstance(value, kind)
        ):
            return value
        elif kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            # amount = 0.2 and check_every = 2 read as their words
            return shortest(value) if isinstance(value, float) or abs(value) <= 2**63 else None
    return None


def _kind(hint: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return names.get(kinds[0], f"a list, each {names.get(next(iter(typing.get_args(kinds[0])), str))}")
