import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import incop
from incop import methods, pruning, stopping
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.experiments.plan_words import read_words, with_data
from incop.loop import search
from incop.pruning import EvenDamage, Fraction, Layerwise, PQIndex
from incop.records import Interval


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_row_can_be_read_and_names_only_plan_keys(name):
    row = methods.arguments(name, sparsity=None if name == "dense" else 0.9, epochs=10.0, batch_size=60)
    assert methods.PLANNED not in row.values()
    _, problems = read_words(Plan(**row))
    assert problems == []
    assert methods.describe()[name]


def test_published_settings():
    incop_if, incop_gf = methods.method("incop-if"), methods.method("incop-gf")
    assert stopping.parse(incop_if["rule"]) == stopping.FlowRestored(within=0.11) | stopping.AccuracyRestored()
    assert stopping.parse(incop_gf["rule"]) == stopping.FlowRestored(within=0.5) | stopping.AccuracyRestored()
    assert incop_if["check_every"] == incop_gf["check_every"] == "2"
    assert (
        pruning.parse_amount(incop_if["amount"])
        == pruning.parse_amount(methods.method("sap")["amount"])
        == PQIndex(1, 2)
    )
    lth = methods.method("lth")
    assert pruning.parse_amount(lth["amount"]) == Fraction(0.2)
    assert pruning.parse_selection(lth["selection"]) == Layerwise(output=0.5)
    assert lth["rule"] == "none"


def test_an_unknown_method_comes_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'incop'"):
        methods.arguments("incopp")


@pytest.mark.parametrize("name", methods.METHODS)
def test_arguments_are_all_that_a_search_and_its_trainer_need(name):
    """Rows become plain arguments of `incop.search` without a plan, a flag or a folder."""
    x, y = torch.randn(60, 6), torch.randint(3, (60,))
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    row = methods.arguments(name, sparsity=None if name == "dense" else 0.5, epochs=2.0, batch_size=20)
    parts, problems = read_words(Plan(**row))
    assert problems == []
    probe = [(x, y)]
    parts |= {key: with_data(parts[key], probe) for key in ("score", "selection") if key in parts}
    settings = {key: row[key] for key in ("search_batch_size", "search_lr", "keep_optimizer") if key in row}
    trainer = incop.Trainer((x, y), (x, y), epochs=2, batch_size=20, **settings)
    *_, ticket = search(net, trainer, probe=probe, levels=row["levels"], sparsity=row.get("sparsity"), **parts)
    assert ticket.sparsity == pytest.approx(0.0 if name == "dense" else 0.5, abs=0.02)


def test_what_is_given_goes_into_a_row():
    assert methods.arguments("lth") == {"levels": 10, **methods.method("lth")}
    assert methods.arguments("lth", levels=3)["levels"] == 3
    assert methods.arguments("sap", sparsity=0.9)["amount"] == "to 0.9 in 10"
    assert methods.arguments("dense")["levels"] == 0
    incop_row = methods.arguments("incop", epochs=5.0, batch_size=60)
    assert incop_row == methods.method("incop") | {"sparsity": 0.9} | methods.planned(0.9, 5.0, 60)
    assert methods.arguments("incop", sparsity=0.5, levels=4)["amount"] == "flow to 0.5 in 4"


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
    assert pruning.parse_amount(keys["amount"]) == EvenDamage(sparsity, number)
    rule = stopping.parse(keys["rule"])
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
