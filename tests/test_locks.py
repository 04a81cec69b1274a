"""Who may write to a folder: between processes of one machine, and between machines whose system locks do not meet."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from incop import locks
from incop.errors import InputError
from incop.locks import LOCK, Lock, LockLost, holder

OTHER = {"pid": 7, "host": "node7", "machine": "another", "since": "2026-01-01T00:00:00Z"}


def left_by_another_host(folder, age):
    file = folder / LOCK
    file.write_text(json.dumps(OTHER))
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_a_holder_on_another_host_that_gave_a_sign_of_life_is_believed(tmp_path):
    left_by_another_host(tmp_path, locks.STALE - 10)  # nobody holds the system's lock on it here
    assert holder(tmp_path) == "process 7 on node7 since 2026-01-01T00:00:00Z"
    with pytest.raises(InputError, match="is in use by process 7 on node7"), Lock(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_text()) == OTHER


def test_a_holder_on_another_host_that_gave_none_for_a_minute_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SETTLE", 0.01)
    left_by_another_host(tmp_path, locks.STALE + 10)
    assert holder(tmp_path) is None
    with Lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_whose_clock_is_wrong_does_not_take_a_living_one_for_dead(hours, tmp_path, monkeypatch):
    left_by_another_host(tmp_path, 0)
    right = time.time
    monkeypatch.setattr(locks.time, "time", lambda: right() + 3600 * hours)
    assert holder(tmp_path) is not None


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with Lock(tmp_path) as lock:
        os.utime(lock.file, (0, 0))
        end = time.monotonic() + 20
        while lock.file.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert lock.file.stat().st_mtime > time.time() - 30
        lock.check()


def test_one_whose_folder_was_taken_over_is_told_and_leaves_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with Lock(tmp_path) as lock:
        (tmp_path / "new").write_text(json.dumps(OTHER))
        os.replace(tmp_path / "new", lock.file)
        end = time.monotonic() + 20
        while not lock.lost and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(LockLost, match="taken over by process 7 on node7"):
            lock.check()
    assert json.loads((tmp_path / LOCK).read_text()) == OTHER


CONTENDER = """
    import sys, time
    from pathlib import Path
    from incop import locks

    folder, meeting, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    locks.fcntl = None  # a file system that carries no locks between hosts
    locks._machine = lambda: name
    locks.SETTLE = 1.0
    placed = locks._placed

    def all_at_once(*files, over):
        (meeting / f"decided-{name}").touch()
        while len(list(meeting.glob("decided-*"))) < 4:  # each has found the folder free before any has taken it
            time.sleep(0.01)
        return placed(*files, over=over)

    locks._placed = all_at_once
    try:
        with locks.Lock(folder):
            print("held")
            (meeting / f"ended-{name}").touch()
            while len(list(meeting.glob("ended-*"))) < 4:
                time.sleep(0.01)
    except ValueError as error:
        print("refused", error)
        (meeting / f"ended-{name}").touch()
"""


@pytest.mark.parametrize("age", [None, 100])
def test_of_many_hosts_one_gets_the_folder_without_the_systems_locks(age, tmp_path):
    """A folder that nobody has held, and one that a host left that died."""
    folder, meeting = tmp_path / "folder", tmp_path / "meeting"
    folder.mkdir()
    meeting.mkdir()
    if age is not None:
        left_by_another_host(folder, age)
    words = [sys.executable, "-c", textwrap.dedent(CONTENDER), str(folder), str(meeting)]
    started = [
        subprocess.Popen([*words, f"host{n}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for n in range(4)
    ]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert sorted(line.split()[0] for line in said) == ["held", "refused", "refused", "refused"], said
    assert [entry.name for entry in folder.iterdir()] == []


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*paths, **more):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with Lock(tmp_path):
        assert holder(tmp_path)
        with pytest.raises(InputError, match="in use"), Lock(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_asking_who_holds_a_folder_changes_nothing(tmp_path):
    assert holder(tmp_path) is None
    assert holder(tmp_path / "nowhere") is None
    assert not list(tmp_path.iterdir())
    with Lock(tmp_path):
        before = (tmp_path / LOCK).read_bytes()
        assert f"process {os.getpid()} on " in holder(tmp_path)
        assert (tmp_path / LOCK).read_bytes() == before
