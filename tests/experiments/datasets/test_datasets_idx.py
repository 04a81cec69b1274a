from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from incop.errors import InputError
from incop.experiments import datasets
from incop.experiments.datasets import idx

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


@pytest.fixture
def small(tmp_path, write_idx, rng):
    """A folder with 30 training and 10 test images of 5×4 in three classes, half of the files compressed."""
    arrays = {}
    for part, count in (("train", 30), ("test", 10)):
        arrays[part, "images"] = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        arrays[part, "labels"] = np.arange(count, dtype=np.uint8) % 3
    for key, array in arrays.items():
        write_idx(tmp_path / (NAMES[key] + (".gz" if key[1] == "images" else "")), array)
    return tmp_path, arrays


def plain_idx(path):
    raw = gzip.decompress(path.read_bytes())
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(np.frombuffer(raw, ">i4", raw[3], 4))


def test_folder_is_read_as_it_was_written(small):
    folder, arrays = small
    parts = idx.read_folder(folder)
    for name in ("train", "test"):
        part = getattr(parts, name)
        everything = part.take(torch.arange(len(part)))
        assert everything.dtype == torch.uint8
        assert np.array_equal(everything.squeeze(1).numpy(), arrays[name, "images"])
        assert part.labels.tolist() == arrays[name, "labels"].tolist()


def test_load_of_a_folder_with_and_without_test(small):
    folder, _ = small
    whole = datasets.load(str(folder))
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (27, 3, 10)
    assert (whole.name, whole.classes, whole.size, whole.augment) == (folder.name, 3, (5, 4), "none")
    for path in folder.glob("t10k*"):
        path.unlink()
    carved = datasets.load(str(folder))
    assert (len(carved.train), len(carved.validation), len(carved.test)) == (22, 2, 6)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_files_equal_a_plain_reading(published, name):
    folder = published(f"{name}/train-images-idx3-ubyte.gz") / name
    data = datasets.load(name, data_dir=folder.parent, limit=2000, validation=0.5)
    pixels, labels = (plain_idx(folder / (NAMES["test", what] + ".gz")) for what in ("images", "labels"))
    whole = idx.read_folder(folder)
    rows = torch.arange(len(whole.test))
    assert np.array_equal(whole.test.take(rows).squeeze(1).numpy(), pixels)
    assert np.array_equal(whole.test.labels.numpy(), labels)
    assert np.bincount(data.train.labels, minlength=10).min() > 50  # 1,000 of 60,000, no class left out
    assert len(data.test) == 2000


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_published_data_whole(published, name, mean, std):
    base = published(f"{name}/train-images-idx3-ubyte.gz")
    data = datasets.load(name, data_dir=base)
    assert (len(data.train), len(data.validation), len(data.test)) == (54000, 6000, 10000)
    assert (data.channels, data.size, data.classes, data.augment) == (1, (28, 28), 10, "none")
    assert data.mean[0] == pytest.approx(mean, abs=1e-3)
    assert data.std[0] == pytest.approx(std, abs=1e-3)
    images = data.train.images.numpy() / 255
    assert data.mean[0] == pytest.approx(images.mean(), rel=1e-12)
    assert data.std[0] == pytest.approx(images.std(), rel=1e-9)


def test_data_dir_may_be_the_folder_itself_but_not_another_ones(published):
    base = published("mnist/train-images-idx3-ubyte.gz")
    inside = datasets.load("MNIST", data_dir=base / "mnist", limit=100)
    assert inside.fingerprint == datasets.load("mnist", data_dir=base, limit=100).fingerprint
    with pytest.raises(InputError, match="fashion-mnist is not there"):
        datasets.load("fashion-mnist", data_dir=base / "mnist")


def test_another_data_set_under_the_name_of_mnist_is_refused(published, tmp_path):
    base = published("fashion-mnist/train-images-idx3-ubyte.gz")
    (tmp_path / "mnist").symlink_to(base / "fashion-mnist")
    with pytest.raises(InputError, match=r"6000 training images of class 0 but mnist has 5923"):
        datasets.load("mnist", data_dir=tmp_path)


def fault(folder, message):
    with pytest.raises(InputError, match=message) as caught:
        datasets.load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_too_few_and_too_many_bytes(small, write_idx, suffix):
    folder, arrays = small
    (folder / (NAMES["train", "images"] + ".gz")).unlink()
    path = folder / (NAMES["train", "images"] + suffix)
    images = arrays["train", "images"]
    write_idx(path, images[:-1], shape=images.shape)
    fault(folder, r"announces 30×5×4 = 600 bytes but holds 580")
    write_idx(path, images, extra=b"x")
    fault(folder, r"= 600 bytes but holds more than 600")
    write_idx(path, images, shape=(2**32 - 1, 2**16, 2**16))
    fault(folder, "header is probably damaged")
    write_idx(path, images, shape=(7_000_000, 28, 28))  # 5 GiB announced, 600 bytes there
    fault(folder, "more than 100 times as many" if suffix else "but holds 600")
    write_idx(path, images[:0], shape=(0, 5, 4))
    fault(folder, "not between 1 and")


def test_wrong_magic_number_and_short_header(small, write_idx):
    folder, arrays = small
    path = folder / NAMES["train", "labels"]
    write_idx(path, arrays["train", "labels"], magic=0x0D01)
    fault(folder, "magic number 3329, not 2049")
    write_idx(path, arrays["train", "images"])
    fault(folder, "magic number 2051, not 2049")
    for short in (b"", b"\0\0", b"\0\0\x08\x01\0"):
        path.write_bytes(short)
        fault(folder, "less than its header")


def test_damaged_gzip(small):
    folder, _ = small
    path = folder / (NAMES["train", "images"] + ".gz")
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    fault(folder, "ends in the middle")
    path.write_bytes(sound[:-8] + bytes([sound[-8] ^ 1]) + sound[-7:])
    fault(folder, "not a sound gzip file.*CRC")
    path.write_bytes(gzip.decompress(sound))
    fault(folder, "not a sound gzip file")
    broken = bytearray(sound)
    broken[40:60] = bytes(20)
    path.write_bytes(bytes(broken))
    fault(folder, "train-images")


def test_mismatched_missing_and_doubled_files(small, write_idx):
    folder, arrays = small
    labels = folder / NAMES["train", "labels"]
    write_idx(labels, arrays["train", "labels"][:-1])
    fault(folder, "30 images but 29 labels")
    labels.unlink()
    fault(folder, "has no train labels")
    write_idx(labels, arrays["train", "labels"])
    write_idx(folder / "extra-train-labels-idx1-ubyte", arrays["train", "labels"])
    fault(folder, "several files with train labels")
    (folder / "extra-train-labels-idx1-ubyte").unlink()
    (folder / NAMES["test", "labels"]).unlink()
    fault(folder, "has no test labels")


def test_a_file_both_plain_and_compressed_is_read_once(small, write_idx):
    folder, arrays = small
    write_idx(folder / (NAMES["train", "labels"] + ".gz"), arrays["train", "labels"])
    assert len(datasets.load(str(folder)).train) == 27


def test_incomplete_mnist_is_refused(small, tmp_path):
    folder, _ = small
    with pytest.raises(InputError, match="holds 30 training images but mnist has 60000"):
        datasets.load("mnist", data_dir=folder)
