from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from incop.errors import InputError
from incop.experiments import datasets
from incop.experiments.datasets import catalogue


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("INCOP_DATA", raising=False)


def test_digits_are_those_of_scikit_learn(no_data):
    oracle = load_digits()
    pixels, labels = (oracle.images.astype(int) * 255 // 16).astype(np.uint8), oracle.target
    data = datasets.load("digits", seed=3)
    is_test = np.arange(1797) % 5 == 4
    assert np.array_equal(data.test.images.squeeze(1).numpy(), pixels[is_test])
    assert np.array_equal(data.test.labels.numpy(), labels[is_test])
    order = torch.randperm(1438, generator=torch.Generator().manual_seed(3)).numpy()
    rows, kept = np.sort(order[:144]), np.sort(order[144:])
    for split, chosen in ((data.validation, rows), (data.train, kept)):
        assert np.array_equal(split.images.squeeze(1).numpy(), pixels[~is_test][chosen])
        assert np.array_equal(split.labels.numpy(), labels[~is_test][chosen])
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert int(data.train.images.max()) == 255


def test_digits_are_small_and_say_where_they_are_from():
    package = resources.files("incop.experiments.datasets")
    assert len((package / "digits.npz").read_bytes()) < 100_000
    text = (package / "digits.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text
    assert "UCI" in text


@pytest.mark.parametrize(
    ("given", "name"),
    [("Digits", "digits"), ("MNIST", "mnist"), ("FashionMNIST", "fashion-mnist"),
     ("fashion_mnist", "fashion-mnist"), ("cifar-10", "cifar10"), ("CIFAR_100", "cifar100")],
)  # fmt: skip
def test_spellings(given, name):
    assert catalogue.known(given).name == name


def test_unknown_names_and_paths(no_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="unknown data set 'minst': did you mean 'mnist'"):
        datasets.load("minst")
    for wrong in ("", None, 3):
        with pytest.raises(InputError, match="must be a name"):
            datasets.load(wrong)
    for missing in ("nowhere/at/all", "thing.npz", "thing.parquet"):
        with pytest.raises(InputError, match="does not exist"):
            datasets.load(missing)
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(InputError, match="not a data set that can be read"):
        datasets.load("note.txt")
    with pytest.raises(InputError, match="unknown user"):
        datasets.load("~nobody-of-that-name/x")
    with pytest.raises(InputError, match="cannot be read"):
        datasets.load("x/" * 5000)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_where_data_is_looked_for(no_data, tmp_path, monkeypatch, name):
    with pytest.raises(InputError, match=r"none is named: pass --data-dir or set INCOP_DATA"):
        datasets.load(name)
    monkeypatch.setenv("INCOP_DATA", str(tmp_path))
    with pytest.raises(InputError, match=rf"{name} is not there: train-.*/{name}.* or ") as caught:
        datasets.load(name)
    assert "test-*.parquet" in str(caught.value) or "t10k-labels-idx1-ubyte.gz" in str(caught.value)
    with pytest.raises(InputError, match="gone does not exist"):
        datasets.load(name, data_dir=tmp_path / "gone")
    with pytest.raises(InputError, match="data_dir must be a path"):
        datasets.load(name, data_dir=3)


def test_a_lone_file_names_the_missing_one(no_data, tmp_path, write_idx):
    (tmp_path / "mnist").mkdir()
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte", np.zeros((1, 28, 28)))
    with pytest.raises(InputError, match=r"has no train labels: put train-labels-idx1-ubyte.gz"):
        datasets.load("mnist", data_dir=tmp_path)


def test_names_and_rows_agree():
    rows = datasets.describe()
    assert [row.name for row in rows] == datasets.names()
    assert {row.name: (row.train, row.test, row.shape, row.classes) for row in rows} == {
        "digits": (1438, 359, (1, 8, 8), 10),
        "mnist": (60000, 10000, (1, 28, 28), 10),
        "fashion-mnist": (60000, 10000, (1, 28, 28), 10),
        "cifar10": (50000, 10000, (3, 32, 32), 10),
        "cifar100": (50000, 10000, (3, 32, 32), 100),
    }
    assert rows[0].found == "shipped with incop"
    assert rows[3].found.startswith("cifar10/plain_text/")


@pytest.fixture
def fashion(tmp_path, write_idx):
    """Files as Fashion-MNIST has them, of tiny content unless a test changes something."""

    def build(change=lambda train, test: None, size=28):
        train, test = np.arange(60000) % 10, np.arange(10000) % 10
        change(train, test)
        folder = tmp_path / "fashion-mnist"
        folder.mkdir(exist_ok=True)
        for part, labels in (("train", train), ("t10k", test)):
            write_idx(folder / f"{part}-images-idx3-ubyte", np.zeros((len(labels), size, size), np.uint8))
            write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
        return tmp_path

    return build


def test_known_labels_and_shapes_are_checked(fashion):
    def ten(train, test):
        test[7] = 10

    def swapped(train, test):
        train[3] = 4

    with pytest.raises(InputError, match="has the label 10 but those of fashion-mnist are 0 to 9"):
        datasets.load("fashion-mnist", data_dir=fashion(ten))
    with pytest.raises(InputError, match="5999 training images of class 3 but fashion-mnist has 6000"):
        datasets.load("fashion-mnist", data_dir=fashion(swapped))
    with pytest.raises(InputError, match=r"images of 1×27×27 .* fashion-mnist are 1×28×28"):
        datasets.load("fashion-mnist", data_dir=fashion(size=27), limit=20)
    data = datasets.load("fashion-mnist", data_dir=fashion() / "fashion-mnist")
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    for path in (fashion() / "fashion-mnist").glob("t10k*"):
        path.unlink()
    with pytest.raises(InputError, match="no test part of fashion-mnist"):
        datasets.load("fashion-mnist", data_dir=path.parent.parent)
