"""A form is proven and put in place whole, or not at all."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from incop import InputError, Masks, TrainingError, export
from incop.export.folded import FoldedForm
from incop.locks import Lock


@pytest.fixture
def subject():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    masks = Masks({name: torch.rand(w.shape) > 0.5 for name, w in net.named_parameters() if w.dim() == 2})
    return export.Subject.of(net, masks, example=torch.randn(16, 6))


def test_the_folded_form_is_the_state_dict_with_zeros(subject, tmp_path):
    written = export.write(subject, "folded", tmp_path / "out")
    state = load_file(written.files[0])
    assert set(state) == set(subject.model.state_dict())
    for name, mask in subject.masks.items():
        assert torch.equal(state[name] != 0, mask)
    assert written.difference == 0.0
    assert written.size == written.files[0].stat().st_size
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["folded.safetensors"]


def test_the_users_model_is_not_touched(tmp_path):
    net = nn.Linear(3, 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    export.write(
        export.Subject.of(net, Masks({"weight": torch.eye(3) > 0}), example=torch.ones(2, 3)), "folded", tmp_path
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training


class Wrong(FoldedForm):
    """Answers otherwise than it should, or cannot be written."""

    def __init__(self, fault):
        self.fault = fault

    def write(self, subject, folder):
        files = super().write(subject, folder)
        if self.fault == "raises":
            raise InputError("no such operator")
        if self.fault == "disk":
            raise OSError(28, "No space left on device")
        return files

    def outputs(self, file, subject):
        right = super().outputs(file, subject)
        if self.fault == "shape":
            return lambda batch: [answer[:4] for answer in right(batch)]
        return lambda batch: [answer + (1e-6 if self.fault == "off" else 0) for answer in right(batch)]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("raises", InputError), ("disk", TrainingError), ("off", TrainingError), ("shape", TrainingError)],
)
def test_what_fails_leaves_nothing(subject, tmp_path, fault, error):
    with pytest.raises(error):
        export.write(subject, Wrong(fault), tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(subject, tmp_path):
    (tmp_path / "folded.safetensors").write_text("mine")
    with pytest.raises(InputError, match="already there"):
        export.write(subject, "folded", tmp_path)
    assert (tmp_path / "folded.safetensors").read_text() == "mine"
    export.write(subject, "folded", tmp_path, replace=True)
    assert [file.name for file in tmp_path.iterdir()] == ["folded.safetensors"]


def test_an_unknown_form_is_told(subject, tmp_path):
    with pytest.raises(InputError, match="folded"):
        export.write(subject, "foldet", tmp_path)


def test_several_forms_are_written_or_none(subject, tmp_path):
    with pytest.raises(InputError, match="no such operator"):
        export.write_all(subject, ["safetensors", Wrong("raises")], tmp_path / "out")
    with pytest.raises(InputError, match="'folded' is named twice"):
        export.write_all(subject, ["folded", FoldedForm()], tmp_path / "out")
    assert not list(tmp_path.iterdir())
    written = export.write_all(subject, ["folded", "safetensors"], tmp_path / "out")
    assert [one.form for one in written] == ["folded", "safetensors"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"folded.safetensors", "model.safetensors"}


def test_two_forms_whose_files_have_one_name_are_refused(subject, tmp_path):
    class Other(FoldedForm):
        name = "other"

    with pytest.raises(InputError, match=r"two of the forms are files named 'folded\.safetensors'"):
        export.write_all(subject, ["folded", Other()], tmp_path / "out")
    assert not list(tmp_path.iterdir())


class Versioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.version = 3

    def get_extra_state(self):
        return {"version": self.version}

    def set_extra_state(self, state):
        self.version = state["version"]

    def forward(self, x):
        return self.a(x)


@pytest.mark.parametrize("word", ["folded", "safetensors", "sparse", "compacted"])
def test_an_entry_that_is_no_tensor_is_refused_in_one_sentence(word, tmp_path):
    net = Versioned()
    net.a.weight.data[:, 2:] = 0
    with pytest.raises(InputError, match="'_extra_state', a dict, and a file of this form holds tensors alone"):
        export.write(export.Subject.of(net, example=torch.randn(8, 4)), word, tmp_path / "out")
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys, torch
from incop import export
from incop.export.folded import FoldedForm

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

FoldedForm.outputs = killed
export.write(export.Subject.of(torch.nn.Linear(2, 2), example=torch.ones(4, 2)), "folded", sys.argv[1])
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_is_not(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = [file.name for file in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".export.")
    (tmp_path / ".export.new").mkdir()  # of a process that has not locked it yet
    (tmp_path / ".export.mine").write_text("no folder of ours")
    subject = export.Subject.of(nn.Linear(2, 2), example=torch.ones(4, 2))
    (tmp_path / ".export.used").mkdir()
    with Lock(tmp_path / ".export.used"):
        export.write(subject, "folded", tmp_path)
    there = {file.name for file in tmp_path.iterdir()}
    assert there == {".export.mine", ".export.new", ".export.used", "folded.safetensors"}
    os.utime(tmp_path / ".export.new", (0, 0))
    export.write(subject, "folded", tmp_path, replace=True)
    assert not (tmp_path / ".export.new").exists()


def test_what_is_there_once_more_is_not_counted(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    written = export.write(export.Subject.of(net, example=torch.randn(8, 4)), "compacted", tmp_path)
    assert [file.name for file in written.again] == ["compacted.pt2"]
    assert set(written.again) < set(written.files)
    assert written.size == (tmp_path / "compacted.safetensors").stat().st_size
