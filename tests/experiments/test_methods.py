import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incop import stopping
from incop.errors import InputError
from incop.experiments import methods
from incop.experiments.plan import Plan
from incop.pruning import (
    EvenDamage,
    Fraction,
    Global,
    Layerwise,
    Magnitude,
    NofM,
    PQIndex,
    Random,
    Saliency,
    Target,
    Units,
)
from incop.records import Interval


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
        ("flow to 0.98 in 40", EvenDamage(0.98, 40)),
    ],
)
def test_amounts_there_and_back(text, wanted):
    assert methods.amount(text) == wanted
    assert methods.amount(str(wanted)) == wanted


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
def test_selections_there_and_back(text, wanted):
    assert methods.selection(text) == wanted
    assert str(wanted) == text


def test_scores():
    assert methods.score("magnitude", batches=[], seed=3) == Magnitude()
    assert methods.score("random", batches=[], seed=3) == Random(3)
    for text, power in (
        ("saliency", Saliency().power),
        ("saliency:0.25", 0.25),
        ("saliency:1", 1.0),
        ("saliency:.5", 0.5),
    ):
        score = methods.score(text, batches=[], seed=3)
        assert (score.power, score.memory) == (power, 1000)
        assert methods.score(str(score), batches=[], seed=3).power == power


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
        (methods.amount, "flow to 1 in 10"),
        (methods.amount, "flow to 0.9 in 0"),
        (methods.amount, "flow to x in 10"),
        (methods.amount, "flow to 0.9 in 2.5"),
        (methods.amount, "flow to 0.9"),
        (methods.selection, "local"),
        (methods.selection, "4:2"),
        (methods.selection, "layer:"),
        (methods.selection, "units:0.5"),
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


@pytest.mark.parametrize("power", ["", "x", "2", "-0.5", "nan", "inf", "0,5"])
def test_a_power_that_is_none(power):
    with pytest.raises(InputError, match=r"power .*\[0, 1\]"):
        methods.score(f"saliency:{power}", batches=[], seed=0)


# --- methods that plan their cuts


@given(st.integers(1, 40))
def test_so_many_fifths_are_counted_as_so_many(levels):
    assert methods.fifths(1 - 0.8**levels) == pytest.approx(levels)


@pytest.mark.parametrize(
    ("sparsity", "cuts"), [(0.01, 2), (0.2, 2), (0.5, 8), (0.8, 18), (0.9, 26), (0.98, 44), (0.99, 52)]
)
def test_cuts_are_five_halves_of_the_levels_of_a_fifth_and_two_at_least(sparsity, cuts):
    assert methods.cuts(sparsity) == cuts
    assert cuts == max(2, round(2.5 * math.log(1 / (1 - sparsity)) / math.log(1.25)))


def test_only_incop_is_planned_by_either_score():
    assert [name for name in methods.METHODS if methods.is_planned(name)] == ["incop", "incop-magnitude"]
    own, before = methods.method("incop"), methods.method("incop-magnitude")
    assert own == before | {"score": "saliency"}
    assert before["score"] == "magnitude"


sparsities = st.floats(0.01, 0.9999)


@given(sparsities, st.floats(0.1, 1000), st.integers(1, 4096), st.none() | st.integers(1, 200))
def test_planned_keys_share_a_thirty_sixth_of_what_fifths_would_train_evenly(sparsity, epochs, batch_size, levels):
    keys = methods.planned(sparsity, epochs, batch_size, levels)
    number = levels or methods.cuts(sparsity)
    assert keys["levels"] == number
    assert methods.amount(keys["amount"]) == EvenDamage(sparsity, number)
    rule = methods.rule(keys["rule"])
    assert isinstance(rule, stopping.AfterEpochs)
    stretch = math.log(1 - sparsity) / math.log(0.8) * epochs / 36 / number
    assert rule.epochs == pytest.approx(stretch, rel=1e-3)
    assert Interval.parse(keys["check_every"]) == Interval(rule.epochs, "epochs")
    assert keys["search_batch_size"] == max(1, batch_size // 3)
    Plan(**keys).check()


def search_cost(sparsity, epochs, samples, batch_size):
    """Epochs of the search, its trial cuts included: whole steps until the stretch is over, in all levels but the last."""
    keys = methods.planned(sparsity, epochs, batch_size)
    steps_an_epoch = math.ceil(samples / keys["search_batch_size"])
    every, steps = Interval.parse(keys["check_every"]), 1
    while not every.passed(epoch=steps / steps_an_epoch, step=steps):
        steps += 1
    trials = EvenDamage(sparsity, keys["levels"]).trials
    return (keys["levels"] - 1) * steps / steps_an_epoch + (trials + 1) * min(128, samples) / samples


def full_cost(sparsity, epochs):
    """Epochs of all levels of a fifth but the last, which every method trains in full."""
    return (math.ceil(methods.fifths(sparsity)) - 1) * epochs


corpora = st.tuples(st.integers(1200, 100_000), st.floats(10, 200), st.integers(16, 128))


@given(st.floats(0.1, 0.995), corpora)
@settings(max_examples=200)
def test_a_search_costs_a_thirty_sixth_and_its_trial_cuts_and_less_than_a_step_a_cut(sparsity, corpus):
    samples, epochs, batch_size = corpus
    cuts, steps_an_epoch = methods.cuts(sparsity), math.ceil(samples / (batch_size // 3))
    shared = (cuts - 1) / cuts * methods.fifths(sparsity) * epochs / 36
    found = search_cost(sparsity, epochs, samples, batch_size)
    least = shared * (1 - 5e-4) + 1152 / samples
    assert least - 1e-6 <= found <= least * (1 + 1e-3) + (cuts - 1) / steps_an_epoch + 1e-6


@given(st.floats(0.5, 0.995), corpora)
@settings(max_examples=200)
def test_a_search_costs_less_than_a_thirtieth_of_full_levels_of_a_fifth(sparsity, corpus):
    """Where a full level sees some 100,000 samples, and from a sparsity of 0.8; below both, trial cuts and rounding weigh more."""
    samples, epochs, batch_size = corpus
    epochs = max(epochs, (100_000 if sparsity >= 0.8 else 200_000) / samples)
    share = 30 if sparsity >= 0.8 else 27
    assert search_cost(sparsity, epochs, samples, batch_size) < full_cost(sparsity, epochs) / share


@pytest.mark.parametrize(
    ("sparsity", "samples", "epochs", "share"), [(0.9, 1200, 10, 0.04), (0.9, 1294, 20, 0.035), (0.5, 1200, 10, 0.062)]
)
def test_on_little_data_a_search_may_cost_more_than_a_thirtieth_but_not_much(sparsity, samples, epochs, share):
    found = search_cost(sparsity, epochs, samples, 60) / full_cost(sparsity, epochs)
    assert share - 0.005 < found < share
