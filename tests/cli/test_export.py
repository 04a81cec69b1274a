"""`incop export` as a stranger meets it: what it tells, what it refuses, and that nothing half-written stays behind."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from incop import export
from incop.cli import main
from incop.experiments import runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.experiments.run_levels import rebuild
from incop.rundir import RunDir

ALL = "safetensors,sparse,folded"


def carried_out(folder, **keys):
    runs.execute(
        resolve(Plan(**{"method": "lth", "levels": 1, "max_epochs": 1.0, "limit": 100, "device": "cpu", **keys})),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return carried_out(tmp_path_factory.mktemp("run") / "R", amount="0.95")


def incop(*words):
    return main([str(word) for word in words])


def refused(capsys, *words, status=2):
    assert incop("export", *words) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0]


def test_sizes_are_told_against_dense_and_the_bound(run, tmp_path, capsys):
    assert incop("export", run, "--to", ALL, "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    by_form = {one["form"]: one for one in told["forms"]}
    assert list(by_form) == ALL.split(",")
    parts, masks = rebuild(RunDir.open(run), 1)
    state = parts.model.state_dict()
    assert told["dense_bytes"] == 4 * sum(tensor.numel() for tensor in state.values())
    for one in by_form.values():
        assert one["difference"] == 0.0
        assert [Path(file).stat().st_size for file in one["files"]] == [one["bytes"]]
        found = export.read(one["files"][0])
        assert all(torch.equal(found.weights[name], state[name]) for name in state)
    assert export.read(by_form["sparse"]["files"][0]).masks == masks
    assert export.read(by_form["safetensors"]["files"][0]).about["level"] == 1
    assert by_form["sparse"]["bytes"] <= 1.15 * by_form["sparse"]["bound"]
    assert by_form["folded"]["bound"] is None
    assert incop("export", run, "--to", "sparse", "--out", tmp_path / "table") == 0
    shown = capsys.readouterr().out
    assert "of dense" in shown
    assert "of bound" in shown
    assert "the same bits" in shown


@pytest.mark.parametrize("model", ["lenet-300-100", "lenet-5", "resnet-20"])
def test_built_in_models(model, tmp_path):
    carried_out(tmp_path / "R", model=model, method="dense", levels=None, limit=20, max_epochs=1.0)
    assert incop("export", tmp_path / "R", "--to", "safetensors,sparse", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("model", ["lenet-300-100", "resnet-20"])
def test_whole_units_go_and_the_smaller_network_answers_as_before(model, tmp_path, capsys):
    carried_out(tmp_path / "R", model=model, selection="units", amount="0.5", limit=20)
    assert incop("export", tmp_path / "R", "--to", "compacted,folded", "--json") == 0
    told = json.loads(capsys.readouterr().out)["forms"]
    small, whole = told
    assert small["difference"] <= 1e-5
    assert small["details"]["units"] > 0
    assert small["bytes"] < whole["bytes"]
    main, program = map(Path, small["files"])
    assert small["again"] == [str(program)]
    parts, _ = rebuild(RunDir.open(tmp_path / "R"), 1)
    x = parts.probe[0][0]
    with torch.no_grad():
        expected = parts.model.eval()(x)
        for found in (export.resized(parts.model, main), torch.export.load(program).module()):
            assert float((found(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_what_went_and_the_program_are_told(run, tmp_path, capsys):
    assert incop("export", run, "--to", "compacted", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "units gone from" in shown
    assert "holds the same as a program" in shown


def test_interrupted_before_anything_was_made(run, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("incop.cli.export.subject_of", interrupted)
    assert "nothing was exported" in refused(capsys, run, "--out", tmp_path / "out", status=130)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--level", "9"], "has no level 9: it has levels 0 to 1"),
        (["--level", "-1"], "has no level -1"),
        (["--to", "sparse,sparse"], "the form 'sparse' is named twice"),
        (["--to", "spares"], "did you mean 'sparse'"),
        (["--to", " , "], "names no form"),
    ],
)
def test_bad_words_leave_nothing(words, sentence, run, tmp_path, capsys):
    assert sentence in refused(capsys, run, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "R")
    (tmp_path / "R" / "summary.json").unlink()
    told = refused(capsys, tmp_path / "R", "--out", tmp_path / "out")
    assert "is not finished (running)" in told
    assert "--level 1 exports the last finished level" in told
    assert incop("export", tmp_path / "R", "--level", "1", "--out", tmp_path / "out") == 0


def test_out_is_a_file_or_lies_under_one(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        assert "cannot be made" in refused(capsys, run, "--to", "sparse", "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


def test_one_file_that_is_there_keeps_all_out(run, tmp_path, capsys):
    (tmp_path / "folded.safetensors").write_text("mine")
    assert "already there" in refused(capsys, run, "--to", ALL, "--out", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["folded.safetensors"]
    assert (tmp_path / "folded.safetensors").read_text() == "mine"


CODE = """
from torch import nn

def make(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.{activation}(), nn.Linear(12, classes))
"""


def test_a_model_of_the_users_code_and_data_that_moved(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    images, labels = numbers.integers(0, 255, (100, 8, 8), dtype=np.uint8), np.arange(100) % 10
    np.savez("x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    Path("net.py").write_text(CODE.format(activation="ReLU"))
    carried_out(tmp_path / "R", model="net.py:make", data="x.npz", run_code=True)
    to = ["R", "--to", "sparse", "--out", "out"]
    assert "--run-code" in refused(capsys, *to)
    Path("x.npz").rename("moved.npz")
    assert "are not there any more" in refused(capsys, *to, "--run-code")
    assert incop("export", *to, "--run-code", "--data", "moved.npz") == 0
    shutil.rmtree("out")
    Path("net.py").write_text(CODE.format(activation="Tanh"))
    told = refused(capsys, *to, "--run-code", "--data", "moved.npz")
    assert "the model's code is not what made the run" in told
    Path("net.py").unlink()
    assert "does not exist" in refused(capsys, *to, "--run-code", "--data", "moved.npz")
    assert not Path("out").exists()


def test_interrupted_between_two_forms(run, tmp_path, capsys, monkeypatch):
    from incop.export.folded import FoldedForm

    def interrupted(self, subject, folder):
        (folder / "folded.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(FoldedForm, "write", interrupted)
    assert refused(capsys, run, "--to", "sparse,folded", "--out", tmp_path / "out", status=130).endswith(
        "interrupted: nothing was exported"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", [1, 2])
def test_a_rename_that_fails_puts_back_what_was_there(run, fails, tmp_path, capsys, monkeypatch):
    (tmp_path / "model.sparse").write_text("old")
    real, calls = os.replace, []

    def failing(source, to):
        calls.append(to)
        if len(calls) == fails:
            raise OSError(5, "Input/output error")
        real(source, to)

    monkeypatch.setattr(os, "replace", failing)
    told = refused(capsys, run, "--to", "sparse,folded", "--out", tmp_path, "--replace", status=1)
    assert "Input/output error" in told
    assert [file.name for file in tmp_path.iterdir()] == ["model.sparse"]
    assert (tmp_path / "model.sparse").read_text() == "old"


def in_a_process(code, *words):
    """Return status and words of a process of its own, whose limits and rights are then its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\n{code}\nfrom incop.cli import main\nsys.exit(main(sys.argv[1:]))",
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def test_a_quota(run, tmp_path):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, {resource.RLIM_INFINITY}))"
    status, told = in_a_process(limit, "export", run, "--to", "sparse,folded", "--out", tmp_path / "out")
    assert (status, "File too large" in told, told.count("\n")) == (1, True, 0), told
    assert not list(tmp_path.iterdir())


def test_a_full_disk(run, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only the superuser may mount a small disk")
    try:
        for forms in ("folded", "sparse,safetensors"):
            told = refused(capsys, run, "--to", forms, "--out", disk / "out", status=1)
            assert "No space left on device" in told
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


AS_NOBODY = """
import os, sys, torch
from incop import export
subject = export.Subject.of(torch.nn.Linear(2, 2))
export.write(subject, "sparse", sys.argv[1] + "/before")
os.chmod(sys.argv[1], 0o555)
if os.getuid() == 0:
    os.setuid(65534)
for folder in ("", "/deep"):
    try:
        export.write(subject, "sparse", sys.argv[1] + folder)
    except export.writing.IncopError as error:
        print(type(error).__name__, error)
"""


def test_a_folder_that_cannot_be_written_to():
    reached = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, reached], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first.startswith("TrainingError")
        assert "cannot be written to: Permission denied" in first
        assert second.startswith("InputError")
        assert "cannot be made: Permission denied" in second
        assert [entry.name for entry in reached.iterdir()] == ["before"]
    finally:
        reached.chmod(0o755)
        shutil.rmtree(reached)
