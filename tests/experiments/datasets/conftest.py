"""Makers of small files in every format, and the folder with the published data sets."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def published():
    """The folder INCOP_DATA names, asked for with the files a test needs."""

    def folder(*needed):
        base = os.environ.get("INCOP_DATA")
        if not base:
            pytest.skip("INCOP_DATA is not set: no published data to compare with")
        missing = [name for name in needed if not (Path(base) / name).exists()]
        if missing:
            pytest.skip(f"INCOP_DATA has no {missing[0]}")
        return Path(base)

    return folder


@pytest.fixture
def write_idx():
    """Write an idx file: an array, with the header of another shape or magic number if asked."""

    def write(path, array, *, shape=None, magic=None, extra=b""):
        shape = array.shape if shape is None else shape
        magic = 0x0800 + len(shape) if magic is None else magic
        header = magic.to_bytes(4, "big") + b"".join(length.to_bytes(4, "big") for length in shape)
        content = header + array.astype(np.uint8).tobytes() + extra
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def png():
    """The bytes of a PNG made from an array or an image."""

    def encode(picture, kind="PNG"):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        stream = io.BytesIO()
        image.save(stream, kind)
        return stream.getvalue()

    return encode


@pytest.fixture
def rng():
    return np.random.default_rng(0)
