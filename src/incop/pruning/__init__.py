"""Pruning: scores (which), amounts (how many), selection (who competes), and the cut that joins them."""

from incop.pruning.amounts import Amount, Competition, Fraction, PQIndex, Target
from incop.pruning.cut import prune
from incop.pruning.scores import GradientTimesWeight, Magnitude, Random, Score
from incop.pruning.selection import Global, Layerwise, NofM, Selection

__all__ = [
    "Amount",
    "Competition",
    "Fraction",
    "Global",
    "GradientTimesWeight",
    "Layerwise",
    "Magnitude",
    "NofM",
    "PQIndex",
    "Random",
    "Score",
    "Selection",
    "Target",
    "prune",
]
