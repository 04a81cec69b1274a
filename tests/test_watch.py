import math

import pytest
import torch
from torch import nn

import incop
from incop import Masks, Watch, flow, stopping
from incop.errors import InputError
from small import mlp


def net():
    return mlp(4, 8, 3)


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))


def test_looks_count_epochs_by_themselves():
    watch = Watch(net(), rule=stopping.AfterEpochs(3))
    assert [watch.look().stop for _ in range(3)] == [False, False, True]
    assert [c.epoch for c in watch.checks] == [1, 2, 3]
    assert [c.number for c in watch.checks] == [1, 2, 3]
    assert watch.verdict.reason == "after 3 epochs"


def test_without_a_rule_it_never_stops():
    watch = Watch(net())
    assert not any(watch.look().stop for _ in range(5))


def test_flow_and_distance_are_noted():
    model, meter = net(), flow.InformationFlow("absolute")
    dense = incop.measure(model, X, meter)
    watch = Watch(model, X, meter=meter, reference=dense, rule=stopping.FlowRestored(within=1e-3))
    assert watch.look().stop
    with torch.no_grad():
        model[0].weight.mul_(torch.randn_like(model[0].weight))
    assert not watch.look().stop
    assert watch.checks[1].distance == pytest.approx(watch.checks[1].flow.distance(dense))
    assert watch.spent.probe_samples == 64


def test_accuracy_may_be_measured_lazily_and_counts_as_probing():
    watch = Watch(net(), rule=stopping.AccuracyRestored(), reference_accuracy=0.5)

    def slow():
        watch.probed(10)
        torch.randn(400, 400) @ torch.randn(400, 400)
        return 0.75

    assert watch.look(accuracy=slow).stop
    assert watch.spent.probe_samples == 10
    assert watch.spent.probe_seconds > 0


def test_steps_and_samples_are_counted():
    seen = []
    watch = Watch(net(), on_step=lambda epoch, step: seen.append((epoch, step)))
    for k in range(1, 5):
        watch.stepped(16, epoch=k / 4)
    watch.look()
    check = watch.checks[0]
    assert (check.epoch, check.step, check.spent.samples) == (1.0, 4, 64)
    assert seen == [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4), (1.0, 4)]


def test_due_by_epochs_steps_and_before_training():
    watch = Watch(net(), every=0.5, before=True)
    due = [watch.due()]
    watch.look(epoch=0.0)
    due.append(watch.due())
    for k in range(1, 9):
        watch.stepped(epoch=k / 8)
        due.append(watch.due())
        if due[-1]:
            watch.look()
    assert due == [True, False, False, False, False, True, False, False, False, True]
    watch = Watch(net(), every="3steps")
    assert not watch.due()
    marks = []
    for k in range(1, 8):
        watch.stepped(epoch=k / 100)
        if watch.due():
            marks.append(k)
            watch.look()
    assert marks == [3, 6]


def test_a_tenth_of_an_epoch_is_not_lost_to_rounding():
    watch = Watch(net(), every=0.1)
    marks = []
    for k in range(1, 101):
        watch.stepped(epoch=k / 50)
        if watch.due():
            marks.append(k)
            watch.look()
    assert marks == list(range(5, 101, 5))


def test_check_before_training_has_number_zero():
    watch = Watch(net(), rule=stopping.AfterEpochs(0))
    assert watch.look(epoch=0.0).stop
    assert watch.checks[0].number == 0
    assert watch.look().stop
    assert watch.checks[1].number == 1


def test_mask_changes_are_measured_against_earlier_masks():
    model = net()
    masks = iter(
        [
            Masks({"w": torch.tensor([True, True, False, False])}),
            Masks({"w": torch.tensor([True, False, True, False])}),
            Masks({"w": torch.tensor([True, False, True, False])}),
        ]
    )
    watch = Watch(model, rule=stopping.MaskSettled(checks=2), next_masks=lambda: next(masks))
    for _ in range(3):
        watch.look()
    assert [c.mask_changes for c in watch.checks] == [(), (2 / 3,), (0.0, 2 / 3)]


def test_looking_leaves_the_model_in_training_mode_and_its_gradients_alone():
    model = net().train()
    model(X).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    Watch(model, (X, torch.zeros(32, dtype=torch.long)), meter=flow.GradientFlow(nn.CrossEntropyLoss())).look()
    assert model.training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rule": stopping.FlowRestored(within=0.1)}, "needs a meter and a probe"),
        ({"rule": stopping.AccuracyRestored()}, "needs reference_accuracy="),
        ({"rule": stopping.MaskSettled()}, "needs next_masks="),
        ({"rule": stopping.FlowRestored(within=0.1), "meter": flow.InformationFlow(), "probe": X}, "needs reference="),
        ({"meter": flow.InformationFlow()}, "a meter needs a probe"),
        ({"rule": lambda history: True}, "rule is a function"),
        ({"every": "soon"}, "'soon' is no stretch of training"),
    ],
)
def test_what_a_rule_needs_is_demanded_at_once(arguments, sentence):
    probe = arguments.pop("probe", None)
    with pytest.raises(InputError, match=sentence):
        Watch(net(), probe, **arguments)


@pytest.mark.parametrize(
    ("look", "sentence"),
    [
        ({"accuracy": 93.9}, "a fraction in"),
        ({"accuracy": math.nan}, "a fraction in"),
        ({"epoch": -1}, "must not fall below"),
        ({"epoch": math.nan}, "must not fall below"),
    ],
)
def test_silly_looks_are_refused(look, sentence):
    with pytest.raises(InputError, match=sentence):
        Watch(net()).look(**look)


def test_a_rule_without_its_accuracy_says_how_to_give_it():
    watch = Watch(net(), rule=stopping.AccuracyRestored(), reference_accuracy=0.9)
    with pytest.raises(InputError, match="look\\(accuracy=…\\)"):
        watch.look()


def test_it_searches_while_a_rule_may_still_end_the_level():
    assert not Watch(net()).searching
    watch = Watch(net(), rule=stopping.AfterEpochs(2))
    assert watch.searching
    watch.look()
    assert watch.searching
    watch.look()
    assert watch.verdict.stop
    assert watch.searching  # nothing was trained after the stop
    reported = Watch(net(), rule=stopping.AfterEpochs(2), go_on=lambda: seen.append(reported.searching))
    seen = []
    for k in (1, 2, 3):
        assert reported.searching == (k < 3)
        assert not reported.look().stop
    assert not reported.searching
    assert seen == [False]


def test_weights_are_taken_for_rewound_unless_said_otherwise():
    assert not Watch(net()).continues
    assert Watch(net(), continues=True).continues


def test_what_the_cut_before_the_level_took_counts_as_probing():
    watch = Watch(net(), rule=stopping.AfterEpochs(2))
    watch.probed(640, 1.5)
    watch.probed(10)
    watch.look(accuracy=lambda: watch.probed(7, 0.25) or 0.5)  # the rule needs no accuracy: for the record
    spent = watch.spent
    assert (spent.probe_samples, spent.probe_seconds) == (650, 1.5)
    assert spent.record_samples == 7
    assert spent.record_seconds >= 0.25
    assert watch.checks[0].spent == spent
    assert spent.epochs == 1


def test_seconds_of_the_cut_are_in_the_ledger_at_the_stop_too():
    watch = Watch(net(), rule=stopping.AfterEpochs(1), go_on=lambda: None)
    watch.probed(640, 1.5)
    watch.look()
    watch.look()
    assert (watch.stopped.probe_samples, watch.stopped.probe_seconds) == (640, 1.5)
    assert (watch.spent.probe_samples, watch.spent.probe_seconds) == (640, 1.5)


def test_a_paused_clock_counts_nothing(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("incop.ledger.time.perf_counter", lambda: now[0])
    watch = Watch(nn.Linear(2, 2))
    now[0] = 3.0
    watch.pause()
    now[0] = 10.0  # somebody's own evaluation
    watch.start()
    now[0] = 12.0
    watch.look()
    assert watch.spent.seconds == 5.0
