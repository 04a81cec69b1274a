"""A comparison of 12 runs on an engine, its workers and its command killed on the way, against the same one on this machine.

    python tests/campaigns/engines.py --on local|ray|slurm [--kill] [--out RESULT.md]       a few minutes

Ray is a cluster of two nodes of one core each, Slurm one node with two places, both started here for this alone. With --kill a
worker is ended by SIGKILL in the middle of a run, and later the command itself; then the same command is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import clusters
import torch

import incop
from incop.locks import LOCK
from incop.rundir import RunDir

COMPARISON = [
    *("--methods", "lth-rate,incop-if,oneshot=incop-if", "--no-controls", "--seeds", "4", "--sparsities", "0.6"),
    *("--data", "digits", "--model", "lenet-300-100", "--max-epochs", "8", "--threads", "1", "--device", "cpu"),
    *("--checkpoint-every", "20steps"),
]
RUNS, DENSE = 12, 4
LONGEST = 400  # signs of a line that is kept of what was printed
AFTER = DENSE + 4  # finished runs, after which the command is killed


@dataclass
class Told:
    """What happened on the way."""

    workers: list[str] = field(default_factory=list)
    commands: int = 0
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0


def command(folder, on):
    words = [sys.executable, "-m", "incop", "compare", *COMPARISON, "--out", str(folder), "--on", on]
    return [*words, "--jobs", "2"] if on == "local" else words


def finished(folder):
    return {file.parent for file in folder.glob("runs/*/summary.json") if '"status": "finished"' in file.read_text()}


def kill_a_worker(folder, told, ended):
    """Kill the process that holds the lock of a run, once that has a checkpoint within a pruned level."""
    while not ended.wait(0.02):
        for lock in folder.glob(f"runs/lth-rate-*/{LOCK}"):
            run = lock.parent
            if (run / "level_01").is_dir() and list((run / "checkpoint").glob("*")):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
                    told.workers.append(run.name)
                    return


def carried_out(folder, on, around, kill):
    """Carry the comparison out, with a worker and then the command killed where that is asked, started again until it is done."""
    told, ended, begun = Told(), threading.Event(), time.monotonic()
    killer = threading.Thread(target=kill_a_worker, args=(folder, told, ended))
    if kill:
        killer.start()
    for _ in range(5):
        process = subprocess.Popen(
            command(folder, on), env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if kill and not told.commands:
            while process.poll() is None and (len(finished(folder)) < AFTER or not told.workers):
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
                told.commands += 1
        output, _ = process.communicate()
        told.said.append(output)
        if process.returncode == 0:
            break
    else:
        raise SystemExit(f"the comparison did not end:\n{output}")
    ended.set()
    if kill:
        killer.join()
    told.seconds = time.monotonic() - begun
    return told


def without_times(record):
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if "seconds" not in k}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def content(folder):
    """Return every run's records without times, and the bytes of its weights and masks."""
    found = {}
    for run in sorted(folder.glob("runs/*")):
        for file in (run / "levels.jsonl", run / "checks.jsonl"):
            lines = file.read_text().splitlines()
            found[f"{run.name}/{file.name}"] = [without_times(json.loads(line)) for line in lines]
        found |= {str(file.relative_to(folder)): file.read_bytes() for file in run.rglob("*.safetensors")}
    return found


def tables(output):
    """Return the table of results as it was printed last."""
    return [line.rstrip() for line in output.splitlines() if re.match(r"digits +lenet-300-100 ", line)]


def history(folder):
    """Return how often each run was begun and gone on with, and the host it was done on."""
    environments = [RunDir(run).read_summary().environment for run in sorted(folder.glob("runs/*"))]
    return len(environments), {
        run.name: len(RunDir(run).read_summary().environment.get("resumed", ()))
        for run in sorted(folder.glob("runs/*"))
    }


def engine(on, home):
    """Return a block within which the engine is there: its name for --on, and the environment."""

    @contextlib.contextmanager
    def block():
        if on == "slurm":
            if why := clusters.why_no_slurm():
                raise SystemExit(why)
            with clusters.slurm(home / "slurm") as around:
                yield "slurm", around
        elif on == "ray":
            with clusters.ray_cluster(2) as address:
                yield f"ray:{address}", dict(os.environ)
        else:
            yield "local", dict(os.environ)

    return block()


def version(on):
    if on == "slurm":
        around = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        said = subprocess.run(
            ["slurmctld", "-V"], capture_output=True, text=True, check=True, env=around
        ).stdout.strip()
        import submitit

        return f"{said} (munge, no accounting) · submitit {submitit.__version__}"
    if on == "ray":
        import ray

        return f"Ray {ray.__version__}"
    return f"Python {platform.python_version()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=("local", "ray", "slurm"), required=True)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--out", type=Path)
    said = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="engines-"))
    plain = carried_out(home / "local", "local", dict(os.environ), False)
    load = os.getloadavg()[0]
    with engine(said.on, home) as (name, around):
        told = carried_out(home / "other", name, around, said.kill)
    runs, resumed = history(home / "other")
    ours, theirs = content(home / "other"), content(home / "local")
    again = {name: times for name, times in resumed.items() if times}
    checks = {
        "every run of both is finished": len(finished(home / "other")) == len(finished(home / "local")) == RUNS + DENSE,
        "no run was begun twice, and nothing is left over": runs == RUNS + DENSE,
        # of Slurm the workers outlive the command; elsewhere the two that it had under way are cut off with it
        "only what was killed was gone on with": set(told.workers) <= set(again)
        and sum(again.values()) <= len(told.workers) + (0 if said.on == "slurm" else 2 * told.commands),
        "records, weights and masks are those of --on local, to the bit": ours == theirs,
        "the printed tables are those of --on local": tables(told.said[-1]) == tables(plain.said[-1]) != [],
        "what was to be killed was": not said.kill or (len(told.workers), told.commands) == (1, 1),
    }
    lines = [
        f"# A comparison of {RUNS} runs on {said.on}{', killed on the way' if said.kill else ''}, against the same one on local",
        "",
        f"`python tests/campaigns/engines.py --on {said.on}{' --kill' if said.kill else ''}` · incop {incop.__version__} · torch "
        f"{torch.__version__} · {version(said.on)} · {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}",
        "",
        f"**{sum(checks.values())} of {len(checks)} hold.**",
        "",
        *(f"- {'yes' if holds else 'NO'}: {what}" for what, holds in checks.items()),
        "",
        f"{RUNS} runs and the {DENSE} dense networks that they begin from: {' '.join(COMPARISON)}. Compared are "
        f"{len(theirs)} files. {told.seconds:.0f} s, with the start of "
        f"{'its processes' if said.on == 'local' else 'a process for each run'}; on local {plain.seconds:.0f} s.",
        "",
        f"Killed: {', '.join(told.workers) or 'no worker'}; the command {told.commands} times. Gone on with from a checkpoint: "
        + (", ".join(f"{name} ({times} times)" for name, times in again.items()) or "none")
        + ".",
        "",
        "What the terminal showed, of every start of the command:",
        "",
        *(line for output in told.said for line in ("```", *output.strip().splitlines(), "```", "")),
    ]
    plain_lines = (re.sub(r"\x1b\[\d*m", "", line) for line in lines)  # Ray colours what it prints of its own
    text = "\n".join(line if len(line) <= LONGEST else f"{line[:LONGEST]} …" for line in plain_lines)
    text = text.replace(str(home), "/shared")
    print(text)
    if said.out is not None:
        said.out.write_text(text.rstrip() + "\n")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
