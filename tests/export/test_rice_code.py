"""The code of gaps: there and back, near the entropy, and never past the end of what it is told."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incop import InputError
from incop.export.rice_code import coded, decoded


def slow(mask):
    """The code of a mask, bit by bit as the page of the method says it, without numpy's tricks."""
    count = min(int(mask.sum()), int((~mask).sum()))
    rarer = 2 * int(mask.sum()) <= len(mask)
    gaps, run = [], 0
    for bit in mask:
        if bool(bit) == rarer:
            gaps.append(run)
            run = 0
        else:
            run += 1
    assert len(gaps) == count
    shift, code = coded(mask)
    bits = ""
    for place in range(shift):
        plane = "".join(str(gap >> place & 1) for gap in gaps)
        bits += plane + "0" * (-len(plane) % 8)
    bits += "".join("0" * (gap >> shift) + "1" for gap in gaps)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)), code


@settings(max_examples=150, deadline=None)
@given(st.lists(st.booleans(), max_size=300))
def test_there_and_back_and_as_the_definition_says(bits):
    mask = np.array(bits, dtype=np.bool_)
    shift, code = coded(mask)
    assert np.array_equal(decoded(code, shift, size=len(bits), kept=int(mask.sum())), mask)
    expected, found = slow(mask)
    assert expected == found


@pytest.mark.parametrize("kept", [0.5, 0.4, 0.3, 0.1, 0.05, 0.02, 0.001, 0.7, 0.99])
def test_a_random_mask_takes_little_more_than_its_entropy(kept):
    mask = np.random.default_rng(0).random(200_000) < kept
    p = mask.mean()
    entropy = len(mask) / 8 * -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert len(coded(mask)[1]) <= 1.035 * entropy + 16


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(-2, 50), st.integers(0, 400), st.integers(0, 400))
def test_any_bytes_are_a_mask_of_the_said_size_or_refused(code, shift, size, kept):
    try:
        mask = decoded(code, shift, size=size, kept=kept)
    except InputError:
        return
    assert len(mask) == size
    assert int(mask.sum()) == kept
