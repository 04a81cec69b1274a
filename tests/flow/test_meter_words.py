import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from incop.errors import InputError
from incop.flow import GradientFlow, InformationFlow, parse_meter

reductions, statistics = st.sampled_from(["mean", "absolute", "square"]), st.sampled_from(["norm", "mean_abs"])


@given(
    st.builds(lambda reduction, alive: InformationFlow(reduction, alive_only=alive), reductions, st.booleans())
    | st.builds(lambda statistic: GradientFlow(functional.cross_entropy, statistic), statistics)
)
def test_what_a_meter_writes_is_read_back(meter):
    assert parse_meter(str(meter)) == meter


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("information", InformationFlow()),
        ("information:absolute", InformationFlow("absolute")),
        ("gradient", GradientFlow(functional.cross_entropy)),
        ("gradient:mean_abs", GradientFlow(functional.cross_entropy, "mean_abs")),
        ("none", None),
    ],
)
def test_meters_in_the_words_of_plans(text, wanted):
    assert parse_meter(text) == wanted


def test_what_words_leave_open_is_an_argument():
    loss = nn.CrossEntropyLoss()
    assert parse_meter("information", alive_only=True) == InformationFlow(alive_only=True)
    assert parse_meter("gradient", loss=loss) == GradientFlow(loss)


@pytest.mark.parametrize("text", ["", "infomation", "information:median", "gradient:mean", "information flow"])
def test_words_that_are_no_meter_are_refused_in_one_sentence(text):
    with pytest.raises(InputError) as error:
        parse_meter(text)
    assert "\n" not in str(error.value)
