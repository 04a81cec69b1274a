from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from incop.errors import InputError
from incop.experiments import datasets
from incop.experiments.datasets.splits import Choices, assemble, statistics
from incop.experiments.datasets.stored_parts import StoredParts, held


def numbered(count, classes=2):
    """StoredParts whose images spell their own index, so that any image can be traced."""
    index = torch.arange(count)
    images = torch.stack([index // 256, index % 256], 1).to(torch.uint8).reshape(count, 1, 1, 2)
    return StoredParts(held(images, index % classes, "numbers"), held(images[:20], index[:20] % classes, "numbers"))


def indices(split):
    pixels = split.images.long()
    return (pixels[..., 0] * 256 + pixels[..., 1]).flatten().tolist()


@settings(max_examples=60, deadline=None)
@given(count=st.integers(20, 600), seed=st.integers(0, 2**63 - 1), part=st.floats(1e-6, 1 - 1e-6))
def test_validation_and_train_share_nothing_and_lose_nothing(count, seed, part):
    data = assemble("n", numbered(count), Choices(seed, part, None))
    train, validation = indices(data.train), indices(data.validation)
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert sorted(train + validation) == list(range(count))
    assert len(validation) == min(max(round(count * part), 1), count - 1)
    assert indices(data.test) == list(range(20))
    assert data.train.labels.tolist() == [index % 2 for index in train]


def test_seed_decides_the_validation_split_and_nothing_else():
    one, again, other = (assemble("n", numbered(500), Choices(seed, 0.2, None)) for seed in (1, 1, 2))
    assert indices(one.validation) == indices(again.validation) != indices(other.validation)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(one.test.images, other.test.images)


def test_limit_is_the_same_for_every_seed_and_nested():
    def used(limit, seed):
        data = assemble("n", numbered(500), Choices(seed, 0.2, limit))
        assert len(data.train) + len(data.validation) == limit
        assert len(data.test) == min(limit, 20)
        return set(indices(data.train) + indices(data.validation))

    assert used(50, 1) == used(50, 2)
    assert used(50, 1) < used(100, 1) < used(500, 1)


def test_limit_out_of_range():
    with pytest.raises(InputError, match="limit is 501 but numbers holds 500 training images"):
        assemble("n", numbered(500), Choices(0, 0.1, 501))
    with pytest.raises(InputError, match="limit is 10 but there are 6 classes"):
        assemble("n", numbered(500, 6), Choices(0, 0.1, 10))


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1}, {"seed": 1.0}, {"seed": True}, {"seed": 2**63}, {"seed": "0"},
        {"validation": 0}, {"validation": 1}, {"validation": 1.0}, {"validation": -0.1}, {"validation": True},
        {"validation": float("nan")}, {"validation": float("inf")}, {"validation": "0.1"},
        {"validation": None}, {"limit": 9}, {"limit": 0},
        {"limit": -5}, {"limit": 100.0}, {"limit": True}, {"limit": "100"},
    ],
)  # fmt: skip
def test_arguments_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name} must be") as caught:
        datasets.load("digits", **wrong)
    assert repr(wrong[name]) in str(caught.value)


def test_statistics_agree_with_numpy(rng):
    pixels = rng.integers(0, 256, (50, 3, 7, 9), dtype=np.uint8)
    pixels[:, 2] = 7
    mean, std = statistics(torch.from_numpy(pixels))
    oracle = pixels / 255
    assert mean == pytest.approx(tuple(oracle.mean((0, 2, 3))), rel=1e-12)
    assert std[:2] == pytest.approx(tuple(oracle.std((0, 2, 3))[:2]), rel=1e-12)
    assert std[2] == 1.0  # a constant channel


def test_statistics_are_those_of_train_only():
    data = datasets.load("digits")
    pixels = data.train.images.numpy() / 255
    assert data.mean == pytest.approx((pixels.mean(),))
    assert data.std == pytest.approx((pixels.std(),))


def test_fingerprint_sees_every_split_and_the_shapes():
    def digest(change):
        parts = numbered(60)
        images, labels = parts.train.take(torch.arange(60)).clone(), parts.train.labels.clone()
        test_images = parts.test.take(torch.arange(20)).clone()
        change(images, labels, test_images)
        test = held(test_images, parts.test.labels, "t")
        return assemble("n", StoredParts(held(images, labels, "t"), test), Choices(0, 0.5, None)).fingerprint

    def first(images, *_):
        images[0] += 1

    def last(images, *_):
        images[-1] += 1

    def label(_first, labels, _third):
        labels[5] = 0

    def of_test(_first, _second, images):
        images[3] += 1

    digests = [digest(change) for change in (lambda *_: None, first, last, label, of_test)]
    assert len(set(digests)) == 5
    assert all(len(one) == 64 for one in digests)


def test_parts_of_different_shape():
    wide = held(torch.zeros(10, 1, 1, 3, dtype=torch.uint8), torch.arange(10) % 2, "wide")
    with pytest.raises(InputError, match="training images are 1×1×2 but test images are 1×1×3"):
        assemble("n", StoredParts(numbered(50).train, wide), Choices(0, 0.1, None))


def test_a_given_validation_part_is_kept_whole():
    parts = numbered(50)
    data = assemble("n", StoredParts(parts.train, parts.test, parts.test), Choices(0, 0.5, None))
    assert len(data.train) == 50
    assert torch.equal(data.validation.images, data.test.images)


def test_an_empty_part():
    empty = held(torch.zeros(0, 1, 1, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "nothing")
    with pytest.raises(InputError, match="nothing holds no test images"):
        assemble("n", StoredParts(numbered(50).train, empty), Choices(0, 0.1, None))
