import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from incop.errors import InputError, TrainingError
from incop.pruning import Global, Layerwise, NofM, Units, parse_selection
from incop.pruning.selection import checked, lowest

few = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, float("inf"), 1e-45])


@given(st.lists(few | st.floats(0, 1, width=32), max_size=60), st.data())
def test_lowest_is_a_stable_sort(scores, data):
    count = data.draw(st.integers(-1, len(scores) + 1))
    wanted = np.zeros(len(scores), dtype=bool)
    wanted[np.argsort(np.array(scores, dtype=np.float32), kind="stable")[: max(count, 0)]] = True
    assert lowest(torch.tensor(scores, dtype=torch.float32), count).tolist() == wanted.tolist()


@pytest.mark.parametrize("count", [0, 1, 5, 9, 10])
def test_lowest_of_equals_goes_by_position(count):
    assert lowest(torch.ones(10), count).tolist() == [True] * count + [False] * (10 - count)


def test_groups():
    names = ["a.weight", "b.weight", "c.weight"]
    assert Global().groups(names) == [(names, 1.0)]
    assert Layerwise().groups(names) == [(["a.weight"], 1.0), (["b.weight"], 1.0), (["c.weight"], 1.0)]
    rated = Layerwise(rates={"a": 0.25, "b.weight": 0.0}, output=0.5)
    assert rated.groups(names) == [(["a.weight"], 0.25), (["b.weight"], 0.0), (["c.weight"], 0.5)]
    assert Layerwise(rates={"c": 2.0}, output=0.5).groups(names)[-1] == (["c.weight"], 2.0)
    assert NofM(2, 4).groups(names) == [([n], 1.0) for n in names]


def test_a_rate_of_no_layer():
    with pytest.raises(InputError, match="unknown layer with a rate 'conv1'"):
        Layerwise(rates={"conv1": 0.5}).groups(["conv2.weight"])


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), True, "1"])
def test_bad_rates(bad):
    with pytest.raises(InputError, match=r"Layerwise: the rate of 'output' is .*at least 0"):
        Layerwise(output=bad)
    with pytest.raises(InputError, match="Layerwise: the rate of 'a'"):
        Layerwise(rates={"a": bad})


@pytest.mark.parametrize(
    ("selection", "text"),
    [(Global(), "global"), (Layerwise(), "layer"), (Layerwise(output=0.5), "layer:0.5"), (NofM(1, 3), "1:3")],
)
def test_in_words(selection, text):
    assert str(selection) == text


@pytest.mark.parametrize("bad", [(0, 4), (4, 4), (5, 4), (2.0, 4), (True, 4), (-1, 2)])
def test_bad_patterns(bad):
    with pytest.raises(InputError, match=r"n of m weights stay, with 1 ≤ n < m"):
        NofM(*bad)


def pattern(scores, mask, n, m):
    """Of every m in a row the n highest that are left stay, of equals the last; a tail stays."""
    rows = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)
    left = np.asarray(mask).reshape(rows.shape).copy()
    for r in range(rows.shape[0]):
        for start in range(0, rows.shape[1] - m + 1, m):
            kept = [i for i in range(start, start + m) if left[r, i]]
            kept.sort(key=lambda i: (rows[r, i], i))
            for i in kept[: max(len(kept) - n, 0)]:
                left[r, i] = False
    return left.reshape(np.shape(mask))


@given(
    st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)),
    st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 5)]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_n_of_m(shape, nm, seed, coarse, dtype):
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape, generator=g)
    scores = (scores * 3).floor().to(dtype) if coarse else scores.to(dtype)
    mask = torch.rand(shape, generator=g) < 0.7
    new = NofM(*nm).cut(scores, mask)
    assert new.tolist() == pattern(scores.double().numpy(), mask.numpy(), *nm).tolist()
    assert not bool((new & ~mask).any())
    assert torch.equal(NofM(*nm).cut(scores, new), new)  # what has the pattern keeps it


@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (0, 0, 3)])
def test_n_of_m_of_no_weights(shape):
    assert NofM().cut(torch.zeros(shape), torch.ones(shape, dtype=torch.bool)).shape == shape


def test_checked():
    weights = {"w": torch.ones(2)}
    scores = {"w": torch.tensor([1.0, float("inf")], requires_grad=True), "other": torch.ones(1)}
    assert list(checked(scores, weights)) == ["w"]
    assert not checked(scores, weights)["w"].requires_grad
    with pytest.raises(InputError, match="the score says nothing of 'w'"):
        checked({}, weights)
    with pytest.raises(InputError, match=r"the score has shape \(1,\) for 'w' of shape \(2,\)"):
        checked({"w": torch.ones(1)}, weights)
    for w, s in (
        ([float("nan"), 0.0], [0.0, 0.0]),
        ([float("inf"), 0.0], [0.0, 0.0]),
        ([1.0, 1.0], [0.0, float("nan")]),
    ):
        with pytest.raises(TrainingError, match=r"weights of 'w' or their scores are not finite"):
            checked({"w": torch.tensor(s)}, {"w": torch.tensor(w)})


@pytest.mark.parametrize("made", [Layerwise(), NofM(2, 4)])
def test_a_selection_cannot_be_changed(made):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, 1)


# --- in words

rates = st.floats(0, 1e6)
patterns = st.integers(1, 99).flatmap(lambda n: st.builds(NofM, st.just(n), st.integers(n + 1, 200)))


@given(
    st.just(Global())
    | st.builds(lambda rate: Layerwise(output=rate), rates)
    | st.builds(lambda each: Units(None, each_layer=each), st.booleans())
    | patterns
)
def test_what_a_selection_writes_is_read_back(selection):
    assert parse_selection(str(selection)) == selection
    assert str(parse_selection(str(selection))) == str(selection)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("global", Global()),
        ("layer", Layerwise()),
        ("layer:0.5", Layerwise(output=0.5)),
        ("units", Units(None)),
        ("units:layer", Units(None, each_layer=True)),
        ("2:4", NofM(2, 4)),
    ],
)
def test_selections_in_words(text, wanted):
    assert parse_selection(text) == wanted
    assert str(wanted) == text


@pytest.mark.parametrize(
    "text", ["", "local", "4:2", "layer:", "layer:x", "layer:nan", "units:0.5", "2:", f"1:{'9' * 5000}"]
)
def test_words_that_are_no_selection_are_refused_in_one_sentence(text):
    with pytest.raises(InputError) as error:
        parse_selection(text)
    assert "\n" not in str(error.value)


def test_units_in_words_are_given_their_example_later():
    batches = [torch.ones(3, 4), torch.zeros(3, 4)]
    units = parse_selection("units:layer").with_data(batches)
    assert units.example is batches[0]
    assert units.each_layer
