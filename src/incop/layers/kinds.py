"""Kinds of layers: which modules count as one, which of their tensors are weights, where their units lie."""

from __future__ import annotations

from torch import nn

LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
UNITS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
UNITS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, *RECURRENT)


def is_conv1d(module: nn.Module) -> bool:
    """Say whether this is the `Conv1D` of transformers: a linear layer whose weight is (inputs, outputs).

    It is known by its class's name and home and by the shape of its weight; transformers is not imported for it.
    """
    if not any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.") for kind in type(module).mro()
    ):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.shape[1] == getattr(module, "nf", None)


def is_layer(module: nn.Module) -> bool:
    """Say whether a flow counts this module as a layer: linear, convolution, recurrent, or torch's attention."""
    return isinstance(module, (*LAYERS, *RECURRENT, nn.MultiheadAttention)) or is_conv1d(module)


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a layer's own weight matrices; none for a module that is no layer."""
    if isinstance(module, nn.RNNBase):
        return tuple(name for group in module._all_weights for name in group if name.startswith("weight"))
    if isinstance(module, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    if isinstance(module, nn.MultiheadAttention):  # its out_proj is a layer of its own
        return (
            ("in_proj_weight",) if module._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )
    return ("weight",) if isinstance(module, LAYERS) or is_conv1d(module) else ()


def units_axis(module: nn.Module, dimensions: int) -> int:
    """Return where an output of so many dimensions has its units: 1 or the last.

    Convolutions, batch and group normalisation have them in dimension 1; linear and recurrent modules, layer
    normalisation and attention in the last; of any other module, with four dimensions or more in dimension 1.
    """
    if dimensions == 2:
        return 1
    last = isinstance(module, UNITS_LAST) or is_conv1d(module)
    first = isinstance(module, UNITS_FIRST) or (dimensions >= 4 and not last)
    return 1 if first else dimensions - 1
