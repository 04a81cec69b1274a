"""Batches: every usual form is unpacked alike, and what is no batch is refused in a sentence."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from incop.batches import (
    Batch,
    first_samples,
    mapped,
    output_tensor,
    parts,
    placed,
    real_tokens,
    reusable,
    shortened,
    unpack,
    walk,
    with_target,
)
from incop.errors import InputError

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 1])
CPU = torch.device("cpu")


def test_inputs_alone():
    for form in (X, [X], (X,), Batch((X,), {}, None, 4)):
        batch = unpack(form)
        assert batch.args == (X,)
        assert (batch.kwargs, batch.target, batch.samples) == ({}, None, 4)


def test_input_and_target():
    for form in ((X, Y), [X, Y]):
        batch = unpack(form)
        assert batch.args[0] is X
        assert batch.target is Y


def test_several_inputs_by_place_and_by_name():
    batch = unpack(((X, Y), Y))
    assert [a is b for a, b in zip(batch.args, (X, Y), strict=True)] == [True, True]
    batch = unpack(({"a": X, "b": Y}, Y))
    assert (list(batch.kwargs), batch.args, batch.target is Y) == (["a", "b"], (), True)


@pytest.mark.parametrize("key", ["labels", "label", "target", "targets", "y"])
def test_dictionary_with_target(key):
    batch = unpack(OrderedDict({"x": X, key: Y}))
    assert list(batch.kwargs) == ["x"]
    assert batch.target is Y


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ((X, Y, Y), "a batch of 3 parts is ambiguous"),
        ("abc", "holds no input tensor"),
        (None, "holds no input tensor"),
        ([], "a batch of 0 parts"),
        (torch.tensor(3.0), "holds no input tensor"),
        ({"labels": Y}, "holds no input tensor"),
        (torch.zeros(0, 3), "no sample at all"),
    ],
)
def test_no_batch_is_refused(form, said):
    with pytest.raises(InputError, match=said):
        unpack(form)


def test_walk_finds_every_tensor_in_order():
    @dataclass
    class Out:
        first: torch.Tensor
        rest: dict

    found = list(walk([X, {"a": Y, "b": ("text", Out(X, {"c": Y}))}, 3]))
    assert [id(t) for t in found] == [id(t) for t in (X, Y, X, Y)]
    assert list(walk(Out)) == []  # the class itself holds nothing


def test_mapped_keeps_the_form():
    Pair = namedtuple("Pair", "a b")
    changed = mapped({"p": Pair(X, 2), "l": [X], "s": "text"}, lambda t: t + 1)
    assert isinstance(changed["p"], Pair)
    assert changed["p"].b == 2
    assert torch.equal(changed["l"][0], X + 1)
    assert changed["s"] == "text"


def test_placed_changes_the_type_of_floating_inputs_only():
    batch = placed(unpack(({"x": X, "ids": Y}, X)), device=CPU, dtype=torch.float64)
    assert batch.kwargs["x"].dtype == torch.float64
    assert batch.kwargs["ids"].dtype == torch.int64
    assert batch.target.dtype == torch.float32
    assert placed(unpack((X, X.half())), device=CPU, dtype=torch.float32).target.dtype == torch.float32
    assert placed(unpack((X.half(), Y)), device=CPU).args[0].dtype == torch.float16


def test_placed_makes_ordinary_tensors_of_inference_tensors():
    with torch.inference_mode():
        batch = unpack((X + 1, Y))
    assert batch.args[0].is_inference()
    assert not placed(batch, device=CPU).args[0].is_inference()


@dataclass
class Answer:
    loss: torch.Tensor
    logits: torch.Tensor


@dataclass(slots=True)
class Slots:
    hidden: torch.Tensor


class Plain:
    def __init__(self, **parts):
        self.__dict__.update(parts)


@pytest.mark.parametrize(
    "output",
    [X, (X, Y), [X], {"a": X, "b": Y}, {"loss": Y, "logits": X}, Answer(Y, X), Slots(X), Plain(n=1, a=(X, Y)),
     Plain(loss=Y, logits=X), ((X,), Y)],
)  # fmt: skip
def test_output_tensor(output):
    assert output_tensor(output, where="the model") is X


@pytest.mark.parametrize("output", [None, "text", (), {"a": 1}, Plain(n=1)])
def test_output_without_a_tensor_is_refused(output):
    with pytest.raises(InputError, match=r"the model returned a .* without a tensor"):
        output_tensor(output, where="the model")


@pytest.mark.parametrize(
    "one",
    [X, {"x": X}, (X, Y), [X, Y], ((X, X), Y), ({"x": X}, Y), [X.long(), Y], Batch((X,), {}, None, 4), (X, {"a": Y})],
)
def test_one_batch_is_a_probe(one):
    (batch,) = reusable(one)
    assert batch is one


def test_two_batches_are_two():
    for two in ([X, X], [(X, Y), (X, Y)], ((X, Y), (X, Y)), [X, X[:1]], [Y, Y], ({"x": X}, {"x": X})):
        assert len(list(reusable(two))) == 2


def test_a_data_loader_is_gone_through_again_and_again():
    loader = reusable(DataLoader(TensorDataset(X, Y), batch_size=3))
    assert [len(list(loader)) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ([], "the probe is empty"),
        ((b for b in [X]), "can be read only once"),
        (iter([X]), "can be read only once"),
        (3, "the probe is a int"),
        (TensorDataset(X, Y), "the probe is a TensorDataset: pass a data loader"),
    ],
)
def test_no_probe_is_refused(probe, said):
    with pytest.raises(InputError, match=said):
        reusable(probe)


def test_first_samples():
    small = first_samples(unpack(({"x": X, "ids": Y}, Y)), 2)
    assert (small.samples, len(small.kwargs["x"]), len(small.kwargs["ids"]), len(small.target)) == (2, 2, 2, 2)
    assert first_samples(unpack(X), 9).samples == 4


def test_first_samples_leaves_alone_what_it_cannot_cut():
    graph = unpack(((X, torch.zeros(2, 7)), Y))  # nodes and edges
    assert first_samples(graph, 2) is graph


# ---- which tokens are real


class Takes(torch.nn.Module):
    def forward(self, ids, attention_mask=None, *, decoder_attention_mask=None, src_key_padding_mask=None):
        return ids


MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.float(), MASK[:, None], MASK[:, None, None].bool()])
def test_real_tokens_by_keyword_and_by_place(mask):
    for form in ({"ids": X, "attention_mask": mask}, ((X, mask), Y), {"ids": X, "decoder_attention_mask": mask}):
        (found,) = real_tokens(Takes(), unpack(form)).values()
        assert found.equal(MASK.bool())


def test_padding_is_the_other_way_round():
    added = torch.zeros(4, 3).masked_fill(MASK == 0, -torch.inf)
    for mask in (MASK == 0, 1 - MASK, added):
        found = real_tokens(Takes(), unpack({"ids": X, "src_key_padding_mask": mask}))
        assert found["src_key_padding_mask"].equal(MASK.bool())


def test_no_mask_is_none():
    assert real_tokens(Takes(), unpack(X)) == {}
    assert real_tokens(Takes(), unpack({"ids": X, "attention_mask": None})) == {}


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (
            MASK[:, :, None] * MASK[:, None],
            r"attention_mask has shape \(4, 3, 3\) for 4 samples: .* \(samples, tokens\)",
        ),
        (MASK[:2], r"attention_mask has shape \(2, 3\) for 4 samples"),
        (MASK * 2, "holds other values than those for a real token and for padding: give 0 and 1"),
        ((1.0 - MASK) * -1e4, "holds other values"),
        (MASK * torch.tensor([[1], [0], [1], [1]]), "leaves a sample without a real token"),
    ],
)
def test_other_masks_are_refused(mask, said):
    with pytest.raises(InputError, match=said):
        real_tokens(Takes(), unpack({"ids": X, "attention_mask": mask}))


def test_shortened_cuts_the_inputs_of_one_side():
    wide = torch.zeros(4, 3, 5)
    batch = unpack(({"ids": X, "attention_mask": MASK, "decoder_inputs": Y[:, None] * MASK, "wide": wide, "n": Y}, Y))
    short = shortened(Takes(), batch, "attention_mask", 2)
    shapes = {name: tuple(value.shape) for name, value in short.kwargs.items()}
    assert shapes == {"ids": (4, 2), "attention_mask": (4, 2), "decoder_inputs": (4, 3), "wide": (4, 2, 5), "n": (4,)}
    by_place = shortened(Takes(), unpack(((X, MASK), Y)), "attention_mask", 1)
    assert [tuple(value.shape) for value in by_place.args] == [(4, 1), (4, 1)]


def test_with_target():
    batch = unpack({"x": X, "label": Y})
    assert with_target(batch).kwargs["label"] is Y
    assert with_target(unpack(({"x": X}, Y))).kwargs["labels"] is Y
    assert first_samples(batch, 2).target_key == "label"
    assert with_target(unpack(X)).kwargs == {}


def test_parts_are_dealt_and_lose_nothing():
    x, y = torch.arange(14.0).reshape(7, 2), torch.arange(7)
    for count in (1, 2, 3, 7, 9):
        dealt = parts(unpack(({"a": x, "b": [x + 1]}, {"first": y, "second": x})), count)
        assert len(dealt) == min(count, 7)
        assert sum(part.samples for part in dealt) == 7
        for k, part in enumerate(dealt):
            assert part.samples == len(part.target["first"])
            assert torch.equal(part.kwargs["a"], x[k::count])
            assert torch.equal(part.kwargs["b"][0], x[k::count] + 1)
            assert torch.equal(part.target["second"], x[k::count])


@pytest.mark.parametrize("strange", [torch.tensor(1.0), torch.zeros(3)])
def test_a_batch_with_what_is_not_of_its_samples_stays_whole(strange):
    whole = unpack({"a": torch.zeros(7, 2), "b": strange})
    assert parts(whole, 3) == [whole]
    told = unpack((torch.zeros(7, 2), strange))
    assert parts(told, 3) == [told]
