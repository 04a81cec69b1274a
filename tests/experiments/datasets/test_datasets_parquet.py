from __future__ import annotations

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from incop.errors import InputError, MissingExtra
from incop.experiments import datasets
from incop.experiments.datasets import parquet

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, encoded, labels, *, image="img", label="label", rows=4, kind=PICTURE):
    values = [{"bytes": one, "path": None} for one in encoded] if kind == PICTURE else encoded
    columns = {"note": pa.array(["x"] * len(labels)), image: pa.array(values, kind), label: pa.array(labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)


@pytest.fixture
def pictures(rng, png):
    arrays = rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    return arrays, [png(array) for array in arrays]


def shards(folder, encoded, labels, count=3, **how):
    for number, rows in enumerate(np.array_split(np.arange(len(labels)), count)):
        some = [encoded[row] for row in rows]
        write(folder / f"train-{number:05d}-of-{count:05d}.parquet", some, [labels[row] for row in rows], **how)


def test_shards_are_joined_in_order_and_rows_chosen(tmp_path, pictures):
    arrays, encoded = pictures
    labels = [row % 3 for row in range(30)]
    shards(tmp_path, encoded, labels)
    part = parquet.read_folder(tmp_path).train
    assert part.labels.tolist() == labels
    assert np.array_equal(part.take(torch.arange(30)).permute(0, 2, 3, 1).numpy(), arrays)
    rows = torch.tensor([0, 3, 9, 10, 11, 21, 29])
    assert np.array_equal(part.take(rows).permute(0, 2, 3, 1).numpy(), arrays[rows])


@pytest.mark.parametrize("how", [{"kind": pa.binary(), "image": "png", "label": "fine_label"}, {"label": "y"}])
def test_columns_are_found_by_type(tmp_path, pictures, how):
    arrays, encoded = pictures
    shards(tmp_path / "thing" / "data", encoded, [row % 2 for row in range(30)], 1, **how)
    data = datasets.load(str(tmp_path / "thing"))
    assert (data.name, len(data.train), len(data.validation), len(data.test)) == ("thing", 22, 2, 6)
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), arrays[4::5])


def test_a_single_file_and_a_given_validation_part(tmp_path, pictures):
    _, encoded = pictures
    labels = [row % 2 for row in range(30)]
    write(tmp_path / "all.parquet", encoded, labels)
    assert len(datasets.load(str(tmp_path / "all.parquet")).test) == 6
    folder = tmp_path / "three"
    write(folder / "train.parquet", encoded, labels)
    write(folder / "valid-00000-of-00001.parquet", encoded[:7], labels[:7])
    write(folder / "test.parquet", encoded[:5], labels[:5])
    data = datasets.load(str(folder))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 7, 5)


def fault(path, message):
    with pytest.raises(InputError, match=message) as caught:
        datasets.load(str(path))
    assert "\n" not in str(caught.value)


def test_shards_that_are_missing_mixed_or_unknown(tmp_path, pictures):
    _, encoded = pictures
    labels = [row % 2 for row in range(30)]
    shards(tmp_path, encoded, labels)
    (tmp_path / "train-00001-of-00003.parquet").rename(tmp_path / "aside")
    fault(tmp_path, "shard 00001 of 00003 is missing")
    fault(tmp_path / "train-00000-of-00003.parquet", "shard 00001 of 00003 is missing")
    (tmp_path / "aside").rename(tmp_path / "train-00001-of-00004.parquet")
    fault(tmp_path, "mixes several sets of shards")
    (tmp_path / "train-00001-of-00004.parquet").rename(tmp_path / "train-00001-of-00003.parquet")
    write(tmp_path / "unlabelled.parquet", encoded, labels)
    fault(tmp_path, "belongs to no known part")
    (tmp_path / "unlabelled.parquet").rename(tmp_path / "train-00000-of-99999999999.parquet")
    fault(tmp_path, "mixes several sets")


def test_no_training_shard(tmp_path, pictures):
    _, encoded = pictures
    write(tmp_path / "test.parquet", encoded, [0, 1] * 15)
    fault(tmp_path, "has no train-")


def test_bad_columns(tmp_path, pictures):
    _, encoded = pictures
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"label": [0, 1]}), path)
    fault(path, "no column with pictures: its columns are label")
    pq.write_table(pa.table({"img": encoded[:2], "label": ["a", "b"]}), path)
    fault(path, "no column with labels")
    write(path, encoded, [None, *[0, 1] * 14, 1])
    fault(path, "1 rows without label")
    write(path, [None, *encoded[1:]], [0, 1] * 15)
    fault(path, "row 0 of row group 0 has no picture")
    write(path, [b"junk", *encoded[1:]], [0, 1] * 15)
    fault(path, "row 0 of row group 0 cannot be read as a picture")
    write(path, encoded, [-1, *[0, 1] * 14, 1])
    fault(path, "has the label -1")
    write(path, encoded, [2**62, *[0, 1] * 14, 1])
    fault(path, "none equal to 2")
    write(path, encoded, pa.array([2**64 - 1, *[0, 1] * 14, 1], pa.uint64()))
    fault(path, "has the label 18446744073709551615")


def test_truncated_and_foreign_files(tmp_path, pictures):
    _, encoded = pictures
    path = tmp_path / "one.parquet"
    write(path, encoded, [0, 1] * 15)
    sound = path.read_bytes()
    for content in (b"", b"PAR1", sound[: len(sound) // 2], sound[:-5], b"x" * 1000):
        path.write_bytes(content)
        fault(path, "cannot be read as parquet")


def test_the_missing_package_is_named(tmp_path, pictures, monkeypatch):
    write(tmp_path / "one.parquet", pictures[1], [0, 1] * 15)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        with pytest.raises(MissingExtra, match=r"'pillow'.*incop\[data\]"):
            datasets.load(str(tmp_path / "one.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"reading parquet files needs the package 'pyarrow'.*incop\[data\]"):
        datasets.load(str(tmp_path / "one.parquet"))


def test_cifar10_rows_equal_those_pillow_reads(published):
    base = published("cifar10/plain_text/test-00000-of-00001.parquet")
    rows = torch.tensor([0, 1, 999, 1000, 5555, 9999])
    part = parquet.read_folder(base / "cifar10" / "plain_text").test
    table = pq.read_table(base / "cifar10" / "plain_text" / "test-00000-of-00001.parquet")
    assert part.labels.tolist() == table["label"].to_pylist()
    for row, image in zip(rows.tolist(), part.take(rows), strict=True):
        oracle = np.asarray(Image.open(io.BytesIO(table["img"][row].as_py()["bytes"])))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), oracle)


def test_cifar10_by_name(published):
    base = published("cifar10/plain_text/test-00000-of-00001.parquet")
    data = datasets.load("CIFAR-10", data_dir=base, limit=300)
    assert (data.name, data.channels, data.size, data.classes) == ("cifar10", 3, (32, 32), 10)
    assert (data.augment, len(data.train), len(data.validation), len(data.test)) == (
        "crop-flip",
        270,
        30,
        300,
    )
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.03)
    same = datasets.load("cifar10", data_dir=base / "cifar10" / "plain_text", limit=300)
    assert same.fingerprint == data.fingerprint


@pytest.fixture
def cifar100(tmp_path, png):
    """A folder as the hub lays CIFAR-100 out, with one grey picture for every row of a class."""

    def build(size=32, drop=0):
        for part, each in (("train", 500), ("test", 100)):
            fine = np.tile(np.arange(100), each)[: 100 * each - drop]
            encoded = [png(np.full((size, size, 3), value, np.uint8)) for value in range(100)]
            images = pa.array([{"bytes": encoded[value], "path": None} for value in fine], PICTURE)
            table = pa.table({"img": images, "fine_label": fine, "coarse_label": fine // 5})
            folder = tmp_path / "cifar100" / "cifar100"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
        return tmp_path

    return build


def test_cifar100_layout(cifar100):
    data = datasets.load("cifar_100", data_dir=cifar100(), limit=400)
    assert (data.name, data.classes, data.augment, len(data.test)) == ("cifar100", 100, "crop-flip", 400)
    assert torch.equal(data.test.images[:, 0, 0, 0].long(), data.test.labels)
    with pytest.raises(InputError, match="limit is 150 but there are 100 classes"):
        datasets.load("cifar100", data_dir=cifar100(), limit=150)


def test_cifar100_with_other_counts_or_shapes(cifar100):
    with pytest.raises(InputError, match="holds 49999 training images but cifar100 has 50000"):
        datasets.load("cifar100", data_dir=cifar100(drop=1))
    with pytest.raises(InputError, match=r"images of 3×31×31 .* cifar100 are 3×32×32"):
        datasets.load("cifar100", data_dir=cifar100(size=31), limit=200)
