"""Networks whose state is more than parameters by one name each: what a run remembers of them is all there when it is read back."""

import pytest
import torch

from incop import checkpoints
from incop.cli import main
from incop.experiments.plan import Plan
from incop.experiments.tickets import rebuild
from incop.rundir import RunDir

TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs), nn.Linear(inputs, classes)
        self.b.weight = self.a.weight
        self.register_buffer("place", torch.linspace(0.5, 1.5, inputs), persistent=False)

    def forward(self, x):
        return self.last(self.b(self.a(x.flatten(1) * self.place).relu()).relu())

def make(classes, channels, size):
    return Tied(channels * size[0] * size[1], classes)
"""

QUICK = ["--method", "lth-early", "--max-epochs", "2", "--levels", "2", "--limit", "100", "--progress", "off"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tied_weights_and_buffers_that_no_state_dict_has_are_read_back(folder, capsys):
    (folder / "net.py").write_text(TIED)
    assert main(["search", "--model", "net.py:make", *QUICK, "--out", "R"]) == 0
    assert main(["export", "R", "--to", "folded", "--run-code"]) == 0, capsys.readouterr().err
    parts, masks = rebuild(RunDir.open("R"), 1, Plan(run_code=True))
    stored = checkpoints.load_weights(folder / "R" / "level_01")
    held = {**dict(parts.model.named_parameters()), **dict(parts.model.named_buffers())}
    assert set(held) == set(stored) >= {"a.weight", "place"}
    assert all(torch.equal(held[name], tensor) for name, tensor in stored.items())
    assert parts.model.a.weight is parts.model.b.weight
    assert bool((parts.model.b.weight[~masks["a.weight"]] == 0).all())


def test_weights_of_another_network_are_refused_by_name(folder, capsys):
    (folder / "net.py").write_text(TIED)
    assert main(["search", "--model", "net.py:make", *QUICK, "--out", "R"]) == 0
    (folder / "net.py").write_text(TIED.replace("self.last", "self.final"))
    capsys.readouterr()
    assert main(["export", "R", "--to", "folded", "--run-code"]) == 2
    error = capsys.readouterr().err
    assert "level_02' do not fit this network: they differ at 'final.bias'" in error
    assert error.count("\n") == 1
