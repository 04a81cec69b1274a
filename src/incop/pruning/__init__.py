"""Pruning: scores (which), amounts (how many), selection (who competes), and the cut that joins them."""

from incop.pruning.amounts import (
    Amount,
    Competition,
    EvenDamage,
    Fraction,
    Planned,
    PQIndex,
    SparsityPath,
    Target,
    parse_amount,
)
from incop.pruning.cut import prune
from incop.pruning.saliency import Saliency
from incop.pruning.scores import GradientTimesWeight, Magnitude, Random, Score, parse_score
from incop.pruning.selection import Global, Layerwise, Lined, NofM, Selection, parse_selection
from incop.pruning.units import Units

__all__ = [
    "Amount",
    "Competition",
    "EvenDamage",
    "Fraction",
    "Global",
    "GradientTimesWeight",
    "Layerwise",
    "Lined",
    "Magnitude",
    "NofM",
    "PQIndex",
    "Planned",
    "Random",
    "Saliency",
    "Score",
    "Selection",
    "SparsityPath",
    "Target",
    "Units",
    "parse_amount",
    "parse_score",
    "parse_selection",
    "prune",
]
