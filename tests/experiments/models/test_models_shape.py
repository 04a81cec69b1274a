from hypothesis import given
from hypothesis import strategies as st

from incop.experiments.models.shape import halved, halvings

SIDES = st.integers(1, 300)


def halve(side):
    return (side + 1) // 2


@given(SIDES, SIDES, st.integers(0, 6))
def test_no_map_of_one_pixel_is_halved(height, width, most):
    times = halvings((height, width), most)
    shorter = min(height, width)
    for _ in range(times):
        assert shorter > 1
        shorter = halve(shorter)
    assert times == most or shorter == 1


@given(SIDES, SIDES, st.integers(0, 6))
def test_halved_is_halving_again_and_again(height, width, times):
    pixels = halved((height, width), times)
    for _ in range(times):
        height, width = halve(height), halve(width)
    assert pixels == height * width
