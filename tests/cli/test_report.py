import json
import subprocess
import sys

import pytest

from incop.cli.report import report
from incop.errors import InputError
from incop.records import Level, Run, Spent
from incop.rundir import RunDir


def write_run(folder, *, method="lth", seed=0):
    run = RunDir.create(folder)
    run.write_plan({"method": method, "data": "digits", "model": "lenet-5", "seed": seed, "rule": "none"})
    levels = tuple(
        Level(k, s, s, 100, 4.0, 40, 4000, 1.0, 0.1, 500, 0.95 - s / 10, "full budget", "init", 4.0, 0.94 - s / 10)
        for k, s in enumerate((0.0, 0.5, 0.8))
    )
    for level in levels:
        run.append(level)
    spent = Spent.total(level.spent for level in levels)
    run.write_summary(
        Run(method, "digits", "lenet-5", seed, "finished", {"test_accuracy": 0.94}, levels, spent, 12.0, {"torch": "2"})
    )
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run")


def test_page_is_written_into_the_run_folder(folder, capsys):
    report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    report(folder)  # again: replaced


@pytest.mark.parametrize(("format_", "begins"), [("csv", "level,"), ("md", "## Levels"), ("json", "{")])
def test_tables_go_to_standard_output(folder, capsys, format_, begins):
    report(folder, format=format_)
    assert capsys.readouterr().out.startswith(begins)
    assert not (folder / "report.html").exists()


def test_out_says_where(folder, tmp_path):
    report(folder, format="json", out=tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["method"] == "lth"


def test_several_runs_are_compared(tmp_path):
    folders = [write_run(tmp_path / f"{m}{s}", method=m, seed=s) for m in ("lth", "sap") for s in (0, 1)]
    report(*folders, out=tmp_path / "page.html", margin=0.01)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "identical in every seed" in text
    with pytest.raises(InputError, match="say --out"):
        report(*folders)


def test_bad_input_is_refused_in_a_sentence(tmp_path, folder):
    with pytest.raises(InputError, match="no folder"):
        report(tmp_path / "none")
    with pytest.raises(InputError, match="neither a run folder"):
        report(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        report(folder, out=tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        report(folder, out=tmp_path / "none" / "x.html")
    for margin in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="--margin"):
            report(folder, margin=margin)


def test_reports_need_no_torch(folder):
    code = f"""
import sys
from pathlib import Path
from incop.cli.report import report
assert not {{"torch", "numpy", "scipy", "matplotlib", "jinja2"}} & set(sys.modules)
report(Path({str(folder)!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
