"""ResNet-20, -32, -56 for CIFAR, and ResNet-18 with the small stem."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from incop.errors import InputError
from incop.experiments.models.shape import check, halvings
from incop.experiments.models.weights import kaiming


class Block(nn.Module):
    """Two 3×3 convolutions and a way around them: He et al. 2016, Figure 2.

    The way around is the identity, or a 1×1 convolution with batch normalization where the shape changes
    (option B of section 4.1). It runs last, so the order of the modules is the order in which they run.

    Args:
        before: channels that come in, in [1, ∞).
        width: channels that go out, in [1, ∞).
        stride: of the first convolution and of the way around, 1 or 2.
    """

    def __init__(self, before: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(
                OrderedDict[str, nn.Module](
                    conv=nn.Conv2d(before, width, 1, stride=stride, bias=False), bn=nn.BatchNorm2d(width)
                )
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return ReLU(convolutions(x) + shortcut(x))."""
        out_BCHW = functional.relu(self.bn1(self.conv1(x_BCHW)))
        out_BCHW = self.bn2(self.conv2(out_BCHW))
        return functional.relu(out_BCHW + self.shortcut(x_BCHW))


def resnet(depth: int, *, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10) -> nn.Sequential:
    """The CIFAR ResNet of depth 6n + 2: three stages of n blocks with 16, 32 and 64 channels.

    | network   | parameters on 3×32×32, 10 classes | without the two projections | published |
    |-----------|----------------------------------:|----------------------------:|----------:|
    | ResNet-20 |                           272,474 |                     269,722 |     0.27M |
    | ResNet-32 |                           466,906 |                     464,154 |     0.46M |
    | ResNet-56 |                           855,770 |                     853,018 |     0.85M |

    The paper's networks widen without parameters (option A: padding with zeros), and its counts are those of
    the middle column. The pruning literature projects (option B), and so do these: 2,752 parameters more at
    any depth.

    Kaiming normal weights. Images of 4×4 leave out the first stride (`shape.halvings`); the parameters do not
    depend on the size.

    Args:
        depth: number of layers with weights on the main path, 6n + 2 for n in [1, ∞).
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
    """
    if depth < 8 or depth % 6 != 2:
        raise InputError(f"there is no resnet-{depth} of this kind: its depth is 6n + 2, such as 20, 32 or 56")
    check(f"resnet-{depth}", channels=channels, size=size, classes=classes)
    return _resnet((16, 32, 64), blocks=(depth - 2) // 6, channels=channels, size=size, classes=classes)


def resnet_18(*, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10) -> nn.Sequential:
    """ResNet-18 for 32×32 images: a 3×3 stem without pooling, four stages of two blocks, 64 to 512 channels.

    11,173,962 parameters on 3×32×32 and 10 classes, equal to the published count. Not the "Resnet-18" of
    Frankle and Carbin 2019, which is the ResNet-20 here. Projections as in `resnet`; Kaiming normal weights.
    Images of 8×8 and below leave out the first strides (`shape.halvings`); the parameters do not depend on
    the size.

    Args:
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
    """
    check("resnet-18", channels=channels, size=size, classes=classes)
    return _resnet((64, 128, 256, 512), blocks=2, channels=channels, size=size, classes=classes)


def _resnet(
    widths: tuple[int, ...], *, blocks: int, channels: int, size: tuple[int, int], classes: int
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(widths[0]),
        relu1=nn.ReLU(),
    )
    strides = halvings(size, most=len(widths)) - 1  # the mean at the end takes the last one
    before = widths[0]
    for stage, width in enumerate(widths):
        first = Block(before, width, stride=2 if stage >= len(widths) - strides else 1)
        layers[f"layer{stage + 1}"] = nn.Sequential(first, *(Block(width, width) for _ in range(blocks - 1)))
        before = width
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before, classes)
    return kaiming(nn.Sequential(layers))
