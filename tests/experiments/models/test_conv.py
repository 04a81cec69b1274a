import pytest
from torch import nn

from incop.errors import InputError
from incop.experiments.models.conv import conv


def count(model, kind=nn.Module):
    return sum(p.numel() for m in model.modules() if isinstance(m, kind) for p in m.parameters(recurse=False))


@pytest.mark.parametrize(
    ("depth", "total", "rounded", "convolutions", "rounded_convolutions"),
    [
        (2, 4_301_642, 4.3e6, 38_720, 38e3),
        (4, 2_425_930, 2.4e6, 260_160, 260e3),
        (6, 2_262_602, 2.3e6, 1_145_408, 1.1e6),  # the paper prints 1.7M, which its own layers do not give
    ],
)
def test_counts(depth, total, rounded, convolutions, rounded_convolutions):
    model = conv(depth)
    assert count(model) == total
    assert round(total, -5) == rounded
    assert count(model, nn.Conv2d) == convolutions
    # the paper cuts: 38,720 stands as 38K
    unit = 1e3 if rounded_convolutions < 1e6 else 1e5
    assert convolutions // unit * unit == rounded_convolutions


def test_conv_6_as_listed_cannot_be_the_printed_total():
    convolutions, first_linear = 1_145_408, 256 * 4 * 4 * 256
    assert convolutions + first_linear > 2.1e6 > 1.75e6
    assert conv(6).fc1.weight.numel() == first_linear


def test_small_images_leave_out_the_first_poolings():
    names = [name for name, _ in conv(6, size=(4, 4)).named_children()]
    assert "pool1" not in names
    assert {"pool2", "pool3"} <= set(names)


def test_unknown_depth():
    with pytest.raises(InputError, match="there is no conv-8: choose conv-2, conv-4 or conv-6"):
        conv(8)


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_width_is_of_all_layers_in_proportion(depth):
    whole, narrow = conv(depth), conv(depth, width=16)
    for one, other in zip(whole.modules(), narrow.modules(), strict=True):
        if isinstance(one, nn.Conv2d):
            assert one.out_channels == 4 * other.out_channels
        elif isinstance(one, nn.Linear) and one.out_features != 10:
            assert (one.in_features, one.out_features) == (4 * other.in_features, 4 * other.out_features)
    with pytest.raises(InputError, match="width=0"):
        conv(depth, width=0)
