import dataclasses
import json
import math
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from incop.errors import InputError
from incop.records import Check, Flow, History, Verdict
from incop.stopping import (
    AccuracyRestored,
    AfterEpochs,
    Both,
    Either,
    FlowRestored,
    FlowSettled,
    LossPlateau,
    MaskSettled,
    Rule,
)

unit = st.floats(0, 1)
value = st.floats(-2, 2) | st.sampled_from([math.nan, math.inf, 0.1, 0.5])
loss = st.none() | st.floats(-1, 3) | st.sampled_from([math.nan, math.inf, 0.0])


@st.composite
def histories(draw, values=value, before=None):
    """A level's checks as a watch makes them: number 0 first when it looked before training."""
    count = draw(st.integers(1, 6))
    first = 0 if draw(st.booleans() if before is None else before) else 1
    checks = []
    for number in range(first, first + count):
        checks.append(
            Check(
                level=1,
                number=number,
                epoch=number * 0.5,
                flow=Flow({"a->b": draw(values), "b->c": draw(values)}),
                metric_value=draw(unit),
                loss=None if number == 0 else draw(st.floats(-1, 3) | st.sampled_from([math.nan, math.inf])),
                mask_changes=tuple(draw(unit) for _ in checks),
            )
        )
    return History(tuple(checks), Flow({"a->b": draw(values), "b->c": draw(values)}), draw(unit))


small = st.floats(0, 1, exclude_min=True)
rules = st.one_of(
    st.builds(FlowRestored, st.floats(0, 4, exclude_min=True)),
    st.builds(FlowSettled, st.integers(1, 4), small),
    st.builds(MaskSettled, small, st.integers(1, 10)),
    st.builds(AccuracyRestored, unit),
    st.builds(LossPlateau, st.integers(1, 4), unit),
    st.builds(AfterEpochs, st.floats(0, 4)),
)


def distances(history):
    return [
        math.sqrt(sum((c.flow.values[k] - history.reference.values[k]) ** 2 for k in c.flow.values))
        for c in history.checks
    ]


# --- each against an obvious oracle


@given(histories(), st.floats(0.01, 4))
def test_flow_restored(history, within):
    d = distances(history)[-1]
    if abs(d - within) > 1e-9 or math.isnan(d):
        assert FlowRestored(within)(history).stop == (d < within)


@given(histories(st.floats(0.1, 2)), st.floats(0.01, 4))
def test_flow_restored_relative(history, within):
    d = distances(history)[-1] / math.hypot(*history.reference.values.values())
    if abs(d - within) > 1e-9:
        assert FlowRestored(within, relative=True)(history).stop == (d < within)


def settled(d, patience, less_than):
    """Each of the last `patience` steps fell by less than so much of the first distance, or not at all."""
    if len(d) < patience + 1:
        return False
    for before, after in list(pairwise(d))[-patience:]:
        fall = before - after
        if math.isnan(fall) or math.isinf(fall) or not math.isfinite(d[0]):
            return False
        if fall > 0 and fall >= less_than * d[0]:
            return False
    return True


@given(histories(st.sampled_from([0.0, 0.1, 0.2, 0.21, 0.4, 1.0, math.nan, math.inf])), st.integers(1, 3), small)
@settings(max_examples=300)
def test_flow_settled(history, patience, less_than):
    d = [x for x, c in zip(distances(history), history.checks, strict=True) if c.number > 0]
    falls = [a - b for a, b in pairwise(d)]
    if d and all(abs(fall - less_than * d[0]) > 1e-9 or not math.isfinite(fall) for fall in falls):
        assert FlowSettled(patience, less_than)(history).stop == settled(d, patience, less_than)


@given(histories(), small, st.integers(1, 5))
def test_mask_settled(history, less_than, checks):
    changes = history.now.mask_changes
    wanted = history.now.number > 0 and len(changes) >= checks and all(c < less_than for c in changes[:checks])
    rule = MaskSettled(less_than, checks)
    if history.now.number > 0 and len(history.checks) > 1 and not changes:
        return
    assert rule(history).stop == wanted


@given(histories(), unit)
def test_accuracy_restored(history, drop):
    gap = history.now.metric_value - (history.reference_value - drop)
    if abs(gap) > 1e-8:
        assert AccuracyRestored(drop)(history).stop == (gap > 0)


def test_accuracy_restored_by_exactly_the_drop():
    """0.8 - 0.1 is 0.7 in accuracies and a little more in floats."""
    for dense, drop, now in (
        (0.8, 0.1, 0.7),
        (0.955, 0.01, 0.945),
        (0.3, 0.1, 0.2),
        (0.94, 0.0, 0.94),
        (0.97, 0.005, 0.965),
    ):
        assert AccuracyRestored(drop)(History((Check(1, 1, 1.0, metric_value=now),), None, dense)).stop
    assert not AccuracyRestored()(History((Check(1, 1, 1.0, metric_value=0.9399),), None, 0.94)).stop


@given(histories(), st.integers(1, 3), unit)
def test_loss_plateau(history, patience, less_than):
    losses = [c.loss for c in history.checks if c.number > 0]
    wanted = False
    if history.now.number > 0 and len(losses) > patience and not any(math.isnan(x) for x in losses):
        best, last = min(losses[:-patience]), min(losses[-patience:])
        wanted = math.isfinite(best) and math.isfinite(last) and best - last <= less_than * abs(best)
        if math.isfinite(best) and abs(best - last - less_than * abs(best)) < 1e-9:
            return
    assert LossPlateau(patience, less_than)(history).stop == wanted


@given(histories(), st.floats(0, 4))
def test_after_epochs(history, epochs):
    if abs(history.now.epoch - epochs) > 1e-8:
        assert AfterEpochs(epochs)(history).stop == (history.now.epoch > epochs)


def test_after_epochs_that_are_sums_of_fractions():
    assert AfterEpochs(0.3)(History((Check(1, 3, epoch=0.1 + 0.1 + 0.1 - 1e-12),))).stop


# --- pure


@given(rules, rules, histories())
def test_a_rule_is_pure(rule, other, history):
    first = rule(history)
    other(history)
    (rule | other)(dataclasses.replace(history, checks=history.checks[:1]))
    assert rule(history) == first
    assert dataclasses.replace(rule)(history) == first
    assert first.rule == str(rule)
    assert first.reason


@given(st.one_of(rules, st.builds(lambda a, b: a | b, rules, rules)), histories())
def test_a_rule_is_replayed_from_json(rule, history):
    text = json.dumps([check.to_json() for check in history.checks], allow_nan=False)
    checks = tuple(Check.from_json(data) for data in json.loads(text))
    reference = Flow.from_json(json.loads(json.dumps(history.reference.to_json())))
    assert rule(History(checks, reference, history.reference_value)) == rule(history)


@given(rules)
def test_a_rule_cannot_be_changed(rule):
    field = dataclasses.fields(rule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rule, field, 1)
    assert hash(rule) == hash(dataclasses.replace(rule))


# --- monotone


@given(histories(), st.floats(0, 4, exclude_min=True), st.floats(0, 4, exclude_min=True))
def test_a_wider_tolerance_stops_no_later(history, a, b):
    assert FlowRestored(min(a, b))(history).stop <= FlowRestored(max(a, b))(history).stop
    low, high = min(a, b, 1.0), min(max(a, b), 1.0)
    assert AccuracyRestored(low)(history).stop <= AccuracyRestored(high)(history).stop
    assert MaskSettled(low, 2)(history).stop <= MaskSettled(high, 2)(history).stop
    assert FlowSettled(2, low)(history).stop <= FlowSettled(2, high)(history).stop
    assert LossPlateau(2, low)(history).stop <= LossPlateau(2, high)(history).stop
    assert AfterEpochs(max(a, b))(history).stop <= AfterEpochs(min(a, b))(history).stop


@given(histories(), st.integers(1, 5), st.integers(1, 5))
def test_more_patience_stops_no_earlier(history, a, b):
    less, more = min(a, b), max(a, b)
    assert FlowSettled(more, 0.1)(history).stop <= FlowSettled(less, 0.1)(history).stop
    assert MaskSettled(0.5, more)(history).stop <= MaskSettled(0.5, less)(history).stop


# --- joined


@given(rules, rules, rules, histories())
def test_or_and_and(a, b, c, history):
    stops = {rule: rule(history).stop for rule in (a, b, c)}
    assert (a | b)(history).stop == (stops[a] or stops[b])
    assert (a & b)(history).stop == (stops[a] and stops[b])
    assert (a | b | c) == (a | (b | c)) == Either((a, b, c))
    assert (a & b & c) == (a & (b & c)) == Both((a, b, c))
    assert ((a | b) & c)(history).stop == ((stops[a] or stops[b]) and stops[c])
    assert (a | b).wants == a.wants | b.wants == (a & b).wants


@given(rules, rules, histories())
def test_the_reason_is_that_of_the_rule_that_stopped(a, b, history):
    first, second, verdict = a(history), b(history), (a | b)(history)
    if verdict.stop:
        assert verdict.reason == (first if first.stop else second).reason
    else:
        assert verdict.reason == f"{first.reason}; {second.reason}"
    both = (a & b)(history)
    if both.stop:
        assert both.reason == f"{first.reason} and {second.reason}"


def test_nested_rules_of_one_kind_are_one():
    a, b, c = AfterEpochs(1), AfterEpochs(2), AccuracyRestored()
    assert Either((Either((a, b)), c)).rules == (a, b, c)
    assert Both([a, Both([b, c])]).rules == (a, b, c)
    assert Either((Both((a, b)), c)).rules == (Both((a, b)), c)


@pytest.mark.parametrize("kind", [Either, Both])
@pytest.mark.parametrize("some", [(), (AfterEpochs(1),)])
def test_joining_needs_two(kind, some):
    with pytest.raises(InputError, match=rf"{kind.__name__} joins at least two rules, not {len(some)}"):
        kind(some)


@pytest.mark.parametrize("other", [3, "after 2 epochs", None, AfterEpochs])
def test_joining_needs_rules(other):
    for join in (
        lambda: AfterEpochs(1) | other,
        lambda: AfterEpochs(1) & other,
        lambda: Either((AfterEpochs(1), other)),
    ):
        with pytest.raises(InputError, match="a rule can be joined with another rule, not with a"):
            join()


# --- what must never stop


@given(histories(st.just(math.nan)), st.floats(0.01, 1e9))
def test_a_flow_that_is_no_number_never_stops(history, within):
    assert not FlowRestored(within)(history).stop
    assert not FlowSettled(1, 1.0)(history).stop


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_distance_does_not_settle(bad):
    for at in range(3):
        flows = [0.1, 0.1, 0.1]
        flows[at] = bad
        checks = tuple(Check(1, k, k, flow=Flow({"a": x})) for k, x in enumerate(flows, 1))
        assert not FlowSettled(2, 1.0)(History(checks, Flow({"a": 0.0}))).stop
        losses = tuple(Check(1, k, k, loss=x) for k, x in enumerate(flows, 1))
        if math.isnan(bad) or at == 0:
            assert not LossPlateau(2, 1.0)(History(losses)).stop


def test_accuracies_that_are_no_numbers_never_stop():
    for now, dense in ((math.nan, 0.5), (0.5, math.nan)):
        assert not AccuracyRestored(1.0)(History((Check(1, 1, 1.0, metric_value=now),), None, dense)).stop


@given(rules, st.integers(1, 3))
def test_before_training_nothing_has_settled(rule, looks):
    """Looks before any training, however many, show what the level starts from, and never that it has settled."""
    check = Check(1, 0, 0.0, flow=Flow({"a": 1.0}), metric_value=0.5, loss=0.1, mask_changes=(0.0,) * 10)
    history = History((check,) * looks, Flow({"a": 1.0}), 0.5)
    stop = rule(history).stop
    if isinstance(rule, FlowSettled | MaskSettled | LossPlateau):
        assert not stop
    if isinstance(rule, FlowRestored | AccuracyRestored):
        assert stop
    if isinstance(rule, AfterEpochs):
        assert stop == (rule.epochs <= 1e-9)


def test_the_look_before_training_is_not_the_first_of_a_settling_flow():
    """The first steps drive the flow away; that it did not fall then says nothing."""
    flows = (0.5, 0.9, 0.5)
    checks = tuple(Check(1, k, k, flow=Flow({"a": x})) for k, x in enumerate(flows))
    rule = FlowSettled(patience=1)
    assert [rule(History(checks[:n], Flow({"a": 0.0}))).stop for n in (1, 2, 3)] == [False, False, False]
    later = (*checks, Check(1, 3, 3.0, flow=Flow({"a": 0.5})))
    assert rule(History(later, Flow({"a": 0.0}))).stop


def test_a_distance_of_nothing_has_settled():
    checks = tuple(Check(1, k, k, flow=Flow({"a": 1.0})) for k in (1, 2))
    assert FlowSettled(patience=1)(History(checks, Flow({"a": 1.0}))).stop


def test_a_distance_of_nothing_at_first_is_no_licence():
    flows = (0.0, 5.0, 1.0)
    checks = tuple(Check(1, k, k, flow=Flow({"a": x})) for k, x in enumerate(flows, 1))
    assert not FlowSettled(patience=1)(History(checks, Flow({"a": 0.0}))).stop


# --- what is missing


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        (FlowRestored(0.1), "give the watch a meter"),
        (FlowSettled(), "give the watch a meter"),
        (AccuracyRestored(), r"call look\(accuracy=…\) and give the watch reference_accuracy="),
        (LossPlateau(), r"call look\(loss=…\)"),
        (MaskSettled(), "give the watch the next cut as next_masks="),
        (AfterEpochs(1) & LossPlateau(), r"call look\(loss=…\)"),
    ],
)
def test_what_is_missing_is_said(rule, how):
    history = History((Check(1, 1, 1.0), Check(1, 2, 2.0)))
    with pytest.raises(InputError, match=rf"the rule '.*' needs what this check does not hold: {how}"):
        rule(history)


def test_a_missing_reference_is_said():
    history = History((Check(1, 1, 1.0, flow=Flow({"a": 1.0}), metric_value=0.5),))
    with pytest.raises(InputError, match="dense network's flow as reference="):
        FlowRestored(0.1)(history)
    with pytest.raises(InputError, match="reference_accuracy="):
        AccuracyRestored()(history)


@given(rules)
def test_no_check_at_all(rule):
    with pytest.raises(InputError, match="without any check"):
        rule(History((), Flow({"a": 1.0}), 0.5))


def test_a_rule_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Never(Rule):
        def judge(self, history):
            return False, "never"

        def __str__(self):
            return "never"

    assert (Never() | AfterEpochs(1))(History((Check(1, 1, 1.0),))) == Verdict(
        True, "after 1 epochs", "never or after 1 epochs"
    )
    with pytest.raises(NotImplementedError):
        Rule().judge(History(()))


def test_a_rule_that_needs_the_unheard_of():
    class Warm(Rule):
        needs = frozenset({"temperature"})

    with pytest.raises(InputError, match="unknown need of a rule 'temperature'"):
        Warm()(History((Check(1, 1, 1.0),)))


# --- arguments

BAD = [math.nan, math.inf, -math.inf, -1, True, "1", None, [1]]


@pytest.mark.parametrize("bad", [*BAD, 0])
def test_tolerances(bad):
    for make in (FlowRestored, lambda b: FlowSettled(1, b), MaskSettled):
        with pytest.raises(InputError, match=r"=.*\): it must be a number above 0"):
            make(bad)


@pytest.mark.parametrize("bad", [*BAD, 1.5])
def test_shares(bad):
    for make in (AccuracyRestored, lambda b: LossPlateau(1, b)):
        with pytest.raises(InputError, match="it must be a number of at least 0 and at most 1"):
            make(bad)


@pytest.mark.parametrize("bad", BAD)
def test_epochs(bad):
    with pytest.raises(InputError, match=r"AfterEpochs\(epochs=.*\): it must be a number of at least 0"):
        AfterEpochs(bad)


@pytest.mark.parametrize("bad", [*BAD, 0, 1.5])
def test_counts(bad):
    for make in (FlowSettled, LossPlateau, lambda b: MaskSettled(0.1, b)):
        with pytest.raises(InputError, match="it must be a whole number of at least 1"):
            make(bad)


def test_most():
    with pytest.raises(InputError, match="at least 1 and at most 10"):
        MaskSettled(0.1, 11)
    with pytest.raises(InputError, match="above 0 and at most 1"):
        FlowSettled(2, 1.5)


@given(histories(before=st.just(False)))
@example(History(tuple(Check(1, k, k, flow=Flow({"a": 1.0}), loss=1.0) for k in (1, 2, 3)), Flow({"a": 0.0})))
def test_a_whole_float_is_a_count(history):
    assert FlowSettled(2.0) == FlowSettled(2)
    assert str(LossPlateau(2.0)) == str(LossPlateau(2))
    assert FlowSettled(2.0)(history) == FlowSettled(2)(history)
    assert LossPlateau(2.0)(history) == LossPlateau(2)(history)


# --- limits, defaults and words, each by an example


def judged(rule, *, flows=(), changes=(), accuracy=None, losses=(), reference=0.0):
    """Return the verdict on checks whose flows (of one pair), mask changes or losses are given, oldest first."""
    count = max(len(flows), len(losses), 1 if not changes else 2)
    checks = [
        Check(
            1,
            number,
            float(number),
            flow=Flow({"a->b": flows[number - 1]}) if flows else None,
            loss=losses[number - 1] if losses else None,
            metric_value=accuracy,
            mask_changes=tuple(changes) if number == count else (),
        )
        for number in range(1, count + 1)
    ]
    return rule(History(tuple(checks), Flow({"a->b": reference}), 0.75))


@pytest.mark.parametrize(
    ("rule", "seen", "below"),
    [
        (FlowRestored(0.5), {"flows": (0.5,)}, {"flows": (0.49,)}),
        (FlowRestored(0.5, relative=True), {"flows": (3.0,), "reference": 2.0}, {"flows": (2.9,), "reference": 2.0}),
        (FlowSettled(1, 0.5), {"flows": (1.0, 0.5)}, {"flows": (1.0, 0.51)}),
        (MaskSettled(0.5, 2), {"changes": (0.25, 0.5)}, {"changes": (0.25, 0.49)}),
        (AccuracyRestored(0.25), {"accuracy": 0.49}, {"accuracy": 0.5}),
        (LossPlateau(1, 0.5), {"losses": (1.0, 0.49)}, {"losses": (1.0, 0.5)}),
        (AfterEpochs(2), {"losses": (1.0,)}, {"losses": (1.0, 1.0)}),
    ],
)
def test_at_its_very_limit(rule, seen, below):
    assert not judged(rule, **seen).stop
    assert judged(rule, **below).stop


def test_defaults_are_those_of_the_docs():
    assert FlowRestored(0.1) == FlowRestored(0.1, relative=False)
    assert FlowSettled() == FlowSettled(2, 0.05)
    assert MaskSettled() == MaskSettled(0.1, 5)
    assert AccuracyRestored() == AccuracyRestored(0.0)
    assert LossPlateau() == LossPlateau(3, 0.01)


@pytest.mark.parametrize(
    ("rule", "seen", "sentence"),
    [
        (FlowRestored(0.5), {"flows": (0.25,)}, "flow within 0.5 of dense (0.25)"),
        (FlowRestored(0.5), {"flows": (0.75,)}, "flow 0.75 from dense, not within 0.5"),
        (FlowRestored(0.5, True), {"flows": (2.5,), "reference": 2.0}, "flow within 0.5 relative of dense (0.25)"),
        (FlowRestored(0.5, True), {"flows": (4.0,), "reference": 2.0}, "flow 1 relative from dense, not within 0.5"),
        (FlowSettled(2), {"flows": (1.0, 0.5)}, "2 of the 3 checks needed to see the flow settle"),
        (FlowSettled(1), {"flows": (1.0, 0.99)}, "flow settled: its distance 0.99 fell by less than 0.05 in 1 checks"),
        (FlowSettled(1), {"flows": (1.0, 0.5)}, "flow not settled: its distance fell by 0.5 within 1 checks"),
        (MaskSettled(0.5, 3), {"changes": (0.25,)}, "1 of the 3 earlier masks needed to see it settle"),
        (MaskSettled(0.5, 2), {"changes": (0.1, 0.25)}, "mask settled: it moved by 0.25, less than 0.5, in 2 checks"),
        (MaskSettled(0.5, 2), {"changes": (0.1, 0.75)}, "mask moved by 0.75 in 2 checks, not less than 0.5"),
        (AccuracyRestored(), {"accuracy": 0.75}, "accuracy 0.7500 back at 0.7500"),
        (AccuracyRestored(0.25), {"accuracy": 0.25}, "accuracy 0.2500 not back at 0.5000"),
        (LossPlateau(2), {"losses": (1.0,)}, "1 of the 3 checks needed to see the loss settle"),
    ],
)
def test_the_sentence(rule, seen, sentence):
    assert judged(rule, **seen).reason == sentence


@pytest.mark.parametrize("need", ["flow", "reference", "accuracy", "loss", "mask"])
def test_a_rule_of_ones_own_may_need_each_of_these(need):
    @dataclasses.dataclass(frozen=True)
    class Own(Rule):
        needs = frozenset({need})

        def judge(self, history):
            return True, "seen"

        def __str__(self):
            return "own"

    assert judged(Own(), flows=(1.0, 1.0), losses=(1.0, 1.0), changes=(0.1,), accuracy=0.5).reason == "seen"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FlowRestored(0), r"FlowRestored\(within=0\): it must be a number above 0$"),
        (lambda: FlowSettled(2, 0), r"FlowSettled\(less_than=0\): it must be a number above 0 and at most 1$"),
        (lambda: MaskSettled(1.5), r"MaskSettled\(less_than=1\.5\): it must be a number above 0 and at most 1$"),
        (
            lambda: AccuracyRestored(1.5),
            r"AccuracyRestored\(drop=1\.5\): it must be a number of at least 0 and at most 1$",
        ),
        (
            lambda: LossPlateau(2, 1.5),
            r"LossPlateau\(less_than=1\.5\): it must be a number of at least 0 and at most 1$",
        ),
        (lambda: LossPlateau(0), r"LossPlateau\(patience=0\): it must be a whole number of at least 1$"),
        (
            lambda: MaskSettled(0.1, 11),
            r"MaskSettled\(checks=11\): it must be a whole number of at least 1 and at most 10$",
        ),
        (lambda: AfterEpochs(-1), r"AfterEpochs\(.*=-1\): it must be a number of at least 0$"),
    ],
)
def test_what_is_out_of_range_is_said_by_its_own_name(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize("kind", [FlowRestored, FlowSettled, MaskSettled, AccuracyRestored, LossPlateau, AfterEpochs])
def test_a_rule_is_frozen(kind):
    rule = kind(1) if kind in (FlowRestored, AfterEpochs) else kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rule, dataclasses.fields(rule)[0].name, 1)
