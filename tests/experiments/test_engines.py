"""Engines by name, what they give a run, and what a worker on another host says of itself."""

import dataclasses
import json
import os
import platform
import signal
import sys
import threading
import time

import pytest
import torch

from incop.cli import main
from incop.errors import InputError, MissingExtra
from incop.experiments import engines
from incop.experiments.comparison import Comparison
from incop.experiments.comparison_runs import compare
from incop.experiments.engines import Task, worker
from incop.experiments.engines.local import Local
from incop.experiments.engines.resources import Resources
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.locks import Lock
from incop.rundir import RunDir

SMALL = Plan(method="lth-rate", levels=1, max_epochs=1.0, limit=100, device="cpu", threads=1)


@pytest.fixture(autouse=True)
def threads():
    """A worker sets the threads of its process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("engine", "text", "told"),
    [
        ("ray", "", "cpus=1"),
        ("ray", "gpus=0.5 cpus=4 mem=2.5", "cpus=4 gpus=0.5 mem=2.5"),
        ("slurm", "", "cpus=1 time=60"),
        (
            "slurm",
            "time=5 partition=gpu,long constraint=a100|h100 qos=low",
            "cpus=1 time=5 partition=gpu,long qos=low constraint=a100|h100",
        ),
    ],
)
def test_resources_are_read_and_told(engine, text, told):
    assert Resources.parse(text, engine=engine).told(engine=engine) == told


@pytest.mark.parametrize(
    ("on", "resources", "sentence"),
    [
        ("slurm", "cpu=2", "did you mean 'cpus'?"),
        ("slurm", "cpus=2 cpus=3", "cpus is said twice"),
        ("slurm", "cpus=0", "cpus=0 must be a whole number from 1 to 1024"),
        ("slurm", "time=1.5", "time=1.5 must be a whole number"),
        ("slurm", "gpus=0.5", "gpus=0.5 must be a whole number"),
        ("slurm", "time=nan mem=lots", "time=nan must be"),
        ("slurm", "partition=a$(reboot)", "is no name"),
        ("slurm", "partition", "'partition' is no key=value"),
        ("ray", "partition=gpu", "unknown resource of --on ray 'partition'"),
        ("local", "cpus=2", "share its cores evenly"),
        ("slrum", "", "did you mean 'slurm'?"),
        ("slurm:here", "", "only ray takes an address"),
        ("ray:", "", "only ray takes an address"),
    ],
)
def test_what_an_engine_cannot_give_is_one_sentence_before_anything_is_done(on, resources, sentence, tmp_path, capsys):
    with pytest.raises(InputError) as error:
        engines.named(on, resources=resources)
    assert sentence in str(error.value)
    words = ["--on", on, "--resources", resources, "--out", str(tmp_path / "C")]
    assert main(["compare", "--methods", "lth", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("on", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_library_is_told_before_anything_is_done(on, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"--on {on} needs the package '{package}'.*incop\\[{on}\\]"):
        engines.named(on)
    assert main(["compare", "--methods", "lth", "--on", on, "--out", str(tmp_path / "C")]) == 2
    assert not list(tmp_path.iterdir())
    assert "incop[" + on in capsys.readouterr().err


def sent(tmp_path, **more):
    """Return a task as it reaches another host."""
    whole = tmp_path / "C"
    whole.mkdir()
    (whole / "comparison.toml").write_text("")
    known = {"folder": whole / "runs" / "R", "whole": whole, "incop": worker.fingerprint(), "home": os.getcwd()}
    return Task(**{"plan": resolve(SMALL).plan, **known, **more})


HERE = f"on {platform.node()}: "


def test_a_worker_does_what_it_is_sent_goes_on_with_it_and_does_nothing_twice(tmp_path):
    task = sent(tmp_path)
    assert worker.perform(task).how == "done"
    run = RunDir.open(task.folder)
    before = run.summary_file.stat().st_mtime_ns
    assert worker.perform(task).how == "done"
    assert run.summary_file.stat().st_mtime_ns == before
    whole = run.levels()
    run.write_summary(dataclasses.replace(run.read_summary(), status="running"))
    assert worker.perform(task).how == "done"
    assert [level.test_accuracy for level in run.levels()] == [level.test_accuracy for level in whole]
    assert len(run.read_summary().environment["resumed"]) == 1


def test_another_incop_is_refused_by_name_of_the_host(tmp_path):
    ended = worker.perform(sent(tmp_path, incop="0.0.0+0"))
    assert ended.how == "failed"
    assert ended.sentence.startswith(f"{HERE}this host has another incop (")
    assert "(0.0.0+0): install the same one here" in ended.sentence


def test_a_folder_that_is_not_shared_is_told(tmp_path):
    ended = worker.perform(dataclasses.replace(sent(tmp_path), whole=tmp_path / "elsewhere"))
    assert ended.sentence.startswith(f"{HERE}the comparison's folder '{tmp_path / 'elsewhere'}' is not to be seen here")


def test_data_that_are_not_there_are_told_by_name_of_the_host(tmp_path, monkeypatch):
    monkeypatch.delenv("INCOP_DATA", raising=False)
    plan = resolve(dataclasses.replace(SMALL, data="mnist", data_dir=str(tmp_path / "none"))).plan
    ended = worker.perform(sent(tmp_path, plan=plan))
    assert ended.how == "failed"
    assert ended.sentence.startswith(HERE)
    assert str(tmp_path / "none") in ended.sentence
    assert "\n" not in ended.sentence


def test_relative_paths_are_those_of_where_the_comparison_was_started(tmp_path, monkeypatch):
    task = sent(tmp_path)
    monkeypatch.chdir("/")
    worker.perform(dataclasses.replace(task, home=str(tmp_path)))
    assert os.getcwd() == str(tmp_path)


def test_a_run_that_another_process_is_at_is_busy(tmp_path, monkeypatch):
    task = sent(tmp_path)
    monkeypatch.setattr(worker, "PATIENCE", 0.1)
    RunDir.create(task.folder).write_plan(task.plan.written())
    with Lock(task.folder):
        ended = worker.perform(task)
    assert ended.how == "busy"
    assert f"is in use by process {os.getpid()}" in ended.sentence


def test_a_signal_before_the_run_listens_is_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_carry_out", lambda task: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # as submitit does
    try:
        ended = worker.perform(sent(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.how, ended.sentence) == ("interrupted", f"{HERE}interrupted before it began")


def test_a_fault_of_the_program_is_a_failure_and_not_the_end_of_the_worker(tmp_path, capsys):
    ended = worker.perform(sent(tmp_path, follow=lambda: 1 / 0))
    assert (ended.how, ended.sentence) == ("failed", f"{HERE}unexpected ZeroDivisionError: division by zero")
    assert "Traceback" in capsys.readouterr().err


class Many(Local):
    """Processes that are treated as those of other machines: named by their host, held against its incop, tried again."""

    name, retries = "many", 2


COMPARISON = Comparison(
    methods=("lth-rate", "oneshot=incop-if", "incop-if"),
    seeds=1,
    sparsities=(0.5,),
    controls=False,
    plan=Plan(max_epochs=6.0, limit=200, device="cpu", threads=1, checkpoint_every="5steps"),
)


def without_times(record):
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if "seconds" not in k}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def content(folder):
    """Return every run's records without times, and the bytes of its weights."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}
    for file in folder.glob("runs/*/*.jsonl"):
        lines = file.read_text().splitlines()
        found[str(file.relative_to(folder))] = [without_times(json.loads(line)) for line in lines]
    return found


def kill_one(folder, killed):
    """Kill the process that holds a run's lock once it has a checkpoint, so often that this one gets all of its tries."""
    end = time.monotonic() + 100
    while len(killed) < 2 and time.monotonic() < end:
        for lock in folder.glob("runs/lth-rate-*/.lock"):
            try:
                number = json.loads(lock.read_text())["pid"]
            except (OSError, ValueError):
                continue
            if number not in killed and list((lock.parent / "checkpoint").glob("*")):
                os.kill(number, signal.SIGKILL)
                killed.append(number)
        time.sleep(0.005)


def test_a_worker_that_is_killed_twice_changes_nothing_in_the_tables(tmp_path):
    compare(COMPARISON, tmp_path / "here", jobs=2)
    killed, notices = [], []
    killer = threading.Thread(target=kill_one, args=(tmp_path / "many", killed))
    killer.start()
    jobs = compare(COMPARISON, tmp_path / "many", engine=Many(2), notice=notices.append)
    killer.join()
    assert [job.state for job in jobs] == ["done"] * 3, [job.error for job in jobs]
    assert len(killed) == len(notices) == 2
    assert "ended by SIGKILL" in notices[0]
    assert content(tmp_path / "many") == content(tmp_path / "here")
    again = {file.parent: file.stat().st_mtime_ns for file in tmp_path.glob("many/runs/*/summary.json")}
    compare(COMPARISON, tmp_path / "many", engine=Many(2))
    assert again == {file.parent: file.stat().st_mtime_ns for file in tmp_path.glob("many/runs/*/summary.json")}


def test_the_dry_run_says_what_would_be_handed_out_and_what_would_be_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--methods", "lth-rate,incop-if", "--no-controls", "--sparsities", "0.3"]
    words += ["--max-epochs", "1", "--limit", "100", "--out", "C"]
    assert main([*words, "--seeds", "1", "--dry-run", "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "3 of these 3 would be handed to processes of this machine, 2 at once" in out
    assert not list(tmp_path.iterdir())
    assert main([*words, "--seeds", "1"]) == 0
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([*words, "--seeds", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 runs, and 2 dense networks" in out
    assert "3 of these 6 would be handed to" in out
    assert out.count("finished: kept") == 2
    assert before == sorted(tmp_path.rglob("*"))
