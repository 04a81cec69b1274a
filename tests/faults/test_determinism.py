"""The same plan twice, in two processes: the same records and files; what other threads change is what the docs say."""

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


def searched(words, folder, threads, hash_seed):
    """Run the command in a process of its own; Python's hashes differ between the two, as they do from day to day."""
    around = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(3 - threads)}
    command = [sys.executable, "-m", "incop", "search", *words, *ONCE, "--threads", str(threads), "--out", str(folder)]
    process = subprocess.run(command, env=around, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize(
    ("network", "threads"), [("lenet-300-100", 1), ("lenet-300-100", 2), ("lenet-5", 2), ("resnet-20", 1)]
)
def test_the_same_plan_gives_the_same_records_in_every_process(network, threads, tmp_path):
    first = searched(PLANS[network], tmp_path / "one", threads, 1)
    second = searched(PLANS[network], tmp_path / "two", threads, 2)
    assert content(first) == content(second)
    for folder in (first, second):
        around = RunDir.open(folder).read_summary().environment
        assert around["threads"] == threads
        assert around["torch"] == torch.__version__
        assert {"device", "instructions", "cores", "numpy", "python", "platform", "data_fingerprint"} <= set(around)


def test_records_say_what_bits_depend_on(tmp_path):
    """Another number of threads may change the last bits: whoever holds two runs against each other can see that it is another."""
    folders = [searched(["--method", "dense", "--limit", "60"], tmp_path / str(n), n, 1) for n in (1, 2)]
    one, two = (RunDir.open(folder).read_summary().environment for folder in folders)
    assert {key for key in one if one[key] != two[key]} == {"threads", "arguments"} | (
        {"started"} if one["started"] != two["started"] else set()
    )
