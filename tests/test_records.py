import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from incop.errors import InputError
from incop.records import SCHEMA, Check, Flow, History, Interval, Level, Run, Spent, Verdict, full_retraining, shortest

texts = st.text(max_size=8) | st.sampled_from(["nan", "inf", "-inf", "\u2028", "·"])
numbers = st.floats()
finite = st.floats(0, 1)  # fits every field that has a range
counts = st.integers(0, 2**40)
flows = st.builds(Flow, st.dictionaries(texts, numbers, max_size=4), meter=texts, samples=counts, seconds=finite)
verdicts = st.builds(Verdict, st.booleans(), texts, texts)
spents = st.builds(Spent, finite, counts, counts, finite, finite, counts)
checks = st.builds(
    Check,
    level=counts,
    number=counts,
    epoch=finite,
    step=counts,
    flow=st.none() | flows,
    distance=st.none() | numbers,
    metric_value=st.none() | finite,
    loss=st.none() | numbers,
    mask_changes=st.lists(numbers, max_size=3).map(tuple),
    spent=spents,
    verdict=st.none() | verdicts,
)
levels = st.builds(
    Level,
    level=counts,
    sparsity=finite,
    model_sparsity=finite,
    remaining=counts,
    epochs=finite,
    steps=counts,
    samples=counts,
    seconds=finite,
    probe_seconds=finite,
    probe_samples=counts,
    metric_value=st.none() | finite,
    stop_reason=texts,
    rewind=texts,
    max_epochs=st.none() | finite,
    test_accuracy=st.none() | finite,
    distance=st.none() | numbers,
    flow=st.none() | flows,
    layers=st.dictionaries(texts, numbers, max_size=3),
    notices=st.lists(texts, max_size=3).map(tuple),
)
runs = st.builds(
    Run,
    method=texts,
    data=texts,
    model=texts,
    seed=counts,
    status=texts,
    dense=st.dictionaries(texts, st.none() | finite, max_size=3),
    levels=st.lists(levels, max_size=2).map(tuple),
    spent=spents,
    full_epochs=st.none() | finite,
    environment=st.dictionaries(texts, texts | counts, max_size=3),
    command=texts,
    error=st.none() | texts,
)


def same(a, b):
    """Equal, and NaN equals NaN, and everything is of one type."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b and str(a) == str(b)


@given(flows | verdicts | spents | checks | levels | runs)
def test_there_and_back_through_json(record):
    text = json.dumps(record.to_json(), allow_nan=False)
    back = type(record).from_json(json.loads(text))
    assert same(record, back)
    assert json.dumps(back.to_json(), allow_nan=False) == text


def test_a_text_that_says_nan_stays_a_text():
    assert Verdict.from_json(Verdict(True, "nan", "inf").to_json()) == Verdict(True, "nan", "inf")


def test_a_flow_that_is_not_a_number_comes_back_as_one():
    back = Flow.from_json(json.loads(json.dumps(Flow({"a": math.nan, "b": -math.inf}).to_json())))
    assert math.isnan(back.values["a"])
    assert back.values["b"] == -math.inf


def test_unknown_key():
    with pytest.raises(InputError, match=r"a Verdict record has the unknown key 'colour'.*another version"):
        Verdict.from_json({"stop": True, "reason": "", "colour": 1})


def test_unknown_key_within_a_nested_record():
    data = Check(1, 1, 1.0, verdict=Verdict(True, "x")).to_json()
    data["verdict"]["colour"] = 1
    with pytest.raises(InputError, match="a Verdict record has the unknown key 'colour'"):
        Check.from_json(data)


@pytest.mark.parametrize("record", [Verdict(True, "x"), Check(1, 1, 1.0)])
def test_missing_key(record):
    data = record.to_json()
    data.pop(next(iter(data)))
    with pytest.raises(InputError, match=rf"a {type(record).__name__} record lacks the key"):
        type(record).from_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("level", "3"),
        ("level", True),
        ("level", 1.5),
        ("level", None),
        ("epoch", "two"),
        ("epoch", False),
        ("flow", 3),
        ("flow", {"values": [1.0]}),
        ("flow", {"values": {"a": "much"}}),
        ("mask_changes", 0.5),
        ("mask_changes", ["x"]),
        ("spent", None),
        ("verdict", {"stop": "yes", "reason": ""}),
    ],
)
def test_wrong_type(key, value):
    with pytest.raises(InputError, match=r"a record holds .* under .*, where .* belongs"):
        Check.from_json({**Check(1, 1, 1.0).to_json(), key: value})


@pytest.mark.parametrize("data", [None, 3, "x", [1], [["level", 1]]])
def test_no_object_at_all(data):
    with pytest.raises(InputError, match=r"a Check record is a .*, not an object of keys and values"):
        Check.from_json(data)


def test_run_says_its_schema():
    run = Run("lth", "digits", "lenet-5", 0, "finished", {}, (), Spent(), None, {})
    assert run.to_json()["schema"] == SCHEMA


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_shortest_reads_back(number):
    assert float(shortest(number)) == number
    assert len(shortest(number)) <= len(repr(number))


@pytest.mark.parametrize(("number", "text"), [(20.0, "20"), (20, "20"), (0.1, "0.1"), (1e6, "1000000"), (-0.5, "-0.5")])
def test_shortest(number, text):
    assert shortest(number) == text


positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)


@given(st.builds(Interval, positive) | st.builds(Interval, st.integers(1, 2**53), st.just("steps")))
def test_interval_reads_what_it_writes(interval):
    assert Interval.parse(str(interval)) == interval
    assert Interval.parse(interval) is interval


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2", 2, "epochs"),
        (0.1, 0.1, "epochs"),
        (1e-7, 1e-7, "epochs"),
        (".5", 0.5, "epochs"),
        (" 3 epochs ", 3, "epochs"),
        ("1epoch", 1, "epochs"),
        ("50steps", 50, "steps"),
        ("50 step", 50, "steps"),
        ("1e6steps", 1e6, "steps"),
    ],
)
def test_interval_parse(text, amount, unit):
    assert Interval.parse(text) == Interval(amount, unit)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "0steps", "1.5steps", "nan", "inf", "1e999", True, "2 weeks"])
def test_interval_refuses(text):
    with pytest.raises(InputError, match="stretch of training"):
        Interval.parse(text)


@pytest.mark.parametrize("arguments", [(True,), ("2",), (math.nan,), (1, "weeks"), (None,)])
def test_interval_checks_itself(arguments):
    with pytest.raises(InputError, match="stretch of training"):
        Interval(*arguments)


def test_interval_passed():
    assert Interval(0.1).passed(epoch=sum([0.1] * 3), step=0, times=3)
    assert not Interval(0.1).passed(epoch=0.29, step=1000, times=3)
    assert Interval(5, "steps").passed(epoch=0.0, step=5)
    assert not Interval(5, "steps").passed(epoch=9.0, step=4)


vectors = st.lists(st.tuples(finite, finite), min_size=1, max_size=6)


@given(vectors)
def test_distance_is_the_euclidean_one(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    flow_a, flow_b = (Flow({f"l{i}": float(v) for i, v in enumerate(side)}) for side in (a, b))
    with np.errstate(over="ignore"):
        scale = max(np.abs(a).max(), np.abs(b).max(), 1e-300) * 2
        if not np.isfinite(scale):
            return
        wanted = np.linalg.norm(a / scale - b / scale)  # NumPy's own norm over- and underflows
        size = np.linalg.norm(b / scale)
    assert flow_a.distance(flow_b) / scale == pytest.approx(wanted, rel=1e-9, abs=1e-14)
    assert flow_a.distance(flow_b) == flow_b.distance(flow_a)
    assert flow_b.norm() / scale == pytest.approx(size, rel=1e-9, abs=1e-14)
    if size > 1e-3:
        assert flow_a.distance(flow_b, relative=True) == pytest.approx(wanted / size, rel=1e-9, abs=1e-9)


def test_distance_goes_by_name():
    assert Flow({"a": 1.0, "b": 2.0}).distance(Flow({"b": 2.0, "a": 1.0})) == 0.0


def test_distance_of_huge_and_tiny_flows():
    assert Flow({"a": 3e200, "b": 4e200}).distance(Flow({"a": 0.0, "b": 0.0})) == pytest.approx(5e200)
    assert Flow({"a": 3e-200, "b": 4e-200}).distance(Flow({"a": 0.0, "b": 0.0})) == pytest.approx(5e-200)


@pytest.mark.parametrize("bad", [{"a": math.nan, "b": 0.0}, {"a": math.nan, "b": math.inf}])
@pytest.mark.parametrize("relative", [False, True])
def test_distance_of_a_flow_that_is_no_number_is_none(bad, relative):
    good = Flow({"a": 1.0, "b": 2.0})
    assert math.isnan(Flow(bad).distance(good, relative=relative))
    assert math.isnan(good.distance(Flow(bad), relative=relative))


def test_distance_of_equal_infinities_is_no_number():
    assert math.isnan(Flow({"a": math.inf}).distance(Flow({"a": math.inf})))


def test_distance_of_other_layers():
    with pytest.raises(InputError, match=r"two flows of other layers cannot be compared .* 'b'"):
        Flow({"a": 1.0}).distance(Flow({"a": 1.0, "b": 1.0}))


def test_distance_of_other_meters():
    with pytest.raises(
        InputError, match="measured by 'gradient' cannot be compared with one measured by 'information'"
    ):
        Flow({"a": 1.0}, "gradient").distance(Flow({"a": 1.0}, "information"))
    assert Flow({"a": 1.0}, "gradient").distance(Flow({"a": 1.0})) == 0.0


def test_distance_relative_to_nothing():
    with pytest.raises(InputError, match="relative to a flow that is zero everywhere"):
        Flow({"a": 1.0}).distance(Flow({"a": 0.0}), relative=True)


def test_spent_adds_up():
    one, two = Spent(1.5, 2, 3, 4.0, 5.0, 6), Spent(10.0, 20, 30, 40.0, 50.0, 60)
    assert one + two == Spent(11.5, 22, 33, 44.0, 55.0, 66)
    assert Spent.total([one, two, one]) == Spent(13.0, 24, 36, 48.0, 60.0, 72)
    assert Spent.total([]) == Spent()


def test_history_judges_the_last():
    assert History((Check(1, 1, 1.0), Check(1, 2, 2.0))).now.number == 2


def test_level_says_itself_in_one_line():
    level = Level(3, 0.488, 0.4, 10, 4.0, 1, 1, 0.0, 0.0, 0, 0.9391, "flow within 0.05 of dense", "init", 20.0)
    assert str(level) == "level 3 · sparsity 0.488 · 4 of 20 epochs · accuracy 0.939 · flow within 0.05 of dense"
    bare = dataclasses.replace(level, max_epochs=None, metric_value=None)
    assert str(bare) == "level 3 · sparsity 0.488 · 4 epochs · flow within 0.05 of dense"
    assert level.spent == Spent(4.0, 1, 1, 0.0, 0.0, 0)


def test_no_torch_at_import():
    code = "import incop.errors, incop.records, incop.rundir, incop.stopping, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_full_retraining_is_of_the_same_levels_or_of_fifths_where_those_are_fewer():
    def levels(*sparsities, budget=10.0):
        rest = (0.0, 9, 1.0, 1, 1, 0.0, 0.0, 0, 0.9, "stop", "rate", budget)
        return [Level(k, sparsity, *rest) for k, sparsity in enumerate((0.0, *sparsities))]

    assert full_retraining(levels()) == 0.0
    assert full_retraining(levels(0.5, 0.9)) == 20.0  # two levels, fewer than fifths
    assert full_retraining(levels(*(1 - 0.9**k for k in range(1, 22)))) == pytest.approx(
        100.0
    )  # 0.8^10 < 0.9^21 < 0.8^9
    assert full_retraining(levels(0.2, 0.36, 0.488)) == pytest.approx(30.0)  # fifths themselves
    assert full_retraining(levels(0.5, budget=None)) is None
    assert full_retraining(levels(0.5, 1.0)) == 20.0
