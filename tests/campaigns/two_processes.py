"""One search of LeNet-5 on Fashion-MNIST by two processes under torchrun, against the same by one, and against itself when killed.

    INCOP_DATA=… python tests/campaigns/two_processes.py [RESULT.md]        some minutes

Three things are held against each other: the flow of one network on one probe, measured by one process and by two; searches
by one process, by one with two threads and by two processes; and a search by two of which one process is killed, then all, then
one again, and which is gone on with to the end, against the one that was not killed, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kill_campaign import content
from torch import nn

import incop
from incop import distributed, flow
from incop.experiments import run_levels
from incop.rundir import RunDir

DATA = ["--data", "fashion-mnist", "--model", "lenet-5", "--limit", "2400", "--device", "cpu"]
SETTLED = [
    "--rule",
    "flow settled 0.05 for 1 or after 3 epochs",
    "--check-every",
    "0.5",
    "--meter",
    "information:absolute",
]
SEARCHES = {
    "incop-if": ["--method", "incop-if", "--levels", "2", "--max-epochs", "3"],
    "incop-gf": ["--method", "incop-gf", "--levels", "2", "--max-epochs", "3"],
    "incop": ["--method", "incop", "--sparsity", "0.8", "--max-epochs", "3"],
    "a plateau": [
        "--method",
        "incop-if",
        "--levels",
        "3",
        "--max-epochs",
        "4",
        "--checkpoint-every",
        "10steps",
        *SETTLED,
    ],
}
KILLED = "a plateau"
METERS = [
    flow.InformationFlow(),
    flow.InformationFlow("absolute"),
    flow.InformationFlow("square", alive_only=True),
    flow.GradientFlow(nn.functional.cross_entropy),
    flow.GradientFlow(nn.functional.cross_entropy, "mean_abs"),
]


def torchrun(*words, size=2):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *words]


def carried_out(command):
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def measured(folder):
    """Measure the last ticket's flow on the run's probe: in two processes, each its share; the first prints it."""
    with distributed.joined() as together:
        run = RunDir(folder)
        parts, masks = run_levels.rebuild(run, max(level.level for level in run.levels()))
        model = parts.model if together.one else nn.parallel.DistributedDataParallel(parts.model)
        found = [incop.measure(model, parts.probe, meter, masks=masks, together=True) for meter in METERS]
        if together.first:
            print(json.dumps([dict(one.values) for one in found]))


def flows(folder, size):
    here = [str(Path(__file__).resolve()), "--measure", str(folder)]
    command = [sys.executable, *here] if size == 1 else torchrun(*here, size=size)
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(next(line for line in shown.splitlines() if line.startswith("[")))


def apart(one, other):
    if one.flow is None:
        return "–"
    return f"{max(abs(one.flow.values[key] - other.flow.values[key]) for key in one.flow.values):.0e}"


def killed(folder, words, level, everybody):
    """Start, wait for a checkpoint of a level, and kill one process, or torchrun and all of them."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = folder / f"level_{level - 1:02d}" / "masks.safetensors" if level else folder / "plan.toml"
    while process.poll() is None and not before.exists():
        time.sleep(0.005)
    known = {file.name for file in folder.glob("checkpoint/0*")}
    while process.poll() is None and not {file.name for file in folder.glob("checkpoint/0*")} - known:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if everybody:
        process.kill()
    for child in children if everybody else children[-1:]:
        os.kill(int(child), signal.SIGKILL)
    process.wait(120)
    return RunDir(folder).read_summary().status


def searches(home):
    """Carry out every search in three ways, and return a row a level and whether the two processes always agreed."""
    for name, more in SEARCHES.items():
        words = ["-m", "incop", "search", *DATA, *more]
        carried_out([sys.executable, *words, "--out", str(home / f"{name} by one")])
        carried_out([sys.executable, *words, "--threads", "2", "--out", str(home / f"{name} by two threads")])
        carried_out(torchrun(*words, "--out", str(home / f"{name} by two")))
    rows, right = [], True
    for name in SEARCHES:
        found = [RunDir(home / f"{name} by {who}").levels() for who in ("one", "two threads", "two")]
        for one, threads, two in zip(*found, strict=True):
            agreed = next((notice for notice in two.notices if "hold the same masks" in notice), "")
            right &= bool(agreed) == (two.level > 0)
            if len(found[0]) > 6 and one.level not in (0, 1, 2, len(found[0]) - 1):
                continue  # of many small cuts the first and the last
            steps = f"{one.steps} · {threads.steps} · {two.steps}"
            accuracy = " · ".join(f"{level.val_accuracy:.3f}" for level in (one, threads, two))
            rows.append((name, one.level, steps, f"{apart(one, threads)} · {apart(one, two)}", accuracy, agreed or "–"))
    return rows, right


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("result", nargs="?", type=Path)
    options.add_argument("--measure", help=argparse.SUPPRESS)  # how it starts itself, by torchrun
    told = options.parse_args()
    if told.measure is not None:
        measured(told.measure)
        sys.stdout.flush()
        os._exit(0)  # a thread of gloo that lets go of a tensor while the interpreter ends aborts the process
    result = told.result
    home, began = Path(tempfile.mkdtemp()), time.monotonic()
    rows, right = searches(home)
    whole, folder = home / f"{KILLED} by two", home / "killed"
    alone, shared = flows(whole, 1), flows(whole, 2)
    probe = [
        (str(meter), max(map(abs, a.values())), max(abs(a[key] - b[key]) for key in a))
        for meter, a, b in zip(METERS, alone, shared, strict=True)
    ]
    right &= all(off <= 1e-6 for *_, off in probe)

    go_on = torchrun("-m", "incop", "resume", str(folder))
    begin = torchrun("-m", "incop", "search", *DATA, *SEARCHES[KILLED], "--out", str(folder))
    first = killed(folder, begin, 0, everybody=False)
    second, third = killed(folder, go_on, 1, everybody=True), killed(folder, go_on, 2, everybody=False)
    carried_out(go_on)
    same = content(folder) == content(whole) and RunDir(folder).read_summary().status == "finished"
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    lines = [
        "# One search by two processes: LeNet-5 on Fashion-MNIST",
        "",
        f"`python tests/campaigns/two_processes.py` · incop {incop.__version__} · torch {torch.__version__} · "
        f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}, load {os.getloadavg()[2]:.1f} · gloo, "
        f"`torchrun --nproc-per-node 2` · {time.monotonic() - began:.0f} s in all",
        "",
        "## The flow of one network on one probe",
        "",
        "The last ticket of a search, on that search's probe of 1,000 images; one process, and two of which each sees its share.",
        "",
        "| meter | largest value | largest difference |",
        "|---|---|---|",
        *(f"| {meter} | {size:.3g} | {off:.1e} |" for meter, size, off in probe),
        "",
        "## Searches by one process, by one with two threads, and by two processes",
        "",
        f"`incop search {' '.join(DATA)}` and:",
        "",
        *(f"- {name}: `{' '.join(more)}`" for name, more in SEARCHES.items()),
        "",
        "All three train with the same samples in the same order; sums are taken in other orders, and rounding grows as networks "
        "train. The column of two threads shows how much of that there is without any second process.",
        "",
        "| search | level | steps: one · two threads · two processes | flow apart from one's: two threads · two processes | "
        "validation accuracy | what the two processes showed |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
        "## Killed",
        "",
        f"The search of {KILLED}, by two, again: in level 0 one process was killed by SIGKILL (its summary then said {first!r}); "
        f"resumed; in level 1 torchrun and all its processes ({second!r}); resumed; in level 2 one ({third!r}); resumed to the "
        "end. Records but for times, weights and masks are those of the search that was not killed, to the bit: "
        f"**{'yes' if same else 'NO'}**.",
    ]
    print("\n".join(lines))
    if result is not None:
        result.write_text("\n".join(lines) + "\n")
    return 0 if right and same else 1


if __name__ == "__main__":
    sys.exit(main())
