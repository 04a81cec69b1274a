import pytest

from incop.experiments.models.lenet import lenet_5, lenet_300_100


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_published_counts():
    # Frankle and Carbin 2019, Figure 2: 266K weights, cut after the thousands; biases are 410 of ours
    assert (count(lenet_300_100()) - 410) // 1000 == 266
    # LeCun et al. 1998, section II-B: 60,000, as its sparser second convolution has 1,516, not 2,416
    assert round(count(lenet_5()) - 2_416 + 1_516, -4) == 60_000


@pytest.mark.parametrize(
    ("size", "features"),
    [((28, 28), 400), ((32, 32), 400), ((8, 8), 64), ((16, 16), 256), ((4, 4), 16), ((8, 28), 160)],
)
def test_lenet_5_adapts_its_padding(size, features):
    assert lenet_5(size=size).fc1.in_features == features


def test_layer_names():
    assert [n for n, m in lenet_5().named_children() if list(m.parameters())] == [
        "conv1",
        "conv2",
        "fc1",
        "fc2",
        "fc3",
    ]
    assert [n for n, m in lenet_300_100().named_children() if list(m.parameters())] == ["fc1", "fc2", "fc3"]
