"""Networks whose state is more than parameters by one name each: what a run remembers of them is all there when it is read back."""

import pytest
import torch

from incop import checkpoint_files
from incop.cli import main
from incop.experiments import runs
from incop.experiments.plan import Plan
from incop.experiments.preparation import resolve
from incop.experiments.run_levels import rebuild
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
    stored = checkpoint_files.load_weights(folder / "R" / "level_01")
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


COUNTING = """
import torch
from torch import nn

class Counting(nn.Module):
    '''Answers by what it has counted while training, which no parameter and no buffer holds.'''

    def __init__(self, kind):
        super().__init__()
        self.kind, self.calls = kind, 0

    def forward(self, x):
        self.calls += self.training
        return x * (1 + 0.01 * self.calls)

    def get_extra_state(self):
        if self.kind == "tensor":
            return torch.tensor([self.calls])
        if self.kind == "json":
            return {"calls": self.calls, "more": [None, "ä", 0.1, float("inf"), True]}
        return {"calls": {self.calls}}

    def set_extra_state(self, state):
        self.calls = int(state[0]) if self.kind == "tensor" else state["calls"]

def make(classes, channels, size, kind="json"):
    inputs = channels * size[0] * size[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), Counting(kind), nn.ReLU(), nn.Linear(16, classes))
"""


def planned(kind, **more):
    said = {
        "method": "lth-early",
        "max_epochs": 2.0,
        "levels": 2,
        "limit": 100,
        "checkpoint_every": "1steps",
        "threads": 1,
    }
    return resolve(
        Plan(model="net.py:make", model_args=f'{{"kind": "{kind}"}}', run_code=True, device="cpu", **said, **more)
    )


def levels_of(run):
    files = sorted(run.glob("level_*/*.safetensors"))
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", ["json", "tensor"])
@pytest.mark.parametrize("rewind", ["early:1", "init", "rate"])
def test_an_extra_state_is_rewound_gone_on_with_and_read_back(kind, rewind, folder, capsys):
    (folder / "net.py").write_text(COUNTING)
    plan = planned(kind, rewind=rewind)
    runs.execute(plan, "whole")

    def stop(level, epoch, step):
        if level == 1 and step > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.execute(plan, "cut", runs.Progress(on_step=stop))
    runs.resume("cut", run_code=True)
    whole = levels_of(folder / "whole")
    assert whole == levels_of(folder / "cut")
    a_level = RunDir.open("whole").levels()[0].steps
    counted = []
    for level in range(3):
        parts, _ = rebuild(RunDir.open("whole"), level, Plan(run_code=True))
        counted.append(parts.model[2].calls)
    assert (
        counted
        == {
            "init": [a_level] * 3,
            "early:1": [a_level] * 3,  # half of it comes with the rewind point
            "rate": [a_level, 2 * a_level, 3 * a_level],
        }[rewind]
    )
    assert main(["export", "whole", "--to", "folded", "--run-code"]) == (0 if kind == "tensor" else 2)
    if kind == "json":
        assert "holds tensors alone" in " ".join(capsys.readouterr().err.split())
    words = ["--weights", "whole/level_01/weights.safetensors", "--model-args", f'{{"kind": "{kind}"}}']
    assert main(["search", "--model", "net.py:make", *words, *QUICK, "--rewind", "init", "--out", "R"]) == 0
    parts, _ = rebuild(RunDir.open("R"), 1, Plan(run_code=True))
    assert parts.model[2].calls > counted[1]


def test_an_extra_state_that_no_file_can_hold_is_refused_before_anything_is_made(folder, capsys):
    (folder / "net.py").write_text(COUNTING)
    words = ["search", "--model", "net.py:make", "--model-args", '{"kind": "odd"}', *QUICK]
    assert main([*words, "--out", "R"]) == 2
    said = capsys.readouterr().err
    assert "get_extra_state of '2._extra_state' (Counting) returns a dict that holds more than JSON does" in said
    assert "let it return a tensor, or numbers, texts, lists and dicts of these" in said
    assert not (folder / "R").exists()
