"""Metrics other than accuracy, in their own direction and unit; losses of numbers and of several labels."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import incop
from incop import Masks, Watch, flow, search, stopping
from incop.cli import main
from incop.errors import InputError
from incop.experiments import replays
from incop.records import Check, History, Level, Metric, Run, Spent
from incop.rundir import RunDir
from incop.validation_metric import ValidationMetric

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(60, 4, generator=GENERATOR)
NUMBERS = 30.0 * X @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]])  # (60, 1), an RMSE well above 1
LABELS = (X[:, :3] > 0).float()  # three labels at once
CLASSES = X[:, :3].argmax(-1)


def net(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, outputs))


def rmse(output, target):
    return functional.mse_loss(output, target).sqrt()


def regression(**more):
    judged = {"loss": functional.mse_loss, "metric": rmse, "higher_is_better": False}
    given = {**judged, "epochs": 4, "lr": 0.02, "batch_size": 15, **more}
    return incop.Trainer((X, NUMBERS), (X[:40], NUMBERS[:40]), **given)


def test_a_regression_is_searched_and_recorded_under_its_metrics_name():
    model, trainer = net(1), regression()
    probe = [(X, NUMBERS)]
    tickets = list(
        search(
            model,
            trainer,
            levels=2,
            probe=probe,
            meter=flow.GradientFlow(functional.mse_loss),
            rule=stopping.MetricRestored(drop=1000.0),
            rewind="rate",
            check_every=1.0,
        )
    )
    end = tickets[-1].record
    with torch.no_grad():
        by_hand = math.sqrt(float(((model(X[:40]) - NUMBERS[:40]) ** 2).mean()))
    assert end.metric_value == pytest.approx(by_hand)
    assert end.metric_value > 1
    assert (end.metric, end.val_accuracy) == (Metric("rmse", higher_is_better=False), None)
    assert f"rmse {end.metric_value:.4g}" in str(tickets[-1])
    assert "accuracy" not in str(tickets[-1])
    assert tickets[1].record.epochs == 1  # the rule ended it at its first check
    assert "rmse" in tickets[1].record.stop_reason


def test_l1_and_several_labels_learn():
    model = net(1)
    trainer = regression(loss=functional.l1_loss, metric=functional.l1_loss, epochs=30)
    before = trainer.evaluate(model)
    trainer.fit(model, Masks.full(model), Watch(model, metric=trainer.measures))
    assert trainer.evaluate(model) < before / 2

    def exact(output, target):
        return ((output > 0) == (target > 0.5)).all(-1).float().mean()

    several = incop.Trainer(
        (X, LABELS),
        (X, LABELS),
        epochs=30,
        batch_size=10,
        lr=0.02,
        loss=functional.binary_cross_entropy_with_logits,
        metric=exact,
        higher_is_better=True,
    )
    model = net(3)
    before = several.evaluate(model)
    several.fit(model, Masks.full(model), Watch(model, metric=several.measures))
    assert several.evaluate(model) > max(before, 0.6)


# --- direction ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "dense", "now", "drop", "back"),
    [
        (False, 3.2, 3.2, 0.0, True),
        (False, 3.2, 3.1, 0.0, True),  # less is better: better than dense
        (False, 3.2, 3.3, 0.0, False),
        (False, 3.2, 3.6, 0.5, True),
        (False, 3.2, 3.8, 0.5, False),
        (True, 3.2, 3.1, 0.0, False),
        (True, 3.2, 3.3, 0.0, True),
        (True, -5.0, -5.4, 0.5, True),
        (True, -5.0, -5.6, 0.5, False),
        (False, 250.0, 250.0 + 2e-10, 0.0, True),
        (False, 3.2, math.nan, 9.9, False),
        (True, math.nan, 3.2, 9.9, False),
    ],
)
def test_restored_is_no_worse_in_the_metrics_own_direction(better, dense, now, drop, back):
    metric = Metric("m", better)
    history = History((Check(1, 1, 1.0, metric_value=now),), None, dense, metric)
    verdict = stopping.MetricRestored(drop)(history)
    assert verdict.stop is back
    assert verdict.reason.startswith("m ")


def test_without_a_metric_it_is_accuracy():
    for now, dense in ((0.95, 0.94), (0.93, 0.94), (0.94, 0.94)):
        history = History((Check(1, 1, 1.0, metric_value=now),), None, dense)
        assert stopping.MetricRestored()(history).stop == stopping.AccuracyRestored()(history).stop


def test_words_there_and_back():
    for text in ("metric restored", "metric within 12.5"):
        assert str(stopping.parse(text)) == text
    with pytest.raises(InputError, match="must be a number of at least 0"):
        stopping.MetricRestored(-1)


def test_a_rule_of_accuracy_is_refused_where_another_metric_is_measured_before_any_training():
    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError("it ran")

    model = nn.Sequential(nn.Linear(4, 1), Untouched())
    with pytest.raises(InputError, match="asks for the accuracy, and the trainer measures rmse: use MetricRestored"):
        search(model, regression(), levels=1, rule=stopping.AccuracyRestored())
    with pytest.raises(InputError, match="what is measured is rmse: use MetricRestored"):
        Watch(net(1), metric=Metric("rmse", False), rule=stopping.AccuracyRestored())
    with pytest.raises(InputError, match="needs reference_accuracy=, or metric= and reference_value="):
        Watch(net(1), metric=Metric("rmse", False), rule=stopping.MetricRestored())


def test_a_watch_takes_any_number_and_a_fraction_as_accuracy():
    watch = Watch(net(1), metric=Metric("rmse", False), rule=stopping.MetricRestored(0.3), reference_value=3.0)
    assert not watch.look(metric_value=3.4).stop
    assert watch.look(metric_value=lambda: 3.2).stop
    assert watch.spent.probe_seconds > 0
    with pytest.raises(InputError, match=r"what is measured is rmse; give its value as metric_value="):
        watch.look(accuracy=0.9)
    for named in ("accuracy", "metric_value"):
        with pytest.raises(InputError, match=rf"look\({named}=93.0\): accuracy is a fraction.*give metric=Metric"):
            Watch(net(1)).look(**{named: 93.0})
    with pytest.raises(InputError, match="two values of one metric, the accuracy: give one"):
        Watch(net(1)).look(accuracy=0.9, metric_value=0.9)


def test_accuracy_is_one_metric_of_which_more_is_better():
    by_name = Watch(net(1), metric=Metric("accuracy", True), rule=stopping.MetricRestored(0.1), reference_value=0.9)
    by_default = Watch(net(1), rule=stopping.AccuracyRestored(0.1), reference_accuracy=0.9)
    for watch in (by_name, by_default):
        assert not watch.look(accuracy=0.7).stop
        assert watch.look(metric_value=0.8).reason == "accuracy 0.8000 back at 0.8000"
        assert watch.checks[-1].accuracy == watch.checks[-1].metric_value == 0.8
        assert watch.checks[-1].to_json()["accuracy"] == 0.8
    with pytest.raises(InputError, match="'accuracy' of which less is better: give it another name"):
        Metric("accuracy", higher_is_better=False)


def test_names_that_arguments_no_longer_have_say_the_new_one():
    with pytest.raises(InputError, match=r"^score= is now called metric_value=$"):
        Watch(net(1)).look(score=3.2)
    with pytest.raises(InputError, match=r"^reference_score= is now called reference_value=$"):
        Watch(net(1), reference_score=3.2)


def test_looks_for_the_metric_are_charged_where_a_rule_needs_them():
    model, trainer = net(1), regression()
    reference = 3.0
    for rule, probed in ((stopping.MetricRestored(), 40), (stopping.AfterEpochs(1), 0)):
        watch = Watch(model, metric=trainer.measures, rule=rule, reference_value=reference, level=1)
        regression(epochs=1).fit(model, Masks.full(model), watch)
        assert watch.spent.probe_samples == probed
        assert watch.spent.record_samples == 40 - probed


# --- records -----------------------------------------------------------------------------------------------------------------


def test_records_there_and_back():
    level = Level(1, 0.2, 0.2, 10, 1.0, 5, 50, 0.1, 0.0, 0, 3.2, "why", "init", metric=Metric("rmse", False))
    assert Level.from_json(json.loads(json.dumps(level.to_json()))) == level
    check = Check(1, 1, 1.0, metric_value=math.inf, metric="rmse")
    assert Check.from_json(json.loads(json.dumps(check.to_json()))) == check
    with pytest.raises(InputError, match=r"under 'Metric.higher_is_better'"):
        Level.from_json({**level.to_json(), "metric": {"name": "rmse", "higher_is_better": "no"}})


def test_a_recorded_run_is_replayed_by_its_metric(tmp_path):
    run = RunDir.create(tmp_path / "run")
    for ticket in search(net(1), regression(), levels=2, rewind="rate", on_check=run.append, check_every=1.0):
        run.append(ticket.record)
    found = replays.replay(run, stopping.MetricRestored(drop=1000.0))
    assert [(one.epochs, one.stopped) for one in found] == [(1.0, True), (1.0, True)]
    found = replays.replay(run, stopping.parse("metric within 0"))
    dense = run.levels()[0].metric_value
    for one in found:
        values = [c.metric_value for c in run.checks() if c.level == one.level]
        assert one.stopped == any(value <= dense + 1e-9 * max(dense, 1) for value in values)
    with pytest.raises(InputError, match="needs the accuracy"):
        replays.replay(run, stopping.AccuracyRestored())


def test_tables_show_it_under_its_name(tmp_path, capsys):
    run, levels = RunDir.create(tmp_path / "run"), []
    for ticket in search(net(1), regression(), levels=1, rewind="rate", on_check=run.append):
        run.append(ticket.record)
        levels.append(ticket.record)
    spent = Spent.total(level.spent for level in levels)
    dense = {"val_accuracy": None, "test_accuracy": None, "epochs": 4.0}
    run.write_plan({"model": "mine"})
    run.write_summary(Run("mine", "mine", "mine", 0, "finished", dense, tuple(levels), spent, None, {}))
    assert main(["show", str(run.path)]) == 0
    assert f"rmse {levels[-1].metric_value:.4g}" in capsys.readouterr().out
    assert main(["report", str(run.path), "--format", "json"]) == 0
    assert '"metric": "rmse"' in capsys.readouterr().out
    assert main(["report", str(run.path)]) == 0
    assert "rmse" in (run.path / "report.html").read_text()


def test_a_resumed_search_knows_the_dense_networks_score():
    taken = []

    def on_state(take):
        taken.append(take())

    rule = stopping.MetricRestored(drop=0.5)
    whole = list(search(net(1), regression(), levels=2, rewind="init", rule=rule, on_state=on_state))
    later = next(state for state in taken if state["level"] == 1 and state["watch/step"] == 2)
    rest = list(search(net(1), regression(), levels=2, rewind="init", rule=rule, resume=later))
    assert [t.record.metric_value for t in rest] == [t.record.metric_value for t in whole[1:]]
    assert [t.record.stop_reason for t in rest] == [t.record.stop_reason for t in whole[1:]]


def test_a_dense_level_judged_otherwise_is_not_shared():
    first = next(iter(search(net(1), regression(), levels=0, rewind="init")))
    dense = incop.loop.Dense(first.record, incop.Snapshot(first.weights), first.points)
    tickets = search(net(1), regression(metric=functional.l1_loss), levels=1, rewind="dense", dense=dense)
    with pytest.raises(InputError, match="was judged by rmse, and the trainer measures l1_loss"):
        list(tickets)
    assert [t.level for t in search(net(1), regression(), levels=1, rewind="dense", dense=dense)] == [0, 1]


# --- what a user may get wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"metric": None, "higher_is_better": None},
            "targets of the train split are numbers .float32., of which there is no accuracy",
        ),
        ({"metric": None, "higher_is_better": True}, "higher_is_better= belongs to a metric"),
        ({"higher_is_better": None}, "the metric rmse does not say whether more of it is better"),
        ({"higher_is_better": "yes"}, "must be True or False"),
        ({"metric": nn.MSELoss}, "metric=MSELoss is a class: give an object"),
        ({"metric": "rmse"}, "metric='rmse' is a str"),
    ],
)
def test_what_cannot_be_judged_by_is_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        regression(**arguments)
    assert "\n" not in str(error.value)


def test_outputs_beside_targets_of_another_shape_are_not_compared_each_with_each():
    flat = incop.Trainer(
        (X, NUMBERS[:, 0]), (X, NUMBERS[:, 0]), loss=functional.mse_loss, metric=rmse, higher_is_better=False
    )
    model = net(1)
    with pytest.raises(InputError, match=r"would compare each with each: .*unsqueeze"):
        flat.fit(model, Masks.full(model), Watch(model, metric=flat.measures))


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        (lambda o, t: o, "gives a Tensor, where one number"),
        (lambda o, t: "good", "gives a str, where one number"),
        (lambda o, t: (o @ t).sum(), "cannot be taken of outputs"),
    ],
)
def test_a_metric_that_gives_no_number(metric, sentence):
    with pytest.raises(InputError, match=sentence):
        regression(metric=metric).evaluate(net(1))


class Gathered:
    """The three methods of torchmetrics, reckoned the slow way."""

    higher_is_better = False

    def __init__(self):
        self.seen, self.resets = [], 0

    def __call__(self, output, target):
        raise AssertionError("its methods are used")

    def update(self, output, target):
        self.seen += (output - target).abs().flatten().tolist()

    def compute(self):
        return sum(self.seen) / len(self.seen)

    def reset(self):
        self.seen, self.resets = [], self.resets + 1


def test_an_object_that_gathers_batch_by_batch():
    metric = Gathered()
    trainer = regression(metric=metric, higher_is_better=None)
    assert trainer.measures == Metric("Gathered", higher_is_better=False)
    model = net(1)
    with torch.no_grad():
        by_hand = float((model(X[:40]) - NUMBERS[:40]).abs().mean())
    assert trainer.evaluate(model) == pytest.approx(by_hand)
    assert trainer.evaluate(model, [(X[:7], NUMBERS[:7]), (X[7:40], NUMBERS[7:40])]) == pytest.approx(by_hand)
    assert metric.seen == []
    with pytest.raises(InputError, match="says itself that it is False"):
        regression(metric=metric, higher_is_better=True)


def test_names_of_metrics():
    assert ValidationMetric.of(lambda o, t: 0.0, True).metric.name == "metric"
    assert ValidationMetric.of(nn.L1Loss(), False).metric.name == "L1Loss"


# --- accuracy ----------------------------------------------------------------------------------------------------------------


def accuracy(output, target):
    with ValidationMetric().over_a_split() as running:
        running.add(output, target)
        return running.value()


def test_accuracy_of_tokens_leaves_ignored_targets_out():
    output = functional.one_hot(torch.tensor([[0, 1, 2], [2, 2, 1]]), 5).float()  # (2, 3, 5)
    target = torch.tensor([[0, 1, -100], [2, 0, -100]])
    assert accuracy(output, target) == 0.75
    assert accuracy(output.transpose(1, 2), target) == 0.75  # as cross-entropy has the classes


@pytest.mark.parametrize(
    ("output", "target", "sentence"),
    [
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), "one output"),
        (torch.zeros(4, 3), torch.zeros(4, 3), "targets are float32"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), "cannot be told of"),
        (torch.zeros(4, 3, 3), torch.zeros(4, 3, dtype=torch.int64), "cannot be told of"),
        (torch.zeros(2, 3), torch.full((2,), -100), "no target"),
    ],
)
def test_accuracy_that_would_be_wrong_is_refused(output, target, sentence):
    with pytest.raises(InputError, match=sentence):
        accuracy(output, target)
