"""Random crops and mirror images, the customary augmentation of small photographs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from incop.errors import InputError


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every image at random over a black border and mirror half of them.

    Each image gets a border of `padding` zero (black) pixels, is cropped back to its size at a place drawn
    uniformly from the (2 * padding + 1)² possible ones, and is mirrored left to right with probability 1/2.
    Zeros are put in before any normalisation, so the border is black and not the mean colour.

    Args:
        images: uint8 (N, C, H, W), on any device.
        generator: where the random numbers come from; two drawn integers an image for the crop, then one for
            the mirror. The images are the same for the same state of it.
        padding: width of the border, in pixels, >= 0.

    Returns:
        uint8 (N, C, H, W), new memory on the device of `images`.

    Raises:
        InputError: `images` is not uint8 with four axes, or `padding` is not a whole number >= 0.

    Example:
        >>> import torch
        >>> images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
        >>> crop_and_flip(images, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise InputError(
            f"images to crop must be uint8 with axes (N, C, H, W), not {images.dtype} of shape"
            f" {tuple(images.shape)}: augment before scaling to floats"
        )
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise InputError(f"padding must be a whole number of pixels >= 0, not {padding!r}")
    count, channels, height, width = images.shape
    drawn = torch.randint(2 * padding + 1, (count, 2), generator=generator, device=generator.device)
    mirrored = torch.randint(2, (count,), generator=generator, device=generator.device)
    down, right = drawn.to(images.device).unsqueeze(-1).unbind(1)
    rows = down + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = right + torch.where(mirrored.to(images.device, torch.bool).unsqueeze(-1), columns.flip(1), columns)
    # one gather over flattened pixels: measured more than twice as fast as indexing a view of all crops
    places = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)
    padded = functional.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, places.flatten(1).unsqueeze(1).expand(-1, channels, -1)).view(images.shape)
