"""Comparisons on real engines: a Ray cluster of two nodes, submitit's own executor of this machine, and a Slurm where there is one.

Everywhere a worker is ended by SIGKILL in the middle of a run, and the records are held against those of `--on local`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "campaigns"))

import clusters

from incop.errors import IncopError
from incop.experiments import engines
from incop.experiments.comparison import Comparison
from incop.experiments.comparison_runs import compare
from incop.experiments.engines import slurm as slurm_
from incop.experiments.plan import Plan

COMPARISON = Comparison(
    methods=("lth-rate",),
    seeds=1,
    sparsities=(0.4, 0.6),
    controls=False,
    plan=Plan(max_epochs=10.0, limit=300, device="cpu", threads=1, checkpoint_every="5steps"),
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
    """Kill the process that holds a run's lock once it has a checkpoint of a pruned level."""
    end = time.monotonic() + 120
    while not killed and time.monotonic() < end:
        for lock in folder.glob("runs/lth-rate-*/.lock"):
            if (lock.parent / "level_00").is_dir() and list((lock.parent / "checkpoint").glob("*")):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
                    killed.append(lock.parent.name)
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "C"
    compare(COMPARISON, folder)
    return content(folder)


def goes_through_a_kill(engine, folder, here):
    killed, notices = [], []
    killer = threading.Thread(target=kill_one, args=(folder, killed))
    killer.start()
    jobs = compare(COMPARISON, folder, engine=engine, notice=notices.append)
    killer.join()
    assert [job.state for job in jobs] == ["done"], [job.error for job in jobs]
    assert len(killed) == len(notices) == 1, notices
    assert "it goes on from its checkpoint (try 2 of 3)" in notices[0]
    assert content(folder) == here
    before = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/summary.json")}
    compare(COMPARISON, folder, engine=engine, notice=notices.append)
    assert before == {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/summary.json")}
    assert len(notices) == 1


def test_ray(here, tmp_path):
    with clusters.ray_cluster(2) as address:
        engine = engines.named(f"ray:{address}")
        goes_through_a_kill(engine, tmp_path / "C", here)


def test_a_ray_cluster_that_is_not_there_is_one_sentence(tmp_path):
    engine = engines.named("ray:nonsense")
    with pytest.raises(IncopError, match=r"the Ray cluster at nonsense cannot be used .*`ray start --head`"):
        compare(COMPARISON, tmp_path / "C", engine=engine)


class Here(slurm_.Slurm):
    """The same adapter on submitit's executor of this machine, where nobody is to be asked about a queue."""

    def _find(self):
        pass

    def _executor(self, several):
        return self._submitit.LocalExecutor(folder=self._room / "jobs")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of submitit, which waits for none of its processes
def test_submitit(here, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_, "_scancel", lambda *words: None)
    monkeypatch.setattr(slurm_, "_squeue", lambda: None)
    goes_through_a_kill(Here(engines.Resources(), None), tmp_path / "C", here)
    assert list((tmp_path / "C" / "engine").glob("*/jobs/*err")), "what a lost worker printed is kept"
    assert not list((tmp_path / "C").rglob("*.pkl"))


def queued():
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(bool(clusters.why_no_slurm()), reason=f"no Slurm here: {clusters.why_no_slurm()}")
def test_slurm(here, tmp_path, monkeypatch):
    with clusters.slurm(tmp_path / "slurm") as around:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, around[name])
        with pytest.raises(IncopError, match=r"Slurm does not take the runs .*partition"):
            compare(COMPARISON, tmp_path / "D", engine=engines.named("slurm", resources="partition=nowhere"))
        goes_through_a_kill(engines.named("slurm", resources="time=5"), tmp_path / "C", here)
        end = time.monotonic() + 60
        while (left := queued()) and time.monotonic() < end:  # a job ends a little after its run
            time.sleep(0.2)
        assert left == ""


def test_without_slurm_s_commands_it_is_told_and_nothing_is_removed(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = engines.named("slurm")
    with pytest.raises(IncopError, match="this host has no sbatch, srun"):
        compare(COMPARISON, tmp_path / "C", engine=engine)
    engine.close()
    assert (tmp_path / "mine").exists()
