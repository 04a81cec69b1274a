"""Encoded pictures (PNG, JPEG and so on) decoded with Pillow into one tensor, all of one size and mode."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from incop.errors import InputError, MissingExtra
from incop.experiments.datasets.stored_parts import MAX_BYTES, check_unpacked

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 4096
"""The largest height or width decoded, in pixels; a header that announces more is refused before decoding."""

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings, in lower case, that are read as pictures."""

_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # no others: some start outside programs
_TARGETS = {"L": "L", "1": "L", "LA": "L", "RGB": "RGB", "P": "RGB", "RGBA": "RGB"}


@dataclass
class Decoder:
    """Decodes pictures and insists that all, over every call, have the size and mode of the first.

    Grey (L) and colour (RGB) pictures are taken as they are. Black-and-white (1), palette (P) and pictures
    with an alpha channel (LA, RGBA) become L or RGB, provided that nothing is lost: a picture with a
    transparent pixel is refused. Any rotation noted in EXIF data is not applied.

    Attributes:
        first: name, width, height and mode of the first picture; None before it.
    """

    first: tuple[str, int, int, str] | None = None

    def stack(self, sources: Iterable[tuple[str, Path | bytes]], count: int) -> Tensor:
        """Decode pictures into one tensor.

        Args:
            sources: a name for error messages, with a path or the encoded bytes, for each picture.
            count: how many sources there are, >= 1.
        """
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError:
            raise MissingExtra("pillow", "data", "reading image files") from None
        pixels, size, shape, encoded = bytearray(), 0, (0, 0, 0), 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_SIDE is the stricter check
            for at, (name, source) in enumerate(sources):
                try:
                    file = BytesIO(source) if isinstance(source, bytes) else source
                    with Image.open(file, formats=_FORMATS) as image:
                        self._check(name, image)
                        encoded += len(source) if isinstance(source, bytes) else source.stat().st_size
                        if not pixels:
                            shape = _shape(count, image, name)
                            size = math.prod(shape)
                        # as many bytes as were decoded, not as many as the first header promises for all
                        check_unpacked(f"{name}, with those before it,", (at + 1) * size, encoded)
                        raw = _lossless(image, name).tobytes()
                except InputError:
                    raise
                except UnidentifiedImageError:
                    raise InputError(
                        f"{name} cannot be read as a picture: it is damaged or none of {', '.join(_FORMATS)};"
                        " replace or remove it"
                    ) from None
                except Exception as fault:  # Pillow's decoders raise nearly anything on damaged bytes
                    raise InputError(
                        f"{name} cannot be read as a picture ({fault}): it is damaged; replace or remove it"
                    ) from None
                assert len(raw) == size
                pixels += raw
        assert len(pixels) == count * size > 0, "nothing to decode"
        return torch.frombuffer(pixels, dtype=torch.uint8).view(count, *shape).permute(0, 3, 1, 2).contiguous()

    def _check(self, name: str, image: Image) -> None:
        width, height = image.size
        if width > MAX_SIDE or height > MAX_SIDE:
            raise InputError(
                f"{name} is {width}×{height} pixels, more than {MAX_SIDE} on a side: scale the pictures down"
            )
        if getattr(image, "is_animated", False):
            raise InputError(f"{name} has several frames: give a picture with one")
        if image.mode not in _TARGETS:
            raise InputError(
                f"{name} has the mode {image.mode}, of which 8-bit grey or colour cannot be made without"
                " loss: convert the pictures to L or RGB"
            )
        if self.first is None:
            self.first = (name, width, height, image.mode)
        first, first_width, first_height, mode = self.first
        if (width, height) != (first_width, first_height):
            raise InputError(
                f"{first} is {first_width}×{first_height} pixels but {name} is {width}×{height}: all pictures"
                " must have one size; scale or crop them"
            )
        if image.mode != mode:
            raise InputError(
                f"{first} has the mode {mode} but {name} has {image.mode}: all pictures must have one;"
                " convert them to L (grey) or RGB"
            )


def _shape(count: int, image: Image, name: str) -> tuple[int, int, int]:
    """Height, width and channels of a picture, refused where `count` of them would not fit in memory."""
    width, height = image.size
    channels = len(_TARGETS[image.mode].replace("L", "1"))
    needed = count * height * width * channels
    if needed > MAX_BYTES:
        raise InputError(
            f"{count} pictures of {width}×{height} like {name} would take {needed} bytes decoded, more than"
            f" {MAX_BYTES}: give a limit or scale them down"
        )
    return height, width, channels


def _lossless(image: Image, name: str) -> Image:
    """The picture in mode L or RGB, refused where transparency would be thrown away."""
    target = _TARGETS[image.mode]
    if image.mode == target:
        return image
    if image.mode == "1":
        return image.convert("L")
    opaque = image if image.mode == "LA" else image.convert("RGBA")
    if opaque.getchannel("A").getextrema() != (255, 255):
        raise InputError(
            f"{name} has transparent pixels, whose colour depends on what lies behind them: put the pictures"
            " on a plain background and store them as L or RGB"
        )
    return opaque.convert(target)
