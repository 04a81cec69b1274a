"""Run folders held against each other: everything but times, to the bit."""

import json
import os
import signal
from pathlib import Path

from incop.experiments import runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.experiments.signals import Interrupted
from incop.rundir import RunDir


def planned(**keys):
    return resolve(Plan(**{"max_epochs": 2.0, "limit": 200, "device": "cpu", **keys}))


def without_times(record):
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if "seconds" not in k}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def content(folder):
    """Records without times, in the order in which they were written, and the bytes of every level's files."""
    run = RunDir.open(folder)
    found = {
        file.name: [without_times(json.loads(line)) for line in file.read_text().splitlines()]
        for file in (run.levels_file, run.checks_file)
    }
    return found | {
        str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.suffix == ".safetensors"
    }


def same(folder, other):
    ours, theirs = content(folder), content(other)
    assert list(ours) == list(theirs) or set(ours) == set(theirs)
    for name, what in theirs.items():
        assert ours[name] == what, name
    assert RunDir.open(folder).read_summary().status == "finished"
    left = {entry.name for entry in Path(folder).rglob("*") if entry.name.startswith(".") or entry.name == "checkpoint"}
    assert not left


def steps_of(plan, folder, **more):
    """Carry a plan out undisturbed and return how often a step or a look was told."""
    told = []
    runs.execute(plan, folder, runs.Progress(on_step=lambda *at: told.append(at)), **more)
    return len(told)


def signalled_at(number, signal_number=signal.SIGTERM):
    """Return listeners that send this process a signal at the so-manieth step."""
    told = []

    def on_step(*at):
        told.append(at)
        if len(told) == number:
            os.kill(os.getpid(), signal_number)

    return runs.Progress(on_step=on_step)


def cut_off(plan, folder, stops, **more):
    """Carry a plan out, interrupted after so many steps each time, and return how often it was."""
    times = 0
    for number in (*stops, None):
        progress = runs.Progress() if number is None else signalled_at(number)
        try:
            if RunDir(folder).plan_file.exists():
                runs.resume(folder, progress)
            else:
                runs.execute(plan, folder, progress, **more)
            break
        except Interrupted as error:
            status, times = error.status, times + 1
        assert status == 128 + signal.SIGTERM
        assert RunDir(folder).read_summary().status == "interrupted"
    return times
