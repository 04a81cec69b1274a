"""The planned method from the command line: one search, and a comparison with all its controls."""

import json
import math
from pathlib import Path

import pytest

from incop import methods
from incop.cli import main
from incop.experiments.controls import Cost
from incop.reports import read
from incop.reports.page_contents import page_of
from incop.rundir import RunDir

TRAIN = 1294  # of digits, less the validation split


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("planned"))
        yield


def incop(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def search():
    words = ["--method", "incop", "--sparsity", 0.9, "--max-epochs", 3, "--threads", 1]
    assert incop("search", *words, "--out", "R") == 0
    return RunDir.open("R")


def test_a_search_ends_at_its_sparsity_and_says_what_it_did(search, capsys):
    summary = json.loads(search.summary_file.read_text())
    assert (summary["status"], summary["method"], summary["error"]) == ("finished", "incop", None)
    assert len(summary["levels"]) == 1 + methods.cuts(0.9)
    dense, first, last = summary["levels"][0], summary["levels"][1], summary["levels"][-1]
    total = 64 * 300 + 300 * 100 + 100 * 10
    assert last["remaining"] == round(0.1 * total)
    assert last["sparsity"] == pytest.approx(0.9, abs=1e-4)
    sparsities = [level["sparsity"] for level in summary["levels"]]
    assert sparsities == sorted(sparsities)
    assert (last["epochs"], dense["epochs"], last["stop_reason"]) == (3, 3, "full budget")
    assert all(level["stop_reason"].startswith("after 0.0") for level in summary["levels"][1:-1])
    tested = [level["level"] for level in summary["levels"] if level["test_accuracy"] is not None]
    assert tested == [0, last["level"]]
    assert last["test_accuracy"] > 0.8 < dense["test_accuracy"]
    assert first["probe_samples"] == 9 * 128
    assert sum(level["probe_samples"] for level in summary["levels"]) == 9 * 128
    for part in ("epochs", "steps", "samples", "seconds", "probe_seconds", "probe_samples"):
        assert summary["spent"][part] == pytest.approx(sum(level[part] for level in summary["levels"]))
    assert summary["full_epochs"] == pytest.approx(3 + 11 * 3)  # the dense level, and eleven levels of a fifth in full
    assert incop("show", "R") == 0
    assert "epochs of the 33 that full retraining" in capsys.readouterr().out
    sentence = page_of(read([Path("R")])).verdict[0]
    assert "At sparsity 0.900 the ticket of level 26 has test accuracy" in sentence
    assert "where full retraining takes 33 (" in sentence


def test_a_search_spends_what_was_planned(search):
    keys = methods.planned(0.9, 3, 60)
    levels = search.levels()
    steps_an_epoch = math.ceil(TRAIN / 20)
    steps = math.ceil(float(keys["check_every"]) * steps_an_epoch)
    assert {level.steps for level in levels[1:-1]} == {steps}
    assert {level.samples for level in levels[1:-1]} == {20 * steps}
    assert {round(level.epochs * steps_an_epoch, 6) for level in levels[1:-1]} == {steps}
    cost = Cost.of(levels, 0.9)
    assert cost.search == pytest.approx(25 * steps / steps_an_epoch + 1152 / TRAIN, rel=1e-6)


def test_the_plan_of_a_search_repeats_it(search):
    assert incop("search", "R/plan.toml", "--out", "again") == 0
    again = RunDir.open("again")
    for level in range(methods.cuts(0.9) + 1):
        for file in search.level_dir(level).glob("*.safetensors"):
            assert file.read_bytes() == (again.level_dir(level) / file.name).read_bytes()


def test_what_cannot_be_planned_leaves_no_folder(capsys):
    for words, sentence in [
        (["--selection", "layer"], "--selection layer lets each layer give up the amount by itself"),
        (["--selection", "2:4"], "--selection 2:4 leaves 2 of every 4 weights by one cut"),
        (["--amount", "flow to 2 in 5"], "the sparsity to reach must be in (0, 1)"),
        (["--search-lr", "0"], "--search-lr 0"),
    ]:
        assert incop("search", "--method", "incop", *words, "--out", "none") == 2
        error = capsys.readouterr().err.strip()
        assert sentence in error
        assert len(error.splitlines()) == 1
        assert not Path("none").exists()


@pytest.fixture(scope="module")
def comparison():
    words = ["--methods", "lth-rate,incop", "--seeds", 1, "--sparsities", "0.8,0.9", "--max-epochs", 2, "--jobs", 2]
    assert incop("compare", *words, "--out", "C") == 0
    return Path("C"), json.loads(Path("C/jobs.json").read_text())


def test_a_comparison_with_its_default_controls_ends_with_all_runs_done(comparison, capsys):
    _, jobs = comparison
    assert {job["state"] for job in jobs} == {"done"}, [job["error"] for job in jobs if job["error"]]
    controls = ["fixed:match", "oneshot", "mask-settled", "accuracy-restored", "gradual", "random"]
    each = ["incop", *(f"{control}=incop" for control in controls)]
    wanted = [("lth-rate", None), *((label, sparsity) for label in each for sparsity in (0.8, 0.9))]
    assert sorted((job["label"], job["sparsity"] or 0) for job in jobs) == sorted((a, b or 0) for a, b in wanted)
    assert {tuple(job["control_of"]) for job in jobs if "=" in job["label"]} == {("incop",)}


def test_every_run_of_a_comparison_ends_in_full_at_its_sparsity(comparison):
    folder, jobs = comparison
    for job in jobs:
        levels = RunDir.open(folder / job["folder"]).levels()
        for end in [job["sparsity"]] if job["sparsity"] else [0.8, 0.9]:
            (ticket,) = [level for level in levels[1:] if level.sparsity == pytest.approx(end, abs=1e-4)][-1:]
            assert ticket.epochs == pytest.approx(ticket.max_epochs, abs=0.05), job["label"]
            assert ticket.test_accuracy is not None
        dense = levels[0]
        assert (dense.epochs, dense.test_accuracy) == (
            2,
            RunDir.open(folder / jobs[0]["folder"]).levels()[0].test_accuracy,
        )


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
def test_matched_controls_spend_what_the_method_spent_at_their_own_sparsity(comparison, sparsity):
    folder, jobs = comparison
    runs = {job["label"]: RunDir.open(folder / job["folder"]) for job in jobs if job["sparsity"] == sparsity}
    costs = {label: Cost.of(run.levels(), sparsity) for label, run in runs.items()}
    method = costs["incop"]
    step = 1 / math.ceil(TRAIN / 20)
    for control in ("fixed:match", "gradual", "random"):
        own = costs[f"{control}=incop"]
        levels = len(runs[f"{control}=incop"].levels()) - 2
        assert method.search - 0.01 <= own.search <= method.search + levels * step, control  # whole steps, rounded up
    assert costs["oneshot=incop"].total == pytest.approx(method.total, abs=0.05)
    assert costs["oneshot=incop"].search == 0
    for control in ("mask-settled", "accuracy-restored"):
        assert costs[f"{control}=incop"].search_levels == math.ceil(methods.fifths(sparsity)) - 1
