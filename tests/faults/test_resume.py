"""A run that is interrupted and gone on with ends as one that never was: every method, optimizer and way of training."""

import dataclasses
import random
import time

import numpy as np
import pytest
import torch
from folders import content, cut_off, planned, same, steps_of
from torch import nn

import incop
from incop.checkpoint_files import Checkpoints
from incop.errors import InputError
from incop.experiments import runs
from incop.flat_state import optimizer_state, random_states, restore_optimizer, restore_random
from incop.loop import search
from incop.methods import METHODS

KEYS = {
    "dense": {},
    "incop": {"sparsity": 0.7, "ticket_at": (0.4,)},
    "incop-magnitude": {"sparsity": 0.7},
    "lth-early": {"levels": 3},
    **{name: {"levels": 2} for name in ("lth", "sap", "lth-rate", "incop-if", "incop-gf")},
}
WAYS = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "cosine"},
    "adam": {"optimizer": "adam", "clip": 0.5},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "step"},
    "augmentation": {"augment": True, "model": "lenet-5"},
    "batch norm": {"model": "resnet-20", "limit": 90, "max_epochs": 1.0, "levels": 1, "batch_size": 30},
    "bfloat16": {"precision": "bfloat16"},
    "mask settled": {"rule": "mask settled 0.001 for 3", "check_every": "1steps", "max_epochs": 3.0},
    "on the way": {"levels": 4, "amount": "0.3", "sparsity": 0.7, "ticket_at": (0.5,), "rule": "after 1 epochs"},
    "on the way, other training": {
        "levels": 6,
        "amount": "0.3",
        "sparsity": 0.7,
        "ticket_at": (0.4, 0.6),
        "rule": "after 1 epochs",
        "search_batch_size": 30,
        "keep_optimizer": True,
    },
    "early by steps": {"rewind": "early:4steps"},
    "gradient score": {"score": "gradient"},
    "random score": {"score": "random"},
    "saliency, every level in full": {"score": "saliency:1"},
    "whole units": {"selection": "units:layer", "amount": "0.4"},
    "whole units by the flow": {
        "method": "incop",
        "levels": 4,
        "sparsity": 0.7,
        "selection": "units",
        "model": "lenet-5",
    },
}


def interrupted_everywhere(plan, folder, **more):
    """Hold a run against three that are cut off: at its first step, somewhere, and again and again."""
    steps = steps_of(plan, folder / "whole", **more)
    rng = random.Random(steps)
    for number, stops in enumerate([(1, 1, 2), (rng.randrange(2, steps - 2),), (steps // 4,) * 3]):
        assert cut_off(plan, folder / str(number), stops, **more) >= 1
        same(folder / str(number), folder / "whole")


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, tmp_path):
    assert set(KEYS) == set(METHODS)
    interrupted_everywhere(planned(method=method, **KEYS[method]), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training(way, tmp_path):
    interrupted_everywhere(planned(**{"method": "lth-rate", "levels": 2, **WAYS[way]}), tmp_path)


@pytest.mark.parametrize("method", ["incop", "lth-early"])
def test_from_a_shared_dense_level(method, tmp_path):
    runs.execute(planned(method="dense", keep=("early:1",)), tmp_path / "dense")
    interrupted_everywhere(planned(method=method, **KEYS[method]), tmp_path, dense=tmp_path / "dense")


def test_killed_before_the_first_checkpoint_a_run_begins_again_with_its_dense_level(tmp_path):
    runs.execute(planned(method="dense"), tmp_path / "dense")
    plan = planned(method="lth-rate", levels=1)
    runs.execute(plan, tmp_path / "whole", dense=tmp_path / "dense")
    cut_off(plan, tmp_path / "cut", (), dense=tmp_path / "dense")
    run = runs.RunDir(tmp_path / "cut")
    summary = run.read_summary()
    run.write_summary(dataclasses.replace(summary, status="running"))
    told = []
    runs.resume(tmp_path / "cut", runs.Progress(on_notice=told.append))
    assert "goes on from the beginning" in told[-1]
    same(tmp_path / "cut", tmp_path / "whole")
    assert run.levels()[0].seconds == runs.RunDir(tmp_path / "dense").levels()[0].seconds


class Halt(Exception):
    pass


def tickets_of(model, trainer, stop, **more):
    """Search in memory, halted at the so-manieth place where it can be gone on from, and gone on with."""
    taken, seen = [], 0

    def on_state(take):
        nonlocal seen
        seen += 1
        if seen == stop:
            taken.append(take())
            raise Halt

    found = {}
    arguments = {"probe": X, "levels": 2, "rewind": "rate", **more}
    try:
        for ticket in search(model(), trainer(), on_state=on_state, **arguments):
            found[ticket.level] = ticket
    except Halt:
        for ticket in search(model(), trainer(), resume=taken[0], **arguments):
            found[ticket.level] = ticket
    return found, seen


X, Y = torch.randn(60, 6), torch.randint(3, (60,))


def dropping():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.4), nn.BatchNorm1d(12), nn.Linear(12, 3))


def trained():
    return incop.Trainer((X, Y), (X[:20], Y[:20]), epochs=2, batch_size=16, lr=0.01)


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 10, 14, 27])
def test_dropout_and_batch_norm(stop):
    whole, places = tickets_of(dropping, trained, None)
    cut, _ = tickets_of(dropping, trained, stop)
    assert places == 3 * (1 + 8)
    assert whole.keys() == cut.keys()
    for level, ticket in whole.items():
        assert cut[level].masks == ticket.masks
        assert all(torch.equal(cut[level].weights[n], w) for n, w in ticket.weights.items())
        assert [c.loss for c in cut[level].checks] == [c.loss for c in ticket.checks]


class Own:
    """A trainer of the user's, which draws from all generators and offers no state of its own."""

    def __init__(self):
        self.fits = []

    def fit(self, model, masks, watch):
        self.fits.append(watch.level)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05)
        with incop.hold(masks, model, sgd):
            for _ in range(3):
                noise = torch.rand(()) + random.random() + np.random.random()
                sgd.zero_grad()
                nn.functional.cross_entropy(model(X) * noise, Y).backward()
                sgd.step()
                watch.stepped(len(X))
                watch.look()
                watch.rest()

    def evaluate(self, model):
        return 0.5


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_trainer_without_state_is_resumed_at_the_beginning_of_a_level(stop):
    def seeded():
        random.seed(3)
        np.random.seed(4)
        model = dropping()
        torch.manual_seed(5)
        return model

    whole, places = tickets_of(seeded, Own, None)
    assert places == 3
    cut, _ = tickets_of(seeded, Own, stop)
    for level, ticket in whole.items():
        assert all(torch.equal(cut[level].weights[n], w) for n, w in ticket.weights.items()), level


def test_a_state_of_another_search_is_refused():
    states = []
    for _ in search(dropping(), trained(), levels=1, rewind="rate", on_state=lambda take: states.append(take())):
        pass
    other = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(InputError, match="another model"):
        next(search(other, trained(), levels=1, rewind="rate", resume=states[2]))
    incomplete = {key: value for key, value in states[2].items() if key != "reference"}
    with pytest.raises(InputError, match="incomplete"):
        next(search(dropping(), trained(), levels=1, rewind="rate", resume=incomplete))


def test_the_time_of_checkpoints_is_in_the_ledger(tmp_path, monkeypatch):
    plan = planned(method="lth-rate", levels=1, checkpoint_every="2steps")
    write, spent = Checkpoints.write, []

    def slow(self, *args, **kwargs):
        write(self, *args, **kwargs)
        time.sleep(0.05)
        spent.append(0.05)

    monkeypatch.setattr(Checkpoints, "write", slow)
    run = runs.execute(plan, tmp_path / "R")
    ledger = run.read_summary().spent
    assert sum(spent) >= 0.25
    assert ledger.record_seconds >= sum(spent)
    assert ledger.seconds < sum(spent) + 0.2 * len(content(tmp_path / "R"))


def test_random_states_come_back():
    before = random_states()
    first = (random.random(), np.random.random(), torch.rand(2))
    random.gauss(0, 1)
    np.random.randn()
    restore_random(before)
    again = (random.random(), np.random.random(), torch.rand(2))
    assert first[:2] == again[:2]
    assert torch.equal(first[2], again[2])
    with pytest.raises(InputError, match="incomplete or damaged"):
        restore_random({**before, "torch": torch.zeros(3)})


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_to_the_bit(kind):
    def stepped(model, optimizer, times):
        for _ in range(times):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()

    def made():
        torch.manual_seed(0)
        model = nn.Linear(6, 3).to(torch.float32)
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return model, kind(model.parameters(), lr=0.01, fused=True, **more)

    whole, optimizer = made()
    stepped(whole, optimizer, 3)
    state, weights = optimizer_state(optimizer), {n: w.clone() for n, w in whole.state_dict().items()}
    stepped(whole, optimizer, 3)
    model, other = made()
    model.load_state_dict(weights)
    restore_optimizer(other, state)
    stepped(model, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    with pytest.raises(InputError, match="another shape"):
        restore_optimizer(other, {"0/exp_avg": torch.zeros(2)})
    with pytest.raises(InputError, match="trains 2 parameters"):
        restore_optimizer(other, {"7/exp_avg": torch.zeros(2)})
