import json
import subprocess
import sys
import time

import pytest

from incop import stopping
from incop.cli import main
from incop.errors import InputError
from incop.experiments import replays
from incop.records import Check, Flow, Level, Spent, Verdict
from incop.rundir import RunDir

DENSE = Flow({"a->b": 0.5, "b->c": 0.1}, meter="m")


def level(number, epochs, **more):
    return Level(
        level=number,
        sparsity=1 - 0.8**number,
        model_sparsity=0.0,
        remaining=10,
        epochs=epochs,
        steps=0,
        samples=0,
        seconds=0.0,
        probe_seconds=0.0,
        probe_samples=0,
        metric_value=0.9,
        stop_reason="full budget",
        rewind="init",
        **more,
    )


def check(number, at, flow=None, accuracy=None):
    return Check(
        number, at, float(at), flow=flow, metric_value=accuracy, spent=Spent(at), verdict=Verdict(False, "no rule")
    )


@pytest.fixture
def run(tmp_path):
    folder = RunDir.create(tmp_path / "R")
    folder.write_plan({"data": "digits"})
    folder.append(level(0, 5.0, flow=DENSE))
    for number in (1, 2, 3):
        for at in range(1, 6):
            near = Flow({"a->b": 0.5 - 0.5 / 2**at * number, "b->c": 0.1}, meter="m")
            folder.append(check(number, at, near, 0.80 + at / 50 - number / 100))
        folder.append(level(number, 5.0))
    return folder


def test_where_a_rule_would_have_stopped(run):
    found = replays.replay(run, stopping.FlowRestored(within=0.1))
    # distance at check t of level k is k · 0.5 / 2^t: below 0.1 first at t = 3, 4, 4
    assert [(one.level, one.epochs, one.stopped) for one in found] == [(1, 3, True), (2, 4, True), (3, 4, True)]
    assert [one.saved for one in found] == [2, 1, 1]
    assert [one.accuracy for one in found] == pytest.approx([0.85, 0.86, 0.85])
    assert [one.estimate for one in found] == [False, True, True]
    assert "flow within 0.1" in found[0].reason


def test_a_rule_that_never_stops_ran_as_recorded(run):
    found = replays.replay(run, stopping.FlowRestored(within=1e-9))
    assert [(one.epochs, one.stopped, one.estimate) for one in found] == [(5, False, False)] * 3


def test_accuracy_and_blind_rules(run):
    assert [one.epochs for one in replays.replay(run, stopping.AccuracyRestored(drop=0.04))] == [4, 4, 5]
    assert [one.epochs for one in replays.replay(run, stopping.AfterEpochs(2))] == [2, 2, 2]


def test_grid_is_monotone_and_leaves_the_last_level_out(run):
    points = replays.grid(run, [0.001, 0.01, 0.1, 1.0])
    assert [point.epochs for point in points] == sorted((point.epochs for point in points), reverse=True)
    assert points[-1].epochs == 2
    assert points[0].full_epochs == 10


def test_what_was_not_recorded_is_told(run):
    with pytest.raises(InputError, match="the masks' change, which this run did not record"):
        replays.replay(run, stopping.MaskSettled())


def test_runs_that_hold_nothing_to_replay(tmp_path):
    folder = RunDir.create(tmp_path / "R")
    folder.write_plan({"data": "digits"})
    with pytest.raises(InputError, match="no finished dense level"):
        replays.replay(folder, stopping.AfterEpochs(1))
    folder.append(level(0, 5.0))
    with pytest.raises(InputError, match="no pruned level"):
        replays.replay(folder, stopping.AfterEpochs(1))


def test_ten_thousand_checks_take_less_than_a_second_and_no_torch(tmp_path):
    folder = RunDir.create(tmp_path / "R")
    folder.write_plan({"data": "digits"})
    folder.append(level(0, 5.0, flow=DENSE))
    lines = []
    for number in range(1, 11):
        one = check(number, 1, Flow({f"l{k}->l{k + 1}": 0.1 for k in range(2)}, meter="m"), 0.5).to_json()
        lines += [json.dumps({**one, "number": k, "epoch": k / 10}) for k in range(1, 1001)]
        folder.append(level(number, 100.0))
    folder.checks_file.write_text("\n".join(lines) + "\n")
    code = (
        "import sys, time; from incop import stopping; from incop.experiments import replays; from incop.rundir import RunDir\n"
        f"found = replays.replay(RunDir.open({str(folder.path)!r}), stopping.AfterEpochs(100.0))\n"
        "assert len(found) == 10 and 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - started < 20  # a hang, not a speed: what it takes is in benchmarks/


@pytest.mark.parametrize("epochs", [1, 2])
def test_after_epochs_on_a_full_run_equals_what_a_blind_run_did_at_its_first_level(epochs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "search",
        "--levels",
        "2",
        "--max-epochs",
        "3",
        "--amount",
        "0.3",
        "--method",
        "lth",
        "--meter",
        "information",
    ]
    assert main([*words, "--out", "full"]) == 0
    assert main([*words, "--rule", f"after {epochs} epochs", "--out", "blind"]) == 0
    first = replays.replay(RunDir.open("full"), stopping.AfterEpochs(epochs))[0]
    blind = RunDir.open("blind").levels()[1]
    assert (first.epochs, first.accuracy, first.reason) == (blind.epochs, blind.val_accuracy, blind.stop_reason)
    at = next(c for c in RunDir.open("full").checks() if c.level == 1 and c.epoch == epochs)
    assert at.flow.values == blind.flow.values  # bit for bit: it is the same network


def test_command(run, capsys):
    assert main(["replay", str(run.path), "--rule", "flow within 0.1"]) == 0
    assert "exact for the first 1 of 3 levels" in capsys.readouterr().out
    assert main(["replay", str(run.path), "--grid", "0.001:1:4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    for words in (
        ["--rule", "near"],
        [],
        ["--grid", "1:2"],
        ["--grid", "a,b"],
        ["--rule", "after 1 epochs", "--grid", "1"],
    ):
        assert main(["replay", str(run.path), *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
