"""Layers: what can be pruned, what feeds what in a forward pass, and which layers are neighbours of a flow."""

from incop.layers.calls import Call, CallNames, calls, hides_layers, module_of, reentrant
from incop.layers.chain import Chain, chain, folded, sample_axis
from incop.layers.hooks import Hooks
from incop.layers.kinds import LAYERS, is_conv1d, is_layer, units_axis, weight_names
from incop.layers.units import Removable, removable, unit_and_input
from incop.layers.weights import left_out, prunable

__all__ = [
    "LAYERS",
    "Call",
    "CallNames",
    "Chain",
    "Hooks",
    "Removable",
    "calls",
    "chain",
    "folded",
    "hides_layers",
    "is_conv1d",
    "is_layer",
    "left_out",
    "module_of",
    "prunable",
    "reentrant",
    "removable",
    "sample_axis",
    "unit_and_input",
    "units_axis",
    "weight_names",
]
