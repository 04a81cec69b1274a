"""Processes that carry out one search together, started as torchrun starts them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from incop import distributed
from incop.experiments import runs
from incop.experiments.engines.local import PROCESSES
from incop.rundir import RunDir

PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo", "torch.distributed"])
PATIENCE = "20"  # seconds that one waits for the others


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_started_by_torchrun(rank, size, port):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, INCOP_RANK_TIMEOUT=PATIENCE)


def carry_on(rank, size, port, plan, folder, said, deadly, threads):
    """Begin the run or go on with it, as one of several; one kills itself at the so-manieth call of a function of os."""
    torch.set_num_threads(threads[rank])
    as_started_by_torchrun(rank, size, port)
    if deadly is not None and deadly[0] == rank:
        _, name, number = deadly
        original, calls = getattr(os, name), [0]

        def dying(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(os, name, dying)

    def say(sentence):  # not a queue, whose lock a process that is killed may hold
        with open(f"{said}/{rank}", "a") as out:
            out.write(json.dumps(sentence) + "\n")

    progress = runs.Progress(on_notice=say)
    try:
        with distributed.joined() as together:
            if together.once(RunDir(folder).plan_file.exists):
                runs.resume(folder, progress, together=together, run_code=bool(plan.plan.run_code))
            else:
                runs.execute(plan, folder, progress, together=together)
    except BaseException as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)


class Company:
    """Several processes and what they said; `ended` waits for them and returns how each ended."""

    def __init__(self, plan, folder, size=2, *, deadly=None, threads=None):
        self.said, port = tempfile.mkdtemp(), free_port()
        threads = threads or [1] * size
        self.processes = [
            PROCESSES.Process(target=carry_on, args=(rank, size, port, plan, folder, self.said, deadly, threads))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def kill(self, *which, number=signal.SIGKILL):
        for rank in which:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)

    def until(self, folder, pattern):
        end = time.monotonic() + 120
        while not list(folder.glob(pattern)) and time.monotonic() < end and self.processes[0].is_alive():
            time.sleep(0.002)

    def ended(self):
        """Return their exit statuses and what they said; within twice the time that one waits for the others."""
        end = time.monotonic() + 2 * float(PATIENCE)
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.1))
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
            process.join()
        assert not hanging, "a process waited for ever"
        files = ((rank, Path(self.said) / str(rank)) for rank in range(len(self.processes)))
        told = [
            (rank, json.loads(line)) for rank, file in files if file.exists() for line in file.read_text().splitlines()
        ]
        shutil.rmtree(self.said)
        return [process.exitcode for process in self.processes], told


def together(plan, folder, size=2, **more):
    """Carry on until the end, and return what was said."""
    statuses, said = Company(plan, folder, size, **more).ended()
    assert statuses == [0] * size, said
    return said
