"""Data of the libraries datasets and torchvision: from local files, the same images as incop's own readers take, or told why."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from incop.cli import main
from incop.errors import InputError
from incop.experiments import datasets
from incop.rundir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries' own imports warn of is not ours
DATA = Path(os.environ.get("INCOP_DATA", "nowhere"))


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    """Let the library keep its copies in a folder that goes away."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def png(number, size=(8, 8)):
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue(), torch.from_numpy(pixels).permute(2, 0, 1)


def folder(path, *, image="image", label="label", rows=40, test=20, more=None):
    """Write a folder as the hub has it: parquet files with pictures and classes."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    path.mkdir(parents=True, exist_ok=True)
    for split, count, start in (("train", rows, 0), ("test", test, 1000)):
        if count:
            columns = {"note": ["x"] * count, image: [{"bytes": png(start + k)[0], "path": None} for k in range(count)]}
            columns[label] = [k % 4 for k in range(count)]
            kinds = {"note": Value("string"), image: Picture(), label: ClassLabel(num_classes=4)}
            for name in more or ():
                columns[name], kinds[name] = [k % 2 for k in range(count)], Value("int64")
            made = Dataset.from_dict(columns, features=Features(kinds))
            made.to_parquet(path / f"{split}-00000-of-00001.parquet")
    return path


def test_a_local_folder_gives_its_pictures_bit_for_bit(tmp_path):
    data = datasets.load(f"hf:{folder(tmp_path / 'mine')}", validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (30, 10, 20, 4)
    assert torch.equal(data.test.images, torch.stack([png(1000 + k)[1] for k in range(20)]))
    assert data.test.labels.tolist() == [k % 4 for k in range(20)]
    own = datasets.load(str(tmp_path / "mine"), validation=0.25)  # incop's reader of parquet
    assert data.fingerprint == own.fingerprint


def test_columns_are_named_where_they_are_not_found(tmp_path):
    name = f"hf:{folder(tmp_path / 'mine', image='front', label='kind', more=['other'])}"
    with pytest.raises(InputError, match=r"several columns of whole numbers for labels .*kind, other.*label_column"):
        datasets.load(name)
    data = datasets.load(name, arguments={"label_column": "kind", "image_column": "front"})
    assert data.classes == 4
    assert datasets.load(name, arguments={"label_column": "other"}).classes == 2
    with pytest.raises(InputError, match=r"no column 'frontt' of pictures: did you mean 'front'"):
        datasets.load(name, arguments={"label_column": "kind", "image_column": "frontt"})


def test_without_a_test_part_every_fifth_is_test_and_a_split_can_be_named(tmp_path):
    data = datasets.load(f"hf:{folder(tmp_path / 'mine', test=0)}")
    assert len(data.test) == 8
    with pytest.raises(InputError, match=r"unknown split of hf:.*'tests': .*train"):
        datasets.load(f"hf:{tmp_path / 'mine'}", arguments={"test_split": "tests"})


def test_a_folder_of_save_to_disk(tmp_path):
    import datasets as library

    loaded = library.load_dataset(str(folder(tmp_path / "mine")))
    loaded.save_to_disk(str(tmp_path / "saved"))
    assert datasets.load(f"hf:{tmp_path / 'saved'}").fingerprint == datasets.load(f"hf:{tmp_path / 'mine'}").fingerprint
    loaded["train"].save_to_disk(str(tmp_path / "one"))
    with pytest.raises(InputError, match=r"cannot be had|is one Dataset"):
        datasets.load(f"hf:{tmp_path / 'one'}")


def test_a_configuration_is_named_behind_the_folder(tmp_path):
    folder(tmp_path / "two" / "small", rows=20, test=10)
    folder(tmp_path / "two" / "large", rows=60, test=10)
    text = "---\nconfigs:\n" + "".join(
        f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}/train*\n  - split: test\n    path: {n}/test*\n"
        for n in ("small", "large")
    )
    (tmp_path / "two" / "README.md").write_text(f"{text}---\n")
    data = datasets.load(f"hf:{tmp_path / 'two'}:large", validation=0.1)
    assert len(data.train) + len(data.validation) == 60
    with pytest.raises(InputError, match=r"cannot be had .*small"):
        datasets.load(f"hf:{tmp_path / 'two'}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"streaming": True}, "cannot be streamed: .* needs all of the data at hand"),
        ({"imagecolumn": "x"}, "unknown argument of hf:.*did you mean 'image_column'"),
    ],
)
def test_arguments_that_are_none(arguments, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        datasets.load(f"hf:{folder(tmp_path / 'mine')}", arguments=arguments)


def test_a_table_without_pictures_is_told(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("height,label\n1.5,0\n2.5,1\n")
    with pytest.raises(InputError, match=r"has no column of pictures: its columns are height, label"):
        datasets.load(f"hf:{tmp_path / 'table'}")


def test_what_is_not_there_is_told():
    with pytest.raises(InputError, match=r"does not exist"):
        datasets.load("hf:./nowhere")
    with pytest.raises(InputError, match=r"hf:nobody/nothing cannot be had .*connect to the network once"):
        datasets.load("hf:nobody/nothing")
    with pytest.raises(InputError, match=r"names no data"):
        datasets.check_name("hf:")


def test_a_script_in_a_folder_is_not_run(tmp_path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    with pytest.raises(InputError, match=r"cannot be had"):
        datasets.load(f"hf:{tmp_path / 'scripted'}")
    assert not (tmp_path / "ran").exists()


def test_a_row_without_a_picture_is_told(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture

    (tmp_path / "torn").mkdir()
    rows = [{"bytes": png(k)[0], "path": None} for k in range(10)]
    rows[3] = None
    made = Dataset.from_dict(
        {"image": rows, "label": [0, 1] * 5}, features=Features({"image": Picture(), "label": Value("int64")})
    )
    made.to_parquet(tmp_path / "torn" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"row 3 has no picture"):
        datasets.load(f"hf:{tmp_path / 'torn'}")


@pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason="INCOP_DATA names no folder with cifar10")
def test_cifar10_from_its_hub_layout_is_the_published_one():
    name = f"hf:{DATA / 'cifar10'}"
    data = datasets.load(name, limit=200, arguments={"label_column": "label", "image_column": "img"})
    assert data.fingerprint == datasets.load("cifar10", data_dir=DATA, limit=200).fingerprint


# --- torchvision -------------------------------------------------------------------------------------------------------------


def test_fake_data_has_another_test_part():
    data = datasets.load("torchvision:FakeData", arguments={"size": 60, "image_size": [3, 8, 8], "num_classes": 3})
    assert (data.channels, data.size, data.classes, len(data.test)) == (3, (8, 8), 3, 60)
    assert not torch.equal(data.test.images[:5], data.train.images[:5])
    again = datasets.load("torchvision:FakeData", arguments={"size": 60, "image_size": [3, 8, 8], "num_classes": 3})
    assert again.fingerprint == data.fingerprint


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="INCOP_DATA names no folder with mnist")
def test_mnist_from_torchvisions_own_files_is_the_published_one(tmp_path):
    import gzip

    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (DATA / "mnist").glob("*ubyte.gz"):
        with gzip.open(file) as packed, (raw / file.name.removesuffix(".gz")).open("wb") as out:
            shutil.copyfileobj(packed, out)
    data = datasets.load("torchvision:MNIST", data_dir=tmp_path / "root", limit=300)
    assert data.fingerprint == datasets.load("mnist", data_dir=DATA, limit=300).fingerprint


def test_the_order_of_pixels_of_a_colour_set(tmp_path, monkeypatch):
    """CIFAR's layout (N, H, W, C) and SVHN's (N, C, H, W) come out alike, against pictures put in by hand."""
    import torchvision

    pixels = np.arange(20 * 4 * 4 * 3, dtype=np.uint8).reshape(20, 4, 4, 3)

    class Cifar:
        def __init__(self, root, train, download):
            assert download is False
            self.data, self.targets = pixels, [k % 2 for k in range(20)]

    class Svhn:
        def __init__(self, root, split, download):
            assert download is False
            self.data, self.labels = pixels.transpose(0, 3, 1, 2), np.array([k % 2 for k in range(20)])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    monkeypatch.setattr(torchvision.datasets, "SVHN", Svhn)
    cifar, svhn = (datasets.load(f"torchvision:{name}", data_dir=tmp_path) for name in ("CIFAR10", "SVHN"))
    assert torch.equal(cifar.test.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert cifar.fingerprint == svhn.fingerprint
    assert (cifar.augment, svhn.augment) == ("crop-flip", "none")


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("torchvision:KMNIST", {}, "cannot be read from .* nothing is fetched"),
        ("torchvision:KMNST", {}, "unknown data set of torchvision 'KMNST': did you mean 'KMNIST'"),
        ("torchvision:ImageFolder", {}, "unknown data set of torchvision"),
        ("torchvision:KMNIST", {"arguments": {"download": True}}, "unknown argument of torchvision:KMNIST"),
        ("torchvision:FakeData", {"arguments": {"transform": "x"}}, "unknown argument of torchvision:FakeData"),
        ("digits", {"arguments": {"size": 3}}, "takes no data_args: 'size'"),
    ],
)
def test_what_torchvision_cannot_give(name, more, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        datasets.load(name, data_dir=tmp_path, **more)


def test_torchvision_needs_a_data_folder(monkeypatch):
    monkeypatch.delenv("INCOP_DATA", raising=False)
    with pytest.raises(InputError, match=r"torchvision:MNIST needs a data folder, and none is named"):
        datasets.load("torchvision:MNIST")


def test_a_search_on_each(tmp_path, capsys):
    folder(tmp_path / "mine")
    words = ("--model", "lenet-5", "--method", "lth", "--max-epochs", "1", "--levels", "1")
    fake = json.dumps({"size": 60, "image_size": [3, 8, 8], "num_classes": 3})
    for data, more in ((f"hf:{tmp_path / 'mine'}", ()), ("torchvision:FakeData", ("--data-args", fake))):
        out = f"R{len(more)}"
        assert main(["search", "--data", data, *more, *words, "--out", out]) == 0, capsys.readouterr().err
        assert len(RunDir.open(out).levels()) == 2
        assert main(["measure", out]) == 0
        assert main(["search", f"{out}/plan.toml", "--out", f"{out}again"]) == 0
        level = "level_01/weights.safetensors"
        assert (tmp_path / out / level).read_bytes() == (tmp_path / f"{out}again" / level).read_bytes()
