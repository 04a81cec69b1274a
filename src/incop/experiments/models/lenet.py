"""The two LeNets of LeCun et al. 1998, as the pruning literature uses them."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from incop.experiments.models.shape import check
from incop.experiments.models.weights import glorot


def lenet_300_100(*, channels: int = 1, size: tuple[int, int] = (28, 28), classes: int = 10) -> nn.Sequential:
    """Two hidden layers of 300 and 100 units on the flattened image.

    266,610 parameters on 1×28×28 and 10 classes, published as 266K. ReLU; Glorot normal weights.

    Args:
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
    """
    check("lenet-300-100", channels=channels, size=size, classes=classes)
    return glorot(
        nn.Sequential(
            OrderedDict[str, nn.Module](
                flatten=nn.Flatten(),
                fc1=nn.Linear(channels * size[0] * size[1], 300),
                relu1=nn.ReLU(),
                fc2=nn.Linear(300, 100),
                relu2=nn.ReLU(),
                fc3=nn.Linear(100, classes),
            )
        )
    )


def lenet_5(*, channels: int = 1, size: tuple[int, int] = (28, 28), classes: int = 10) -> nn.Sequential:
    """Two 5×5 convolutions of 6 and 16 maps, then 120 and 84 units.

    61,706 parameters on 1×28×28 and 10 classes, published as "60,000". Today's form, not LeCun's letter: ReLU
    for tanh, max for average pooling, the second convolution sees all six maps, a linear output for radial
    basis functions. Glorot normal weights.

    LeCun sets the 28×28 digits into 32×32 images, which is the first convolution's padding of 2 on any side
    shorter than 32. Sides shorter than 28 pad the second convolution too, so that 8×8 digits still reach it
    as 4×4 maps and the classifier as 2×2 ones.

    Args:
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
    """
    check("lenet-5", channels=channels, size=size, classes=classes)
    pads1 = [2 if side < 32 else 0 for side in size]
    pads2 = [2 if side < 28 else 0 for side in size]
    # a 5×5 kernel takes 4 pixels off a padded side, and pooling halves it
    seen = [(side + 2 * pad - 4) // 2 for side, pad in zip(size, pads1, strict=True)]
    height, width = ((side + 2 * pad - 4) // 2 for side, pad in zip(seen, pads2, strict=True))
    return glorot(
        nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(channels, 6, 5, padding=(pads1[0], pads1[1])),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5, padding=(pads2[0], pads2[1])),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * height * width, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                fc3=nn.Linear(84, classes),
            )
        )
    )
