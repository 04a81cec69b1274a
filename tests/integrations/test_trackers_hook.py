"""The hook that tells trackers: what it tells, that nothing is told twice, and that no tracker can harm a run."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import incop
from incop.cli import main
from incop.cli.tracking import tracked
from incop.errors import InputError, MissingExtra
from incop.experiments import runs
from incop.integrations import trackers
from incop.integrations.trackers import feed, rows, tracker
from incop.integrations.trackers.feed import Backend, Ending
from incop.records import Check, Flow, Level, Spent
from incop.rundir import RunDir

sys.path.append(str(Path(__file__).parents[1] / "faults"))
from folders import Interrupted, content, planned, same, signalled_at

QUICK = {"method": "lth-rate", "levels": 2, "check_every": "0.5"}


class Fake:
    """A tracker that keeps what it is told in memory, and may fail in several ways."""

    survives_kill = True
    made = ()

    def __init__(self, feed):
        self.begun, self.rows, self.ended, self.about = [], [], None, feed.run
        Fake.made.append(self)
        identity = self.begin(feed.known)
        for number, row in feed.rows(identity):
            self.row(row, number)
        self.end(feed.ending)

    def begin(self, identity):
        self.begun.append(identity)
        return identity or "abc"

    def row(self, row, number):
        assert number == len(self.rows) or self.begun[-1] is not None
        self.rows.append(row)

    def end(self, ending):
        self.ended = ending


class FailsToBegin(Fake):
    def begin(self, identity):
        raise OSError("the server is gone")


class FailsAtARow(Fake):
    def row(self, row, number):
        if number == 2:
            raise RuntimeError("no space left on device")
        super().row(row, number)


class Exits(Fake):
    def row(self, row, number):
        raise SystemExit(3)


class FailsToEnd(Fake):
    def end(self, ending):
        raise ValueError("cannot close")


class Hangs(Fake):
    free = threading.Event()

    def row(self, row, number):
        Hangs.free.wait(60)


class Slow(Fake):
    def row(self, row, number):
        time.sleep(0.01)
        super().row(row, number)


FAILING = [FailsToBegin, FailsAtARow, Exits, FailsToEnd, Hangs]


@pytest.fixture
def fake(monkeypatch):
    """Put a backend in the place of a tracker's own."""
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(tracker, "load", lambda library: None)

    def use(backend, name="tensorboard"):
        there = Backend(backend, keeps_pages=False, survives_kill=backend.survives_kill)
        monkeypatch.setitem(tracker.BACKENDS, name, there)
        return Fake.made

    return use


def carried_out(plan, folder, **more):
    told = []
    runs.execute(plan, folder, tracked(runs.Progress(on_notice=told.append), "tensorboard", **more))
    return told


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untracked") / "R"
    runs.execute(planned(**QUICK), folder)
    return folder


def test_every_check_and_level_is_told_in_order_with_what_it_holds(tmp_path, fake):
    made = fake(Slow)
    plan = planned(method="incop-if", levels=2, check_every="0.5")
    assert carried_out(plan, tmp_path / "R", group="g") == []
    (backend,) = made
    assert [row.key for row in backend.rows] == keys_of(tmp_path / "R")
    assert (backend.about.name, backend.about.group) == ("R", "g")
    assert backend.about.parameters == RunDir(tmp_path / "R").read_plan()
    assert backend.ended.status == "finished"
    assert {file.name for file in backend.ended.files} == {"plan.toml", "levels.jsonl", "checks.jsonl", "summary.json"}
    for one in backend.rows:
        if one.key[1] is not None:
            assert one.values["sparsity"] == RunDir(tmp_path / "R").levels()[one.key[0]].sparsity
            assert one.texts["verdict"]
    at = [row.step for row in backend.rows]
    assert at == sorted(at)
    assert at[-1] == RunDir(tmp_path / "R").read_summary().spent.steps
    assert next(row for row in reversed(backend.rows) if row.key[1]).values["spent/steps"] == at[-1]


def keys_of(folder):
    """The order in which records were written: a level's checks, then the level."""
    run = RunDir(folder)
    found = []
    for level in run.levels():
        found += [(c.level, c.number) for c in run.checks() if c.level == level.level]
        found.append((level.level, None))
    return found


@pytest.mark.parametrize("backend", FAILING)
def test_a_tracker_that_fails_does_not_change_the_run_and_is_told_once(backend, tmp_path, fake, monkeypatch, untracked):
    monkeypatch.setattr(tracker, "PATIENCE", 0.2)
    fake(backend)
    told = carried_out(planned(**QUICK), tmp_path / "R")
    Hangs.free.set()
    assert len(told) == 1
    assert "'tensorboard' failed and is left alone" in told[0]
    same(tmp_path / "R", untracked)
    Hangs.free.clear()


def test_a_tracker_that_hangs_holds_no_check_up(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(tracker, "PATIENCE", 0.2)
    fake(Hangs)
    hook = trackers.track("tensorboard", tmp_path, on_notice=lambda sentence: None)
    began = time.monotonic()
    for number in range(1, 200):
        hook.check(Check(level=0, number=number, epoch=float(number)))  # returns, though not one is taken
    hook.end(Ending("finished"))
    assert time.monotonic() - began < 30  # a row takes 60 s
    Hangs.free.set()


def test_one_that_fails_leaves_the_others_alone(tmp_path, fake, monkeypatch):
    fake(FailsAtARow)
    fake(Fake, "mlflow")
    told = []
    runs.execute(planned(**QUICK), tmp_path / "R", tracked(runs.Progress(on_notice=told.append), "tensorboard,mlflow"))
    assert len(told) == 1
    broken, whole = sorted(Fake.made, key=lambda one: len(one.rows))
    assert isinstance(broken, FailsAtARow)
    assert [row.key for row in whole.rows] == keys_of(tmp_path / "R")


def test_a_fault_of_the_hook_itself_does_not_stop_the_run(tmp_path, fake, monkeypatch, untracked):
    fake(Fake)
    monkeypatch.setattr(feed, "row_of", lambda record, spent: 1 / 0)
    told = carried_out(planned(**QUICK), tmp_path / "R")
    assert len(told) == 1
    assert "ZeroDivisionError" in told[0]
    same(tmp_path / "R", untracked)


@pytest.mark.parametrize("stops", [(1,), (7,), (3, 3), (20,)])
def test_a_run_that_is_gone_on_with_tells_nothing_twice_and_leaves_nothing_out(stops, tmp_path, fake):
    made = fake(Fake)
    plan = planned(**QUICK)
    for number in (*stops, None):
        progress = tracked(runs.Progress() if number is None else signalled_at(number), "tensorboard")
        try:
            if RunDir(tmp_path / "R").plan_file.exists():
                runs.resume(tmp_path / "R", progress)
            else:
                runs.execute(plan, tmp_path / "R", progress)
        except Interrupted:
            assert made[-1].ended.status == "interrupted"
    assert [row.key for backend in made for row in backend.rows] == keys_of(tmp_path / "R")
    assert [backend.begun for backend in made] == [[None], *([["abc"]] * len(stops))]
    at = [row.step for backend in made for row in backend.rows]
    assert at == sorted(at)


def test_checks_made_again_after_a_checkpoint_are_not_told_again(tmp_path, fake):
    made = fake(Fake)
    plan = planned(**QUICK, checkpoint_every="7steps")
    die = 25

    class Killed(BaseException):
        pass

    def on_step(*at):
        nonlocal die
        die -= 1
        if die == 0:
            raise Killed

    with pytest.raises(Killed):
        runs.execute(plan, tmp_path / "R", tracked(runs.Progress(on_step=on_step), "tensorboard"))
    before = len(RunDir(tmp_path / "R").checks())
    runs.resume(tmp_path / "R", tracked(runs.Progress(), "tensorboard"))
    assert len(made[0].rows) >= before
    assert [row.key for backend in made for row in backend.rows] == keys_of(tmp_path / "R")


class Unsure(Fake):
    """Loses something when it is killed, and does not know what."""

    survives_kill = False


def killed(folder, number):
    """Carry a run out with a tracker, and end it as if it had been killed: nothing is told to the tracker any more."""
    progress = tracked(signalled_at(number), "tensorboard")
    hook = progress.on_begin.__self__
    progress.on_end = lambda run: None
    with pytest.raises(Interrupted):
        runs.execute(planned(**QUICK), folder, progress)
    until = time.monotonic() + 60
    while any(not one._queue.empty() for one in hook._feeds):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_where_nobody_knows_what_a_killed_tracker_has_all_is_told_to_a_new_run(tmp_path, fake):
    made = fake(Unsure)
    killed(tmp_path / "R", 15)
    runs.resume(tmp_path / "R", tracked(runs.Progress(), "tensorboard"))
    assert made[1].begun == [None]
    assert [row.key for row in made[1].rows] == keys_of(tmp_path / "R")


def test_a_tracker_that_was_closed_in_good_order_goes_on_with_its_run(tmp_path, fake):
    made = fake(Unsure)
    with pytest.raises(Interrupted):
        runs.execute(planned(**QUICK), tmp_path / "R", tracked(signalled_at(15), "tensorboard"))
    runs.resume(tmp_path / "R", tracked(runs.Progress(), "tensorboard"))
    assert made[1].begun == ["abc"]
    assert [row.key for backend in made for row in backend.rows] == keys_of(tmp_path / "R")


def test_a_tracker_named_only_on_resume_is_told_the_beginning_too(tmp_path, fake):
    made = fake(Fake)
    with pytest.raises(Interrupted):
        runs.execute(planned(**QUICK), tmp_path / "R", signalled_at(15))
    runs.resume(tmp_path / "R", tracked(runs.Progress(), "tensorboard"))
    assert [row.key for row in made[0].rows] == keys_of(tmp_path / "R")


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"id": 3}\n', '{"id": "../x"}\n', '{"id": "a"}\n{"level": 0}\n', "[" * 9999, '{"id": "a"}\n\xff\n'],
)
def test_a_damaged_list_of_what_was_told_begins_the_tracker_anew(content, tmp_path, fake, untracked):
    made = fake(Fake)
    with pytest.raises(Interrupted):
        runs.execute(planned(**QUICK), tmp_path / "R", tracked(signalled_at(15), "tensorboard"))
    (tmp_path / "R" / "trackers" / "tensorboard.jsonl").write_text(content, encoding="latin-1")
    runs.resume(tmp_path / "R", tracked(runs.Progress(), "tensorboard"))
    assert made[1].begun == [None]
    assert [row.key for row in made[1].rows] == keys_of(tmp_path / "R")


def test_a_strangers_link_is_not_written_through(tmp_path, fake):
    fake(Fake)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(Interrupted):
        runs.execute(planned(**QUICK), tmp_path / "R", signalled_at(15))
    (tmp_path / "R" / "trackers").symlink_to(tmp_path / "elsewhere")
    told = []
    runs.resume(tmp_path / "R", tracked(runs.Progress(on_notice=told.append), "tensorboard"))
    assert any("leads out of the folder" in sentence for sentence in told)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_journal_that_is_a_link_is_replaced_and_not_read(tmp_path, fake):
    made = fake(Fake)
    (tmp_path / "mine").write_text('{"id": "a"}\n')
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tensorboard.jsonl").symlink_to(tmp_path / "mine")
    with trackers.track("tensorboard", tmp_path / "t", resume=True):
        pass
    assert made[0].begun == [None]
    assert (tmp_path / "mine").read_text() == '{"id": "a"}\n'
    assert not (tmp_path / "t" / "tensorboard.jsonl").is_symlink()


def test_threads_end_with_the_run(tmp_path, fake):
    fake(Fake)
    before = set(threading.enumerate())
    carried_out(planned(**QUICK), tmp_path / "R")
    assert set(threading.enumerate()) <= before


def searching():
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.randint(2, (60,))
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    return net, incop.Trainer((x, y), (x, y), epochs=2, batch_size=30)


def test_from_python_in_two_lines(tmp_path, fake):
    made = fake(Fake)
    tickets = []
    with trackers.track("tensorboard", tmp_path / "t", parameters={"lr": 0.1}, group="mine") as hook:
        for ticket in incop.search(*searching(), levels=2, on_check=hook.check):
            hook.level(ticket.record)
            tickets.append(ticket)
    rows = made[0].rows
    assert [row.key for row in rows if row.key[1] is None] == [(0, None), (1, None), (2, None)]
    assert sum(row.key[1] is not None for row in rows) == sum(len(t.checks) for t in tickets)
    assert made[0].about.parameters == {"lr": 0.1}
    assert rows[-1].values["level/sparsity"] == tickets[-1].sparsity
    assert made[0].ended.status == "finished"


def test_from_python_an_error_of_the_search_comes_through_and_the_run_ends_failed(tmp_path, fake):
    made = fake(Fake)
    with pytest.raises(ZeroDivisionError), trackers.track("tensorboard", tmp_path / "t"):
        raise ZeroDivisionError
    assert made[0].ended.status == "failed"


def test_from_python_the_x_axis_goes_on_when_resumed(tmp_path, fake):
    made = fake(Fake)
    spent = Spent(1.0, 10)
    with trackers.track("tensorboard", tmp_path) as hook:
        hook.check(Check(level=0, number=1, epoch=1.0, spent=spent))
    with trackers.track("tensorboard", tmp_path, resume=True) as hook:
        hook.check(Check(level=1, number=1, epoch=1.0, spent=Spent(1.0, 5)))
    assert [row.step for row in made[1].rows] == [15]


def test_from_python_failures_are_logged_where_nobody_listens(tmp_path, fake, caplog):
    fake(FailsToBegin)
    with trackers.track("tensorboard", tmp_path):
        pass
    assert [record.name for record in caplog.records] == ["incop"]


def test_names_of_flows_stay_apart():
    names = {"a->b": 0.1, "a-to-b": 0.2, "x y": 0.3, "x/y": 0.4, "é": 0.5}
    row = rows.row_of(Check(level=0, number=1, epoch=1.0, flow=Flow(names)), {})
    told = {name: value for name, value in row.values.items() if name.startswith("flow/")}
    assert sorted(told.values()) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(name.removeprefix("flow/").isascii() and "/" not in name[5:] for name in told)


def test_the_x_axis_of_a_loop_that_counts_no_steps_is_made_of_epochs():
    spent = {}
    steps = [rows.row_of(Check(level=n, number=1, epoch=1.5, spent=Spent(1.5)), spent).step for n in range(3)]
    assert steps == [1500, 3000, 4500]


def test_what_a_level_spent_before_its_first_check_counts():
    spent = {}
    dense = Level(0, 0.0, 0.0, 9, 2.0, 50, 99, 1.0, 0.0, 0, 0.5, "dense", "none")
    assert rows.row_of(dense, spent).step == 50
    assert rows.row_of(Check(level=1, number=0, epoch=0.0), spent).step == 50


@pytest.mark.parametrize("command", ["search", "compare"])
def test_an_unknown_tracker_is_named_before_anything_is_made(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--track", "tensorbord", "--out", "R"]) == 2
    assert "unknown tracker 'tensorbord': did you mean 'tensorboard'?" in capsys.readouterr().err
    assert main([command, "--track", " , ", "--out", "R"]) == 2
    assert "no tracker is named" in capsys.readouterr().err
    assert not Path("R").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_missing_library_names_its_extra_before_any_training(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["search", "--track", name, "--out", "R"]) == 2
    assert f"pip install 'incop[{name}]'" in capsys.readouterr().err
    assert not Path("R").exists()
    with pytest.raises(MissingExtra):
        trackers.track(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", ["tensorboard, mlflow,tensorboard", ["tensorboard", "mlflow"]])
def test_each_tracker_is_told_once(names, tmp_path, fake):
    made = fake(Fake)
    fake(Fake, "mlflow")
    with trackers.track(names, tmp_path):
        pass
    assert len(made) == 2
    with pytest.raises(InputError, match="unknown tracker"):
        trackers.track("aim", tmp_path)


def test_the_plan_says_nothing_of_trackers(tmp_path, fake):
    fake(Fake)
    carried_out(planned(**QUICK), tmp_path / "R")
    assert "track" not in json.dumps(RunDir(tmp_path / "R").read_plan())
    assert all("track" not in name for name in content(tmp_path / "R"))
