"""Real kills: SIGKILL at any moment and as often as one likes; what is gone on with ends as if nothing had been."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from folders import planned, same

from incop.experiments import runs
from incop.experiments.comparison import Comparison
from incop.experiments.comparison_runs import compare
from incop.experiments.engines.local import PROCESSES, Local
from incop.experiments.plan import Plan
from incop.rundir import RunDir

PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo"])


def carry_on(plan, folder, deadly=None):
    """Begin the run, or go on with it; in a process that kills itself at the so-manieth call of a function of os."""
    if deadly is not None:
        name, number = deadly
        original, calls = getattr(os, name), [0]

        def dying(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(os, name, dying)
    if RunDir(folder).plan_file.exists():
        runs.resume(folder)
    else:
        runs.execute(plan, folder)


def in_a_process(plan, folder, *, after=None, deadly=None):
    """Return the exit status of a process that carries on, killed after so many seconds if it has not ended."""
    process = PROCESSES.Process(target=carry_on, args=(plan, folder, deadly))
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


KINDS = [
    ("incop", "lenet-300-100", {"sparsity": 0.6}),
    ("incop-if", "lenet-5", {"levels": 2}),
    ("lth-early", "lenet-300-100", {"levels": 3, "optimizer": "sgd"}),
]


@pytest.mark.parametrize(("method", "model", "more"), KINDS, ids=[f"{m}-{n}" for m, n, _ in KINDS])
def test_killed_at_random_moments(method, model, more, tmp_path):
    plan = planned(method=method, model=model, checkpoint_every="2steps", **more)
    started = time.monotonic()
    assert in_a_process(plan, tmp_path / "whole") == 0
    took = time.monotonic() - started
    rng, kills = random.Random(took), 0
    while kills < 4:
        if in_a_process(plan, tmp_path / "killed", after=rng.uniform(0.1, 0.8) * took) == 0:
            break
        kills += 1
    while kills < 3:  # it went faster than the first time: kill it for certain
        kills += in_a_process(plan, tmp_path / f"again{kills}", deadly=("replace", 3 + 7 * kills)) == -signal.SIGKILL
        assert in_a_process(plan, tmp_path / f"again{kills - 1}") == 0
        same(tmp_path / f"again{kills - 1}", tmp_path / "whole")
    assert in_a_process(plan, tmp_path / "killed") == 0 or RunDir(tmp_path / "killed").read_summary()
    same(tmp_path / "killed", tmp_path / "whole")


def test_killed_while_writing(tmp_path):
    """At calls of fsync, replace and unlink: within a checkpoint, between two files of a level, between two levels."""
    plan = planned(method="lth-rate", levels=2, checkpoint_every="1steps")
    runs.execute(plan, tmp_path / "whole")
    rng, kills = random.Random(5), 0
    for name, times in (("fsync", 6), ("replace", 5), ("unlink", 3)):
        folder = tmp_path / name
        for _ in range(times):
            status = in_a_process(plan, folder, deadly=(name, rng.randrange(1, 25)))
            if status == 0:
                break
            assert status == -signal.SIGKILL
            kills += 1
        in_a_process(plan, folder)
        same(folder, tmp_path / "whole")
    assert kills >= 8


def test_killed_before_it_began(tmp_path):
    plan = planned(method="dense")
    assert in_a_process(plan, tmp_path / "R", deadly=("fsync", 1)) == -signal.SIGKILL
    assert {entry.name[:11] for entry in (tmp_path / "R").iterdir()} == {".lock", ".plan.toml."[:11]}
    assert in_a_process(plan, tmp_path / "R") == 0
    runs.execute(plan, tmp_path / "whole")
    same(tmp_path / "R", tmp_path / "whole")


def test_lines_after_the_checkpoint_and_half_a_line_are_dropped(tmp_path):
    plan = planned(method="lth-rate", levels=2, checkpoint_every="4steps")
    runs.execute(plan, tmp_path / "whole")
    assert in_a_process(plan, tmp_path / "R", deadly=("replace", 14)) == -signal.SIGKILL
    run = RunDir(tmp_path / "R")
    for file in (run.levels_file, run.checks_file):
        lines = file.read_bytes().splitlines(keepends=True)
        with file.open("ab") as out:
            out.write(lines[-1] + lines[-1][: len(lines[-1]) // 2])
    runs.resume(tmp_path / "R")
    same(tmp_path / "R", tmp_path / "whole")


WORDS = ["--method", "lth-rate", "--levels", "2", "--limit", "200", "--max-epochs", "400", "--device", "cpu"]


def started(*words, cwd, until):
    """Start the command line and wait until a file is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "incop", *words], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not list(cwd.glob(until)) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_search_with_a_checkpoint(number, status, tmp_path):
    process = started("search", *WORDS, "--out", "R", cwd=tmp_path, until="R/summary.json")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert re.fullmatch(r"incop: interrupted in level \d after .* `incop resume R` goes on from there\n", said)
    run = RunDir.open(tmp_path / "R")
    assert run.read_summary().status == "interrupted"
    assert len(list(run.checkpoint_dir.glob("0*"))) == 1
    assert not (tmp_path / "R" / ".lock").exists()


def test_a_second_signal_ends_it_at_once(tmp_path):
    held = "import incop.experiments.runs as r, incop.checkpoint_files as c, time, sys, os\n"
    held += "c.Checkpoints.write = lambda *a, **k: (open('writing', 'w').close(), time.sleep(60))\n"
    held += "from incop.cli import main\nsys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", held, "search", *WORDS, "--out", "R"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    for file in ("R/summary.json", "writing"):
        end = time.monotonic() + 60
        while not (tmp_path / file).exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "ended at once: `incop resume R` goes on from the last checkpoint" in said


COMPARISON = Comparison(
    methods=("lth-rate",),
    seeds=2,
    sparsities=(0.5,),
    controls=False,
    plan=Plan(max_epochs=6.0, limit=200, device="cpu", threads=1),  # whatever the number of jobs: sums differ with it
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "C"
    compare(COMPARISON, folder, jobs=2)
    return folder


def held_against(folder, other):
    jobs = json.loads((folder / "jobs.json").read_text())
    assert {job["state"] for job in jobs} == {"done"}, jobs
    for job in jobs:
        same(folder / job["folder"], other / job["folder"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_comparison_that_is_ended_is_gone_on_with(number, status, compared, tmp_path):
    words = ["compare", str(compared / "comparison.toml"), "--jobs", "2", "--out", "C"]
    process = started(*words, cwd=tmp_path, until="C/runs/*/level_01")
    process.send_signal(number)  # of SIGKILL its runs find out by themselves
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    if number == signal.SIGTERM:
        assert said == "incop: interrupted: the same command goes on with what is missing\n"
    compare(COMPARISON, tmp_path / "C", jobs=2)
    held_against(tmp_path / "C", compared)


def killed_alone(folder, times, killed, number=signal.SIGKILL):
    """Kill the process that holds a run's lock, the first time once it is training a pruned level, then every one after it."""
    end = time.monotonic() + 60
    while len(killed) < times and time.monotonic() < end:
        for lock in folder.glob("runs/lth*-0-*/.lock"):
            try:
                process = json.loads(lock.read_text())["pid"]
            except (OSError, ValueError):  # it is being written, or gone
                continue
            if process not in killed and (killed or list(lock.parent.glob("level_00/*"))):
                os.kill(process, number)
                killed.append(process)
        time.sleep(0.005)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_whose_process_is_killed_is_begun_again_and_ends_as_if_nothing_had_been(times, compared, tmp_path):
    killed, notices = [], []
    killer = threading.Thread(target=killed_alone, args=(tmp_path / "C", times, killed))
    killer.start()
    compare(COMPARISON, tmp_path / "C", jobs=2, notice=notices.append)
    killer.join()
    assert len(set(killed)) == times
    told = "its process was ended by SIGKILL, as the system does when memory runs out (fewer --jobs need less)"
    assert notices == [
        f"lth-rate · seed 0: {told}; it goes on from its checkpoint (try {number + 2} of 3)" for number in range(times)
    ]
    held_against(tmp_path / "C", compared)


def test_a_run_whose_process_is_asked_to_end_writes_its_checkpoint_and_is_handed_out_again(compared, tmp_path):
    killed, notices = [], []
    killer = threading.Thread(target=killed_alone, args=(tmp_path / "C", 1, killed, signal.SIGTERM))
    killer.start()
    compare(COMPARISON, tmp_path / "C", jobs=2, notice=notices.append)
    killer.join()
    (notice,) = notices
    assert re.fullmatch(
        r"lth-rate · seed 0: interrupted in level \d after .* goes on from there; handed out again", notice
    )
    held_against(tmp_path / "C", compared)


def test_a_run_that_dies_at_every_try_has_failed_and_the_others_go_on(compared, tmp_path):
    killed, notices = [], []
    killer = threading.Thread(target=killed_alone, args=(tmp_path / "C", 3, killed))
    killer.start()
    jobs = compare(COMPARISON, tmp_path / "C", jobs=1, notice=notices.append)
    killer.join()
    assert len(set(killed)) == 3
    assert len(notices) == 2
    assert [job.state for job in jobs] == ["failed", "done"]
    assert jobs[0].error == (
        "its process was ended by SIGKILL, as the system does when memory runs out, at the last of 3 tries: the same command "
        "goes on with it"
    )
    compare(COMPARISON, tmp_path / "C", jobs=2)
    held_against(tmp_path / "C", compared)


class Deadly(Local):
    """Kills the first two processes that it starts, and the fourth, before they have come to anything."""

    started = 0

    def submit(self, tasks):
        handles = super().submit(tasks)
        for handle in handles:
            self.started += 1
            if self.started in (1, 2, 4):
                os.kill(handle.process.pid, signal.SIGKILL)
        return handles


def test_processes_that_are_killed_before_they_have_begun_are_begun_again(compared, tmp_path):
    notices, engine = [], Deadly(1)
    compare(COMPARISON, tmp_path / "C", engine=engine, notice=notices.append)
    assert [notice.partition(":")[0] for notice in notices] == [
        "the dense network · seed 0",
        "the dense network · seed 0",
        "the dense network · seed 1",
    ]
    assert engine.started == 7
    held_against(tmp_path / "C", compared)


def test_a_run_that_fails_by_itself_is_not_begun_again(tmp_path):
    notices, folder = [], tmp_path / "C"
    wild = dataclasses.replace(COMPARISON, seeds=1, plan=Plan(lr=1e30, optimizer="sgd").over(COMPARISON.plan))
    jobs = compare(wild, folder, jobs=2, notice=notices.append)
    assert [job.state for job in jobs] == ["failed"]
    assert "tries" not in jobs[0].error
    assert "lower the learning rate" in jobs[0].error
    assert notices == []
    (dense,) = folder.glob("runs/dense-*")
    assert "resumed" not in RunDir.open(dense).read_summary().environment


def test_killed_with_copies_on_the_disk(tmp_path):
    plan = planned(method="lth-early", levels=3, offload="disk", checkpoint_every="2steps")
    assert in_a_process(plan, tmp_path / "whole") == 0
    assert in_a_process(plan, tmp_path / "killed", deadly=("replace", 16)) == -signal.SIGKILL
    assert list((tmp_path / "killed").glob(".offload.*"))  # nobody could clean up
    assert in_a_process(plan, tmp_path / "killed") == 0
    same(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".offload.*"))
