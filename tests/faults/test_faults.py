"""What goes wrong around a run: each fault by real means, told in a sentence, and a folder that is gone on with or read."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import planned, same, signalled_at
from safetensors.torch import load_file, save_file

import incop
from incop.checkpoint_files import Checkpoints
from incop.cli import main
from incop.errors import InputError, TrainingError
from incop.experiments import runs
from incop.experiments.engines.local import PROCESSES
from incop.experiments.run_checkpoints import CheckpointInterval
from incop.experiments.signals import Interrupted
from incop.locks import Lock
from incop.rundir import RunDir

PROCESSES.set_forkserver_preload(["incop.experiments.runs", "torch._dynamo"])
PLAN = {"method": "lth-rate", "levels": 2, "checkpoint_every": "2steps"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "R"
    runs.execute(planned(**PLAN), folder)
    return folder


@pytest.fixture
def cut(tmp_path):
    """A run that was interrupted, with two checkpoints."""
    with pytest.raises(Interrupted):
        runs.execute(planned(**PLAN), tmp_path / "R", signalled_at(13))
    return tmp_path / "R"


def told(function, *arguments):
    """Call a function and send what it raised, as its kind and its sentence."""
    *arguments, out = arguments
    try:
        function(*arguments)
        out.send(("nothing", ""))
    except BaseException as error:
        out.send((type(error).__name__, str(error)))


def in_a_process(function, *arguments):
    """Return what a function raised in a process of its own, whose limits are then its own."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=told, args=(function, *arguments, theirs))
    process.start()
    theirs.close()
    answer = ours.recv()
    process.join()
    return answer


def with_small_files(plan, folder, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    runs.execute(plan, folder)


@pytest.mark.parametrize("size", [700, 300_000, 500_000])
def test_a_quota(size, whole, tmp_path):
    kind, sentence = in_a_process(with_small_files, planned(**PLAN), tmp_path / "R", size)
    assert kind == "TrainingError"
    assert "cannot be written: File too large; make room" in sentence
    resumes(tmp_path / "R", whole)


def resumes(folder, whole):
    runs.resume(folder)
    same(folder, whole)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only the superuser may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(small_disk, whole, capsys):
    words = [
        "--method",
        "lth-rate",
        "--levels",
        "2",
        "--limit",
        "200",
        "--max-epochs",
        "2",
        "--checkpoint-every",
        "2steps",
    ]
    assert main(["search", *words, "--device", "cpu", "--out", str(small_disk / "R")]) == 1
    assert "No space left on device; make room" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert main(["resume", str(small_disk / "R")]) == 0
    same(small_disk / "R", whole)


def as_nobody(folder):
    if os.getuid() == 0:
        os.setuid(65534)
    runs.resume(folder)


def test_a_folder_that_cannot_be_written_to(cut, whole):
    reached = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    reached.chmod(0o755)
    folder = Path(shutil.move(cut, reached / "R"))
    try:
        folder.chmod(0o555)
        kind, sentence = in_a_process(as_nobody, folder)
        assert (kind, sentence) == ("InputError", f"the folder {str(folder)!r} cannot be written to: Permission denied")
        folder.chmod(0o755)
        resumes(folder, whole)
    finally:
        shutil.rmtree(reached)


@pytest.mark.parametrize("number", [2, 9])
def test_a_folder_that_is_removed_while_the_run_goes_on(number, tmp_path):
    calls = []

    def on_step(*at):
        calls.append(at)
        if len(calls) == number:
            shutil.rmtree(tmp_path / "R")

    with pytest.raises(TrainingError, match=r"is gone, moved or removed while it was in use|cannot be made"):
        runs.execute(planned(**PLAN), tmp_path / "R", runs.Progress(on_step=on_step))
    assert not (tmp_path / "R").exists()


def numbered(folder):
    return sorted((folder / "checkpoint").glob("0*.safetensors"))


def notices_of(folder, **more):
    said = []
    runs.resume(folder, runs.Progress(on_notice=said.append), **more)
    return said


@pytest.mark.parametrize("wound", ["torn", "flipped", "emptied", "unreadable"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(wound, cut, whole):
    _, newest = numbered(cut)
    content = bytearray(newest.read_bytes())
    if wound == "unreadable":
        newest.unlink()
        newest.mkdir()
    else:
        content[len(content) // 2] ^= 1
        newest.write_bytes({"torn": content[: len(content) // 2], "flipped": content, "emptied": b""}[wound])
    said = notices_of(cut)
    assert newest.name in said[0]
    assert "damaged: its content is not what was written" in said[0] or "cannot be read: " in said[0]
    same(cut, whole)


def test_without_any_whole_checkpoint_a_run_begins_again_and_says_so(cut, whole):
    for file in numbered(cut):
        file.write_bytes(b"no")
    said = notices_of(cut)
    assert len(said) == 3
    assert "goes on from the beginning" in said[-1]
    same(cut, whole)


def test_a_checkpoint_of_a_newer_incop_is_refused_by_name(cut, monkeypatch):
    from incop import checkpoint_files

    monkeypatch.setattr(checkpoint_files, "CHECKPOINT_SCHEMA", 0)
    before = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"was written by a newer incop \(schema 2\): upgrade"):
        runs.resume(cut)
    assert before == {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}


def test_no_pickle_is_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    (tmp_path / "c").mkdir()
    torch.save({"w": Bomb()}, tmp_path / "bomb")
    content = (tmp_path / "bomb").read_bytes()
    from incop.checkpoint_files import _hash

    (tmp_path / "c" / f"000001-{_hash(content)}.safetensors").write_bytes(content)
    found, damaged = Checkpoints(tmp_path / "c").newest()
    assert found is None
    assert "is no checkpoint of incop" in damaged[0]
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_there_and_back(tmp_path):
    state = {
        "level": 3,
        "masks/b": torch.rand(5, 7) < 0.5,
        "masks/a": torch.ones(3, 2).t() > 0,
        "step": torch.tensor(3.0),
        "none": torch.empty(0),
        "half": torch.rand(4).bfloat16(),
        "points": {"early:1": 1.0},
        "points/early:1/w": torch.rand(2, 2),
        "points/early:1/b": torch.rand(2),
        "checks": [{"flow": None}],
    }
    made = Checkpoints(tmp_path / "c")
    for level in (3, 4, 5):
        made.write({**state, "level": level}, about={"at": level})
    found, damaged = Checkpoints(tmp_path / "c").newest()
    assert not damaged
    assert found.about == {"at": 5}
    assert [name for name in found.state if name.startswith("masks")] == ["masks/b", "masks/a"]
    assert {k: v for k, v in found.state.items() if not isinstance(v, torch.Tensor)} == {
        k: v for k, v in {**state, "level": 5}.items() if not isinstance(v, torch.Tensor)
    }
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert found.state[name].dtype == value.dtype
            assert torch.equal(found.state[name], value), name
    assert len(list((tmp_path / "c").iterdir())) == 3  # two, and the rewind point they share
    bits = load_file(sorted((tmp_path / "c").glob("0*"))[0])["masks/b"]
    assert bits.shape == (5,)


@pytest.fixture
def own_data(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), "y_train": np.arange(200) % 5}
    arrays |= {"x_test": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), "y_test": np.arange(40) % 5}
    np.savez(tmp_path / "own.npz", **arrays)
    return tmp_path / "own.npz", arrays


def test_data_that_have_changed_are_refused(own_data, tmp_path):
    file, arrays = own_data
    plan = planned(**PLAN, data=str(file), limit=None)
    with pytest.raises(Interrupted):
        runs.execute(plan, tmp_path / "R", signalled_at(9))
    before = (tmp_path / "R" / "checks.jsonl").read_bytes()
    content = file.read_bytes()
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(file, **arrays)
    with pytest.raises(InputError, match=r"the data of .* have changed since it began .*put the old files back"):
        runs.resume(tmp_path / "R")
    assert (tmp_path / "R" / "checks.jsonl").read_bytes() == before
    file.write_bytes(content)
    assert runs.resume(tmp_path / "R").read_summary().status == "finished"


def test_another_torch_is_refused_and_another_incop_is_told(cut, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.raises(InputError, match=r"was begun with torch .*, now 99\.0: .* or give --inexact"):
        runs.resume(cut)
    monkeypatch.setattr(incop, "__version__", "98.0")
    said = notices_of(cut, inexact=True)
    assert any(sentence.endswith("is 99.0 now") for sentence in said)
    assert any(sentence.startswith("incop was") for sentence in said)


def test_the_clock_may_jump(tmp_path, monkeypatch, whole):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    run = runs.execute(planned(**PLAN), tmp_path / "R")
    spent = run.read_summary().spent
    assert 0 <= spent.seconds < 60
    assert 0 <= spent.record_seconds < 60
    same(tmp_path / "R", whole)


def with_little_memory(more, plan, folder):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
    runs.execute(plan, folder)


def test_too_little_memory(tmp_path):
    plan = planned(method="lth-rate", levels=1, model="resnet-20", batch_size=500, limit=600)
    kind, sentence = "", ""
    for more in (
        2**26,
        2**26 + 2**24,
        2**27,
    ):  # where torch's own threads run out first, the process ends without a word
        with contextlib.suppress(EOFError):
            kind, sentence = in_a_process(partial(with_little_memory, more), plan, tmp_path / "R")
            break
        shutil.rmtree(tmp_path / "R", ignore_errors=True)
    assert kind == "TrainingError"
    assert "out of memory" in sentence
    assert "lower --batch-size (500) or --probe-size (1000 at most)" in sentence
    if (tmp_path / "R").exists():
        assert "out of memory" in RunDir.open(tmp_path / "R").read_summary().error


def holding(folder, ready):
    with Lock(folder):
        ready.send(os.getpid())
        time.sleep(60)


def test_a_second_process_is_told_who_holds_a_folder_and_a_dead_one_holds_nothing(cut, whole, capsys):
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=holding, args=(cut, theirs))
    process.start()
    number = ours.recv()
    before = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    assert main(["resume", str(cut)]) == 2
    sentence = capsys.readouterr().err
    assert f"is in use by process {number} on " in sentence
    assert sentence.count("\n") == 1
    assert before == {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    os.kill(number, signal.SIGKILL)
    process.join()
    assert (cut / ".lock").exists()
    resumes(cut, whole)


def test_one_who_waits_gets_the_folder(tmp_path):
    with Lock(tmp_path):
        started = time.monotonic()
        with pytest.raises(InputError, match="is in use"), Lock(tmp_path, patience=0.2):
            pass
        assert time.monotonic() - started >= 0.2
    with Lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_resume_says_what_there_is_to_do(cut, whole, capsys):
    assert main(["search", "--out", str(cut)]) == 2
    assert f"`incop resume {cut}` goes on with one that was cut off" in capsys.readouterr().err
    assert main(["resume", str(cut), "--progress", "lines"]) == 0
    told = capsys.readouterr()
    assert "goes on from level" in told.err
    assert "run folder" in told.out
    assert main(["resume", str(cut)]) == 0
    assert "is finished: there is nothing to go on with" in capsys.readouterr().err
    assert main(["resume", "nowhere"]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_records_that_were_cut_short_are_refused(cut):
    (cut / "checks.jsonl").write_text("")
    with pytest.raises(InputError, match=r"has 0 bytes and had \d+ when the checkpoint was written"):
        runs.resume(cut)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("60s", CheckpointInterval(60.0)),
        ("0.5 s", CheckpointInterval(0.5)),
        ("500steps", CheckpointInterval(None, 500)),
        (None, CheckpointInterval()),
    ],
)
def test_how_often(text, due):
    assert CheckpointInterval.parse(text) == due


@pytest.mark.parametrize("text", ["", "60", "0s", "0steps", "-1s", "1.5steps", "often"])
def test_how_often_cannot_be_read(text, capsys, tmp_path):
    assert main(["search", "--checkpoint-every", text, "--out", str(tmp_path / "R")]) == 2
    assert "--checkpoint-every" in capsys.readouterr().err
    assert not (tmp_path / "R").exists()


def test_writing_takes_at_most_a_fiftieth_of_the_time_unless_it_is_said():
    assert not CheckpointInterval().now(seconds=59, steps=10**6, took=0.0)
    assert CheckpointInterval().now(seconds=60, steps=1, took=0.0)
    assert not CheckpointInterval().now(seconds=100, steps=1, took=4.0)
    assert CheckpointInterval().now(seconds=200, steps=1, took=4.0)
    assert CheckpointInterval(seconds=60).now(seconds=60, steps=1, took=4.0)
    assert CheckpointInterval(steps=3).now(seconds=0, steps=3, took=4.0)


def test_a_file_that_is_not_safetensors_is_no_checkpoint(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "000001-0.safetensors")
    assert Checkpoints(tmp_path).newest() == (None, ())


def diverging(folder, size):
    """A run that diverges when its files have become as large as they may be; say what was told besides."""
    said = []
    plan = planned(method="lth-rate", levels=2, optimizer="sgd", lr=300.0, momentum=0.0)

    def on_step(*at):
        if at[2] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    try:
        runs.execute(plan, folder, runs.Progress(on_step=on_step, on_notice=said.append))
    except TrainingError as error:
        raise TrainingError(" | ".join([str(error), *said])) from error


def test_a_failure_that_cannot_be_noted_is_told_with_the_reason(tmp_path):
    kind, sentence = in_a_process(diverging, tmp_path / "R", 10)
    assert kind == "TrainingError"
    failure, besides = sentence.split(" | ")
    assert "training diverged" in failure
    assert besides.startswith("besides, how the run ended could not be noted: ")
    assert "summary.json' cannot be written: File too large" in besides
    assert RunDir.open(tmp_path / "R").read_summary().status == "running"


def test_a_folder_with_nothing_but_its_plan_begins_at_the_beginning(cut, whole):
    for entry in cut.iterdir():
        if entry.name != "plan.toml":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert notices_of(cut) == [f"the run {str(cut)!r} goes on from the beginning"]
    same(cut, whole)
