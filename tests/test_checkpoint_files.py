import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from incop import checkpoint_files
from incop.checkpoint_files import load_masks, load_weights, save_masks, save_weights
from incop.errors import InputError, TrainingError
from incop.masks import Masks
from incop.rewind_points import Snapshot

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(st.lists(shapes, max_size=4), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_masks_there_and_back(tmp_path_factory, wanted, seed):
    rng = np.random.default_rng(seed)
    masks = Masks({f"l{i}.weight": torch.from_numpy(np.array(rng.random(s) < 0.5)) for i, s in enumerate(wanted)})
    folder = tmp_path_factory.mktemp("level")
    save_masks(folder, masks)
    for back in (load_masks(folder), load_masks(folder / "masks.safetensors"), load_masks(str(folder))):
        assert list(back) == list(masks)
        assert all(torch.equal(back[n], masks[n]) and back[n].shape == masks[n].shape for n in masks)


def test_masks_of_another_memory_order(tmp_path):
    masks = Masks(
        {"w": (torch.rand(3, 4, 5, 5) < 0.5).to(memory_format=torch.channels_last), "t": torch.eye(3, 4).T > 0}
    )
    save_masks(tmp_path, masks)
    assert load_masks(tmp_path) == masks


def test_masks_take_a_bit_a_weight(tmp_path):
    masks = Masks({"w": torch.rand(1000, 800) < 0.1})
    save_masks(tmp_path, masks)
    save_file({"w": masks["w"]}, tmp_path / "bool")
    assert (tmp_path / "masks.safetensors").stat().st_size < (tmp_path / "bool").stat().st_size / 7.95


def test_weights_there_and_back_bit_for_bit(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2).half())
    net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        net[0].bias[:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    save_weights(tmp_path, Snapshot.of(net).tensors)
    back = load_weights(tmp_path)
    Snapshot(back).prove(net)
    assert load_weights(tmp_path / "weights.safetensors").keys() == back.keys()


def test_weights_that_share_memory(tmp_path):
    base = torch.arange(6.0)
    save_weights(tmp_path, {"a": base[:3], "b": base, "c": base.expand(2, 6)})
    back = load_weights(tmp_path)
    assert torch.equal(back["a"], base[:3])
    assert back["c"].shape == (2, 6)


@pytest.mark.parametrize("load", [load_masks, load_weights])
def test_no_file(tmp_path, load):
    with pytest.raises(InputError, match=r"there is no file .*: the level was not finished, or the path is wrong"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_masks, load_weights])
@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04" + b"\0" * 64, b"\xff" * 100, b"\x80\x04K\x01."])
def test_no_safetensors(tmp_path, load, content):
    (tmp_path / "masks.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged or no safetensors file"):
        load(tmp_path / "masks.safetensors")


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    save_masks(tmp_path, Masks({}))
    monkeypatch.setattr(checkpoint_files, "safe_open", denied)
    with pytest.raises(InputError, match=r"is damaged or no safetensors file: .*Permission denied"):
        load_masks(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    torch.save({"w": Bomb()}, tmp_path / "weights.safetensors")
    for load in (load_masks, load_weights):
        with pytest.raises(InputError, match="no safetensors file"):
            load(tmp_path / "weights.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_every_cut_of_the_file_is_noticed(tmp_path):
    save_masks(tmp_path, Masks({"w": torch.rand(5, 7) < 0.5}))
    whole = (tmp_path / "masks.safetensors").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(InputError):
            load_masks(tmp_path / "cut")


def test_a_flipped_bit_is_noticed(tmp_path):
    save_masks(tmp_path, Masks({"w": torch.rand(5, 8) < 0.5}))
    whole = bytearray((tmp_path / "masks.safetensors").read_bytes())
    whole[-1] ^= 4
    (tmp_path / "masks.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match=r"'w' keeps \d+ positions and was written with \d+"):
        load_masks(tmp_path)


BYTES = torch.zeros(2, dtype=torch.uint8)


def said(shape, remaining=0):
    return {"w": {"shape": shape, "remaining": remaining}}


@pytest.mark.parametrize(
    ("tensors", "masks"),
    [
        ({"w": BYTES}, said([17])),
        ({"w": BYTES}, said([8])),
        ({"w": BYTES}, said([-1, -16])),
        ({"w": BYTES}, said([2**40, 2**40])),
        ({"w": BYTES}, said([16.0])),
        ({"w": BYTES}, said(16)),
        ({"w": BYTES}, said([16], 1)),
        ({"w": BYTES}, {"w": {"shape": [16]}}),
        ({"w": BYTES}, {"w": {"remaining": 0}}),
        ({"w": BYTES}, {"w": 3}),
        ({"w": BYTES}, {}),
        ({}, said([16])),
        ({"w": BYTES}, ["w"]),
        ({"w": BYTES}, "w"),
        ({"w": BYTES}, None),
        ({"w": torch.zeros(2)}, said([16])),
        ({"w": torch.zeros(2, dtype=torch.bfloat16)}, said([16])),
        ({"w": BYTES.reshape(1, 2)}, said([16])),
    ],
)
def test_foreign_or_damaged_masks(tmp_path, tensors, masks):
    save_file(tensors, tmp_path / "masks.safetensors", metadata={"masks": json.dumps(masks)})
    with pytest.raises(InputError, match=r"holds no masks of incop, or is damaged: "):
        load_masks(tmp_path)


@pytest.mark.parametrize("metadata", [None, {}, {"shapes": "{}"}, {"masks": "{"}, {"masks": ""}])
def test_masks_without_their_shapes(tmp_path, metadata):
    save_file({"w": BYTES}, tmp_path / "masks.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=r"holds no masks of incop, or is damaged: "):
        load_masks(tmp_path)


def test_the_same_masks_are_the_same_bytes(tmp_path):
    """Written many times: an order that is drawn anew each time shows only in some of them."""
    masks = Masks({name: torch.eye(3) > 0 for name in ("b.weight", "a.weight", "c.weight")})
    written = set()
    for _ in range(20):
        save_masks(tmp_path, masks)
        save_weights(tmp_path, {name: m.float() for name, m in masks.items()})
        written.add((tmp_path / "masks.safetensors").read_bytes() + (tmp_path / "weights.safetensors").read_bytes())
    assert len(written) == 1


def test_writing_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"the folder .* cannot be made"):
        save_masks(tmp_path / "file" / "level", Masks({}))
    with pytest.raises(TrainingError, match=r"the folder .* cannot be made"):
        save_weights(tmp_path / "file" / "level", {})
