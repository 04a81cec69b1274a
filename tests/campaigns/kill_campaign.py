"""Kill runs with SIGKILL, again and again, and hold what is resumed against runs that were never killed, bit for bit.

    python tests/campaigns/kill_campaign.py [KILLS] [RESULT.md]        100 kills take a few minutes

Half of the kills come at a random moment from outside, half from within: at a random call of fsync, replace or unlink, which is
while a checkpoint or a level is being written, or between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import incop
from incop.experiments import runs
from incop.experiments.engines.local import PROCESSES
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.rundir import RunDir

KINDS = [
    {"method": "incop", "sparsity": 0.7, "ticket_at": (0.4,)},
    {"method": "incop-if", "levels": 3},
    {"method": "lth-early", "levels": 3, "optimizer": "sgd"},
    {"method": "sap", "levels": 3, "augment": True},
]
MODELS = ("lenet-300-100", "lenet-5")
CALLS = ("fsync", "replace", "unlink")


def carry_on(plan, folder, deadly):
    """Begin the run or go on with it, in a process that kills itself at the so-manieth call of a function of os."""
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


def in_a_process(plan, folder, after=None, deadly=None):
    process = PROCESSES.Process(target=carry_on, args=(plan, folder, deadly))
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def without_times(record):
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if "seconds" not in k}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def content(folder):
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.safetensors")}
    for file in (folder / "levels.jsonl", folder / "checks.jsonl"):
        found[file.name] = json.dumps([without_times(json.loads(line)) for line in file.read_text().splitlines()])
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kills", nargs="?", type=int, default=100)
    options.add_argument("result", nargs="?", type=Path)
    told = options.parse_args()
    wanted, result = told.kills, told.result
    PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo"])
    home, rng, started = Path(tempfile.mkdtemp()), random.Random(0), time.monotonic()
    rows, where, kills, turn = [], Counter(), 0, 0
    while kills < wanted:
        kind, model = KINDS[turn % len(KINDS)], MODELS[turn // len(KINDS) % len(MODELS)]
        every = ("1steps", "5steps", "0.2s")[turn % 3]
        plan = resolve(
            Plan(model=model, limit=300, max_epochs=2.0, device="cpu", seed=turn, checkpoint_every=every, **kind)
        )
        whole, killed = home / f"whole-{turn}", home / f"killed-{turn}"
        begun = time.monotonic()
        assert in_a_process(plan, whole) == 0
        took, mine = time.monotonic() - begun, 0
        for _ in range(8):
            inside = rng.random() < 0.5
            deadly = (rng.choice(CALLS), rng.randrange(1, 30)) if inside else None
            status = in_a_process(plan, killed, None if inside else rng.uniform(0.05, 0.9) * took, deadly)
            if status != -signal.SIGKILL:
                assert status == 0, status
                break
            mine += 1
            where[f"at a call of {deadly[0]}" if inside else "at a random moment"] += 1
        assert in_a_process(plan, killed) == 0
        same = content(killed) == content(whole) and RunDir(killed).read_summary().status == "finished"
        rows.append((kind["method"], model, every, mine, same))
        print(*rows[-1], flush=True)
        kills, turn = kills + mine, turn + 1
        for folder in (whole, killed) if same else ():
            shutil.rmtree(folder)
    wrong = sum(not same for *_, same in rows)
    lines = [
        "# Runs killed by SIGKILL and resumed, against runs never killed",
        "",
        f"`python tests/campaigns/kill_campaign.py {wanted}` · incop {incop.__version__} · torch {torch.__version__} · "
        f"{platform.machine()}, {torch.get_num_threads()} thread(s) · {time.monotonic() - started:.0f} s",
        "",
        f"**{kills} kills in {len(rows)} runs, {len(rows) - wrong} of them bit-identical at the end, {wrong} not.** Compared are "
        "weights, masks, and every field of levels.jsonl and checks.jsonl but seconds.",
        "",
        "Kills " + ", ".join(f"{what}: {count}" for what, count in sorted(where.items())) + ".",
        "",
        "| method | network | checkpoint every | kills | the same |",
        "|---|---|---|---|---|",
        *(
            f"| {method} | {model} | {every} | {mine} | {'yes' if same else 'NO'} |"
            for method, model, every, mine, same in rows
        ),
    ]
    print("\n".join(lines))
    if result is not None:
        result.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
