"""Copies that lie elsewhere are the same copies, and nothing is left of them."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import incop
from incop import InputError, TrainingError
from incop.offload import Offload


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))
    net[3].bias = nn.Parameter(net[3].bias[:].detach())
    return net


@pytest.mark.parametrize("to", [None, "cpu", "disk"])
def test_copies_are_exact_and_out_of_reach(to, tmp_path):
    transposed = torch.arange(6.0).reshape(2, 3).T
    tensors = {
        "tied": transposed,
        "again": transposed,
        "none": torch.zeros(0, 4),
        "number": torch.tensor(3),
        "half": torch.tensor([float("nan"), -0.0]).half(),
    }
    offload = Offload(tmp_path if to == "disk" else to)
    kept = offload.copy(tensors)
    wanted = {name: tensor.clone() for name, tensor in tensors.items()}
    transposed.zero_()
    assert list(kept) == list(tensors)
    for name, tensor in wanted.items():
        assert kept[name].dtype == tensor.dtype
        assert kept[name].shape == tensor.shape
        assert torch.equal(kept[name].nan_to_num(), tensor.nan_to_num())
    kept["tied"].fill_(7.0) if to == "disk" else None  # what is read is the reader's own
    assert torch.equal(kept["tied"], wanted["tied"])


def test_files_go_when_nobody_holds_them(tmp_path):
    offload = Offload(tmp_path)
    first, second = (offload.copy({"w": torch.ones(4)}) for _ in range(2))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    del first
    gc.collect()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    del offload
    gc.collect()
    assert second["w"].tolist() == [1.0] * 4
    del second
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_files_go_with_the_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from incop.offload import Offload; "
        "kept = Offload(Path(sys.argv[1])).copy({'w': torch.ones(2)}); assert list(Path(sys.argv[1]).iterdir())"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rewind", ["init", "early:1", "dense", "rate"])
def test_a_search_does_not_depend_on_where_its_copies_lie(rewind, tmp_path):
    x, y = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3

    def found(offload):
        trainer = incop.Trainer((x, y), (x, y), epochs=2, batch_size=20, seed=3)
        search = incop.search(network(), trainer, levels=2, amount=0.4, rewind=rewind, offload=offload)
        return [({n: t.clone() for n, t in ticket.weights.items()}, ticket.masks) for ticket in search]

    plain = found(None)
    for offload in ("cpu", tmp_path):
        for (weights, masks), (expected, wanted) in zip(found(offload), plain, strict=True):
            assert masks == wanted
            assert list(weights) == list(expected)
            assert all(torch.equal(weights[name], expected[name]) for name in expected)
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_a_place_is_told(tmp_path):
    with pytest.raises(InputError, match="cpu"):
        Offload("disk")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        Offload(tmp_path / "file")
    with pytest.raises(TrainingError, match="cannot be written"):
        Offload(tmp_path / "absent").copy({"w": torch.ones(1)})


def test_a_copy_that_was_removed_is_told(tmp_path):
    kept = Offload(tmp_path).copy({"w": torch.ones(1)})
    next(Path(tmp_path).rglob("*.safetensors")).unlink()
    with pytest.raises(TrainingError, match="cannot be read"):
        kept["w"]
