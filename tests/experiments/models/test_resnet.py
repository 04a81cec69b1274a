import pytest
import torch

from incop.errors import InputError
from incop.experiments.models.resnet import Block, resnet, resnet_18


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "total", "published"), [(20, 272_474, 0.27), (32, 466_906, 0.46), (56, 855_770, 0.85)]
)
def test_counts(depth, total, published):
    model = resnet(depth)
    assert count(model) == total
    projections = sum(p.numel() for name, p in model.named_parameters() if ".shortcut." in name)
    assert projections == 2_752
    assert round((total - projections) / 1e6, 2) == published  # the paper's shortcuts have no parameters


def test_resnet_18_count():
    assert count(resnet_18()) == 11_173_962


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_depth_counts_the_main_path(depth):
    weights = [n for n, p in resnet(depth).named_parameters() if p.dim() > 1 and ".shortcut." not in n]
    assert len(weights) == depth


def test_projections_only_where_the_width_changes():
    projections = [n for n, _ in resnet_18().named_modules() if n.endswith("shortcut.conv")]
    assert projections == [f"layer{stage}.0.shortcut.conv" for stage in (2, 3, 4)]


def test_a_block_whose_convolutions_are_silent_is_its_shortcut():
    block = Block(8, 8).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("side", "last"), [(32, 4), (28, 4), (8, 2), (4, 2)])
def test_the_last_stage_sees_more_than_one_pixel(side, last):
    model = resnet_18(size=(side, side)).eval()
    with torch.no_grad():
        assert model[:-3](torch.zeros(1, 3, side, side)).shape == (1, 512, last, last)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_unknown_depth(depth):
    with pytest.raises(InputError, match=rf"there is no resnet-{depth} of this kind: its depth is 6n \+ 2"):
        resnet(depth)
