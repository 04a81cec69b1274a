"""The main job on the command line: a given network, the sparsest ticket within a drop, kept, shown, exported, gone on with."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from folders import planned, same
from safetensors.torch import load_file, save_file

from incop import checkpoint_files
from incop.errors import InputError
from incop.experiments import runs
from incop.experiments.engines.local import PROCESSES
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


PLAN = {
    "data": "digits",
    "model": "lenet-300-100",
    "limit": 600,
    "validation": 0.3,
    "max_epochs": 4.0,
    "threads": 1,
    "max_drop": 0.03,
    "seed": 1,
    "checkpoint_every": "1steps",
}


def killed_in(folder, level):
    """Carry out the plan in this process until the first step of a level, which it does not survive."""

    def on_step(now, epoch, step):
        if step == 1 and now == level:
            os.kill(os.getpid(), signal.SIGKILL)

    runs.execute(planned(**PLAN), folder, runs.Progress(on_step=on_step))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs.execute(planned(**PLAN), tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("role", ["path", "tried", "finished"])
def test_a_killed_search_ends_as_one_that_was_not(whole, tmp_path, role):
    levels = [level.level for level in whole.levels() if level.role == role]
    process = PROCESSES.Process(target=killed_in, args=(tmp_path / "killed", levels[len(levels) // 2]))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    runs.resume(tmp_path / "killed")
    same(tmp_path / "killed", whole.path)
    assert RunDir(tmp_path / "killed").read_summary().chosen == whole.read_summary().chosen


def killed_at(folder, name):
    """Carry out the plan until a function of the run's folder is called with the end of the search, which it does not survive."""
    original = getattr(RunDir, name)

    def dies(self, what):
        if name != "write_summary" or what.status == "finished":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, what)

    setattr(RunDir, name, dies)
    runs.execute(planned(**PLAN), folder)


@pytest.mark.parametrize("name", ["write_summary", "rewrite_levels"])
def test_killed_while_the_chosen_ticket_is_written_down(whole, tmp_path, name):
    process = PROCESSES.Process(target=killed_at, args=(tmp_path / "killed", name))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    runs.resume(tmp_path / "killed")
    same(tmp_path / "killed", whole.path)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"trained": True}, "--trained needs the trained weights"),
        ({"keep_zeros": True}, "give --trained"),
        ({"max_drop": 0.01, "sparsity": 0.9}, "give one of them"),
        ({"max_drop": 0.01, "ticket_at": (0.9,)}, "give one of them"),
        ({"max_drop": 0.01, "method": "lth"}, "choose --method incop"),
        ({"max_drop": -1.0}, "must be a number of at least 0"),
        ({"last_epochs": 50.0}, "more than a level's 2"),
        ({"trained": True, "weights": "w.safetensors", "rewind": "init"}, "choose --rewind rate"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_training(keys, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=sentence):
        planned(**keys)


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
