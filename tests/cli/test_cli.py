"""The command line as a stranger meets it: what works, what is refused, and what is left behind."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from incop.cli import main
from incop.rundir import RunDir
from incop.training import Trainer

QUICK = ["--method", "incop-if", "--max-epochs", "2", "--levels", "2"]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def incop(*words):
    return main([str(word) for word in words])


def refused(capsys, *words, status=2, out="R"):
    """Run, and return the one sentence; nothing may be left behind."""
    assert incop(*words, "--out", out) == status
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("incop: ")
    assert "Traceback" not in captured.err
    if status == 2:
        assert not Path(out).exists()
    return lines[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--levels", "0"], "--levels 0 must be"),
        (["--sparsity", "1.2"], "--sparsity 1.2 must be between 0 and 1"),
        (["--model", "lenet6"], "unknown model 'lenet6': did you mean 'lenet-5'"),
        (["--data", "minst"], "did you mean 'mnist'"),
        (["--method", "incop-fi"], "did you mean 'incop-if'"),
        (["--frobnicate", "3"], "--frobnicate"),
        (["--levels", "many"], "many"),
        (["--probe-size", "5000"], "larger than the training split of 1294"),
        (["--limit", "100000"], "100000"),
        (["--rule", "flow near"], "cannot be read"),
        (["--method", "lth", "--rule", "flow within 0.1"], "needs a meter, and --meter none measures nothing"),
        (["--amount", "1.5"], "must be in [0, 1]"),
        (["--selection", "4:2"], "2 of 4"),
        (["--score", "saliency:2"], "the score 'saliency:2' has no power in [0, 1]"),
        (["--score", "saliency:x"], "the score 'saliency:x' has no power in [0, 1] after its colon"),
        (["--score", "salience"], "did you mean 'saliency'"),
        (["--rewind", "early:0"], "unknown rewind point"),
        (["--rewind", "early:7", "--max-epochs", "5"], "at or past the end"),
        (["--skip", "fc9"], "did you mean 'fc3'"),
        (["--skip", "fc1", "--skip", "fc2", "--skip", "fc3"], "no prunable weights"),
        (["--optimizer", "sdg"], "did you mean 'sgd'"),
        (["--device", "tpu"], "unknown device"),
        (["--check-every", "0"], "no stretch of training"),
        (["--method", "dense", "--levels", "2"], "'dense' has no pruning levels"),
        (["--data", "nowhere/x.npz"], "does not exist"),
        (["absent.toml"], "no plan file"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(words, sentence, capsys):
    assert sentence in refused(capsys, "search", *words)


def test_missing_data_directory(capsys, monkeypatch):
    monkeypatch.delenv("INCOP_DATA", raising=False)
    assert "--data-dir" in refused(capsys, "search", "--data", "mnist")
    assert "nowhere" in refused(capsys, "search", "--data", "mnist", "--data-dir", "nowhere")


def idx(path, array, *, cut=0):
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    body = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(body[: len(body) - cut]))


def idx_folder(folder, *, cut=0, labels=None):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 8, 8)), cut=cut if part == "train" else 0)
        given = np.arange(n) % 3 if labels is None else np.resize(labels, n)
        idx(folder / f"{part}-labels-idx1-ubyte.gz", given)


def test_truncated_idx_file(capsys, tmp_path):
    idx_folder(tmp_path / "d", cut=7)
    assert "train-images" in refused(capsys, "search", "--data", "./d")


def test_labels_out_of_range(capsys, tmp_path):
    idx_folder(tmp_path / "d", labels=[0, 1, 7])
    assert "label" in refused(capsys, "search", "--data", "./d")


def test_image_folder_with_one_unreadable_file(capsys, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "d" / part / label).mkdir(parents=True)
            for k in range(20):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(
                    tmp_path / "d" / part / label / f"{k}.png"
                )
    assert incop("search", "--data", "./d", "--method", "lth", *QUICK[2:], "--out", "good") == 0
    capsys.readouterr()
    (tmp_path / "d" / "train" / "b" / "7.png").write_bytes(b"\x89PNG no picture")
    assert "7.png" in refused(capsys, "search", "--data", "./d")


def test_own_idx_data_work(tmp_path):
    idx_folder(tmp_path / "d")
    assert incop("search", "--data", "./d", "--model", "lenet-5", *QUICK, "--out", "R") == 0


def test_all_bad_plan_keys_are_told_at_once(capsys, tmp_path):
    (tmp_path / "p.toml").write_text('level = 3\nseed = "x"\n')
    sentence = refused(capsys, "search", "p.toml")
    assert "did you mean 'levels'" in sentence
    assert "seed = 'x' must be a whole number" in sentence
    (tmp_path / "p.toml").write_text("level = = 3")
    assert "not a TOML file" in refused(capsys, "search", "p.toml")


def test_non_finite_loss_ends_with_status_1_and_the_folder_says_where(capsys):
    sentence = refused(capsys, "search", "--lr", "1e30", "--optimizer", "sgd", *QUICK, status=1)
    assert "at step" in sentence
    assert "lower the learning rate" in sentence
    summary = json.loads(Path("R/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "at step" in summary["error"]


def test_an_existing_folder_is_never_overwritten(capsys):
    assert incop("search", *QUICK, "--out", "R") == 0
    before = {f: f.read_bytes() for f in Path("R").rglob("*") if f.is_file()}
    capsys.readouterr()
    assert incop("search", *QUICK, "--out", "R") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {f: f.read_bytes() for f in Path("R").rglob("*") if f.is_file()}
    Path("file").write_text("mine")
    assert incop("search", *QUICK, "--out", "file") == 2
    assert Path("file").read_text() == "mine"
    assert incop("search", *QUICK, "--out", "file/R") == 2


@pytest.mark.parametrize("method", ["dense", "lth", "sap", "incop-if", "incop-gf"])
def test_a_run_folder_explains_itself(method, capsys):
    levels = [] if method == "dense" else ["--levels", "2"]
    assert incop("search", "--method", method, "--max-epochs", "2", *levels, "--seed", "1", "--out", "R") == 0
    run = RunDir.open("R")
    summary = json.loads(run.summary_file.read_text())
    assert {"method", "data", "model", "seed", "dense", "levels", "spent", "environment"} <= set(summary)
    assert {"val_accuracy", "test_accuracy", "epochs"} <= set(summary["dense"])
    wanted = {
        "level", "sparsity", "model_sparsity", "epochs", "seconds", "probe_seconds", "val_accuracy", "test_accuracy", "stop_reason",
    }  # fmt: skip
    lines = [json.loads(line) for line in run.levels_file.read_text().splitlines()]
    assert lines == summary["levels"]
    for level in summary["levels"]:
        assert wanted <= set(level)
    for part in ("epochs", "steps", "samples", "seconds", "probe_seconds"):
        assert summary["spent"][part] == pytest.approx(sum(level[part] for level in summary["levels"]))
    assert summary["dense"]["val_accuracy"] == summary["levels"][0]["val_accuracy"]
    assert len(summary["levels"]) == (1 if method == "dense" else 3)
    checks = [json.loads(line) for line in run.checks_file.read_text().splitlines()]
    assert {c["level"] for c in checks} == set(range(len(lines)))
    if method.startswith("incop"):
        assert all(c["flow"]["values"] for c in checks)
        assert all(c["verdict"]["reason"] for c in checks)
    capsys.readouterr()
    assert incop("show", "R") == 0
    assert f"{summary['levels'][-1]['test_accuracy']:.4f}" in capsys.readouterr().out
    assert incop("show", "R", "--json") == 0
    assert json.loads(capsys.readouterr().out)["method"] == method


def without_times(record):
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if "seconds" not in k}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def records(folder):
    run = RunDir.open(folder)
    return [
        without_times(json.loads(x)) for f in (run.levels_file, run.checks_file) for x in f.read_text().splitlines()
    ]


def tensors(folder):
    return {f.relative_to(folder): f.read_bytes() for f in Path(folder).rglob("*.safetensors")}


def test_a_plan_repeats_its_run_bit_for_bit_in_another_process():
    assert incop("search", "--method", "incop-gf", *QUICK[2:], "--seed", "5", "--rewind", "early:1", "--out", "A") == 0
    subprocess.run(
        [sys.executable, "-m", "incop", "search", "A/plan.toml", "--out", "B"], check=True, capture_output=True
    )
    assert records("A") == records("B")
    assert tensors("A") == tensors("B")
    assert incop("search", "A/plan.toml", "--seed", "6", "--out", "C") == 0
    assert records("A") != records("C")
    assert RunDir.open("C").read_plan() == {**RunDir.open("A").read_plan(), "seed": 6}


def test_the_test_split_decides_nothing(monkeypatch):
    """The same search on data whose test labels are scrambled: everything but the reported test accuracy is the same."""
    from incop.experiments import datasets

    words = [
        "search",
        "--method",
        "incop-if",
        "--rule",
        "accuracy within 0.05",
        "--check-every",
        "0.5",
        "--max-epochs",
        "3",
        "--levels",
        "2",
    ]
    assert incop(*words, "--out", "A") == 0
    load = datasets.load

    def scrambled(*args, **kwargs):
        data = load(*args, **kwargs)
        data.test.labels[:] = (data.test.labels + 1) % 10
        return data

    monkeypatch.setattr(datasets, "load", scrambled)
    reads = []
    evaluate = Trainer.evaluate

    def counted(self, model, split=None):
        if split is not None:
            reads.append(split)
        return evaluate(self, model, split)

    monkeypatch.setattr(Trainer, "evaluate", counted)
    assert incop(*words, "--out", "B") == 0
    assert len(reads) == 3  # once a ticket

    def rest(folder):
        return [{k: v for k, v in record.items() if k != "test_accuracy"} for record in records(folder)]

    assert rest("A") == rest("B")
    assert RunDir.open("A").levels()[0].test_accuracy > 0.9 > 0.2 > RunDir.open("B").levels()[0].test_accuracy


def test_measure_a_run_and_a_network(capsys):
    assert incop("search", *QUICK, "--out", "R") == 0
    capsys.readouterr()
    assert incop("measure", "R", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    last = RunDir.open("R").levels()[-1]
    assert found["flow"]["values"] == pytest.approx(last.flow.values)
    assert found["distance"] == pytest.approx(last.distance)
    assert incop("measure", "R", "--level", "1", "--meter", "gradient") == 0
    assert "distance from dense" in capsys.readouterr().out
    assert incop("measure", "--model", "lenet-5", "--meter", "information:square", "--probe-size", "64") == 0
    assert "conv1->conv2" in capsys.readouterr().out
    assert incop("measure", "--weights", "R/level_02/weights.safetensors") == 0
    assert incop("measure", "--model", "lenet-5", "--weights", "R/level_02/weights.safetensors") == 2
    assert "do not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["measure", "R", "--level", "9"], "has no level 9: it has levels 0 to 2"),
        (["measure", "R", "--data", "mnist"], "cannot go with a run folder"),
        (["measure", "nowhere"], "no run folder"),
        (["measure", "--level", "1"], "belongs to a run"),
        (["measure", "--meter", "none"], "measures nothing"),
        (["measure", "--weights", "nowhere.safetensors"], "no file"),
        (["show", "nowhere"], "no run folder"),
        (["list", "everything"], "everything"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_other_commands_refuse_in_one_sentence(words, sentence, capsys):
    assert incop("search", *QUICK, "--out", "R") == 0
    capsys.readouterr()
    assert incop(*words) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_list_names_everything(capsys):
    assert incop("list") == 0
    out = capsys.readouterr().out
    for name in ("resnet-20", "fashion-mnist", "incop-gf", "flow settled", "units:layer"):
        assert name in out


def test_silent_when_not_a_terminal_and_a_line_a_level_when_asked(capsys):
    assert incop("search", *QUICK, "--out", "A", "--progress", "off") == 0
    quiet = capsys.readouterr().out
    assert "run folder: A" in quiet
    assert "spent after the dense network" in quiet
    assert incop("search", *QUICK, "--out", "B", "--progress", "lines") == 0
    assert capsys.readouterr().out.count("level 1 · ") == 1 + quiet.count("level 1 · ")


def test_interrupt_keeps_what_was_finished(monkeypatch, capsys):
    fit = Trainer.fit

    def interrupted(self, model, masks, watch):
        if watch.level == 1:
            raise KeyboardInterrupt
        fit(self, model, masks, watch)

    monkeypatch.setattr(Trainer, "fit", interrupted)
    assert incop("search", *QUICK, "--out", "R") == 130
    assert "interrupted" in capsys.readouterr().err
    run = RunDir.open("R")
    assert run.read_summary().status == "interrupted"
    assert [level.level for level in run.levels()] == [0]


def test_help_and_version(capsys):
    for words in (
        ["--help"],
        ["search", "--help"],
        ["resume", "--help"],
        ["measure", "--help"],
        ["show", "--help"],
        ["list", "--help"],
    ):
        assert incop(*words) == 0
        assert "Usage" in capsys.readouterr().out
    assert incop("--version") == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_default_folder_is_new_every_time(capsys):
    for _ in range(2):
        assert incop("search", "--max-epochs", "1", "--levels", "1", "--method", "lth") == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == [
        "digits-lenet-300-100-lth-seed0",
        "digits-lenet-300-100-lth-seed0-2",
    ]


@pytest.mark.parametrize(
    ("data", "model", "method"),
    [("fashion-mnist", "lenet-5", "incop-gf"), ("mnist", "lenet-300-100", "lth"), ("cifar10", "resnet-20", "incop-if")],
)
def test_real_data(data, model, method):
    if "INCOP_DATA" not in os.environ:
        pytest.skip("set INCOP_DATA to the folder that holds mnist/, fashion-mnist/ and cifar10/")
    words = [
        "--data",
        data,
        "--model",
        model,
        "--method",
        method,
        "--limit",
        "300",
        "--max-epochs",
        "1",
        "--levels",
        "1",
    ]
    assert incop("search", *words, "--out", "R") == 0
    assert RunDir.open("R").read_summary().status == "finished"


def test_a_sparsity_to_reach_and_one_on_the_way():
    words = ["--method", "lth", "--amount", "0.5", "--selection", "global", "--max-epochs", "1", "--sparsity", "0.9"]
    assert incop("search", *words, "--ticket-at", "0.6", "--out", "R") == 0
    assert [round(level.sparsity, 3) for level in RunDir.open("R").levels()] == [0, 0.5, 0.6, 0.8, 0.9]
