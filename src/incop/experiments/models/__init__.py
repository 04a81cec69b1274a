"""Networks of the pruning literature, each with its source, parameter count and usual training; and others by their names.

The others are those of torchvision, timm and transformers, and factories in the user's own code. Those of the literature
are plain `nn.Sequential`s whose modules stand in the order in which they run. No ReLU works in place: a layer's output
stays what the layer put out, for whoever looks at it later. A network is one more row in the table below.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from incop.errors import InputError, nearest, quoted, unknown
from incop.experiments.models import code, libraries, making
from incop.experiments.models.conv import conv
from incop.experiments.models.lenet import lenet_5, lenet_300_100
from incop.experiments.models.making import Made
from incop.experiments.models.named import FORMS, LIBRARIES, TASKS, Wanted, parse
from incop.experiments.models.resnet import resnet, resnet_18
from incop.experiments.models.vgg import vgg
from incop.flat_state import random_states, restore_random

__all__ = [
    "FORMS",
    "Entry",
    "Made",
    "Recipe",
    "build",
    "check_name",
    "code_of",
    "consent",
    "entry",
    "full_name",
    "make",
    "names",
    "recipe",
]

MAX_PARAMETERS = 500_000_000  # 2 GB, and four times that with gradients and Adam's averages; ResNet-18 has 11 million


@dataclass(frozen=True)
class Recipe:
    """The training a network gets when the user does not say otherwise.

    Args:
        optimizer: "sgd" or "adam".
        lr: first learning rate, in (0, ∞).
        batch_size: images in a step, in [1, ∞).
        momentum: of SGD, in [0, 1); 0 for Adam, which has its own.
        weight_decay: L2 penalty, in [0, ∞).
        schedule: "constant", or "cosine" from `lr` to 0 over `epochs`.
        epochs: length of the full training, in [1, ∞).

    Example:
        >>> from incop.experiments import models
        >>> models.entry("resnet-20").recipe.lr
        0.1
    """

    optimizer: Literal["sgd", "adam"]
    lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    schedule: Literal["constant", "cosine"]
    epochs: int


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Args:
        name: as in `names()`.
        build: makes it, with the keywords channels, size and classes.
        source: paper and place in it.
        parameters: of the network built here, on the published input and classes; where it differs from the
            paper's figure, the builder's documentation says why.
        published_input: channels, height and width.
        published_classes: number of classes.
        recipe: the usual training.

    Example:
        >>> from incop.experiments import models
        >>> models.entry("LeNet5").parameters
        61706
    """

    name: str
    build: Callable[..., nn.Module]
    source: str
    parameters: int
    published_input: tuple[int, int, int]
    published_classes: int
    recipe: Recipe


def names() -> list[str]:
    """Return the name of every network, family by family.

    Example:
        >>> from incop.experiments import models
        >>> models.names()[:2]
        ['lenet-300-100', 'lenet-5']
    """
    return list(_TABLE)


def entry(name: str) -> Entry:
    """Return a network's row of the table.

    Args:
        name: as in `names()`; case, "-" and "_" do not matter.

    Raises:
        InputError: there is no such network.

    Example:
        >>> from incop.experiments import models
        >>> models.entry("lenet_300_100").name
        'lenet-300-100'
    """
    for known, row in _TABLE.items():
        if _plain(known) == _plain(name):
            return row
    if not isinstance(name, str):
        raise InputError(f"the model must be a name, not {quoted(name)}")
    near = nearest(name, [*names(), *(f"{library}:…" for library in LIBRARIES)])
    raise InputError(f"unknown model {quoted(name)}: {near}(known: {', '.join(names())}; or {FORMS})")


def recipe(name: str) -> Recipe:
    """Return the training that a network gets when nothing else is said.

    Args:
        name: as `build` takes it.

    Example:
        >>> from incop.experiments import models
        >>> models.recipe("timm:vit_tiny_patch16_224").schedule
        'cosine'
    """
    return entry(name).recipe if parse(name) is None else OTHERS


def code_of(name: str | None) -> str | None:
    """Return the file or module whose code runs when this model is made; None when none but incop's and a library's does.

    Example:
        >>> from incop.experiments import models
        >>> models.code_of("nets.py:make"), models.code_of("lenet-5")
        ('nets.py', None)
    """
    named = None if name is None else parse(name)
    return named.place if named is not None and named.is_code else None


def check_name(name: str) -> None:
    """Refuse a name that is no network; libraries are imported, the user's code is not run.

    Raises:
        InputError: there is no such network; the nearest is suggested.
        MissingExtra: its library is not installed.
    """
    named = parse(name)
    if named is None:
        entry(name)
    elif named.is_code:
        code.check(named)
    else:
        libraries.check(named)


def full_name(name: str) -> str:
    """Return a network's name as records hold it: as the table writes it, paths in full."""
    named = parse(name)
    return entry(name).name if named is None else named.absolute()


def build(
    name: str,
    *,
    channels: int = 0,
    size: tuple[int, int] = (0, 0),
    classes: int,
    seed: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str = "none",
    run_code: bool = False,
    task: Literal["images", "text", "language"] = "images",
) -> nn.Module:
    """Build a network for the data at hand.

    Args:
        name: one of `names()`, where case, "-" and "_" do not matter; or `torchvision:resnet18`, `timm:vit_tiny_patch16_224`,
            `hf:FOLDER` (with config.json), `hf:vit` (a model type of transformers), `hf:OWNER/NAME` (of the hub),
            `file.py:factory`, `package.module:factory`.
        channels: channels of an image, in [1, ∞).
        size: height and width in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞). A factory of your own is given classes, channels and size under the names
            it takes them by: classes, num_classes or num_labels; channels, in_channels or in_chans; size, image_size or
            img_size.
        seed: of the first weights, which are drawn on the CPU whatever the default device; the global
            random state is left as it was. None draws from that state instead, as torch does.
        arguments: further keyword arguments of the factory; of `hf:`, of the configuration.
        weights: "none", "pretrained" (the library fetches its own), or a safetensors file. One layer of another shape,
            such as that of the classes, keeps its drawn weights.
        run_code: whether a factory's file may be run, or its module imported. Nothing else runs code that is not incop's
            or a library's.
        task: "images" classifies images, "text" sequences of tokens, "language" predicts the next token; the last two
            are of `hf:` only.

    Returns:
        The network, on the CPU and in training mode.

    Raises:
        InputError: there is no such network, it cannot be built for these data, or it would run code.
        MissingExtra: its library is not installed.

    Example:
        >>> from incop.experiments import models
        >>> model = models.build("lenet-5", channels=1, size=(8, 8), classes=10, seed=0)
        >>> sum(p.numel() for p in model.parameters())
        21386
    """
    made = make(
        name,
        channels=channels,
        size=size,
        classes=classes,
        seed=seed,
        arguments=arguments,
        weights=weights,
        run_code=run_code,
        task=task,
    )
    return made.model


def make(
    name: str,
    *,
    channels: int = 0,
    size: tuple[int, int] = (0, 0),
    classes: int,
    seed: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str = "none",
    run_code: bool = False,
    task: str = "images",
) -> Made:
    """Build a network as `build` does, and say besides what made it and what a reader of its records should know."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    named, given = parse(name), dict(arguments or {})
    making.check_weights(weights)
    if named is not None and named.is_code and not run_code:
        raise InputError(consent(name))
    wanted = Wanted(task, classes, channels, size)
    if named is not None:
        return making.make(
            named, wanted, arguments=given, weights=weights, most=MAX_PARAMETERS, within=lambda: _drawn(seed)
        )
    row = entry(name)
    if given:
        raise InputError(f"{row.name} takes no model_args: {quoted(next(iter(given)))} is none of its own")
    if task != "images":
        raise InputError(f"{row.name} classifies images, and the task is {task}: take a model of hf:")
    if weights == "pretrained":
        raise InputError(
            f"{row.name} has no pretrained weights: name a safetensors file, or take a model of timm or torchvision"
        )
    _check_size(row, channels, size, classes)
    with _drawn(seed):
        model = row.build(channels=channels, size=size, classes=classes)
    return Made(model, None, () if weights == "none" else tuple(making.start_from_file(model, weights)))


def consent(name: str) -> str:
    """Return the sentence for a model whose code nobody allowed to run."""
    return (
        f"the model {quoted(name)} is code, {code_of(name)!r}, that would be run: read it, and say --run-code if you trust it "
        "(a model named on the command line itself is run at once)"
    )


@contextmanager
def _drawn(seed: int | None) -> Iterator[None]:
    """Draw weights on the CPU by a seed, and leave every random state as it was; without one, from the state that is there."""
    with torch.device("cpu"):
        if seed is None:
            yield
            return
        before = random_states()
        try:
            random.seed(seed)
            np.random.seed(seed)
            # not torch.manual_seed, which would also seed the accelerators
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            restore_random(before)


def _check_size(row: Entry, channels: int, size: tuple[int, int], classes: int) -> None:
    """Refuse a network that pictures of a stranger's size would make too large, before memory is taken for it."""
    large = math.prod((channels, *size)) > 4 * math.prod(row.published_input) or classes > 10 * row.published_classes
    if not large:  # building it twice, once without memory, takes up to 40 ms
        return
    with torch.device("meta"):
        parameters = sum(p.numel() for p in row.build(channels=channels, size=size, classes=classes).parameters())
    if parameters > MAX_PARAMETERS:
        raise InputError(
            f"{row.name} for {channels}×{size[0]}×{size[1]} images of {classes} classes would have {parameters} parameters, more "
            f"than {MAX_PARAMETERS}: scale the images down, or choose a network of convolutions such as resnet-20"
        )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _adam(lr: float, *, epochs: int) -> Recipe:
    # Frankle and Carbin 2019, Figure 2: Adam, batches of 60, no decay, no schedule
    return Recipe("adam", lr, batch_size=60, momentum=0.0, weight_decay=0.0, schedule="constant", epochs=epochs)


def _sgd(lr: float, *, weight_decay: float) -> Recipe:
    # He et al. 2016, section 4.2, for 160 epochs as in Liu et al. 2019, "Rethinking the Value of Network
    # Pruning"; instead of their two drops, one cosine (Loshchilov and Hutter 2017, Eq. (5)), which needs no
    # places for the drops when the number of epochs is changed
    return Recipe("sgd", lr, batch_size=128, momentum=0.9, weight_decay=weight_decay, schedule="cosine", epochs=160)


# a beginning, tuned on nothing: what most networks learn by
OTHERS = Recipe("adam", 1e-3, batch_size=64, momentum=0.0, weight_decay=0.0, schedule="cosine", epochs=20)


def _mnist(name: str, build: Callable[..., nn.Module], source: str, parameters: int, recipe: Recipe) -> Entry:
    return Entry(name, build, source, parameters, (1, 28, 28), 10, recipe)


def _cifar(name: str, build: Callable[..., nn.Module], source: str, parameters: int, recipe: Recipe) -> Entry:
    return Entry(name, build, source, parameters, (3, 32, 32), 10, recipe)


_LECUN = "LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, section"
_FRANKLE = "Frankle and Carbin 2019, The Lottery Ticket Hypothesis, Figure 2"
_HE = "He et al. 2016, Deep Residual Learning for Image Recognition, Table"
_VGG = "Simonyan and Zisserman 2015, Very Deep Convolutional Networks, Table 1, column"

_TABLE = {
    row.name: row
    for row in (
        # Frankle and Carbin train for 50,000 steps (55 epochs), most of them after the best validation loss
        _mnist("lenet-300-100", lenet_300_100, f"{_LECUN} III-C", 266_610, _adam(1.2e-3, epochs=20)),
        _mnist("lenet-5", lenet_5, f"{_LECUN} II-B", 61_706, _adam(1.2e-3, epochs=20)),
        # 20,000, 25,000 and 30,000 steps of 60 out of 45,000 images
        _cifar("conv-2", partial(conv, 2), _FRANKLE, 4_301_642, _adam(2e-4, epochs=27)),
        _cifar("conv-4", partial(conv, 4), _FRANKLE, 2_425_930, _adam(3e-4, epochs=33)),
        _cifar("conv-6", partial(conv, 6), _FRANKLE, 2_262_602, _adam(3e-4, epochs=40)),
        _cifar("resnet-20", partial(resnet, 20), f"{_HE} 6", 272_474, _sgd(0.1, weight_decay=1e-4)),
        _cifar("resnet-32", partial(resnet, 32), f"{_HE} 6", 466_906, _sgd(0.1, weight_decay=1e-4)),
        _cifar("resnet-56", partial(resnet, 56), f"{_HE} 6", 855_770, _sgd(0.1, weight_decay=1e-4)),
        # forty times ResNet-20's parameters, so the stronger decay of Zagoruyko and Komodakis 2016, section 3
        _cifar("resnet-18", resnet_18, f"{_HE} 1", 11_173_962, _sgd(0.1, weight_decay=5e-4)),
        # the CIFAR ResNets' decay, so that these networks compare under one recipe; a lower rate than the usual
        # 0.05 to 0.1: on 1,300 digits for 9 epochs (99 steps) VGG-16 stays below 0.25 at 0.05 and reaches 0.988
        # at 0.02 (one seed)
        _cifar("vgg-11", partial(vgg, 11), f"{_VGG} A", 9_231_114, _sgd(0.02, weight_decay=1e-4)),
        _cifar("vgg-16", partial(vgg, 16), f"{_VGG} D", 14_728_266, _sgd(0.02, weight_decay=1e-4)),
    )
}
