"""Training that goes wrong in a way that can be known: told, or refused where the user says so, and never unseen."""

import pytest
import torch
from torch import nn

import incop
from incop import pruning
from incop.cli import main
from incop.errors import InputError, TrainingError
from incop.rundir import RunDir

X, Y = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def tickets(model=None, **arguments):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    trainer = incop.Trainer((X, Y), (X, Y), epochs=1, batch_size=20, lr=1e-12)
    return incop.search(model, trainer, **{"rewind": "init", **arguments})


def weak():
    """A network whose middle layer goes first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    return model


def test_a_collapse_is_told_or_refused_before_its_level_is_trained():
    told = list(tickets(weak(), levels=1, amount=0.7))
    assert "layer '2' has no weights left" in told[1].record.notices
    found = tickets(weak(), levels=1, amount=0.7, on_collapse="refuse")
    next(found)
    with pytest.raises(TrainingError, match=r"level 1 would begin with a collapse .*layer '2' has no weights left"):
        next(found)
    assert len(list(tickets(levels=2, on_collapse="refuse"))) == 3
    with pytest.raises(InputError, match="did you mean 'refuse'"):
        tickets(levels=1, on_collapse="refus")


def test_a_sparsity_that_is_not_reached_is_told_at_the_end():
    found = list(tickets(levels=2, amount=0.2, sparsity=0.9, ticket_at=(0.3, 0.6)))
    assert [len(ticket.record.notices) for ticket in found] == [0, 0, 2]
    assert "the sparsity 0.6 was not reached: 2 levels led to 0.2997" in found[-1].record.notices[0]
    assert "the sparsity 0.9 was not reached" in found[-1].record.notices[1]
    assert not list(tickets(levels=9, amount=0.5, sparsity=0.9))[-1].record.notices


def test_a_pattern_that_cuts_nothing_more_is_told():
    found = list(tickets(levels=2, selection=pruning.NofM(2, 4)))
    assert "nothing was cut: the amount asked for no weight" in found[-1].record.notices


def test_a_batch_larger_than_the_split_is_told(tmp_path, capsys):
    words = ["--limit", "50", "--max-epochs", "1", "--levels", "1", "--method", "lth", "--batch-size", "500"]
    assert main(["search", *words, "--out", str(tmp_path / "R")]) == 0
    assert RunDir.open(tmp_path / "R").levels()[0].notices == (
        "the batch size 500 is larger than the training split of 45 images: every step sees them all, one step an epoch",
    )
    assert "the batch size 500 is larger" in " ".join(capsys.readouterr().out.split())


def test_a_refused_collapse_ends_with_status_1_and_says_so(tmp_path, capsys):
    words = ["--limit", "60", "--max-epochs", "1", "--levels", "1", "--method", "lth", "--rewind", "rate"]
    cut = ["--amount", "0.9999", "--selection", "global", "--on-collapse", "refuse", "--model", "lenet-5"]
    assert main(["search", *words, *cut, "--out", str(tmp_path / "R")]) == 1
    assert "collapse" in capsys.readouterr().err
    assert RunDir.open(tmp_path / "R").read_summary().status == "failed"
