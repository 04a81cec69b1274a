"""Conv-2, Conv-4 and Conv-6: the small relatives of VGG of the lottery ticket hypothesis."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from incop.errors import InputError
from incop.experiments.models.shape import check, halved, halvings
from incop.experiments.models.weights import glorot

DEPTHS = (2, 4, 6)
WIDTH = 64  # of the first pair of convolutions; each pair is pooled, and the next is twice as wide


def conv(
    depth: int, *, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10, width: int = WIDTH
) -> nn.Sequential:
    """Pairs of 3×3 convolutions of 64, 128 and 256 maps, each pair pooled, then 256 and 256 units.

    | network | parameters on 3×32×32, 10 classes | published | of these in convolutions | published |
    |---------|----------------------------------:|----------:|-------------------------:|----------:|
    | Conv-2  |                         4,301,642 |      4.3M |                   38,720 |       38K |
    | Conv-4  |                         2,425,930 |      2.4M |                  260,160 |      260K |
    | Conv-6  |                         2,262,602 |      1.7M |                1,145,408 |      1.1M |

    Conv-6's published total does not follow from its own published layers: 256 maps of 4×4 into 256 units are
    1.05M weights, on top of the 1.1M in convolutions. The layers are built as listed.

    ReLU, max pooling, Glorot normal weights. Odd sides round up when pooled; images too small for every
    pooling leave out the first ones (`shape.halvings`).

    Args:
        depth: number of convolutions, one of 2, 4, 6.
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
        width: maps of the first pair, in [1, ∞); all other widths in proportion. 64 as published.
    """
    if depth not in DEPTHS:
        raise InputError(f"there is no conv-{depth}: choose conv-2, conv-4 or conv-6")
    check(f"conv-{depth}", channels=channels, size=size, classes=classes)
    if width < 1:
        raise InputError(f"conv-{depth} with width={width!r}: the first pair of convolutions needs at least one map")
    widths = [width * 2**pair for pair in range(depth // 2)]
    pools = halvings(size, most=len(widths))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number, before = 0, channels
    for pair, maps in enumerate(widths):
        for _ in range(2):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(before, maps, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            before = maps
        if pair >= len(widths) - pools:
            layers[f"pool{pair + 1}"] = nn.MaxPool2d(2, ceil_mode=True)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(before * halved(size, pools), 4 * width)
    layers[f"relu{number + 1}"] = nn.ReLU()
    layers["fc2"] = nn.Linear(4 * width, 4 * width)
    layers[f"relu{number + 2}"] = nn.ReLU()
    layers["fc3"] = nn.Linear(4 * width, classes)
    return glorot(nn.Sequential(layers))
