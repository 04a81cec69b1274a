"""Amounts: how many weights go at one level, out of those that compete with each other."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from incop.errors import InputError, unknown
from incop.records import shortest


@dataclass(frozen=True)
class Competition:
    """Weights that compete with each other, as an amount sees them.

    Args:
        weights: those that are left, flat, shape (d,).
        total: how many there were in the dense network.
        level: number of the level that begins with this cut, 1 for the first.
        damage: what cutting so many of them would do to the network, a function the caller hands in (for instance
            the change of the flow), or None. A search with a probe hands in `flow.Damage`.
        levels: how many levels the search has, None outside a search.
    """

    weights: Tensor
    total: int
    level: int = 1
    damage: Callable[[int], float] | None = None
    levels: int | None = None


class Amount(Protocol):
    """Says how many weights to cut."""

    def __call__(self, competition: Competition) -> int:
        """Return a count between 0 and the number that are left."""


@runtime_checkable
class Planned(Amount, Protocol):
    """An amount that chooses the cuts of all levels before the first of them; a search then cuts by the path it returns."""

    def plan(self, competition: Competition) -> SparsityPath:
        """Return the sparsity that each level ends with, from the weights of the dense network."""


@dataclass(frozen=True)
class Fraction:
    """A fraction of the weights that are left, rounded to the nearest count (of two as near, the even one).

    Args:
        fraction: in [0, 1]; the lottery-ticket papers use 0.2.

    Raises:
        InputError: the fraction is out of range.

    Example:
        >>> import torch
        >>> from incop.pruning import Competition, Fraction
        >>> Fraction(0.2)(Competition(torch.ones(10), total=100))
        2

    Source: Frankle & Carbin 2019.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not _in(self.fraction, 0.0, 1.0):
            raise InputError(
                f"Fraction({self.fraction!r}): the fraction to prune must be in [0, 1] "
                "(0.2 cuts a fifth of what is left)"
            )

    def __call__(self, competition: Competition) -> int:
        """Return round(fraction · d)."""
        return round(self.fraction * _left(competition))

    def sparsity_after(self, levels: int) -> float:
        """Return the sparsity that so many levels lead to."""
        return 1.0 - (1.0 - self.fraction) ** levels

    def __str__(self) -> str:
        return shortest(self.fraction)


@dataclass(frozen=True)
class Target:
    """A schedule to a sparsity in so many levels.

    "even": the same fraction of what is left at every level, density_k = (1 − sparsity)^(k / levels).
    "cubic": fast at first and gently at the end, sparsity_k = sparsity · (1 − (1 − k / levels)³).

    Args:
        sparsity: to be reached, in [0, 1).
        levels: in how many levels, at least 1; later levels cut nothing more.
        path: "even" or "cubic".

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> import torch
        >>> from incop.pruning import Competition, Target
        >>> Target(0.99, levels=2)(Competition(torch.ones(1000), total=1000, level=1))
        900

    Source: even — Frankle & Carbin 2019, reached in a given number of levels; cubic — Zhu & Gupta 2018, Eq. (1).
    """

    sparsity: float
    levels: int
    path: Literal["even", "cubic"] = "even"

    def __post_init__(self) -> None:
        if not _in(self.sparsity, 0.0, 1.0) or self.sparsity == 1.0:
            raise InputError(
                f"Target(sparsity={self.sparsity!r}): the sparsity to reach must be in [0, 1) (0.9 keeps a tenth)"
            )
        if not isinstance(self.levels, int) or isinstance(self.levels, bool) or self.levels < 1:
            raise InputError(
                f"Target(levels={self.levels!r}): the number of levels must be a whole number of at least 1"
            )
        if self.path not in ("even", "cubic"):
            raise unknown("path", str(self.path), ["even", "cubic"])

    def __call__(self, competition: Competition) -> int:
        """Return what lies between what is left and what the level should leave."""
        return max(_left(competition) - round(self._density(competition.level) * competition.total), 0)

    def sparsity_after(self, levels: int) -> float:
        """Return the sparsity that so many levels lead to."""
        return 1.0 - self._density(levels)

    def _density(self, level: int) -> float:
        at = min(level, self.levels) / self.levels
        if self.path == "even":
            return math.pow(1.0 - self.sparsity, at)
        return 1.0 - self.sparsity * (1.0 - (1.0 - at) ** 3)

    def __str__(self) -> str:
        return f"{'cubic ' if self.path == 'cubic' else ''}to {shortest(self.sparsity)} in {self.levels}"


@dataclass(frozen=True)
class SparsityPath:
    """A path of sparsities, one a level, given beforehand.

    Args:
        sparsities: what each level reaches, in [0, 1), never falling; later levels cut nothing more.

    Raises:
        InputError: a sparsity is out of range, or lower than the one before it.

    Example:
        >>> import torch
        >>> from incop.pruning import Competition, SparsityPath
        >>> SparsityPath((0.5, 0.6))(Competition(torch.ones(50), total=100, level=2))
        10
    """

    sparsities: tuple[float, ...]

    def __post_init__(self) -> None:
        given = self.sparsities if isinstance(self.sparsities, Sequence) else ()
        numbers = len(given) > 0 and all(_in(s, 0.0, 1.0) and s < 1.0 for s in given)
        if not numbers or any(a > b for a, b in pairwise(given)):
            raise InputError(
                f"SparsityPath({self.sparsities!r}): give at least one sparsity in [0, 1), none below the one before it"
            )

    def __call__(self, competition: Competition) -> int:
        """Return what lies between what is left and what the level should leave."""
        sparsity = self.sparsities[min(competition.level, len(self.sparsities)) - 1]
        return max(_left(competition) - round((1.0 - sparsity) * competition.total), 0)

    def __str__(self) -> str:
        return f"path of {len(self.sparsities)} to {shortest(self.sparsities[-1])}"


@dataclass(frozen=True)
class EvenDamage:
    """A schedule to a sparsity in so many cuts, each of which does the network the same damage.

    Before the first cut, `trials` masks on the way to the sparsity, evenly spaced in the logarithm of the density, are tried on
    the network without training: R(λ) is the damage at density e^−λ (see `flow.Damage`). Cut k of N then ends where
    R(λ_k) = k/N · R(Λ), with Λ the logarithm of the final density. Where pruning hurts little the cuts are large, where it
    hurts they are small; no tolerance is set by hand. The number of trials is its whole cost.

    Args:
        sparsity: to be reached, in (0, 1).
        levels: in how many cuts, at least 1; by default as many as the search has levels.
        trials: points of the curve, at least 2.

    Raises:
        InputError: an argument is out of range, or nobody says in finite numbers what a cut would do (`prune(…, damage=…)`).

    Example:
        >>> import torch
        >>> from incop.pruning import Competition, EvenDamage
        >>> harm = lambda count: (-torch.log(torch.tensor(1 - count / 1000)).item()) ** 2  # grows with λ², here
        >>> path = EvenDamage(0.98, levels=4).plan(Competition(torch.ones(1000), total=1000, damage=harm))
        >>> [round(s, 2) for s in path.sparsities]
        [0.86, 0.94, 0.97, 0.98]
    """

    sparsity: float
    levels: int | None = None
    trials: int = 8

    def __post_init__(self) -> None:
        if not _in(self.sparsity, 0.0, 1.0) or self.sparsity in (0.0, 1.0):
            raise InputError(f"EvenDamage(sparsity={self.sparsity!r}): the sparsity to reach must be in (0, 1)")
        levels = 1 if self.levels is None else self.levels
        for name, value, least in (("levels", levels, 1), ("trials", self.trials, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"EvenDamage({name}={value!r}): it must be a whole number of at least {least}")

    def plan(self, competition: Competition) -> SparsityPath:
        """Try cuts on the network as it is and return the path of sparsities, from its density to the last.

        Args:
            competition: the weights that are left, with the function from a count to its damage.
        """
        return self._path(competition, self._levels(competition))

    def __call__(self, competition: Competition) -> int:
        """Return the first of the cuts that are still to come, planned from the network as it is now."""
        ahead = max(self._levels(competition) - competition.level + 1, 1)
        return self._path(competition, ahead)(dataclasses.replace(competition, level=1))

    def _levels(self, competition: Competition) -> int:
        levels = self.levels or competition.levels
        if levels is None:
            raise InputError(
                f"EvenDamage({shortest(self.sparsity)}) does not know in how many levels: give it levels=, prune with levels=, "
                "or use it in a search"
            )
        return levels

    def _path(self, competition: Competition, levels: int) -> SparsityPath:
        damage = competition.damage
        if damage is None:
            raise InputError(
                f"the amount '{self}' tries cuts before it chooses: prune with damage=flow.Damage(model, probe), or search "
                "with a probe"
            )
        left, total = _left(competition), competition.total
        keep = round((1.0 - self.sparsity) * total)
        if left <= keep or keep < 1:
            return SparsityPath((max(self.sparsity, 1.0 - left / total if left else 0.0),) * levels)
        whole = math.log(left / keep)
        way = [whole * k / self.trials for k in range(self.trials + 1)]
        harm = [0.0]
        for at in way[1:]:
            count = left - round(left * math.exp(-at))
            harm.append(max(_finite(damage(count), count), harm[-1]))
        densities = [left / total * math.exp(-_reached(way, harm, k / levels)) for k in range(1, levels)]
        return SparsityPath((*(1.0 - density for density in densities), 1.0 - keep / total))

    def sparsity_after(self, levels: int) -> float:
        """Return the sparsity of the last cut."""
        return self.sparsity

    def __str__(self) -> str:
        number = "" if self.levels is None else f" in {self.levels}"
        return f"flow to {shortest(self.sparsity)}{number}"


def _finite(damage: float, count: int) -> float:
    if not math.isfinite(damage):
        raise InputError(f"the damage of cutting {count} weights is {damage!r}: it must be a finite number, 0 for none")
    return damage


def _reached(way: Sequence[float], harm: Sequence[float], share: float) -> float:
    """Return where on the way this share of the whole harm is reached; harm grows like a square between two points."""
    wanted = share * harm[-1]
    if harm[-1] <= 0.0:  # nothing hurts: go evenly
        return share * way[-1]
    k = next(k for k in range(1, len(harm)) if harm[k] >= wanted)
    low, high, at = (math.sqrt(value) for value in (harm[k - 1], harm[k], wanted))
    return way[k] if high <= low else way[k - 1] + (way[k] - way[k - 1]) * (at - low) / (high - low)


@dataclass(frozen=True)
class PQIndex:
    """As many as the weights' own sparsity says, by the PQ index: the amount of SAP and of InCoP.

    I = 1 − d^(1/q − 1/p) ‖w‖_p / ‖w‖_q over the d weights that are left;
    m = ⌈d (1+η)^(−q/(q−p)) (1 − I)^(pq/(q−p))⌉ should stay; the fraction min(γ (1 − m/d), β) goes.

    Args:
        p: order of the first norm, 0 < p < q.
        q: order of the second; published pairs are (1, 2) and (0.5, 1).
        eta: η ≥ 0, how much more than the bound is cut.
        gamma: γ > 0, scales the fraction.
        beta: β in (0, 1], the most that goes at one level.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> import torch
        >>> from incop.pruning import Competition, PQIndex
        >>> PQIndex(p=1, q=2)(Competition(torch.tensor([1.0, 0.01, 0.01, 0.01]), total=4))
        2

    Source: Diao et al., arXiv 2302.05601, the PQ index and algorithm 1 (SAP).
    """

    p: float = 1.0
    q: float = 2.0
    eta: float = 0.0
    gamma: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        given = f"PQIndex(p={self.p!r}, q={self.q!r}, eta={self.eta!r}, gamma={self.gamma!r}, beta={self.beta!r})"
        numbers = all(_in(v, -math.inf, math.inf) for v in (self.p, self.q, self.eta, self.gamma, self.beta))
        if not numbers or not 0 < self.p < self.q:
            raise InputError(f"{given}: it needs 0 < p < q; published pairs are p=1, q=2 and p=0.5, q=1")
        if self.eta < 0 or self.gamma <= 0 or not 0 < self.beta <= 1:
            raise InputError(f"{given}: it needs eta ≥ 0, gamma > 0 and beta in (0, 1]")

    def index(self, weights: Tensor) -> float:
        """Return the PQ index I of the weights, in [0, 1): 0 when all are of one size, near 1 when few carry all.

        Example:
            >>> import torch
            >>> from incop.pruning import PQIndex
            >>> PQIndex(p=1, q=2).index(torch.tensor([3.0, 0.0, 0.0, 0.0]))  # 1 - 1/√4
            0.5
        """
        return -math.expm1(self._log_evenness(weights))

    def _log_evenness(self, weights: Tensor) -> float:
        """Return ln(1 − I), at most 0: the logarithm holds also where a norm of small order would overflow."""
        d = int(weights.numel())
        size = weights.detach().double().abs()
        largest = size.max() if d else torch.zeros(())
        if d == 0 or largest == 0:
            return 0.0
        size = size / largest  # the index does not depend on scale; this keeps powers from over- and underflowing
        log_p, log_q = (math.log(float(size.pow(order).sum())) / order for order in (self.p, self.q))
        return min((1 / self.q - 1 / self.p) * math.log(d) + log_p - log_q, 0.0)

    def __call__(self, competition: Competition) -> int:
        """Return ⌊d · min(γ (1 − m/d), β)⌋."""
        d = _left(competition)
        if d == 0:
            return 0
        gap = self.q - self.p
        log_evenness = self._log_evenness(competition.weights)
        bound = d * math.exp((self.p * log_evenness - math.log1p(self.eta)) * self.q / gap)
        keep = min(max(math.ceil(bound - 1e-9 * d), 1), d)  # 1e-9: a bound of exactly m must not round up past it
        return math.floor(min(self.gamma * (d - keep), self.beta * d) + 1e-9)

    def __str__(self) -> str:
        said = [self.p, self.q]
        if (self.eta, self.gamma, self.beta) != (0.0, 1.0, 0.9):
            said += [self.eta, self.gamma, self.beta]
        return "pq:" + ",".join(shortest(number) for number in said)


def _left(competition: Competition) -> int:
    return int(competition.weights.numel())


def _in(value: float, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )


MAX_LEVELS = 10_000  # of an amount in words: a path holds a sparsity for each

# How an amount is read, how it is shown, what it makes.
AMOUNTS: tuple[tuple[str, str, Callable[[re.Match[str]], Amount]], ...] = (
    (r"pq:(.+,.+)", "pq:p,q (pq:1,2)", lambda m: PQIndex(*map(float, m[1].split(",")))),
    (
        r"flow to (\S+)(?: in (\d+))?",
        "'flow to 0.98 in 40' (the flow chooses the cuts)",
        lambda m: EvenDamage(float(m[1]), int(m[2]) if m[2] else None),
    ),
    (
        r"(cubic )?to (\S+) in (\d+)",
        "'to 0.98 in 10' (a sparsity and a number of levels)",
        lambda m: Target(float(m[2]), int(m[3]), "cubic" if m[1] else "even"),
    ),
    (r"(.+)", "a fraction of what is left (0.2)", lambda m: Fraction(float(m[1]))),
)


def parse_amount(text: str) -> Amount:
    """Read an amount in words, as `str(amount)` writes it.

    Args:
        text: "0.2", "pq:1,2" (p,q[,eta,gamma,beta]), "to 0.98 in 10", "cubic to 0.98 in 10" or "flow to 0.98 in 40".

    Raises:
        InputError: it is none of these, or out of range.

    Example:
        >>> from incop import pruning
        >>> pruning.parse_amount("pq:0.5,1").q
        1.0
    """
    try:
        amount = next(make(match) for pattern, _, make in AMOUNTS if (match := re.fullmatch(pattern, text)))
    except InputError:
        raise
    except (ValueError, TypeError, StopIteration):
        *others, last = [form for _, form, _ in reversed(AMOUNTS)]
        raise InputError(f"the amount {text!r} cannot be read: give {', '.join(others)} or {last}") from None
    if (getattr(amount, "levels", None) or 1) > MAX_LEVELS:
        raise InputError(f"the amount {text!r} goes by more than {MAX_LEVELS} levels")
    return amount
