import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incop import rundir
from incop.errors import InputError, TrainingError
from incop.records import SCHEMA, Check, Flow, Level, Run, Spent, Verdict
from incop.rundir import RunDir, read_toml, write_atomically

CHECK = Check(1, 2, 2.0, flow=Flow({"a->b": 0.1}), mask_changes=(0.5,), verdict=Verdict(True, "why \u2028 · \x85"))
LEVEL = Level(3, 0.5, 0.4, 10, 4.0, 1, 1, 0.0, 0.0, 0, 0.9, "why", "init", notices=("x",))
RUN = Run("lth", "digits", "lenet-5", 0, "running", {"epochs": 1.0}, (LEVEL,), Spent(1.0), 2.0, {"os": "any"})


@pytest.fixture
def run(tmp_path):
    made = RunDir.create(tmp_path / "deep" / "run")
    made.write_plan({"data": "digits"})
    return made


def test_there_and_back(run):
    run.write_plan({"data": "digits", "levels": 3, "lr": 0.1, "skip": ["a"], "unsaid": None})
    assert run.read_plan() == {"data": "digits", "levels": 3, "lr": 0.1, "skip": ["a"]}
    run.write_summary(RUN)
    assert run.read_summary() == RUN
    for _ in range(3):
        run.append(CHECK)
        run.append(LEVEL)
    assert run.checks() == [CHECK] * 3
    assert run.levels() == [LEVEL] * 3
    assert RunDir.open(run.path).checks() == [CHECK] * 3


def test_names(tmp_path):
    run = RunDir(tmp_path)
    names = [f.name for f in (run.plan_file, run.summary_file, run.levels_file, run.checks_file, run.level_dir(3))]
    assert names == ["plan.toml", "summary.json", "levels.jsonl", "checks.jsonl", "level_03"]


def test_no_records_yet(run):
    assert run.levels() == []
    assert run.checks() == []


@given(st.text(max_size=5))
@settings(max_examples=50)
def test_any_text_is_read_back(tmp_path_factory, text):
    run = RunDir(tmp_path_factory.mktemp("run"))
    run.append(Check(1, 1, 1.0, verdict=Verdict(False, text)))
    run.append(Check(1, 2, 2.0))
    assert [c.number for c in run.checks()] == [1, 2]
    assert run.checks()[0].verdict.reason == text


def test_a_file_name_that_is_no_text_is_read_back(run):
    name = os.fsdecode(b"run\xff")
    run.append(Check(1, 1, 1.0, verdict=Verdict(False, name)))
    assert run.checks()[0].verdict.reason == name


# --- never overwrites


def test_create_takes_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunDir.create(tmp_path / "empty").path.is_dir()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda p: (p.mkdir(), (p / "plan.toml").touch()), "already holds a run"),
        (lambda p: (p.mkdir(), (p / "holiday.jpg").touch()), "already exists and is not empty"),
        (lambda p: p.write_text("precious"), "is a file"),
        (lambda p: p.symlink_to(p.parent / "nowhere"), "is a broken link"),
        (lambda p: (p.parent.joinpath("real").mkdir(), p.parent.joinpath("real/x").touch(), p.symlink_to("real")),
         "already exists and is not empty"),
    ],
)  # fmt: skip
def test_create_never_overwrites(tmp_path, make, what):
    path = tmp_path / "run"
    make(path)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{what}: choose another with --out, or remove it first"):
        RunDir.create(path)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_create_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the run folder .* cannot be "):
        RunDir.create(tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_create_impossible_names(tmp_path, name):
    with pytest.raises(InputError, match=r"the run folder .* cannot be "):
        RunDir.create(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_create_where_it_may_not(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    for path in (tmp_path / "shut", tmp_path / "shut" / "run"):
        with pytest.raises(InputError, match=r"Permission denied|permission denied"):
            RunDir.create(path)


def test_create_where_nothing_may_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir.os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written to: permission denied"):
        RunDir.create(tmp_path / "run")


@pytest.mark.parametrize("name", ["nowhere", "a\0b"])
def test_open_no_run(tmp_path, name):
    with pytest.raises(InputError):
        RunDir.open(tmp_path / name)


def test_open_through_a_link(run, tmp_path):
    run.append(CHECK)
    (tmp_path / "link").symlink_to(run.path)
    assert RunDir.open(tmp_path / "link").checks() == [CHECK]


# --- damaged files


def test_a_damaged_line_is_named(run):
    run.append(CHECK)
    run.append(CHECK)
    lines = run.checks_file.read_text().split("\n")
    run.checks_file.write_text("\n".join([lines[0], lines[1][:-5], lines[0], ""]))
    with pytest.raises(InputError, match=r"checks.jsonl' is damaged at line 2: "):
        run.checks()


@pytest.mark.parametrize("line", ["5", "[]", "null", '{"level": 1}', '{"level": "x", "number": 1, "epoch": 1}', '"x"'])
def test_a_line_that_is_no_record_is_named(run, line):
    run.append(CHECK)
    with run.checks_file.open("a") as out:
        out.write(line + "\n")
    with pytest.raises(InputError, match=r"checks.jsonl', line 2: "):
        run.checks()


@pytest.mark.parametrize("line", ["", "[" * 100_000, "1" * 10_000, "\x00"])
def test_a_line_that_is_no_json_is_named(run, line):
    run.append(CHECK)
    with run.checks_file.open("a") as out:
        out.write(line + "\n")
    with pytest.raises(InputError, match=r"checks.jsonl' is damaged at line 2: "):
        run.checks()


def test_a_file_of_other_bytes(run):
    run.checks_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"checks.jsonl' cannot be read"):
        run.checks()


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_killed_run_leaves_all_finished_records(run, cut):
    """The last line of a run killed while writing it is passed over, and cut off before more is written."""
    for _ in range(3):
        run.append(CHECK)
    run.checks_file.write_bytes(run.checks_file.read_bytes()[:-cut])
    assert run.checks() == [CHECK] * 2
    run.append(CHECK)
    assert run.checks() == [CHECK] * 3


def test_a_killed_run_with_nothing_but_a_long_unfinished_line(run):
    run.checks_file.write_bytes(b'{"level"' + b" " * 10_000)
    assert run.checks() == []
    run.append(CHECK)
    assert run.checks() == [CHECK]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"{}", b'{"schema": "1"}', b'{"schema": true}', b'{"schema": 1}', b"\xff"]
)
def test_a_damaged_summary(run, content):
    run.summary_file.write_bytes(content)
    with pytest.raises(InputError, match=r"summary\.json"):
        run.read_summary()


def test_a_summary_of_a_newer_incop(run):
    run.summary_file.write_text(json.dumps({**RUN.to_json(), "schema": SCHEMA + 1, "new_key": 1}))
    with pytest.raises(InputError, match=rf"written by a newer incop \(schema {SCHEMA + 1}\): upgrade"):
        run.read_summary()


def test_a_summary_that_lies_where_a_folder_does(run):
    run.summary_file.mkdir()
    with pytest.raises(InputError, match=r"summary.json' cannot be read"):
        run.read_summary()


def test_a_damaged_plan(run):
    run.plan_file.write_text("a = 1\nb = = 2\n")
    with pytest.raises(InputError, match=r"plan.toml' is not a TOML file: .*line 2"):
        run.read_plan()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_toml(run.path / "none.toml")


# --- atomic writes


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old(tmp_path, monkeypatch, step):
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rundir.os, step, full)
    with pytest.raises(TrainingError, match=r"summary.json' cannot be written: No space left on device"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_write_that_is_interrupted_leaves_the_old(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(rundir.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real = os.fsync
    calls = []

    def only_files(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "no")
        real(handle)

    monkeypatch.setattr(rundir.os, "fsync", only_files)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(calls) == 2


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_full_disk_leaves_the_old(tmp_path):
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")
    done = python(
        """
        import resource, sys
        from pathlib import Path
        from incop.rundir import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_atomically(Path(sys.argv[1]), b"x" * 100_000)
        """,
        file,
    )
    assert done.returncode == 1
    assert "TrainingError" in done.stderr
    assert "File too large" in done.stderr
    assert file.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["os.fsync", "os.chmod", "os.replace"])
def test_a_kill_in_the_middle_leaves_the_old(tmp_path, moment):
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")
    done = python(
        f"""
        import os, signal, sys
        from pathlib import Path
        from incop.rundir import write_atomically
        {moment} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(Path(sys.argv[1]), b"x" * 100_000)
        """,
        file,
    )
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"


def test_a_record_that_does_not_fit_the_disk(run):
    run.append(CHECK)
    size = run.checks_file.stat().st_size
    done = python(
        """
        import resource, sys
        from incop.records import Check
        from incop.rundir import RunDir
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]) + 20, -1))
        RunDir(sys.argv[1]).append(Check(1, 3, 3.0))
        """,
        run.path,
        size,
    )
    assert "TrainingError" in done.stderr
    assert run.checks() == [CHECK]
    run.append(CHECK)
    assert run.checks() == [CHECK] * 2


def test_writing_where_a_folder_is_missing(tmp_path):
    with pytest.raises(TrainingError, match="cannot be written"):
        write_atomically(tmp_path / "none" / "file", b"")
    with pytest.raises(TrainingError, match="cannot be written"):
        RunDir(tmp_path / "none").append(CHECK)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()


def test_others_may_read_what_was_written(tmp_path):
    write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
