"""What a network must know of its images: that they can be used, and how often they can be halved."""

from __future__ import annotations

from incop.errors import InputError

SMALLEST = 4  # pixels: below it a 3×3 kernel sees more padding than image


def check(name: str, *, channels: int, size: tuple[int, int], classes: int) -> None:
    """Refuse images or classes that no network here can use.

    Args:
        name: the network, for the message.
        channels: channels of an image, in [1, ∞).
        size: height and width of an image in pixels, each in [4, ∞).
        classes: number of classes, in [2, ∞).
    """
    if channels < 1:
        raise InputError(f"{name} needs images with at least 1 channel, not {channels}: grey has 1, colour has 3")
    if len(size) != 2:
        raise InputError(f"{name} needs an image size of height and width, not {size!r}: write it as (28, 28)")
    if min(size) < SMALLEST:
        raise InputError(
            f"{name} needs images of at least {SMALLEST}×{SMALLEST} pixels, not {size[0]}×{size[1]}: enlarge them"
        )
    if classes < 2:
        raise InputError(f"{name} needs at least 2 classes to tell apart, not {classes}: count the distinct labels")


def halvings(size: tuple[int, int], most: int) -> int:
    """How many of a network's `most` halvings an image of this size can take.

    A map of one pixel cannot be halved, and a 3×3 kernel on it is a 1×1 kernel: its outer weights see only
    padding and never learn, which would make any pruning of them look free. So a small image takes fewer
    halvings. Networks then leave out the *first* ones, and their deep layers still see maps of at least two
    pixels a side.

    Args:
        size: height and width in pixels, each in [1, ∞).
        most: how often the network halves its published input, in [0, ∞).
    """
    return min(most, (min(size) - 1).bit_length())


def halved(size: tuple[int, int], times: int) -> int:
    """Return the pixels of a map after so many halvings, odd sides rounded up."""
    height, width = (-(-side // (1 << times)) for side in size)
    return height * width
