"""What the terminal shows of a comparison under way: one bar, and a line for each run, read from its records."""

import io

import pytest
from rich.console import Console

from incop.cli.under_way import MAX_LINES, standing, watch_comparison
from incop.experiments.comparison import Job
from incop.experiments.controls import Label
from incop.experiments.engines import Task
from incop.experiments.plan import Plan
from incop.locks import Lock
from incop.records import Check
from incop.rundir import RunDir


def task(tmp_path, name="R"):
    return Task(Plan(), tmp_path / name, tmp_path)


def begun(task):
    run = RunDir.create(task.folder)
    run.write_plan({"data": "digits"})
    run.append(Check(2, 0, 0.0, metric_value=0.5))
    run.append(Check(3, 4, 1.25, metric_value=0.875))
    return run


def test_a_run_stands_where_its_last_check_is(tmp_path):
    sent = task(tmp_path)
    assert standing("lth · seed 0", sent) == "lth · seed 0 · handed out"
    run = begun(sent)
    with Lock(sent.folder):
        line = standing("lth · seed 0", sent)
        assert line.startswith("lth · seed 0 · level 3 · epoch 1.2 · accuracy 0.875 · process ")
        assert " since " not in line
        with run.checks_file.open("ab") as out:
            out.write(b'{"level": 4, "num')  # as a killed process leaves it, or one that is writing
        assert standing("lth · seed 0", sent) == line
        run.checks_file.write_bytes(b"damaged\n")
        assert standing("lth · seed 0", sent).startswith("lth · seed 0 · level 0 · process ")
    assert standing("lth · seed 0", sent) == "lth · seed 0 · handed out"


def job(state, error=None):
    return Job(Label.parse("lth"), 3, "digits", "lenet-5", None, state=state, error=error)


def shown(*, terminal, lines, tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150, height=40, markup=False, color_system=None)
    sent = task(tmp_path)
    begun(sent)
    with watch_comparison(console, lines=lines) as listeners, Lock(sent.folder):
        if listeners.look is not None:
            listeners.look([("lth · seed 3", sent)] * (MAX_LINES + 2))
        listeners.tell(job("done"), 1, 2)
        listeners.notice("a worker\x1b[2J was lost")
        listeners.tell(job("failed", "diverged"), 2, 2)
    return out.getvalue()


def test_on_a_terminal(tmp_path):
    text = shown(terminal=True, lines=True, tmp_path=tmp_path)
    assert "level 3 · epoch 1.2" in text
    assert "and 2 more" in text
    assert "2/2" in text
    assert "failed: lth · seed 3: diverged" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("lines", [True, False])
def test_elsewhere(lines, tmp_path):
    text = shown(terminal=False, lines=lines, tmp_path=tmp_path)
    told = text.splitlines()
    assert told == (["done: lth · seed 3 (1 of 2)"] if lines else []) + [
        "a worker�[2J was lost",
        "failed: lth · seed 3: diverged",
    ]
