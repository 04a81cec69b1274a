import json
import subprocess
import sys

import pytest

from incop.cli.report import report
from incop.errors import InputError
from incop.records import Check, Flow, Level, Run, Spent
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


def test_report_of_a_replay(tmp_path):
    dense = Flow({"a->b": 0.5}, meter="m")
    folder = RunDir.create(tmp_path / "run")
    folder.write_plan({"method": "lth", "data": "digits", "model": "lenet-5", "seed": 0})
    for number in range(3):
        near = 0.5 if number == 0 else 0.4
        folder.append(Check(number, 1, 2.0, flow=Flow({"a->b": near}, meter="m"), metric_value=0.9, spent=Spent(2)))
        full = Level(number, 0.3 * number, 0.0, 9, 4.0, 40, 400, 1.0, 0.1, 50, 0.9, "full budget", "init", flow=dense)
        folder.append(full)

    report(folder.path, rule="after 1 epochs", grid="0.001:1:3")
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    assert "Where “after 1 epochs” would have stopped" in page
    assert "4 epochs instead of the 8 recorded" in page
    assert "Trade-off of the tolerance" in page

    report(folder.path, format="json", out=tmp_path / "x.json", grid="0.001:1:3")
    curve = json.loads((tmp_path / "x.json").read_text())["replay of flow within 0.001:1:3"]
    # the flow at epoch 2 is 0.1 away: only the tolerance of 1 stops there, the others run as recorded
    assert [(row["within"], row["search epochs"]) for row in curve] == [
        (0.001, 4.0),
        (pytest.approx(10**-1.5), 4.0),
        (1.0, 2.0),
    ]


def test_only_a_run_is_replayed(folder, tmp_path):
    with pytest.raises(InputError, match="one run"):
        report(folder, write_run(tmp_path / "other", seed=1), rule="after 1 epochs", out=tmp_path / "x.html")
