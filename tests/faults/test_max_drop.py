"""The main job on the command line: a given network, the sparsest ticket within a drop, kept, shown, exported, gone on with."""

import json
import os
import signal
import subprocess
import sys

import pytest
from folders import planned, same
from safetensors.torch import load_file

from incop import checkpoint_files
from incop.experiments import runs
from incop.rundir import RunDir

WORDS = [
    "--data",
    "digits",
    "--model",
    "lenet-300-100",
    "--limit",
    "600",
    "--validation",
    "0.3",
    "--max-epochs",
    "4",
    "--threads",
    "1",
    "--device",
    "cpu",
]


def incop(*words, folder, code=0):
    run = subprocess.run(
        [sys.executable, "-m", "incop", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert run.returncode == code, run.stderr
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run within a drop, and one from its dense network's weights."""
    made = tmp_path_factory.mktemp("drop")
    incop("search", *WORDS, "--max-drop", "0.03", "--out", "first", folder=made)
    weights = ["--weights", "first/level_00/weights.safetensors", "--trained"]
    incop("search", *WORDS, *weights, "--max-drop", "0.03", "--out", "given", folder=made)
    return made


@pytest.mark.parametrize("name", ["first", "given"])
def test_the_summary_holds_the_chosen_ticket(folder, name):
    run = RunDir(folder / name)
    summary, levels = run.read_summary(), {level.level: level for level in run.levels()}
    chosen = summary.chosen
    level = levels[chosen.level]
    assert chosen.drop <= chosen.max_drop == 0.03
    assert chosen.drop == pytest.approx(levels[0].val_accuracy - level.val_accuracy)
    assert chosen.drop_low <= chosen.drop <= chosen.drop_high
    assert (chosen.sparsity, chosen.val_accuracy) == (level.sparsity, level.val_accuracy)
    pruned = [one for one in levels.values() if one.level]
    probed = sum(one.probe_samples for one in pruned)
    assert chosen.epochs_after_dense == pytest.approx(sum(one.epochs for one in pruned) + probed / 420)
    # the test split was read for the dense network and for the ticket that was chosen
    assert {one.level for one in levels.values() if one.test_accuracy is not None} == {0, chosen.level}
    assert chosen.test_accuracy == level.test_accuracy
    assert [one.test_accuracy for one in summary.levels] == [one.test_accuracy for one in levels.values()]


def test_a_given_network_keeps_its_bits_and_costs_nothing(folder):
    first, given = (load_file(folder / name / "level_00" / "weights.safetensors") for name in ("first", "given"))
    assert all((first[name] == given[name]).all() for name in first)
    dense = RunDir(folder / "given").levels()[0]
    assert (dense.epochs, dense.samples, dense.stop_reason) == (0, 0, "given network")


def test_what_is_shown_exported_and_reported_is_the_chosen_ticket(folder):
    chosen = RunDir(folder / "first").read_summary().chosen
    shown = incop("show", "first", folder=folder).stdout
    assert f"level {chosen.level} is the sparsest within 0.03" in shown
    assert "stop on the path" in shown
    assert "last level in full" in shown
    incop("export", "first", "--to", "folded", folder=folder)
    assert (folder / "first" / "export" / f"level_{chosen.level}" / "folded.safetensors").is_file()
    page = incop("report", "first", "--format", "json", folder=folder)
    assert page.returncode == 0
    assert checkpoint_files.load_masks(RunDir(folder / "first").level_dir(chosen.level)).sparsity == chosen.sparsity


@pytest.mark.parametrize("role", ["path", "tried", "finished"])
def test_a_killed_search_ends_as_one_that_was_not(folder, tmp_path, role):
    plan = dict(
        data="digits",
        model="lenet-300-100",
        limit=600,
        validation=0.3,
        max_epochs=4.0,
        threads=1,
        max_drop=0.03,
        seed=1,
    )
    code = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from folders import planned
from incop.experiments import runs
def on_step(level, epoch, step):
    if step == 1 and level == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
runs.execute(planned(checkpoint_every="1steps", **{plan!r}), sys.argv[1], runs.Progress(on_step=on_step))
"""
    whole = runs.execute(planned(checkpoint_every="1steps", **plan), tmp_path / "whole")
    levels = [level.level for level in whole.levels() if level.role == role]
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed"), str(levels[len(levels) // 2])])
    assert killed.returncode == -signal.SIGKILL
    runs.resume(tmp_path / "killed")
    same(tmp_path / "killed", tmp_path / "whole")
    chosen = [
        {k: v for k, v in json.loads((tmp_path / name / "summary.json").read_text())["chosen"].items()}
        for name in ("killed", "whole")
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--trained"], "--trained needs the trained weights"),
        (["--keep-zeros"], "give --trained"),
        (["--max-drop", "0.01", "--sparsity", "0.9"], "give one of them"),
        (["--max-drop", "0.01", "--ticket-at", "0.9"], "give one of them"),
        (["--max-drop", "0.01", "--method", "lth"], "choose --method incop"),
        (["--max-drop", "-1"], "must be a number of at least 0"),
        (["--last-epochs", "50", "--max-epochs", "4"], "more than a level's 4"),
        (["--trained", "--weights", "w.safetensors", "--rewind", "init"], "choose --rewind rate"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_training(tmp_path, words, sentence):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"w": zeros(1)}, tmp_path / "w.safetensors")
    told = incop("search", "--out", "run", *words, folder=tmp_path, code=2).stderr
    assert sentence in told
    assert not (tmp_path / "run").exists()


def test_zeros_of_a_given_network_are_told_or_kept(folder):
    chosen = RunDir(folder / "first").read_summary().chosen
    weights = ["--weights", f"first/level_{chosen.level:02d}/weights.safetensors", "--trained"]
    search = ["search", *WORDS, *weights, "--method", "lth-rate", "--levels", "1"]
    incop(*search, "--out", "free", folder=folder)
    incop(*search, "--keep-zeros", "--out", "kept", folder=folder)
    free, kept = (RunDir(folder / name).levels() for name in ("free", "kept"))
    assert any("zero already" in sentence for sentence in free[0].notices)
    assert free[1].sparsity == pytest.approx(0.2, abs=0.01)
    assert kept[0].sparsity == pytest.approx(chosen.sparsity)
    assert kept[1].sparsity > chosen.sparsity
