"""A search that takes whole units out: through Python, through the command line, and in a loop of one's own."""

import dataclasses
import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import incop
from incop import pruning, stopping
from incop.checkpoint_files import load_masks
from incop.cli import main
from incop.errors import InputError
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.loop import search
from incop.rundir import RunDir
from small import data
from small import normalised as net

X, Y = data()


def trainer():
    return incop.Trainer((X, Y), (X, Y), epochs=2, batch_size=20, lr=5e-3)


def whole(masks, layers):
    """Say that every unit of these neighbouring layers is there or gone: its row, and the column that reads it."""
    for name, after in pairwise(layers):
        rows, reads = masks[f"{name}.weight"].flatten(1), masks[f"{after}.weight"]
        there = rows.any(1)
        by_unit = reads.movedim(1, 0).reshape(len(there), -1)
        if not torch.equal(there, by_unit.any(1)):
            return False
        inputs = rows.any(0)
        if not all(torch.equal(row, inputs) for row in rows[there]):
            return False
    return True


@pytest.mark.parametrize("rewind", ["init", "early:1", "rate"])
@pytest.mark.parametrize("each_layer", [False, True])
def test_every_level_of_a_search_has_whole_units_and_ends_where_it_should(rewind, each_layer):
    how = pruning.Units(X[:8], each_layer)
    tickets = list(
        search(
            net(),
            trainer(),
            levels=30,
            amount=0.3,
            rewind=rewind,
            rule=stopping.AfterEpochs(1),
            selection=how,
            ticket_at=(0.5,),
            sparsity=0.8,
        )
    )
    unit = (8 + 16) / 624  # what the largest unit holds
    assert [t.record.search for t in tickets].count(None) == len(tickets) - 1  # one was reported on the way
    for before, after in pairwise(tickets):
        assert after.masks.within(before.masks)
        assert whole(after.masks, ["0", "3", "5"])
        assert bool(after.masks["5.weight"].any(1).all())
    (reported,) = [t for t in tickets if t.record.search is not None]
    assert 0.5 <= reported.sparsity < 0.5 + unit
    assert 0.8 <= tickets[-1].sparsity < 0.8 + unit
    assert not any("not reached" in notice for notice in tickets[-1].record.notices)


def test_a_planned_search_cuts_whole_units():
    tickets = list(
        search(
            net(),
            trainer(),
            levels=5,
            amount=pruning.EvenDamage(0.8, 5),
            rewind="rate",
            probe=X,
            rule=stopping.AfterEpochs(1),
            selection=pruning.Units(X[:8]),
            sparsity=0.8,
        )
    )
    assert all(whole(t.masks, ["0", "3", "5"]) for t in tickets)
    assert 0.8 <= tickets[-1].sparsity < 0.84
    assert tickets[1].record.probe_samples == 9 * 120  # what the plan cost


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"sparsity": 0.99},
            r"sparsity=0\.99 cannot be reached: the selection 'units' leads to a sparsity of 0\.9808 at most",
        ),
        ({"ticket_at": (0.985,)}, r"ticket_at=0\.985 cannot be reached"),
        ({"selection": pruning.Units(torch.ones(2, 7))}, "cannot be followed on the example of Units"),
        ({"selection": pruning.Units(None)}, r"give one, Units\(example\)"),
        ({"skip": ["0", "3"]}, "no unit of Sequential could go"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(arguments, sentence):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=sentence):
        search(model, trainer(), **{"levels": 3, "selection": pruning.Units(X[:8]), **arguments})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_in_a_loop_of_ones_own_with_the_rule_that_asks_for_the_next_mask():
    model, how = net(), pruning.Units(X[:8])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    masks = incop.prune(model, amount=0.5, selection=how)
    watch = incop.Watch(
        model,
        rule=stopping.MaskSettled(1.0, 2) | stopping.AfterEpochs(5),
        masks=masks,
        next_masks=lambda: incop.prune(model, masks=masks, amount=0.3, selection=how),
    )
    with incop.hold(masks, model, optimizer):
        for _ in range(5):
            for x, y in zip(X.split(20), Y.split(20), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            if watch.look(accuracy=0.5).stop:
                break
    assert 1 < len(watch.checks) < 5
    assert whole(incop.Masks.of(model), ["0", "3", "5"])


@pytest.mark.parametrize(("selection", "method"), [("units", "incop"), ("units:layer", "lth"), ("units", "incop-if")])
def test_from_the_command_line(selection, method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data", "digits", "--model", "lenet-5", "--limit", "200", "--max-epochs", "1", "--sparsity", "0.6"]
    assert main(["search", *words, "--method", method, "--selection", selection, "--out", "R"]) == 0
    assert "the units of 4 layers compete: conv1, conv2, fc1, fc2." in " ".join(capsys.readouterr().out.split())
    run = RunDir.open("R")
    levels = run.levels()
    for record in levels[1:]:
        masks = load_masks(run.level_dir(record.level))
        assert whole(masks, ["conv1", "conv2"])
        assert whole(masks, ["fc1", "fc2", "fc3"])
        # fc1 reads every map of conv2 as 2 × 2 pixels
        assert torch.equal(masks["conv2.weight"].flatten(1).any(1), masks["fc1.weight"].any(0).view(16, 4).any(1))
        assert torch.equal(masks["fc1.weight"].any(0).view(16, 4).any(1), masks["fc1.weight"].any(0).view(16, 4).all(1))
    assert 0.6 <= levels[-1].sparsity < 0.65
    plan = (tmp_path / "R" / "plan.toml").read_text()
    assert f'selection = "{selection}"' in plan
    assert json.loads((tmp_path / "R" / "summary.json").read_text())["status"] == "finished"


def test_a_plan_that_cannot_be_is_refused_before_its_folder_is_made(tmp_path, capsys):
    words = ["--data", "digits", "--limit", "100", "--max-epochs", "1", "--selection", "units", "--sparsity", "0.9999"]
    assert main(["search", *words, "--out", str(tmp_path / "R")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "--sparsity 0.9999 cannot be reached: the selection 'units' leads to a sparsity of" in error
    assert not (tmp_path / "R").exists()


def test_what_units_of_a_network_lead_to():
    """By hand: 64 · 300 + 300 · 100 + 100 · 10 weights, of which one unit a layer leaves 64 + 1 + 10."""
    resolved = resolve(Plan(limit=100, selection="units", threads=1, device="cpu"))
    parts = prepare(resolved)
    masks = incop.Masks.full(parts.model)
    assert masks.total == 64 * 300 + 300 * 100 + 1000
    most = math.floor((1 - 75 / masks.total) * 1e4) / 1e4
    to = lambda value: dataclasses.replace(resolved, plan=dataclasses.replace(resolved.plan, sparsity=value))  # noqa: E731
    prepare(to(most - 1e-4))
    with pytest.raises(InputError, match=r"--sparsity .* cannot be reached"):
        prepare(to(most + 1e-3))
    assert parts.notices[-1].endswith("keep all of theirs: fc3 (the network returns it)")
