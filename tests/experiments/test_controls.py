import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incop import methods, pruning, stopping
from incop.errors import InputError
from incop.experiments.controls import Cost, Label, default_controls
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.pruning import Target
from incop.records import Interval, Level, Spent


def level(number, sparsity, epochs, *, probe=0, search=None):
    return Level(
        level=number,
        sparsity=sparsity,
        model_sparsity=sparsity,
        remaining=1,
        epochs=epochs,
        steps=int(epochs * 10),
        samples=int(epochs * 100),
        seconds=1.0,
        probe_seconds=0.1,
        probe_samples=probe,
        metric_value=0.9,
        stop_reason="",
        rewind="init",
        search=search,
    )


LEVELS = [
    level(0, 0.0, 20, probe=999),
    level(1, 0.3, 2, probe=50),
    level(2, 0.6, 10, probe=70, search=Spent(epochs=3, samples=300, probe_samples=20)),
    level(3, 0.796, 4, probe=0),
    level(4, 0.8, 10, probe=10),
]


def test_cost_counts_the_search_with_its_probing_and_the_last_levels_full_training():
    # 100 samples an epoch: every probed sample counts like a trained one
    assert Cost.of(LEVELS, 0.8) == Cost(search=2.5 + 3.2 + 4, search_levels=3, total=2.5 + 3.2 + 4 + 10.1)
    assert Cost.of(LEVELS, 0.6) == Cost(search=2.5, search_levels=1, total=2.5 + 10.7)
    with pytest.raises(InputError, match=r"no ticket of sparsity 0\.9"):
        Cost.of(LEVELS, 0.9)


@pytest.mark.parametrize(
    ("text", "kind", "of", "epochs", "needs_cost", "each"),
    [
        ("lth", "method", "lth", None, False, False),
        ("fixed:2", "fixed", "incop-if", 2.0, False, False),
        ("fixed:.5=incop-gf", "fixed", "incop-gf", 0.5, False, False),
        ("fixed:match=incop-gf", "fixed", "incop-gf", None, True, False),
        ("oneshot=incop-if", "oneshot", "incop-if", None, True, True),
        ("gradual=lth", "gradual", "lth", None, True, True),
        ("mask-settled", "mask-settled", "incop-if", None, False, False),
        ("random=incop-if", "random", "incop-if", None, True, False),
        ("accuracy-restored", "accuracy-restored", "incop-if", None, False, False),
        ("incop", "method", "incop", None, False, True),
        ("fixed:2=incop", "fixed", "incop", 2.0, False, True),
        ("fixed:match=incop", "fixed", "incop", None, True, True),
        ("mask-settled=incop", "mask-settled", "incop", None, False, True),
        ("accuracy-restored=incop", "accuracy-restored", "incop", None, False, True),
        ("random=incop", "random", "incop", None, True, True),
    ],
)
def test_labels(text, kind, of, epochs, needs_cost, each):
    label = Label.parse(text)
    assert (label.text, label.kind, label.of, label.epochs) == (text, kind, of, epochs)
    assert (label.needs_cost, label.each_sparsity) == (needs_cost, each)


@pytest.mark.parametrize(
    "text", ["dense", "lht", "fixed", "fixed:", "fixed:match", "oneshot", "oneshot=", "random=x", "fixed:-1"]
)
def test_labels_that_mean_nothing(text):
    with pytest.raises(InputError):
        Label.parse(text)


def test_every_controls_plan_can_be_resolved_and_changes_what_it_says():
    cost = Cost(search=12.0, search_levels=6, total=32.0)
    base = resolve(Plan(seed=1).over(Label.parse("incop-if").plan(None, 0.9))).plan

    def differing(text):
        plan = resolve(Plan(seed=1).over(Label.parse(text).plan(cost, 0.9))).plan
        return {k for k in plan.given() | base.given() if getattr(plan, k) != getattr(base, k)}, plan

    changed, plan = differing("fixed:match=incop-if")
    assert changed == {"rule", "meter", "alive_only"} - {"alive_only"} | (
        {"check_every"} if plan.check_every != "2" else set()
    )
    assert plan.rule == "after 2 epochs"
    changed, plan = differing("fixed:1")
    assert changed == {"rule", "meter", "check_every"}
    changed, plan = differing("oneshot=incop-if")
    assert (plan.levels, plan.rewind, plan.rule, plan.level_epochs) == (1, "rate", "none", 32.0)
    assert pruning.parse_amount(plan.amount) == Target(0.9, 1)
    changed, plan = differing("gradual=incop-if")
    assert pruning.parse_amount(plan.amount) == Target(0.9, 20, "cubic")
    assert plan.rule == "after 0.6316 epochs"  # 12 epochs over 19 levels; the twentieth is trained in full
    changed, plan = differing("mask-settled")
    assert changed == {"rule", "meter", "check_every"}
    changed, plan = differing("random=incop-if")
    assert plan.score == "random"
    assert plan.rule == "after 2 epochs"


def test_default_controls_belong_to_methods_that_stop_early():
    assert default_controls(["lth", "sap"]) == []
    found = default_controls(["lth", "incop-if", "incop-gf"])
    for text in ("fixed:match=incop-if", "fixed:match=incop-gf", "oneshot=incop-gf", "fixed:1", "mask-settled"):
        assert text in found
    for text in found:
        Label.parse(text)


def test_default_controls_of_a_planned_method_are_all_there_are_of_it():
    every = ["fixed:match", "oneshot", "mask-settled", "accuracy-restored", "gradual", "random"]
    assert default_controls(["lth-rate", "incop"]) == [f"{control}=incop" for control in every]
    both = default_controls(["incop", "lth", "incop-if"])
    assert both == [*default_controls(["incop"]), *default_controls(["incop-if"])]
    assert default_controls(["lth-rate", "lth-early"]) == []


# --- controls of a method that plans its cuts

CONTROLS = [
    "fixed:match=incop",
    "oneshot=incop",
    "mask-settled=incop",
    "accuracy-restored=incop",
    "gradual=incop",
    "random=incop",
]
KEPT = (
    "search_batch_size",
    "search_lr",
    "keep_optimizer",
    "test_levels",
    "meter",
    "last_level_full",
)  # how levels are trained
COST = Cost(search=2.7, search_levels=25, total=22.9)


def control(text, cost=COST, sparsity=0.9, **said):
    own = Label.parse(text).plan(cost, sparsity)
    return resolve(Plan(seed=1, sparsity=sparsity, **said).over(own)).plan


def base(sparsity=0.9, **said):
    return resolve(Plan(seed=1, sparsity=sparsity, **said).over(Label.parse("incop").plan(None, sparsity))).plan


def test_a_planned_methods_own_plan_is_that_of_a_run_alone():
    assert base() == resolve(Plan(seed=1, method="incop", sparsity=0.9)).plan
    assert Label.parse("incop").plan(None, 0.98).levels == methods.cuts(0.98)


@pytest.mark.parametrize("text", CONTROLS)
def test_controls_train_their_levels_as_the_method_does(text):
    plan = control(text, batch_size=48)
    assert [getattr(plan, key) for key in KEPT] == [getattr(base(batch_size=48), key) for key in KEPT]
    assert plan.search_batch_size == 16
    assert (plan.rewind, plan.selection) == ("rate", "global")
    assert methods.PLANNED not in plan.given().values()
    assert resolve(plan).plan == plan


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("fixed:match=incop", {"levels", "amount", "rule", "check_every", "check_before"}),
        ("fixed:1=incop", {"levels", "amount", "rule", "check_every", "check_before"}),
        ("oneshot=incop", {"levels", "amount", "rule", "check_every", "level_epochs"}),
        ("mask-settled=incop", {"levels", "amount", "rule", "check_every"}),
        ("accuracy-restored=incop", {"levels", "amount", "rule", "check_every", "check_before"}),
        ("gradual=incop", {"levels", "amount", "rule", "check_every", "check_before"}),
        ("random=incop", {"levels", "amount", "rule", "check_every", "check_before", "score"}),
    ],
)
def test_controls_change_nothing_else(text, changed):
    plan, method = control(text), base()
    found = {k for k in plan.given() | method.given() if getattr(plan, k) != getattr(method, k)}
    assert changed - {"check_before"} <= found <= changed


@pytest.mark.parametrize("text", [text for text in CONTROLS if text[0] not in "og"])
@pytest.mark.parametrize(("sparsity", "levels"), [(0.3, 2), (0.5, 4), (0.8, 8), (0.9, 11), (0.95, 14), (0.98, 18)])
def test_controls_go_by_levels_of_a_fifth(text, sparsity, levels):
    plan = control(text, sparsity=sparsity)
    assert plan.levels == levels
    assert pruning.parse_amount(plan.amount) == Target(sparsity, levels)
    assert 1 - (1 - sparsity) ** (1 / levels) <= 0.2 < 1 - (1 - sparsity) ** (1 / (levels - 1))
    assert plan.sparsity == sparsity


@given(st.floats(0.25, 0.99), st.floats(0.3, 30), st.integers(2, 60), st.floats(1, 50))
def test_matched_controls_of_a_planned_method_spend_in_all_what_it_spent(sparsity, search, levels, last):
    cost = Cost(search=search, search_levels=levels, total=search + last)
    for text in ("fixed:match=incop", "gradual=incop", "random=incop"):
        plan = control(text, cost, sparsity)
        rule = stopping.parse(plan.rule)
        assert isinstance(rule, stopping.AfterEpochs)
        assert Interval.parse(plan.check_every) == Interval(rule.epochs, "epochs")
        assert (plan.levels - 1) * rule.epochs == pytest.approx(search, abs=5e-5 * plan.levels)
        assert plan.last_level_full
    plan = control("oneshot=incop", cost, sparsity)
    assert (plan.levels, plan.rule, plan.rewind) == (1, "none", "rate")
    assert plan.level_epochs == cost.total
    assert pruning.parse_amount(plan.amount) == Target(sparsity, 1)


def test_random_and_gradual_of_a_planned_method():
    random, gradual = control("random=incop"), control("gradual=incop")
    assert random.score == "random"
    assert random.rule == "after 0.27 epochs"  # 2.7 over the ten of eleven levels that are searched
    assert pruning.parse_amount(random.amount) == Target(0.9, 11)
    assert pruning.parse_amount(gradual.amount) == Target(0.9, 20, "cubic")
    assert gradual.rule == "after 0.1421 epochs"


@pytest.mark.parametrize(("text", "every"), [("accuracy-restored=incop", "0.1"), ("accuracy-restored=incop-if", "1")])
def test_accuracy_restored_asks_before_training_and_lets_two_tenths_of_a_point_go(text, every):
    plan = control(text)
    assert stopping.parse(plan.rule) == stopping.AccuracyRestored(drop=0.002)
    assert plan.check_before
    assert (plan.check_every, plan.meter) == (every, "none")
    assert control(text.replace("accuracy-restored", "mask-settled")).check_every == every
    assert control("accuracy-restored") == control("accuracy-restored=incop-if")


def test_the_cost_of_a_planned_run_counts_its_trial_cuts():
    levels = [level(0, 0.0, 20), level(1, 0.4, 0.1, probe=1152), level(2, 0.7, 0.1), level(3, 0.9, 10)]
    # 100 samples an epoch
    assert Cost.of(levels, 0.9) == Cost(search=pytest.approx(0.2 + 11.52), search_levels=2, total=pytest.approx(21.72))
    assert math.isclose(Cost.of(levels, 0.9).search + 10, Cost.of(levels, 0.9).total)
