"""Plans made whole: what is said goes before the method's row, that before the model's recipe, that before the defaults."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incop import methods
from incop.errors import InputError
from incop.experiments import models
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.pruning import EvenDamage, Fraction, Layerwise

SETTINGS = {"search_lr": 1.5, "keep_optimizer": False, "test_levels": True}
RECIPE = models.entry("lenet-300-100").recipe


def incop(**said):
    return resolve(Plan(method="incop", model="lenet-300-100", **said)).plan


def planned_keys(sparsity, epochs, batch_size=RECIPE.batch_size, levels=None):
    return methods.planned(sparsity, epochs, batch_size, levels)


def differing(plan, keys):
    return {key for key, value in keys.items() if getattr(plan, key) != value}


def test_incop_by_itself():
    plan = incop()
    assert plan.sparsity == 0.9
    assert differing(plan, planned_keys(0.9, RECIPE.epochs)) == set()
    assert (plan.levels, plan.amount, plan.search_batch_size) == (26, "flow to 0.9 in 26", RECIPE.batch_size // 3)
    assert (plan.search_lr, plan.keep_optimizer, plan.test_levels) == (2.0, True, False)
    assert (plan.meter, plan.selection, plan.rewind, plan.last_level_full) == ("none", "global", "rate", True)
    assert methods.PLANNED not in plan.given().values()
    plan.check()


@pytest.mark.parametrize("name", [name for name in methods.METHODS if not methods.is_planned(name) and name != "dense"])
def test_other_methods_search_as_they_train(name):
    plan = resolve(Plan(method=name)).plan
    assert (plan.search_batch_size, plan.search_lr, plan.keep_optimizer, plan.test_levels) == (None, 1.0, False, True)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"sparsity": 0.5}, planned_keys(0.5, RECIPE.epochs)),
        ({"levels": 8}, planned_keys(0.9, RECIPE.epochs, levels=8)),
        ({"levels": 8, "sparsity": 0.98}, planned_keys(0.98, RECIPE.epochs, levels=8)),
        ({"max_epochs": 4.0}, planned_keys(0.9, 4)),
        ({"level_epochs": 3.0}, planned_keys(0.9, 3)),
        ({"level_epochs": 3.0, "max_epochs": 9.0}, planned_keys(0.9, 3)),
        ({"batch_size": 128}, planned_keys(0.9, RECIPE.epochs, 128)),
        ({"batch_size": 2}, planned_keys(0.9, RECIPE.epochs, 2)),
        ({"amount": "0.2"}, planned_keys(0.9, RECIPE.epochs) | {"amount": "0.2"}),
        ({"amount": "flow to 0.9 in 5"}, planned_keys(0.9, RECIPE.epochs) | {"amount": "flow to 0.9 in 5"}),
        ({"rule": "accuracy restored"}, planned_keys(0.9, RECIPE.epochs) | {"rule": "accuracy restored"}),
        ({"check_every": "7steps"}, planned_keys(0.9, RECIPE.epochs) | {"check_every": "7steps"}),
        ({"search_batch_size": 7}, planned_keys(0.9, RECIPE.epochs) | {"search_batch_size": 7}),
        (SETTINGS, SETTINGS),
    ],
)  # fmt: skip
def test_what_is_said_goes_before_what_is_planned_and_into_it(said, wanted):
    plan = incop(**said)
    assert differing(plan, wanted) == set()
    assert differing(plan, said) == set()


@given(
    st.floats(0.05, 0.999),
    st.none() | st.integers(1, 60),
    st.none() | st.floats(0.5, 50),
    st.none() | st.floats(0.5, 50),
    st.none() | st.integers(1, 512),
)
def test_any_planned_plan_is_whole_and_resolved_again_the_same(sparsity, levels, epochs, level_epochs, batch_size):
    said = Plan(
        method="incop",
        sparsity=sparsity,
        levels=levels,
        max_epochs=epochs,
        level_epochs=level_epochs,
        batch_size=batch_size,
    )
    resolved = resolve(said)
    plan = resolved.plan
    assert resolve(plan).plan == plan
    assert resolve(Plan.from_mapping(plan.given())).plan == plan
    assert resolved.amount == EvenDamage(sparsity, plan.levels)
    budget = level_epochs or epochs or RECIPE.epochs
    searched = resolved.rule.epochs * plan.levels
    assert searched == pytest.approx(math.log(1 - sparsity) / math.log(0.8) * budget / 36, rel=1e-3)


def test_the_planned_parts_reach_the_search_and_the_trainer():
    parts = prepare(resolve(incop(sparsity=0.8, limit=100, max_epochs=2.0, batch_size=30, threads=1)))
    assert parts.arguments["amount"] == EvenDamage(0.8, 18)
    assert (parts.arguments["levels"], parts.arguments["sparsity"]) == (18, 0.8)
    trainer = parts.trainer
    assert (trainer.batch_size, trainer.search_batch_size, trainer.search_lr) == (30, 10, 2.0)
    assert trainer.keep_optimizer
    assert parts.probe
    own = prepare(resolve(incop(sparsity=0.8, amount="0.2", search_batch_size=4, limit=100, threads=1)))
    assert own.arguments["amount"] == Fraction(0.2)
    assert own.trainer.search_batch_size == 4


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"sparsity": 1.0}, "--sparsity 1.0 must be between 0 and 1"),
        ({"levels": 0}, "--levels 0"),
        ({"search_batch_size": 0}, "--search-batch-size 0 must be"),
        ({"search_lr": 0.0}, "--search-lr 0.0 must be"),
        ({"batch_size": 0, "search_lr": -1.0}, "--batch-size 0 .*; --search-lr -1"),
    ],
)
def test_keys_out_of_range_are_told_in_one_sentence(said, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        incop(**said)
    assert "\n" not in str(error.value)


def test_even_damage_needs_all_weights_in_one_competition():
    from incop.loop import search

    with pytest.raises(InputError, match="the method 'incop' plans the amounts of many cuts for all weights together"):
        incop(selection="layer")
    parts = prepare(
        dataclasses.replace(resolve(incop(limit=100, threads=1)), selection=Layerwise())
    )  # as only code can
    with pytest.raises(InputError, match="use it with selection global"):
        search(parts.model, parts.trainer, **parts.arguments)


def test_an_amount_takes_the_number_of_levels_from_the_search():
    resolved = resolve(Plan(method="lth-rate", amount="flow to 0.9", levels=5))
    assert resolved.amount == EvenDamage(0.9)
    with pytest.raises(
        InputError, match=r"--sparsity 0\.95 cannot be reached: the amount flow to 0\.9 leads to 0\.9000"
    ):
        resolve(Plan(method="lth-rate", amount="flow to 0.9", levels=5, sparsity=0.95))
