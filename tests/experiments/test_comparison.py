import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from incop.cli import main
from incop.errors import InputError
from incop.experiments.comparison import Comparison, jobs_of
from incop.experiments.comparison_runs import compare
from incop.experiments.controls import Cost
from incop.experiments.plan import Plan
from incop.rundir import RunDir

SMALL = Plan(max_epochs=2.0, limit=200)
ARGUMENTS = {"seeds": 2, "sparsities": (0.3, 0.5), "plan": SMALL}


def entries(folder):
    return json.loads((folder / "jobs.json").read_text())


def tables(folder):
    """Everything of every run but times and folders."""
    found = {}
    for job in entries(folder):
        levels = [level.to_json() for level in RunDir.open(folder / job["folder"]).levels()]
        for level in levels:
            for part in (level, level["flow"] or {}, level["search"] or {}):
                for key in ("seconds", "probe_seconds", "record_seconds"):
                    part.pop(key, None)
        found[job["label"], job["seed"], job["sparsity"]] = levels
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "C"
    told = []
    comparison = Comparison(methods=("lth", "incop-if"), **ARGUMENTS)
    compare(comparison, folder, jobs=2, tell=lambda job, done, of: told.append((job.label.text, job.state, done, of)))
    return folder, comparison, told


def test_every_method_and_control_ran_at_every_seed(done):
    folder, comparison, told = done
    jobs = entries(folder)
    assert {job["state"] for job in jobs} == {"done"}, [job["error"] for job in jobs if job["error"]]
    assert len(jobs) == len(jobs_of(comparison)) == len(told) == 2 * (2 + 1 + 2 + 1 + 1 + 2 + 1)
    assert sorted(n for _, _, n, _ in told) == list(range(1, len(jobs) + 1))
    for job in jobs:
        levels = RunDir.open(folder / job["folder"]).levels()
        ends = [job["sparsity"]] if job["sparsity"] else comparison.sparsities
        for end in ends:
            level = [level for level in levels if level.sparsity == pytest.approx(end, abs=1e-4)][-1]
            assert level.epochs == pytest.approx(
                level.max_epochs, abs=0.2
            )  # in full, to a whole step of three an epoch
        assert levels[-1].sparsity == pytest.approx(ends[-1], abs=1e-4)


def test_one_dense_level_per_seed_shared_by_all(done):
    folder, _, _ = done
    assert len(list((folder / "runs").glob("dense-*"))) == 2
    accuracies = {}
    for job in entries(folder):
        dense = RunDir.open(folder / job["folder"]).levels()[0]
        accuracies.setdefault(job["seed"], set()).add((dense.test_accuracy, dense.val_accuracy, dense.seconds))
    assert all(len(found) == 1 for found in accuracies.values())


def test_a_run_from_the_shared_dense_level_equals_a_run_alone(done, tmp_path):
    folder, _, _ = done
    job = next(job for job in entries(folder) if job["label"] == "incop-if")
    plan = folder / job["folder"] / "plan.toml"
    assert main(["search", str(plan), "--out", str(tmp_path / "alone")]) == 0
    shared, alone = RunDir.open(folder / job["folder"]).levels(), RunDir.open(tmp_path / "alone").levels()
    for a, b in zip(shared, alone, strict=True):
        assert (a.epochs, a.sparsity, a.val_accuracy, a.test_accuracy) == (
            b.epochs,
            b.sparsity,
            b.val_accuracy,
            b.test_accuracy,
        )


def test_matched_controls_cost_what_their_method_cost(done):
    folder, _, _ = done
    runs = {(j["label"], j["seed"], j["sparsity"]): RunDir.open(folder / j["folder"]).levels() for j in entries(folder)}
    for seed in (0, 1):
        cost = Cost.of(runs["incop-if", seed, None], 0.5)
        for label, sparsity in (("oneshot=incop-if", 0.5), ("gradual=incop-if", 0.5)):
            own = Cost.of(runs[label, seed, sparsity], 0.5)
            assert own.total == pytest.approx(cost.total, abs=1.5), label  # whole steps of 3 an epoch, 20 levels


def test_again_does_nothing_and_more_seeds_do_only_what_is_missing(done):
    folder, comparison, _ = done
    before = {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("summary.json")}
    compare(comparison, folder, jobs=2)
    assert before == {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("summary.json")}


def test_a_file_says_the_same_as_the_arguments(done):
    folder, comparison, _ = done
    values = tomllib.loads((folder / "comparison.toml").read_text())
    assert Comparison.from_toml(values, source="file") == comparison


def test_killed_in_the_middle_and_started_again_ends_with_the_same_tables(done, tmp_path):
    folder, _, _ = done
    words = [sys.executable, "-m", "incop", "compare", str(folder / "comparison.toml"), "--jobs", "2", "--out", "again"]
    process = subprocess.Popen(
        words, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    again = tmp_path / "again"
    waited = time.monotonic() + 120
    while time.monotonic() < waited and len(list(again.glob("runs/*/level_01"))) < 4:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {
        f.parent: f.stat().st_mtime_ns for f in again.glob("runs/*/summary.json") if '"finished"' in f.read_text()
    }
    assert 0 < len(finished) < 22
    assert subprocess.run(words, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    assert finished.items() <= {f.parent: f.stat().st_mtime_ns for f in again.glob("runs/*/summary.json")}.items()
    assert tables(again) == tables(folder)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    plan = Plan(max_epochs=1.0, limit=200, levels=1)  # one level by the PQ index does not reach the sparsity
    comparison = Comparison(methods=("sap", "incop-if"), seeds=1, sparsities=(0.7,), plan=plan)
    ended = compare(comparison, tmp_path / "C", jobs=2)
    states = {job.label.text: job.state for job in ended}
    assert states["sap"] == states["incop-if"] == "done"
    assert states["fixed:match=incop-if"] == "failed"
    assert "no ticket of sparsity 0.7" in next(job.error for job in ended if job.label.text == "fixed:match=incop-if")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "lht"], "unknown method or control 'lht'"),
        (["--methods", "lth", "--seeds", "0"], "--seeds 0"),
        (["--methods", "lth", "--sparsities", "0.5,1.5"], "1.5"),
        (["--methods", "lth", "--sparsities", "many"], "no number"),
        (["--methods", "lth,oneshot=incop-if"], "needs incop-if among the methods"),
        (["--methods", "lth,lth"], "named twice"),
        (["--methods", "lth", "--pairs", "mnist"], "cannot be read"),
        (["--methods", "lth", "--sparsity", "0.5"], "comparison's own"),
        (["--methods", "lth", "--model", "lenet-6"], "did you mean 'lenet-5'"),
        (["--methods", "lth", "--lr", "-1"], "--lr -1"),
        (["--methods", "lth", "--jobs", "0"], "--jobs 0"),
        (
            ["--methods", "lth", "--amount", "0.2", "--levels", "3"],
            "cannot be reached: the amount 0.2 leads to 0.4880 in 3",
        ),
        (["nowhere.toml"], "no comparison file"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words, "--out", "C"]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "C").exists()


def test_a_folder_in_other_use_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="holds no comparison"):
        compare(Comparison(methods=("lth",), **ARGUMENTS), tmp_path)


def test_unknown_keys_of_a_file_are_told():
    with pytest.raises(InputError, match="unknown key 'method'"):
        Comparison.from_toml({"method": ["lth"], "seeds": "five"}, source="c.toml")


def test_dry_run_prints_runs_and_cost_and_makes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--methods", "lth,incop-if", "--seeds", "1", "--max-epochs", "2", "--limit", "200", "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "oneshot=incop-if" in out
    assert "at most" in out
    assert not list(tmp_path.iterdir())
