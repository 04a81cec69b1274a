"""What the dispatcher makes of an engine's word and of the folders, on an engine that does as it is told."""

import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from incop.errors import IncopError, InputError
from incop.experiments import dispatch
from incop.experiments.dispatch import KEPT, Dispatcher, outlook
from incop.experiments.engines import Ended, Task
from incop.experiments.plan import Plan
from incop.experiments.signals import Interrupted, Signals
from incop.locks import Lock
from incop.records import Run, Spent
from incop.rundir import RunDir


def finish(folder, status="finished"):
    run = RunDir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run.write_plan({"data": "digits"})
    empty = {"val_accuracy": None, "test_accuracy": None, "epochs": 0.0}
    run.write_summary(Run("m", "d", "n", 0, status, empty, (), Spent(), None, {}, "incop search", None))


class Part:
    """A piece that waits for others and remembers what it was told."""

    def __init__(self, home, name, after=()):
        self.name, self.home, self.after, self.told, self.made = name, home, after, [], False

    def ready(self):
        return all(other.told for other in self.after)

    def task(self):
        self.made = True
        if self.name == "impossible":
            raise InputError("it cannot be")
        return Task(Plan(), self.home / self.name, self.home)

    def ended(self, error):
        self.told.append(error)


class Scripted:
    """An engine whose tasks end as written: a word, with "finishes" first where the run is finished in truth."""

    name, threads = "scripted", 1

    def __init__(self, script=None, slots=None, retries=2):
        self.script, self.slots, self.retries = defaultdict(list, script or {}), slots, retries
        self.under_way, self.most, self.submitted, self.cancelled = {}, 0, [], []

    def submit(self, tasks):
        handles = []
        for task in tasks:
            handle = len(self.submitted)
            self.submitted.append(task.folder.name)
            self.under_way[handle] = task.folder
            handles.append(handle)
        self.most = max(self.most, len(self.under_way))
        return handles

    def wait(self, handles, seconds):
        assert set(handles) == set(self.under_way)
        for handle, folder in list(self.under_way.items()):
            steps = self.script[folder.name]
            step = steps.pop(0) if steps else "finishes"
            if step == "goes on":
                continue
            del self.under_way[handle]
            if step == "finishes":
                finish(folder)
                return {handle: Ended("done")}
            return {handle: step if isinstance(step, Ended) else Ended(step, f"it was {step}")}
        return {}

    def cancel(self, handles, *, at_once):
        self.cancelled.append((set(handles), at_once))
        for handle in handles:
            self.script[self.under_way[handle].name] = [Ended("interrupted", "by cancel")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dispatch, "LOOK", 0.01)


def carry_out(pieces, engine, **more):
    notices = []
    with Signals("interrupted") as signals:
        Dispatcher(pieces, engine, notice=notices.append, **more).carry_out(signals)
    return notices


def test_each_once_in_order_and_those_that_wait_after_the_others(tmp_path):
    first = Part(tmp_path, "first")
    last = Part(tmp_path, "last", after=[first])
    second = Part(tmp_path, "second", after=[])
    engine = Scripted()
    assert carry_out([last, first, second], engine) == []
    assert engine.submitted == ["first", "second", "last"]
    assert first.told == second.told == last.told == [None]


@pytest.mark.parametrize("slots", [1, 2, 5, None])
def test_no_more_at_once_than_there_are_slots(slots, tmp_path):
    class Counting(Scripted):
        made = 0

        def wait(self, handles, seconds):
            self.made = max(self.made, sum(piece.made and not piece.told for piece in pieces))
            return super().wait(handles, seconds)

    pieces = [Part(tmp_path, f"p{n}") for n in range(6)]
    engine = Counting({f"p{n}": ["goes on"] * 3 for n in range(6)}, slots=slots)
    carry_out(pieces, engine)
    assert engine.most == engine.made == (slots or 6)  # nor is one made before there is room for it
    assert all(piece.told == [None] for piece in pieces)


def test_what_is_finished_is_kept_and_what_was_killed_before_it_began_is_begun_anew(tmp_path):
    finish(tmp_path / "done")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "half").write_text("half")
    engine = Scripted()
    carry_out([Part(tmp_path, "done"), Part(tmp_path, "torn")], engine)
    assert engine.submitted == ["torn"]
    assert not (tmp_path / "torn" / "half").exists()


def test_a_lost_worker_s_run_is_handed_out_again_and_told(tmp_path):
    part, engine = Part(tmp_path, "p"), Scripted({"p": ["lost", "lost", "finishes"]})
    notices = carry_out([part], engine)
    assert engine.submitted == ["p"] * 3
    assert part.told == [None]
    assert notices == [
        "p: it was lost; it goes on from its checkpoint (try 2 of 3)",
        "p: it was lost; it goes on from its checkpoint (try 3 of 3)",
    ]


def test_but_not_for_ever(tmp_path):
    part, other, engine = Part(tmp_path, "p"), Part(tmp_path, "q"), Scripted({"p": ["lost"] * 9})
    carry_out([part, other], engine)
    assert engine.submitted.count("p") == 3
    assert part.told == ["it was lost, at the last of 3 tries: the same command goes on with it"]
    assert other.told == [None]


def test_on_an_engine_that_does_not_try_again_the_word_is_the_end(tmp_path):
    part = Part(tmp_path, "p")
    assert carry_out([part], Scripted({"p": ["lost"]}, retries=0)) == []
    assert part.told == ["it was lost"]


def test_a_run_that_failed_is_not_tried_again_and_does_not_stop_the_others(tmp_path):
    parts = [Part(tmp_path, name) for name in ("bad", "impossible", "good")]
    engine = Scripted({"bad": ["failed"]})
    carry_out(parts, engine)
    assert [part.told for part in parts] == [["it was failed"], ["it cannot be"], [None]]
    assert engine.submitted == ["bad", "good"]


def test_the_folder_is_believed_and_not_the_word(tmp_path):
    """A worker that was lost when everything was written has done its run."""

    class Late(Scripted):
        def wait(self, handles, seconds):
            for folder in self.under_way.values():
                finish(folder)
            return super().wait(handles, seconds)

    part, engine = Part(tmp_path, "p"), Late({"p": ["lost"]})
    assert carry_out([part], engine) == []
    assert (part.told, engine.submitted) == ([None], ["p"])


def test_a_run_whose_time_was_over_goes_on_as_long_as_it_comes_further(tmp_path):
    words = [Ended("interrupted", f"in level {n}") for n in range(7)]
    part, engine = Part(tmp_path, "p"), Scripted({"p": [*words, "finishes"]})
    carry_out([part], engine)
    assert len(engine.submitted) == 8
    assert part.told == [None]
    part, engine = Part(tmp_path, "q"), Scripted({"q": [words[0]] * 9})
    carry_out([part], engine)
    assert len(engine.submitted) == 4  # the first, and three that came no further
    assert part.told == ["in level 0, at the last of 3 tries: the same command goes on with it"]


def test_a_run_that_another_process_is_at_is_waited_for_and_not_done_twice(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "plan.toml").write_text("")
    lock = Lock(folder)
    lock.__enter__()

    def ends():
        finish(folder)
        lock.__exit__(None, None, None)

    threading.Timer(0.3, ends).start()
    part, other, engine = Part(tmp_path, "p"), Part(tmp_path, "q"), Scripted(slots=1)
    notices = carry_out([part, other], engine)
    assert engine.submitted == ["q"]
    assert part.told == other.told == [None]
    assert notices[0].startswith("p is under way already (process ")


def test_when_the_other_process_dies_the_run_is_ours(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    lock = Lock(folder)
    lock.__enter__()
    threading.Timer(0.3, lambda: lock.__exit__(None, None, None)).start()
    part, engine = Part(tmp_path, "p"), Scripted({"p": ["busy"]})
    carry_out([part], engine)
    assert engine.submitted == ["p", "p"]  # once in vain: somebody was faster
    assert part.told == [None]


def test_being_too_late_is_no_loss(tmp_path):
    part, engine = Part(tmp_path, "p"), Scripted({"p": ["busy"] * 5})
    assert carry_out([part], engine) == []
    assert len(engine.submitted) == 6
    assert part.told == [None]


def test_a_run_that_comes_back_waits_for_a_slot_like_others(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    lock = Lock(folder)
    lock.__enter__()

    class Freeing(Scripted):
        def wait(self, handles, seconds):
            if self.script["q"] and len(self.script["q"]) == 50:
                lock.__exit__(None, None, None)
            time.sleep(0.005)
            return super().wait(handles, seconds)

    part, other, engine = Part(tmp_path, "p"), Part(tmp_path, "q"), Freeing({"q": ["goes on"] * 60}, slots=1)
    carry_out([part, other], engine)
    assert engine.submitted == ["q", "p"]
    assert engine.most == 1
    assert part.told == other.told == [None]


def test_what_is_said_to_be_done_is_waited_for_until_it_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "VISIBLE", 5.0)
    threading.Timer(0.3, lambda: finish(tmp_path / "p")).start()
    part, engine = Part(tmp_path, "p"), Scripted({"p": ["done"]})
    carry_out([part], engine)
    assert (part.told, engine.submitted) == ([None], ["p"])
    monkeypatch.setattr(dispatch, "VISIBLE", 0.05)
    part = Part(tmp_path, "q")
    carry_out([part], Scripted({"q": ["done"]}))
    assert "must lie on storage that all hosts share" in part.told[0]


class Interrupting(Scripted):
    """Sends its own process a SIGTERM while tasks are waited for: at the third time, and once more after so many cancels."""

    def __init__(self, *arguments, again=False, **more):
        super().__init__(*arguments, **more)
        self.waits, self.again = 0, again

    def wait(self, handles, seconds):
        self.waits += 1
        if self.waits == 3 or (self.again and len(self.cancelled) == 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().wait(handles, seconds)

    def cancel(self, handles, *, at_once):
        if self.again:
            self.cancelled.append((set(handles), at_once))  # and nothing happens
        else:
            super().cancel(handles, at_once=at_once)


def test_a_signal_ends_what_is_under_way_and_withdraws_the_rest(tmp_path):
    parts = [Part(tmp_path, f"p{n}") for n in range(4)]
    engine = Interrupting({"p0": ["goes on"] * 1000, "p1": ["goes on"] * 1000}, slots=2)
    with pytest.raises(Interrupted, match="interrupted"):
        carry_out(parts, engine)
    assert engine.cancelled == [({0, 1}, False)]
    assert engine.submitted == ["p0", "p1"]
    assert not any(part.told for part in parts)


def test_a_second_signal_ends_it_at_once(tmp_path):
    engine = Interrupting({"p": ["goes on"] * 1000}, again=True)
    with pytest.raises(Interrupted):
        carry_out([Part(tmp_path, "p")], engine)
    assert engine.cancelled == [({0}, False), ({0}, True)]


def test_an_engine_that_refuses_ends_the_comparison_with_its_sentence(tmp_path):
    class Refusing(Scripted):
        def submit(self, tasks):
            if self.submitted:
                raise IncopError("invalid partition")
            return super().submit(tasks)

    first = Part(tmp_path, "p")
    engine = Refusing({"p": ["goes on"] * 1000}, slots=2)
    with pytest.raises(IncopError, match="invalid partition"):
        carry_out([first, _after_a_while(tmp_path)], engine)
    assert engine.cancelled == [({0}, False)]


def _after_a_while(home):
    part, asked = Part(home, "late"), []
    part.ready = lambda: len(asked) > 5 or asked.append(1) is not None
    return part


def test_those_under_way_are_shown(tmp_path):
    shown = []
    engine = Scripted({"p": ["goes on"] * 200})
    with Signals("interrupted") as signals:
        part = Part(tmp_path, "p")
        Dispatcher([part], engine, look=lambda tasks: shown.append([name for name, _ in tasks])).carry_out(signals)
    assert ["p"] in shown


def test_the_outlook_says_what_would_become_of_each_and_does_nothing(tmp_path):
    finish(tmp_path / "done")
    finish(tmp_path / "cut", status="interrupted")
    (tmp_path / "held").mkdir()
    done = Part(tmp_path, "done")
    pieces = [done, *(Part(tmp_path, name) for name in ("cut", "held", "impossible", "new"))]
    pieces.append(Part(tmp_path, "waits", after=[pieces[-1]]))
    pieces.append(Part(tmp_path, "cut", after=[done]))
    before = sorted(path for path in Path(tmp_path).rglob("*"))
    with Lock(tmp_path / "held"):
        states = [state for _, state in outlook(pieces)]
    assert states[0] == KEPT
    assert states[1] == "goes on"
    assert states[2].startswith("under way: process ")
    assert states[3:] == ["cannot be: it cannot be", "new", "new", "goes on"]
    assert before == sorted(path for path in Path(tmp_path).rglob("*"))
