"""Flow: how information and gradients pass between a network's layers, measured without leaving a trace."""

from incop.flow.damage import Damage
from incop.flow.gradient import GradientFlow
from incop.flow.information import InformationFlow
from incop.flow.losses import OwnLoss, TokenLoss
from incop.flow.meter import Meter, forward, measure, trace
from incop.flow.sampling import SamplingError, sampling_error
from incop.flow.taps import Taps
from incop.flow.words import parse_meter

__all__ = [
    "Damage",
    "GradientFlow",
    "InformationFlow",
    "Meter",
    "OwnLoss",
    "SamplingError",
    "Taps",
    "TokenLoss",
    "forward",
    "measure",
    "parse_meter",
    "sampling_error",
    "trace",
]
