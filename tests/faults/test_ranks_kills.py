"""Several processes carry out one search, and one of them fails: none waits for ever, no file is torn, what is resumed is exact."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from companions import Company, together
from folders import planned, same

from incop.experiments import runs
from incop.experiments.engines.local import PROCESSES
from incop.rundir import RunDir

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)

KINDS = [
    (2, "incop-if", {"model": "lenet-5", "levels": 2}),
    (3, "incop", {"sparsity": 0.6, "model": "dropping.py:make"}),
]
MODEL = """
from torch import nn

def make(classes=10, channels=1, size=8):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Dropout(0.3), nn.Linear(60, 40), nn.Linear(40, 10)
    )
"""


@pytest.mark.parametrize(("size", "method", "more"), KINDS, ids=[f"{n}-{m}" for n, m, _ in KINDS])
def test_killed_and_gone_on_with(size, method, more, tmp_path):
    """One is killed and the others find out; all are killed; one kills itself while it writes. Then it goes on to the end."""
    if "model" in more and more["model"].startswith("dropping"):
        (tmp_path / "dropping.py").write_text(MODEL)
        more = {**more, "model": f"{tmp_path}/{more['model']}", "run_code": True}
    plan = planned(method=method, checkpoint_every="2steps", max_epochs=4.0, batch_size=30, **more)
    together(plan, tmp_path / "whole", size)
    rng, kills = random.Random(size), 0
    for who, after in (([size - 1], "plan.toml"), ([0], "level_00/masks*"), (list(range(size)), "level_01/masks*")):
        company = Company(plan, tmp_path / "killed", size)
        company.until(tmp_path / "killed", after)
        time.sleep(rng.uniform(0.0, 0.05))
        company.kill(*who)
        statuses, said = company.ended()
        kills += -signal.SIGKILL in statuses
        if statuses == [0] * size:
            break
        assert set(statuses) <= {-signal.SIGKILL, 1}, said
        for rank, status in enumerate(statuses):
            if status == 1:
                told = [
                    sentence for speaker, sentence in said if speaker == rank and "goes on from level" not in sentence
                ]
                assert len(told) == 1, said
                assert told[0].startswith("Lost: "), said
                assert "goes on from the last checkpoint" in told[0]
    for number in (3, 5):
        statuses, _ = Company(plan, tmp_path / "killed", size, deadly=(0, "replace", number)).ended()
        kills += statuses[0] == -signal.SIGKILL
    assert kills >= 2
    together(plan, tmp_path / "killed", size)
    same(tmp_path / "killed", tmp_path / "whole")


def test_another_number_of_processes_goes_on_and_says_so(tmp_path):
    plan = planned(method="lth-rate", levels=2, checkpoint_every="2steps")
    runs.execute(plan, tmp_path / "one")
    together(plan, tmp_path / "two")
    for first, then in ((2, 3), (2, 1), (1, 2)):
        folder = tmp_path / f"{first} and {then}"
        Company(plan, folder, first, deadly=(0, "replace", 16)).ended()
        assert RunDir(folder).read_summary().status != "finished"
        assert len(RunDir(folder).levels()) >= 1
        said = together(plan, folder, then)
        sentence = (
            f"begun by {first} process{'es' * (first > 1)} and gone on with by {then}: batches and sums are divided"
        )
        assert [rank for rank, told in said if told.startswith(sentence)] == [0]
        summary = RunDir(folder).read_summary()
        assert summary.status == "finished"
        assert sum(any(n.startswith(sentence) for n in level.notices) for level in summary.levels) == 1
        assert summary.environment.get("processes", 1) == then
        assert summary.environment["processes_before"] == [first]
        for mine, theirs in zip(summary.levels, RunDir(tmp_path / "one").levels(), strict=True):
            assert (mine.remaining, mine.steps, mine.samples) == (theirs.remaining, theirs.steps, theirs.samples)
            assert abs(mine.val_accuracy - theirs.val_accuracy) < 0.06


UNUSED = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.never = nn.Linear(64, 40), nn.Linear(40, 10), nn.Linear(40, 10)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)).relu())

def make(classes=10, channels=1, size=8):
    return Net()
"""


def test_other_numbers_of_threads_and_a_layer_that_is_never_used_make_one_search(tmp_path):
    (tmp_path / "unused.py").write_text(UNUSED)
    model = {"model": f"{tmp_path}/unused.py:make", "run_code": True}
    plan = planned(method="sap", **model, levels=2, limit=120, max_epochs=1.0)
    together(plan, tmp_path / "R", threads=[1, 2])
    levels = RunDir(tmp_path / "R").levels()
    assert all(any("2 processes hold the same masks" in n for n in level.notices) for level in levels[1:])
    assert RunDir(tmp_path / "R").read_summary().environment["process_threads"] == [1, 2]


def failing(rank, size, port, folder, how):
    """One of two processes, in which something goes wrong that does not in the other."""
    import companions

    companions.as_started_by_torchrun(rank, size, port)
    from incop.training import Trainer

    if how == "disk" and rank == 0:
        original = RunDir.append

        def full(self, record):
            if getattr(record, "number", None) == 1 and record.level == 1:
                with open("/dev/full", "w") as out:  # raises when it is flushed
                    out.write("x")
            original(self, record)

        RunDir.append = full
    if how == "throws" and rank == 1:
        step, calls = Trainer._step, []

        def throwing(*args):
            calls.append(1)
            if len(calls) == 5:
                raise MemoryError
            return step(*args)

        Trainer._step = throwing
    words = [
        "search",
        "--limit",
        "200",
        "--max-epochs",
        "2",
        "--method",
        "lth-rate",
        "--levels",
        "1",
        "--device",
        "cpu",
    ]
    if how == "plan":
        words += ["--lr", f"0.00{rank + 1}"]
    if how == "data" and rank == 1:
        words += ["--data", "no-such-file.npz"]
    if how == "flag":
        words[words.index("200")] = "nine"
    sys.stderr = open(f"{folder}/said-{rank}", "w")  # noqa: SIM115  # until the process ends
    from incop.cli import main

    status = main([*words, "--out", f"{folder}/R"])
    sys.stderr.flush()
    sys.exit(status)


def both(how, tmp_path):
    import companions

    port = companions.free_port()
    processes = [PROCESSES.Process(target=failing, args=(rank, 2, port, str(tmp_path), how)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert not any(process.is_alive() for process in processes)
    return [process.exitcode for process in processes], [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_of_the_writer_ends_all_with_one_sentence(tmp_path):
    statuses, said = both("disk", tmp_path)
    assert statuses == [1, 1]
    assert "No space left on device" in said[0]
    assert said[0].count("incop: ") == 1
    assert said[1] == ""
    assert RunDir(tmp_path / "R").read_summary().status == "failed"


def test_why_one_has_ended_is_told_by_the_first(tmp_path):
    statuses, said = both("throws", tmp_path)
    assert statuses == [1, 1]
    assert said[1].startswith("incop: process 1: out of memory")
    assert said[0].startswith("incop: process 1 of 2 on ")
    assert "has ended: out of memory" in said[0]
    summary = RunDir(tmp_path / "R").read_summary()
    assert summary.status == "failed"
    assert "out of memory" in summary.error
    assert "incop resume" in summary.error


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("plan", "process 1 was started with lr = 0.002 and process 0 with 0.001: start all with the same flags"),
        ("data", "in process 1 of 2 on "),
        ("flag", "nine"),
    ],
)
def test_what_cannot_be_used_is_told_once_and_before_anything_is_written(how, words, tmp_path):
    statuses, said = both(how, tmp_path)
    assert statuses == [2, 2]
    assert words in said[0]
    assert said[0].count("incop: ") == 1
    assert said[1] == ""
    assert not (tmp_path / "R").exists()


TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--max-restarts",
    "1",
]
WORDS = ["--method", "lth-rate", "--levels", "1", "--limit", "200", "--max-epochs", "4000", "--device", "cpu"]


def test_under_torchrun_a_killed_search_is_started_again_and_a_signal_ends_it_with_one_checkpoint(tmp_path):
    """`torchrun --max-restarts` starts the same command again after a process has failed: it goes on with its folder."""
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [*TORCHRUN, "-m", "incop", "search", *WORDS, "--checkpoint-every", "5steps", "--out", "R"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )

    def spoken():
        return [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("incop: ")]

    def wait(ready):
        end = time.monotonic() + 120
        while not ready() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)

    wait(lambda: list(tmp_path.glob("R/checkpoint/0*")))
    os.kill(json.loads((tmp_path / "R" / ".lock").read_text())["pid"], signal.SIGKILL)
    wait(lambda: any("goes on from level" in line for line in spoken()))
    known = set(tmp_path.glob("R/checkpoint/0*"))
    wait(lambda: set(tmp_path.glob("R/checkpoint/0*")) - known)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    lost, begun, ended = spoken()
    assert lost.startswith("incop: process 1: another of the 2 processes has ended")
    assert begun.startswith("incop: the run 'R' goes on from level 0")
    assert ended.startswith("incop: interrupted in level 0 after ")
    assert ended.endswith("`torchrun … -m incop resume R` goes on from there")
    run = RunDir.open(tmp_path / "R")
    summary = run.read_summary()
    assert summary.status == "interrupted"
    assert len(summary.environment["resumed"]) == 1
    assert list(run.checkpoint_dir.glob("0*"))
    assert not (tmp_path / "R" / ".lock").exists()
