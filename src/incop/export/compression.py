"""Compression: zstd, from Python's own library where it has it; nothing is unpacked to more than was said."""

from __future__ import annotations

import sys

from incop.errors import InputError, MissingExtra

LEVEL, FAST = 19, 12  # of a million random weights 1.2 s for 83.1 % of their bytes, and 0.07 s for 84.4 %
LARGE = 2**22  # bytes from which on a stream is packed fast


def _level(content: bytes) -> int:
    return LEVEL if len(content) < LARGE else FAST


if sys.version_info >= (3, 14):
    from compression import zstd

    def _pack(content: bytes) -> bytes:
        return zstd.compress(content, _level(content))

    def _announced(content: bytes) -> int:
        return zstd.get_frame_info(content).decompressed_size or 0

    def _unpack(content: bytes) -> bytes:
        return zstd.decompress(content)

    Fault: type[Exception] = zstd.ZstdError
else:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtra("zstandard", "export", "the form 'sparse'") from error

    def _pack(content: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=_level(content)).compress(content)

    def _announced(content: bytes) -> int:
        return zstandard.get_frame_parameters(content).content_size

    def _unpack(content: bytes) -> bytes:
        return zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)

    Fault = zstandard.ZstdError


def packed(content: bytes) -> bytes:
    """Return one zstd frame, or the content itself where that is not longer."""
    frame = _pack(content) if content else content
    return frame if len(frame) < len(content) else content


def unpacked(content: bytes, size: int) -> bytes:
    """Return what `packed` was given; its size is held against what the frame announces before memory is taken."""
    if len(content) == size:
        return content
    try:
        if _announced(content) != size:
            raise InputError(f"a part of it unpacks to another size than {size} bytes")
        found = _unpack(content)
    except Fault as error:
        raise InputError(f"a part of it cannot be unpacked ({error})") from error
    if len(found) != size:
        raise InputError(f"a part of it unpacks to {len(found)} bytes instead of {size}")
    return found
