import pytest
from hypothesis import given
from hypothesis import strategies as st

from incop.errors import InputError
from incop.stopping import (
    PHRASES,
    AccuracyRestored,
    AfterEpochs,
    Both,
    Either,
    FlowRestored,
    FlowSettled,
    LossPlateau,
    MaskSettled,
    parse,
)
from incop.stopping.words import DEEPEST

share = st.floats(0, 1)
small = st.floats(0, 1, exclude_min=True)
counts = st.integers(1, 999_999_999)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
leaves = st.one_of(
    st.builds(FlowRestored, positive, st.booleans()),
    st.builds(FlowSettled, counts, small),
    st.builds(MaskSettled, small, st.integers(1, 10)),
    st.builds(AccuracyRestored, share),
    st.builds(LossPlateau, counts, share),
    st.builds(AfterEpochs, positive | st.integers(0, 2**53)),
)
some = lambda parts: st.lists(parts, min_size=2, max_size=3)  # noqa: E731
nested = st.recursive(
    leaves, lambda parts: st.builds(Either, some(parts)) | st.builds(Both, some(parts)), max_leaves=12
)


@given(nested)
def test_what_a_rule_writes_is_read_back(rule):
    assert parse(str(rule)) == rule
    assert str(parse(str(rule))) == str(rule)
    assert parse(f"(({str(rule).upper()}))") == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("flow within 0.05", FlowRestored(0.05)),
        ("flow within .05 relative", FlowRestored(0.05, relative=True)),
        ("flow within 1e-07", FlowRestored(1e-7)),
        ("flow settled 0.05 for 3", FlowSettled(3, 0.05)),
        ("mask settled 0.1 for 5", MaskSettled(0.1, 5)),
        ("accuracy restored", AccuracyRestored()),
        ("accuracy within 0.005", AccuracyRestored(0.005)),
        ("loss settled 0.01 for 3", LossPlateau(3, 0.01)),
        ("after 20 epochs", AfterEpochs(20)),
        ("after 1 epoch", AfterEpochs(1)),
        ("  Flow   WITHIN\n0.05 OR after 2 epochs ", FlowRestored(0.05) | AfterEpochs(2)),
        ("after 1 epochs | after 2 epochs & after 3 epochs", AfterEpochs(1) | (AfterEpochs(2) & AfterEpochs(3))),
        ("(after 1 epochs or after 2 epochs) and after 3 epochs", (AfterEpochs(1) | AfterEpochs(2)) & AfterEpochs(3)),
    ],
)
def test_parse(text, rule):
    assert parse(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "()",
        "or",
        "flow within",
        "flow within x",
        "flow within 0.05 or",
        "and after 2 epochs",
        "after 2 epochs after 3 epochs",
        "after 2 epochs) or after 3 epochs",
        "(after 2 epochs",
        "after -2 epochs",
        "after 2 steps",
        "loss settled 0.1 for 2.5",
        "flow within nan",
        "not after 2 epochs",
        "(" * 5000,
        "(" * 5000 + "after 2 epochs" + ")" * 5000,
    ],
)
def test_what_cannot_be_read(text):
    with pytest.raises(InputError, match="the rule "):
        parse(text)


@pytest.mark.parametrize("thing", [None, 3, b"after 2 epochs", AfterEpochs(2)])
def test_no_text(thing):
    with pytest.raises(InputError, match="a rule in words is a text, not a"):
        parse(thing)


def test_parentheses_up_to_a_limit():
    assert parse("(" * DEEPEST + "after 2 epochs" + ")" * DEEPEST) == AfterEpochs(2)


@pytest.mark.parametrize(
    "text", ["flow within 0", "accuracy within 5", "mask settled 0.1 for 11", "after 1e999 epochs"]
)
def test_numbers_out_of_range_are_named(text):
    with pytest.raises(InputError, match="it must be"):
        parse(text)


def test_the_error_lists_every_phrase():
    with pytest.raises(InputError) as caught:
        parse("when done")
    assert all(form in str(caught.value) for _, form, _ in PHRASES)
    assert "cannot be read at 'when done'" in str(caught.value)


def test_all_phrases_are_named_where_one_cannot_be_read():
    known = (
        "flow within X [relative]",
        "flow settled X for N",
        "mask settled X for N",
        "accuracy restored",
        "accuracy within X",
        "loss settled X for N",
        "after N epochs",
    )
    with pytest.raises(InputError) as error:
        parse("when I say so")
    assert all(f"{phrase}" in str(error.value) for phrase in known)
    assert "XX" not in str(error.value)
