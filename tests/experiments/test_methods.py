import pytest

from incop import stopping
from incop.errors import InputError
from incop.experiments import methods
from incop.experiments.plan import Plan
from incop.pruning import Fraction, Global, Layerwise, Magnitude, NofM, PQIndex, Random, Target


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_row_can_be_read_and_names_only_plan_keys(name):
    row = methods.method(name)
    if methods.is_planned(name):
        row |= methods.planned(0.9, 10.0, 60)
    Plan(**row)
    assert methods.PLANNED not in row.values()
    methods.rule(row["rule"])
    methods.meter(row["meter"])
    methods.amount(row["amount"])
    methods.selection(row["selection"])
    assert methods.describe()[name]


def test_published_settings():
    incop_if, incop_gf = methods.method("incop-if"), methods.method("incop-gf")
    assert methods.rule(incop_if["rule"]) == stopping.FlowRestored(within=0.11) | stopping.AccuracyRestored()
    assert methods.rule(incop_gf["rule"]) == stopping.FlowRestored(within=0.5) | stopping.AccuracyRestored()
    assert incop_if["check_every"] == incop_gf["check_every"] == "2"
    assert methods.amount(incop_if["amount"]) == methods.amount(methods.method("sap")["amount"]) == PQIndex(1, 2)
    lth = methods.method("lth")
    assert methods.amount(lth["amount"]) == Fraction(0.2)
    assert methods.selection(lth["selection"]) == Layerwise(output=0.5)
    assert methods.rule(lth["rule"]) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.2", Fraction(0.2)),
        ("pq:0.5,1", PQIndex(0.5, 1)),
        ("pq:1,2,0,1,0.5", PQIndex(1, 2, 0, 1, 0.5)),
        ("to 0.98 in 10", Target(0.98, 10)),
        ("cubic to 0.9 in 20", Target(0.9, 20, "cubic")),
    ],
)
def test_amounts_there_and_back(text, wanted):
    assert methods.amount(text) == wanted
    assert methods.amount(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("global", Global()), ("layer", Layerwise()), ("layer:0.5", Layerwise(output=0.5)), ("2:4", NofM(2, 4))],
)
def test_selections_there_and_back(text, wanted):
    assert methods.selection(text) == wanted
    assert str(wanted) == text


def test_scores():
    assert methods.score("magnitude", batches=[], seed=3) == Magnitude()
    assert methods.score("random", batches=[], seed=3) == Random(3)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (methods.method, "incopp"),
        (methods.rule, "flow inside 0.1"),
        (methods.amount, "a lot"),
        (methods.amount, "pq:1"),
        (methods.amount, "pq:2,1"),
        (methods.amount, "pq:1,2,3,4,5,6"),
        (methods.amount, "1.2"),
        (methods.amount, "nan"),
        (methods.amount, "to 1.5 in 10"),
        (methods.amount, "to x in 10"),
        (methods.selection, "local"),
        (methods.selection, "4:2"),
        (methods.selection, "layer:"),
        (methods.meter, "infomation"),
        (methods.meter, "information:median"),
        (methods.meter, "gradient:mean"),
    ],
)
def test_words_that_mean_nothing_are_refused_in_one_sentence(read, text):
    with pytest.raises(InputError) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_unknown_score():
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        methods.score("magnitud", batches=[], seed=0)
