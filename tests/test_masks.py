import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from incop import Masks, hold
from incop.errors import InputError
from incop.masks import holding
from incop.masks.bits import Bits
from small import mlp

# --- bits


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bits_are_those_of_numpy(data):
    shape = data.draw(st.lists(st.integers(0, 7), max_size=4))
    flat = data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
    mask = torch.tensor(flat, dtype=torch.bool).reshape(shape)
    bits = Bits.of("w", mask)
    assert bits.bytes.numpy().tolist() == np.packbits(np.array(flat, dtype=bool)).tolist()
    assert (bits.count, bits.total, bits.shape) == (sum(flat), len(flat), torch.Size(shape))
    assert torch.equal(bits.unpacked(), mask)
    words = bits.words(torch.int32, 0, bits.bytes.numel())[: len(flat)]
    assert words.tolist() == [-1 if kept else 0 for kept in flat]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_bits_keep_what_is_left_and_zero_the_rest(kind):
    torch.manual_seed(0)
    mask = torch.rand(700, 1001) < 0.3  # more than a chunk, and no multiple of eight
    values = torch.randn(700, 1001).to(kind)
    values[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    found = values.clone()
    Bits.of("w", mask).keep(found, holding.BITS[kind])
    wanted = values.masked_fill(~mask, 0.0)
    same = holding.BITS[kind]
    assert torch.equal(found.view(same), wanted.view(same))


def test_masks_take_a_bit_a_weight():
    net = nn.Linear(1000, 1000)
    masks = Masks.full(net)
    assert masks.bits("weight").bytes.numel() == 125_000
    assert masks["weight"] is not masks["weight"]


# --- the value


def two(seed=0):
    return mlp(4, 3, 2, seed=seed)


def test_full_and_of():
    net = two()
    masks = Masks.full(net)
    assert list(masks) == ["0.weight", "2.weight"]
    assert (masks.total, masks.remaining, masks.sparsity) == (18, 18, 0.0)
    assert list(Masks.full(net, skip=["2"])) == ["0.weight"]
    with torch.no_grad():
        net[0].weight[0] = torch.tensor([0.0, -0.0, float("nan"), 1e-45])
    of = Masks.of(net)
    assert of["0.weight"][0].tolist() == [False, False, True, True]
    assert of.remaining == 16
    assert list(Masks.of(net, skip=["0"])) == ["2.weight"]


def test_counts_and_sparsities():
    masks = Masks({"0.weight": torch.eye(3, 4) > 0, "2.weight": torch.ones(2, 3) > 0})
    assert (masks.total, masks.remaining, masks.sparsity) == (18, 9, 0.5)
    assert masks.remaining_in("0.weight") == 3
    assert masks.layer_sparsity() == {"0.weight": 0.75, "2.weight": 0.0}
    assert masks.model_sparsity(two()) == 9 / 23
    assert repr(masks) == "Masks(2 weights, 9 of 18 left, sparsity 0.5000)"
    assert Masks({}).sparsity == 0.0
    assert Masks({"w": torch.zeros(0, 3) > 0}).layer_sparsity() == {"w": 0.0}


def test_a_tenth_is_a_tenth():
    assert Masks({"w": torch.arange(10) > 0}).sparsity == 0.1


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert list(Masks.full(net)) == ["0.weight"]
    assert Masks({"0.weight": torch.zeros(3, 3) > 0}).model_sparsity(net) == 1.0


@pytest.mark.parametrize("mask", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True], None])
def test_only_booleans(mask):
    with pytest.raises(InputError, match=r"the mask of 'w' is .*, not a boolean tensor"):
        Masks({"w": mask})


def test_masks_are_copies():
    given = torch.ones(3, dtype=torch.bool)
    masks = Masks({"w": given})
    given[:] = False
    assert masks.remaining == int(masks["w"].sum()) == 3
    twin = copy.deepcopy(masks)
    assert twin == masks
    assert twin["w"].data_ptr() != masks["w"].data_ptr()


def test_equal_when_the_same_positions_are_kept():
    a, b = torch.tensor([True, False]), torch.tensor([False, True])
    assert Masks({"x": a, "y": b}) == Masks({"y": b, "x": a})
    assert Masks({"x": a}) != Masks({"x": b})
    assert Masks({"x": a}) != Masks({"y": a})
    assert Masks({"x": a}) != Masks({"x": a.reshape(2, 1)})
    assert Masks({"x": a}) != {"x": a}
    with pytest.raises(TypeError):
        hash(Masks({}))


bits = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=2)


@given(bits, bits)
def test_sets_of_positions(a, b):
    def kept(rows):
        return {(n, i) for n, row in zip("xy", rows, strict=True) for i, left in enumerate(row) if left}

    def masks(rows):
        return Masks({n: torch.tensor(row) for n, row in zip("xy", rows, strict=True)})

    one, other = masks(a), masks(b)
    assert {(n, i) for n, m in one.intersect(other).items() for i in m.nonzero().flatten().tolist()} == kept(a) & kept(
        b
    )
    assert one.within(other) == (kept(a) <= kept(b))
    union = kept(a) | kept(b)
    assert one.change(other) == pytest.approx(len(kept(a) ^ kept(b)) / len(union) if union else 0.0)
    assert one.change(other) == other.change(one)
    assert one.change(one) == 0.0
    assert one.intersect(other).within(one)
    assert one.remaining == len(kept(a))


@pytest.mark.parametrize("verb", ["intersect", "within", "change"])
@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"w": torch.ones(2) > 0}, "they differ at 'w'"),
        ({"v": torch.ones(3) > 0}, "they differ at 'v'"),
        ({}, "they differ at 'w'"),
        ({"w": torch.ones(3)}, "not a boolean tensor"),
    ],
)
def test_masks_of_other_weights(verb, other, what):
    with pytest.raises(InputError, match=what):
        getattr(Masks({"w": torch.ones(3) > 0}), verb)(other)


def test_masks_of_another_model():
    net = two()
    masks = Masks({"1.weight": torch.ones(2, 2) > 0})
    wrong = Masks({"0.weight": torch.ones(3, 5) > 0})
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    for call in (lambda m: m.apply(net), lambda m: hold(m, net, sgd), lambda m: m.model_sparsity(net)):
        with pytest.raises(InputError, match=r"unknown masked weight '1.weight'"):
            call(masks)
        with pytest.raises(
            InputError, match=r"has shape \(3, 5\) and the weight \(3, 4\): these masks belong to another"
        ):
            call(wrong)


def test_apply_leaves_plus_zero_and_all_other_bits():
    net = two()
    with torch.no_grad():
        net[0].weight[0] = torch.tensor([float("nan"), -1.0, -0.0, float("inf")])
        net[0].weight[1] = torch.tensor([float("nan"), -1.0, -0.0, float("inf")])
    before = net[0].weight.detach().clone()
    masks = Masks({"0.weight": torch.tensor([[False] * 4, [True] * 4, [True] * 4])})
    masks.apply(net)
    after = net[0].weight.detach()
    assert not after[0].view(torch.int32).any()
    assert torch.equal(after[1:].view(torch.int32), before[1:].view(torch.int32))


def test_masks_are_equal_to_masks_alone():
    masks = Masks({"w": torch.tensor([True])})
    assert masks.__eq__(3) is NotImplemented
    assert masks != {"w": 3}


def test_a_network_of_one_weight():
    net = nn.Linear(1, 1, bias=False)
    masks = Masks({"weight": torch.zeros(1, 1, dtype=torch.bool)})
    assert (masks.sparsity, masks.layer_sparsity(), masks.model_sparsity(net)) == (1.0, {"weight": 1.0}, 1.0)


def test_a_digest_tells_masks_apart_whatever_their_order():
    one, other = torch.rand(5, 3) > 0.5, torch.rand(9) > 0.5
    masks = Masks({"a": one, "b": other})
    assert masks.digest() == Masks({"b": other, "a": one}).digest()
    flipped = one.clone()
    flipped[2, 1] ^= True
    different = [{"a": flipped, "b": other}, {"a": one}, {"a": one.T, "b": other}, {"c": one, "b": other}]
    assert len({Masks(each).digest() for each in different} | {masks.digest()}) == 5
