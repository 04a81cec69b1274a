from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incop.errors import InputError
from incop.experiments.datasets import crop_and_flip


def one_by_one(images, generator, padding):
    """The slow obvious way: pad, cut and mirror each image in a loop."""
    count, channels, height, width = images.shape
    corners = torch.randint(2 * padding + 1, (count, 2), generator=generator).tolist()
    mirrored = torch.randint(2, (count,), generator=generator).tolist()
    made = []
    for image, (down, right), mirror in zip(images, corners, mirrored, strict=True):
        canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        canvas[:, padding : padding + height, padding : padding + width] = image
        crop = canvas[:, down : down + height, right : right + width]
        made.append(crop.flip(-1) if mirror else crop)
    return torch.stack(made)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop(shape, padding, seed):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    before = images.clone()
    ours, oracle = (way(images, torch.Generator().manual_seed(seed), padding) for way in (crop_and_flip, one_by_one))
    assert torch.equal(ours, oracle)
    assert torch.equal(images, before)
    assert ours.is_contiguous()


def test_every_place_and_both_mirrors_are_drawn_evenly():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(18_000, 1, 3, 3)
    made = crop_and_flip(image, torch.Generator().manual_seed(0), padding=1)
    _, counts = made.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 18  # nine places, twice
    assert int(counts.min()) > 850  # 1,000 expected, standard deviation 31
    assert int(counts.max()) < 1150


def test_empty_batch_and_transposed_memory():
    generator = torch.Generator().manual_seed(0)
    assert crop_and_flip(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), generator).shape == (0, 3, 4, 4)
    images = torch.randint(0, 256, (5, 4, 4, 3)).to(torch.uint8).permute(0, 3, 1, 2)
    one, two = (crop_and_flip(x, torch.Generator().manual_seed(1)) for x in (images, images.contiguous()))
    assert torch.equal(one, two)


def test_wrong_arguments():
    generator = torch.Generator()
    with pytest.raises(InputError, match=r"not torch.float32 of shape \(1, 1, 2, 2\)"):
        crop_and_flip(torch.zeros(1, 1, 2, 2), generator)
    with pytest.raises(InputError, match="must be uint8"):
        crop_and_flip(torch.zeros(1, 2, 2, dtype=torch.uint8), generator)
    for padding in (-1, 1.0, True):
        with pytest.raises(InputError, match="padding must be"):
            crop_and_flip(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), generator, padding)
