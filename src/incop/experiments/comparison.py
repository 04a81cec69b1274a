"""A comparison: methods × seeds × (data, model), and the runs it consists of."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from incop.errors import InputError
from incop.experiments.controls import Cost, Label, default_controls
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve

MAX_LEVELS = 100  # a method that has not reached the sparsity by then is stopped and reported so


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        methods: methods and controls, as `controls.Label` reads them; the first is what others are set against.
        seeds: how many seeds; they count up from the plan's seed.
        sparsities: at which tickets are trained in full and compared, each in (0, 1).
        pairs: (data, model) pairs.
        controls: add the default controls of the InCoP methods.
        plan: keys that hold for every run.
    """

    methods: tuple[str, ...]
    seeds: int = 5
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95)
    pairs: tuple[tuple[str, str], ...] = (("digits", "lenet-300-100"),)
    controls: bool = True
    plan: Plan = field(default_factory=Plan)

    def check(self) -> None:
        """Find what cannot be compared."""
        problems = []
        if not self.methods:
            problems.append("no method is named: --methods lth-rate,incop")
        if not 1 <= self.seeds <= 1000:
            problems.append(f"--seeds {self.seeds} must be between 1 and 1000")
        if not self.sparsities or any(not 0 < s < 1 for s in self.sparsities):
            problems.append(
                f"--sparsities {', '.join(map(str, self.sparsities))} must lie between 0 and 1, both excluded"
            )
        if len(set(self.methods)) < len(self.methods):
            problems.append("a method is named twice in --methods")
        for text in self.labels() if self.methods else ():
            label = Label.parse(text)
            if label.needs_cost and label.of not in self.methods:
                problems.append(f"the control {text!r} needs {label.of} among the methods, whose cost it matches")
        strange = [
            k for k in ("data", "model", "method", "sparsity", "ticket_at", "keep") if getattr(self.plan, k) is not None
        ]
        if strange:
            problems.append(f"the key {strange[0]!r} is the comparison's own: use --pairs, --methods or --sparsities")
        if problems:
            raise InputError("; ".join(problems))
        self._resolve_all()

    def _resolve_all(self) -> None:
        for data, model in self.pairs:
            for label in map(Label.parse, self.methods):
                if label.needs_cost:
                    continue
                plan = self.plan_of(label, None, max(self.sparsities), data, model, self.plan.seed or 0)
                try:
                    resolve(plan)
                except InputError as error:  # a plan's word for the sparsities on the way is another
                    raise InputError(str(error).replace("--ticket-at", "--sparsities")) from error

    def controlled_by(self, label: Label) -> tuple[str, ...]:
        """Return the methods a control belongs to: the one it names, or every method that stops early."""
        if label.kind == "method":
            return ()
        if "=" in label.text:
            return (label.of,)
        return tuple(name for name in self.methods if Label.parse(name).stops_early)

    def labels(self) -> list[str]:
        """Return methods and controls by name, in order."""
        more = default_controls(self.methods) if self.controls else []
        return list(dict.fromkeys([*self.methods, *more]))

    def plan_of(self, label: Label, cost: Cost | None, sparsity: float, data: str, model: str, seed: int) -> Plan:
        """Return the plan of one run: what is said for all runs, over the label's own keys."""
        own = label.plan(cost, sparsity)
        on_the_way = None if label.each_sparsity else tuple(sorted(self.sparsities))[:-1] or None
        frame = Plan(data=data, model=model, seed=seed, sparsity=sparsity, ticket_at=on_the_way)
        # A method's own keys give way to what the user says for all runs; a control's keys are what makes it one.
        said = self.plan if label.kind == "method" else Plan()
        return frame.over(said).over(own).over(self.plan).over(Plan(levels=MAX_LEVELS))

    def to_toml(self) -> dict[str, Any]:
        """Return the keys of `comparison.toml`."""
        return {
            "methods": list(self.methods),
            "seeds": self.seeds,
            "sparsities": list(self.sparsities),
            "pairs": [f"{data}/{model}" for data, model in self.pairs],
            "controls": self.controls,
            "plan": self.plan.written(),
        }

    @classmethod
    def from_toml(cls, values: Mapping[str, Any], *, source: str) -> Comparison:
        """Build a comparison from a file's keys."""
        known: dict[str, Callable[[Any], bool]] = {
            "methods": _texts,
            "seeds": lambda v: isinstance(v, int) and not isinstance(v, bool),
            "sparsities": lambda v: isinstance(v, list) and all(isinstance(x, int | float) for x in v),
            "pairs": _texts,
            "controls": lambda v: isinstance(v, bool),
            "plan": lambda v: isinstance(v, dict),
        }
        problems = [f"unknown key {key!r}" for key in values if key not in known]
        problems += [
            f"{key} = {values[key]!r} has the wrong type"
            for key in known
            if key in values and not known[key](values[key])
        ]
        if problems:
            raise InputError(f"{source}: {'; '.join(problems)} (known: {', '.join(known)})")
        told = dict(values)
        told["plan"] = Plan.from_mapping(told.get("plan", {}), source=source)
        for key in ("methods", "sparsities"):
            if key in told:
                told[key] = tuple(told[key])
        if "pairs" in told:
            told["pairs"] = tuple(pair(text) for text in told["pairs"])
        return cls(**{"methods": (), **told})


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def pair(text: str) -> tuple[str, str]:
    """Read a pair of data and model: "mnist/lenet-300-100"."""
    # a model may have slashes of its own, behind the name of its library
    named = re.fullmatch(r"(.+)/((?:torchvision|timm|hf):.+)", text)
    data, model = named.groups() if named else text.rpartition("/")[::2]
    if not data or not model:
        raise InputError(f"the pair {text!r} cannot be read: give data/model, such as mnist/lenet-300-100")
    return data, model


@dataclass
class Job:
    """One run of a comparison.

    Args:
        label: method or control.
        seed: its seed.
        data: its data.
        model: its model.
        sparsity: the one sparsity it ends at, or None when it reports all on its way.
        folder: of its run, relative to the comparison's; known when its plan is.
        control_of: the methods it controls; none for a method.
        state: waiting, running, done or failed.
        error: what ended it.
    """

    label: Label
    seed: int
    data: str
    model: str
    sparsity: float | None
    folder: str = ""
    control_of: tuple[str, ...] = ()
    state: str = "waiting"
    error: str | None = None

    @property
    def place(self) -> tuple[str, str, int]:
        """What it shares a dense level with."""
        return self.data, self.model, self.seed

    @property
    def name(self) -> str:
        """What it is called on a terminal."""
        return f"{self.label.text} · seed {self.seed}" + (f" · {self.sparsity:g}" if self.sparsity else "")

    def to_json(self) -> dict[str, Any]:
        """Return its entry in `jobs.json`."""
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "label": self.label.text}


def jobs_of(comparison: Comparison) -> list[Job]:
    """Return all runs of a comparison, in the order of its methods."""
    jobs = []
    for data, model in comparison.pairs:
        for text in comparison.labels():
            label = Label.parse(text)
            ends = comparison.sparsities if label.each_sparsity else (None,)
            jobs += [
                Job(label, seed, data, model, end, control_of=comparison.controlled_by(label))
                for seed in range(comparison.plan.seed or 0, (comparison.plan.seed or 0) + comparison.seeds)
                for end in ends
            ]
    return jobs
