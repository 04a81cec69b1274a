"""The same plan twice, in two processes: the same records and files; what other threads change is what the docs say."""

import json
import os
import subprocess
import sys

import pytest
import torch
from folders import content

from incop.rundir import RunDir

PLANS = {
    "lenet-300-100": ["--method", "incop", "--sparsity", "0.6", "--model", "lenet-300-100", "--limit", "200"],
    "lenet-5": [
        "--method",
        "incop-gf",
        "--levels",
        "2",
        "--model",
        "lenet-5",
        "--limit",
        "120",
        "--optimizer",
        "adamw",
    ],
    "resnet-20": ["--method", "incop-if", "--levels", "1", "--model", "resnet-20", "--limit", "60", "--augment"],
}
ONCE = ["--max-epochs", "1", "--batch-size", "30", "--device", "cpu", "--seed", "7"]


RUNS = [("lenet-300-100", 1), ("lenet-300-100", 2), ("lenet-5", 2), ("resnet-20", 1)]
CODE = """
import json, sys
from incop.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    if status := main():
        sys.exit(status)
"""


def words(folder, network, threads):
    return ["search", *PLANS[network], *ONCE, "--threads", str(threads), "--out", str(folder / f"{network}-{threads}")]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The same runs in two processes: in another order, with other hashes of Python and other threads by default."""
    folders = []
    for seed, order in ((1, RUNS), (2, RUNS[::-1])):
        folders.append(tmp_path_factory.mktemp(f"process-{seed}"))
        around = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(seed)}
        command = [sys.executable, "-c", CODE, json.dumps([words(folders[-1], *run) for run in order])]
        process = subprocess.run(command, env=around, capture_output=True, text=True, timeout=240, check=False)
        assert process.returncode == 0, process.stderr
    return folders


@pytest.mark.parametrize(("network", "threads"), RUNS)
def test_the_same_plan_gives_the_same_records_in_every_process(network, threads, two_processes):
    first, second = (folder / f"{network}-{threads}" for folder in two_processes)
    assert content(first) == content(second)
    for folder in (first, second):
        around = RunDir.open(folder).read_summary().environment
        assert around["threads"] == threads
        assert around["torch"] == torch.__version__
        assert {"device", "instructions", "cores", "numpy", "python", "platform", "data_fingerprint"} <= set(around)


def test_records_say_what_bits_depend_on(two_processes):
    """Another number of threads may change the last bits: whoever holds two runs against each other can see that it is another."""
    folders = [two_processes[0] / f"lenet-300-100-{threads}" for threads in (1, 2)]
    one, two = (RunDir.open(folder).read_summary().environment for folder in folders)
    assert {key for key in one if one[key] != two[key]} == {"threads", "arguments"} | (
        {"started"} if one["started"] != two["started"] else set()
    )
