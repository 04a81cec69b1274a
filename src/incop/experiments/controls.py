"""Controls: runs that answer whether something simpler would have done as well, at the same cost.

| control | what it does |
|---|---|
| `fixed:k[=M]` | M's search with k epochs a level, blindly |
| `fixed:match=M` | the same with M's own total, spread evenly over its levels |
| `oneshot=M` | one cut, then learning-rate rewinding for as long as M took in all |
| `gradual=M` | gradual magnitude pruning in one run as long as M's |
| `mask-settled[=M]` | M's search, a level ending when the mask that would be cut has settled |
| `accuracy-restored[=M]` | M's search, a level ending when validation accuracy is back within 0.2 points of the dense network's |
| `random=M` | `fixed:match` with weights cut at random |

M is a method of the same comparison; where it can be left out, `incop-if` lends its amount, selection and rewind.
Where M plans its cuts by the flow, its controls go by levels of a fifth instead, and each sparsity takes a run of its own;
all else, such as how the search levels are trained, is M's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.methods import METHODS, PLANNED, cuts, fifths, is_planned, method
from incop.records import Level, Spent, shortest

GRADUAL_CUTS = 20  # Zhu & Gupta prune every 100 to 1000 steps; 20 cuts follow their cubic to 1 % of its range
BASE = "incop-if"
DROP = 0.002  # of accuracy that may be missing still, two tenths of a point
FINE = "0.1"  # epochs between the checks of a planned method's controls


@dataclass(frozen=True)
class Cost:
    """What a method's run cost, as its controls need it.

    Args:
        search: epochs of all search levels (all but the one that ends at the sparsity), probing included.
        search_levels: how many those are.
        total: epochs of the search and of the last level's full training.
    """

    search: float
    search_levels: int
    total: float

    @classmethod
    def of(cls, levels: Sequence[Level], sparsity: float) -> Cost:
        """Count what a run spent until its ticket of a sparsity, in epochs, each probed sample like a trained one."""
        end = min((x for x in levels if x.level > 0), key=lambda level: abs(level.sparsity - sparsity), default=None)
        if end is None or abs(end.sparsity - sparsity) > 5e-3:
            raise InputError(f"the run reached no ticket of sparsity {sparsity:g}")
        searched = [level for level in levels if 0 < level.level < end.level]
        per_epoch = end.samples / end.epochs if end.epochs else 1.0
        search = sum(_epochs(level.searched, per_epoch) for level in searched)
        return cls(search, len(searched), search + _epochs(end.spent, per_epoch))


def _epochs(spent: Spent, per_epoch: float) -> float:
    return spent.epochs + spent.probe_samples / per_epoch


@dataclass(frozen=True)
class Label:
    """A method or a control, as the user names it.

    Args:
        text: "lth", "fixed:2", "fixed:match=incop-gf", …
        kind: method, fixed, oneshot, gradual, mask-settled, accuracy-restored or random.
        of: the method it controls or borrows from; for a method, itself.
        epochs: k of `fixed:k`, else None.
    """

    text: str
    kind: str
    of: str
    epochs: float | None = None

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read a label."""
        if text in METHODS and text != "dense":
            return cls(text, "method", text)
        form, _, of = text.partition("=")
        if match := re.fullmatch(r"fixed:(\d+(?:\.\d+)?|\.\d+)", form):
            found = cls(text, "fixed", of or BASE, float(match[1]))
        elif form in ("mask-settled", "accuracy-restored"):
            found = cls(text, form, of or BASE)
        elif form in ("fixed:match", "oneshot", "gradual", "random") and of:
            found = cls(text, form.partition(":")[0], of)
        else:
            known = [name for name in METHODS if name != "dense"]
            raise InputError(
                f"unknown method or control {text!r}: methods are {', '.join(known)}; controls are fixed:k, fixed:match=M, "
                "oneshot=M, gradual=M, mask-settled, accuracy-restored and random=M, with M one of the methods"
            )
        if found.of not in METHODS or found.of == "dense":
            raise InputError(f"the control {text!r} belongs to {of!r}, which is no method")
        return found

    @property
    def stops_early(self) -> bool:
        """Whether it is a method whose levels a rule ends."""
        return self.kind == "method" and METHODS[self.of]["rule"] != "none"

    @property
    def needs_cost(self) -> bool:
        """Whether its plan depends on what the method it controls has cost."""
        return self.kind in ("oneshot", "gradual", "random") or (self.kind == "fixed" and self.epochs is None)

    @property
    def each_sparsity(self) -> bool:
        """Whether every sparsity takes a run of its own."""
        return self.kind in ("oneshot", "gradual") or is_planned(self.of)

    def plan(self, cost: Cost | None, sparsity: float) -> Plan:
        """Return the plan's keys that make this label, at a sparsity and for a cost where it depends on them."""
        row = self._row(sparsity)
        if self.kind == "method":
            return row
        every = Plan(check_every=FINE if is_planned(self.of) else "1")
        if self.kind == "mask-settled":
            return Plan(rule="mask settled 0.1 for 5", meter="none").over(every).over(row)
        if self.kind == "accuracy-restored":
            return Plan(rule=f"accuracy within {DROP}", meter="none", check_before=True).over(every).over(row)
        return Plan(meter="none").over(_MATCHED[self.kind](self, cost, sparsity)).over(row)

    def _row(self, sparsity: float) -> Plan:
        """Return the method's keys; of one that plans its cuts, for a control, with levels of a fifth instead."""
        row = {key: value for key, value in method(self.of).items() if value != PLANNED}
        if not is_planned(self.of):
            return Plan(method=self.of, **row)
        if self.kind == "method":
            return Plan(method=self.of, levels=cuts(sparsity), **row)
        levels = math.ceil(fifths(sparsity))
        return Plan(method=self.of, levels=levels, amount=f"to {sparsity!r} in {levels}", **row)


def _each_level(label: Label, cost: Cost | None, sparsity: float) -> Plan:
    epochs = label.epochs
    if epochs is None:
        assert cost is not None
        levels = math.ceil(fifths(sparsity)) - 1 if is_planned(label.of) else cost.search_levels
        epochs = cost.search / max(levels, 1)
    return _blind(epochs)


def _blind(epochs: float) -> Plan:
    """Return the keys that end a level after so many epochs; none at all, if that is what was spent."""
    words = shortest(round(epochs, 4))
    if words == "0":
        return Plan(rule="after 0 epochs", check_every="1", check_before=True)
    return Plan(rule=f"after {words} epochs", check_every=words, check_before=False)


def _oneshot(label: Label, cost: Cost | None, sparsity: float) -> Plan:
    assert cost is not None
    return Plan(
        levels=1, amount=f"to {sparsity!r} in 1", rewind="rate", rule="none", level_epochs=cost.total, check_every="1"
    )


def _gradual(label: Label, cost: Cost | None, sparsity: float) -> Plan:
    assert cost is not None
    own = Plan(
        levels=GRADUAL_CUTS, amount=f"cubic to {sparsity!r} in {GRADUAL_CUTS}", selection="global", rewind="rate"
    )
    return own.over(_blind(cost.search / (GRADUAL_CUTS - 1)))


def _random(label: Label, cost: Cost | None, sparsity: float) -> Plan:
    # An amount that reads the weights (PQ index) would cut more of weights that were cut at random: levels are matched.
    assert cost is not None
    levels = math.ceil(fifths(sparsity)) if is_planned(label.of) else cost.search_levels + 1
    own = Plan(score="random", amount=f"to {sparsity!r} in {levels}", selection="global")
    return own.over(_each_level(label, cost, sparsity))


_MATCHED: dict[str, Callable[[Label, Cost | None, float], Plan]] = {
    "fixed": _each_level,
    "oneshot": _oneshot,
    "gradual": _gradual,
    "random": _random,
}


def default_controls(methods: Sequence[str]) -> list[str]:
    """Return the controls that the InCoP methods among these are set against."""
    watched = [name for name in methods if Label.parse(name).stops_early]
    published = [name for name in watched if not is_planned(name)]
    planned = [name for name in watched if is_planned(name)]
    every = ("fixed:match", "oneshot", "mask-settled", "accuracy-restored", "gradual", "random")
    found = [f"{control}={name}" for name in planned for control in every]
    if published:
        found += [f"{control}={name}" for name in published for control in ("fixed:match", "oneshot")]
        found += ["fixed:1", "mask-settled", f"gradual={published[0]}", f"random={published[0]}"]
    return found
