"""`incop bench-export` as a stranger meets it."""

import json
import sys

import pytest

from incop.cli import main
from incop.rundir import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "R"
    words = ["--method", "lth", "--max-epochs", "1", "--levels", "1", "--progress", "off", "--out", str(folder)]
    assert main(["search", *words]) == 0
    return folder


QUICK = ["--forms", "folded,csr,compacted+folded", "--batch", "1,2", "--repeats", "7"]


def test_a_run_is_measured_told_kept_and_reported(run, capsys):
    assert main(["bench-export", str(run), *QUICK]) == 0
    told = capsys.readouterr().out
    assert "folded" in told
    lines = told.splitlines()
    assert lines[0].startswith(("No form is faster", "Faster by pruning"))
    assert lines[-1].startswith("not made: csr (no linear layer is faster as CSR here")
    kept = json.loads(RunDir(run).bench_file.read_text())
    assert kept["about"]["level"] == 1
    assert [row["form"] for row in kept["rows"]][:2] == ["dense", "folded"]
    assert main(["report", str(run)]) == 0
    assert "Forms of the ticket" in (run / "report.html").read_text()


def test_without_extras_the_verdict_is_first_and_what_is_absent_is_one_line_at_the_end(run, capsys, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["bench-export", str(run), "--batch", "1,2", "--repeats", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(("No form is faster", "Faster by pruning"))
    assert [line for line in lines if "not made" in line] == [lines[-1]]
    not_made = json.loads(RunDir(run).bench_file.read_text())["not_made"]
    assert {"onnx", "compacted+onnx"} <= set(not_made)
    assert (
        "onnx, compacted+onnx (the ONNX form needs the package 'onnx', which is not installed: pip install 'incop[onnx]')"
        in (lines[-1])
    )
    for word in not_made:
        assert lines[-1].count(f"{word},") + lines[-1].count(f"{word} (") > 0, word
    assert lines[-1].count("incop[onnx]") == 1
    assert main(["bench-export", str(run), "--forms", "folded", "--batch", "1", "--repeats", "7"]) == 0
    assert "not made" not in capsys.readouterr().out


def test_json_is_what_is_kept(run, capsys):
    assert (
        main(
            ["bench-export", str(run), "--level", "0", "--forms", "folded", "--batch", "1", "--repeats", "7", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == json.loads(RunDir(run).bench_file.read_text())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--forms", "foldet"], "did you mean 'folded'"),
        (["--forms", "2:4"], "the form '2:4' is gone"),
        (["--batch", "1,many"], "no batch sizes"),
        (["--batch", "0"], "no batch sizes"),
        (["--repeats", "1"], "no spread"),
        (["--threads", "0"], "threads"),
        (["--level", "9"], "no level 9"),
    ],
)
def test_bad_input_is_one_sentence_and_keeps_what_was_there(run, words, sentence, capsys):
    before = RunDir(run).bench_file.read_bytes() if RunDir(run).bench_file.exists() else None
    assert main(["bench-export", str(run), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert sentence in lines[0]
    assert (RunDir(run).bench_file.read_bytes() if RunDir(run).bench_file.exists() else None) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["bench-export", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
