import pytest

from incop.errors import InputError
from incop.experiments import methods
from incop.experiments.controls import Cost, Label, default_controls
from incop.experiments.parts import resolve
from incop.experiments.plan import Plan
from incop.pruning import Target
from incop.records import Level, Spent


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
        val_accuracy=0.9,
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
    base = resolve(Plan(seed=1).over(Label.parse("incop-if").plan(None, 0.9)))

    def differing(text):
        plan = resolve(Plan(seed=1).over(Label.parse(text).plan(cost, 0.9)))
        return {k for k in plan.told() | base.told() if getattr(plan, k) != getattr(base, k)}, plan

    changed, plan = differing("fixed:match=incop-if")
    assert changed == {"rule", "meter", "alive_only"} - {"alive_only"} | (
        {"check_every"} if plan.check_every != "2" else set()
    )
    assert plan.rule == "after 2 epochs"
    changed, plan = differing("fixed:1")
    assert changed == {"rule", "meter", "check_every"}
    changed, plan = differing("oneshot=incop-if")
    assert (plan.levels, plan.rewind, plan.rule, plan.level_epochs) == (1, "rate", "none", 32.0)
    assert methods.amount(plan.amount) == Target(0.9, 1)
    changed, plan = differing("gradual=incop-if")
    assert methods.amount(plan.amount) == Target(0.9, 20, "cubic")
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
