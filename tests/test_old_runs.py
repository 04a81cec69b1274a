"""Run folders that were written before schema 2 are shown, reported, replayed, resumed and exported."""

import json
import shutil
from pathlib import Path

import pytest

from incop import schema_1
from incop.checkpoint_files import load_weights
from incop.cli import main
from incop.experiments.run_checkpoints import EXACT
from incop.records import Check, Level, Metric
from incop.rundir import RunDir

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path):
    def copy(name):
        return Path(shutil.copytree(OLD / name, tmp_path / name))

    return copy


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(one) for key, one in value.items() if "seconds" not in key}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_folders_are_of_schema_1():
    for name in ("finished", "killed"):
        assert json.loads((OLD / name / "summary.json").read_text())["schema"] == 1
        assert all("score" in one for one in lines(OLD / name / "levels.jsonl") + lines(OLD / name / "checks.jsonl"))


def test_show_report_replay_and_export(old, capsys):
    folder = old("finished")
    levels = lines(folder / "levels.jsonl")
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert all(f"{level['val_accuracy']:.4f}" in shown for level in levels)
    assert main(["report", str(folder)]) == 0
    assert f"{levels[-1]['test_accuracy']:.4f}" in (folder / "report.html").read_text()
    capsys.readouterr()
    assert main(["replay", str(folder), "--rule", "accuracy within 1", "--json"]) == 0
    assert all(row["stopped"] for row in json.loads(capsys.readouterr().out))
    assert main(["export", str(folder), "--to", "sparse", "--json"]) == 0
    assert list((folder / "export" / "level_03").iterdir())


def test_records_are_read_to_the_number():
    run = RunDir.open(OLD / "finished")
    for read, file in ((run.levels(), run.levels_file), (run.checks(), run.checks_file)):
        for record, line in zip(read, lines(file), strict=True):
            assert record.to_json() == {key: value for key, value in line.items() if key not in ("score", "metric")}
    assert run.read_summary().levels == tuple(run.levels())
    assert RunDir.open(OLD / "killed").newest_check() is not None


def test_a_killed_run_is_resumed_to_the_bit(old, capsys):
    folder = old("killed")
    then = json.loads((folder / "summary.json").read_text())["environment"]
    assert main(["resume", str(folder), "--inexact", "--progress", "off"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["schema"], len(summary["levels"])) == ("finished", 2, 5)
    assert load_weights(folder / "level_04")
    wanted = [
        {key: value for key, value in line.items() if key not in ("score", "metric")}
        for line in lines(OLD / "killed_resumed_levels.jsonl")
    ]
    found = without_seconds([level.to_json() for level in RunDir.open(folder).levels()])
    assert [level["sparsity"] for level in found] == [level["sparsity"] for level in wanted]
    if all(then[key] == summary["environment"][key] for key in EXACT):
        for level in (*found, *wanted):
            del level["notices"]  # the resumed level says so, and what else is no longer as it was
        assert found == wanted


def test_a_level_with_another_metric():
    level = Level(1, 0.2, 0.2, 10, 1.0, 5, 50, 0.1, 0.0, 0, 3.2, "why", "init", metric=Metric("rmse", False))
    data = level.to_json()
    old = {key: value for key, value in data.items() if key != "metric_value"} | {"val_accuracy": None, "score": 3.2}
    assert Level.from_json(old) == level
    oldest = {key: value for key, value in old.items() if key not in ("metric", "score")} | {"val_accuracy": 0.9}
    assert (Level.from_json(oldest).metric_value, Level.from_json(oldest).val_accuracy) == (0.9, 0.9)


def test_a_check_with_another_metric_did_not_name_it():
    check = Check.from_json({"level": 1, "number": 1, "epoch": 1.0, "accuracy": None, "score": 3.2})
    assert (check.metric_value, check.metric, check.accuracy) == (3.2, "metric", None)
    assert Check.from_json(json.loads(json.dumps(check.to_json()))) == check


@pytest.mark.parametrize(
    ("state", "value"),
    [
        ({"reference_accuracy": 0.9, "reference_score": None}, 0.9),
        ({"reference_accuracy": None, "reference_score": 3.2}, 3.2),
        ({"reference_accuracy": 0.9}, 0.9),
        ({"reference_accuracy": None}, None),
        ({"reference_value": 0.0}, 0.0),
    ],
)
def test_the_dense_networks_value_in_a_state(state, value):
    assert schema_1.reference_value(state) == value
