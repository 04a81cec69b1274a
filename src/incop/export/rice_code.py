"""Rice's code: a mask as the distances between its positions, which comes within 3 % of the entropy of a random mask.

Of a gap g the low k bits are written as they are, and g >> k as that many zeros and a one (R. F. Rice, "Some practical universal
noiseless coding techniques", JPL 79-22, 1979). All low bits of the same weight stand together, then all the rest, so that numpy
reads and writes them without a loop over the positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from incop.errors import InputError

MAX_SHIFT = 40


def coded(bits: NDArray[np.bool_]) -> tuple[int, bytes]:
    """Return k and the code of a mask; of the kept or of the pruned positions, whichever are fewer."""
    kept = int(bits.sum())
    rarer = bits if 2 * kept <= bits.size else ~bits
    positions = np.flatnonzero(rarer)
    if not positions.size:
        return 0, b""
    gaps = np.diff(positions, prepend=-1) - 1
    mean = max(1, bits.size // positions.size)
    near = range(max(mean.bit_length() - 3, 0), min(mean.bit_length() + 1, MAX_SHIFT))
    shift = min(near, key=lambda k: positions.size * k + int((gaps >> k).sum()))
    planes = [np.packbits((gaps >> bit & 1).astype(np.uint8)).tobytes() for bit in range(shift)]
    ends = np.cumsum((gaps >> shift) + 1) - 1
    rest = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    rest[ends] = 1
    return shift, b"".join(planes) + np.packbits(rest).tobytes()


def decoded(code: bytes, shift: int, *, size: int, kept: int) -> NDArray[np.bool_]:
    """Return the mask of a code.

    Args:
        code: as `coded` gave it.
        shift: its k.
        size: positions of the mask.
        kept: how many of them are True.
    """
    count = min(kept, size - kept)
    mask = np.full(size, 2 * kept > size, dtype=np.bool_)
    plane = (count + 7) // 8
    if not (0 <= shift <= MAX_SHIFT and count >= 0 and len(code) >= shift * plane):
        raise InputError("the code of a mask is too short")
    if not count:
        if code:
            raise InputError("the code of a mask is too long")
        return mask
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(code, dtype=np.uint8, offset=shift * plane)))
    if ends.size != count:
        raise InputError(f"the code of a mask holds {ends.size} positions instead of {count}")
    high = np.diff(ends, prepend=-1) - 1
    if int(high.max()) > size >> shift:
        raise InputError("the code of a mask leads past its end")
    gaps = high << shift
    for bit in range(shift):
        part = np.frombuffer(code, dtype=np.uint8, count=plane, offset=bit * plane)
        gaps |= np.unpackbits(part, count=count).astype(np.int64) << bit
    if float(gaps.sum(dtype=np.float64)) + count > size:
        raise InputError("the code of a mask leads past its end")
    mask[np.cumsum(gaps + 1) - 1] ^= True
    return mask
