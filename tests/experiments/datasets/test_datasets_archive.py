from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from incop.errors import InputError
from incop.experiments import datasets
from incop.experiments.datasets import archive

LABELS = np.arange(40) % 4


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (40, 6, 5), dtype=np.uint8)


def fault(path, message):
    with pytest.raises(InputError, match=message) as caught:
        datasets.load(str(path))
    assert "\n" not in str(caught.value)


def member(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def test_both_sets_of_names(tmp_path, images):
    path = tmp_path / "thing.npz"
    np.savez_compressed(path, images=images, labels=LABELS, names=np.array(["a"]))
    data = datasets.load(str(path))
    assert (data.name, data.classes, data.size) == ("thing", 4, (6, 5))
    assert np.array_equal(data.test.images.squeeze(1).numpy(), images[4::5])
    np.savez(path, x_train=images, y_train=LABELS[:, None], x_test=images[:8], y_test=LABELS[:8].astype("u1"))
    data = datasets.load(str(path))
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 8)
    assert np.array_equal(data.test.images.squeeze(1).numpy(), images[:8])
    np.savez(path, x_train=images, y_train=LABELS, x_val=images[:3], y_val=LABELS[:3])
    assert np.array_equal(datasets.load(str(path)).validation.images.squeeze(1).numpy(), images[:3])


@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "u8", "i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts_and_types(tmp_path, rng, kind, order):
    colour = rng.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    for number, array in enumerate((colour, colour.transpose(0, 3, 1, 2))):
        path = tmp_path / f"{number}.npz"
        np.savez(path, images=np.asarray(array.astype(kind), order=order), labels=LABELS.astype(kind))
        data = datasets.load(str(path))
        assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), colour[4::5])


@pytest.mark.parametrize(
    "shape", [(40, 3, 5, 3), (40, 5, 5, 5), (40, 1, 8, 3), (40, 30), (40, 2, 5, 5, 3), (40, 4, 5, 2)]
)
def test_undecidable_layouts(tmp_path, shape):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8), labels=LABELS)
    fault(tmp_path / "a.npz", "channel axis cannot be told")


def test_values_that_are_not_pixels_or_labels(tmp_path, images):
    path = tmp_path / "a.npz"
    bad = {
        "type float32: images must be whole": (images / np.float32(255), LABELS),
        "type bool": (images > 9, LABELS),
        "values from 0 to 256": (np.full((40, 2, 2), 256) * (LABELS > 0)[:, None, None], LABELS),
        "values from -1 to 0": (np.zeros((40, 2, 2), int) - (LABELS > 0)[:, None, None], LABELS),
        "no pixels": (images[:, :0], LABELS),
        "labels must be one whole number": (images, np.eye(40, dtype=int)),
        "float64 of shape": (images, LABELS / 1),
        "40 images but 39 labels": (images, LABELS[:39]),
        "has the label -1": (images, LABELS - 1),
        "from 1 to 4 but none equal to 0": (images, LABELS + 1),
        "none equal to 2": (images, np.where(LABELS == 2, 3, LABELS)),
        "has the label 18446744073709551615": (images, np.full(40, 2**64 - 1, np.uint64)),
        "one class only": (images, LABELS * 0),
        "every fifth image": (images[:4], LABELS[:4]),
    }
    for message, (pixels, labels) in bad.items():
        np.savez(path, images=pixels, labels=labels)
        fault(path, message)


def test_wrong_sets_of_arrays(tmp_path, images):
    path = tmp_path / "a.npz"
    np.savez(path, x=images)
    fault(path, "has neither x_train")
    np.savez(path, images=images, labels=LABELS, x_train=images, y_train=LABELS)
    fault(path, "has both x_train")
    np.savez(path, images=images)
    fault(path, "has images but no labels")
    np.savez(path, x_train=images, y_train=LABELS, x_test=images)
    fault(path, "has x_test but no y_test")
    np.savez(path, x_train=images, y_train=LABELS, x_test=images[:, :4], y_test=LABELS)
    fault(path, "training images are 1×6×5 but test images are 1×4×5")
    np.savez(path, x_train=images, y_train=LABELS, x_test=images, y_test=LABELS + 1)
    fault(path, "has the test label 4, but the training labels are 0 to 3")
    np.savez(path, x_train=images, y_train=LABELS, x_test=images[:0].astype("u1"), y_test=LABELS[:0])
    fault(path, "no pixels")


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object), labels=LABELS)
    fault(tmp_path / "a.npz", "holds pickled objects")


def test_damaged_archives(tmp_path, images):
    path = tmp_path / "a.npz"
    np.savez(path, images=images, labels=LABELS)
    sound = path.read_bytes()
    for content in (b"", b"PK", sound[:500], sound[: len(sound) - 30], member(images)):
        path.write_bytes(content)
        fault(path, "not a sound .npz file")
    broken = bytearray(sound)
    broken[600] ^= 1
    path.write_bytes(bytes(broken))
    fault(path, "CRC")
    path.unlink()
    fault(path, "does not exist")


def test_headers_that_lie(tmp_path, images, monkeypatch):
    path = tmp_path / "a.npz"

    def store(name, content, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("labels.npy", member(LABELS))
            file.writestr(name, content)

    true = member(images)
    store("images.npy", true[:-1])
    fault(path, "announces 40×6×5 uint8 = 1200 bytes but holds 1199")
    store("images.npy", true + b"x")
    fault(path, "holds 1201")
    store("images.npy", true.replace(b"(40, 6, 5)", b"(9000000000000, 6, 5)").replace(b" " * 11 + b"\n", b"\n"))
    fault(path, "announces 9000000000000×6×5")
    store("images.npy", true.replace(b"(40, 6, 5)", b"(40, 6,-5)"))
    fault(path, "announces 40×6×-5")
    store("images.npy", b"nothing at all")
    fault(path, "not a NumPy array")
    store("images.npy", bytes(10**6), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(archive, "MAX_BYTES", 10**5)
    fault(path, "when decompressed, more than 100000")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.integers(-2, 6), min_size=5, max_size=30))
def test_labels_are_accepted_exactly_when_dense(tmp_path, labels):
    path = tmp_path / "fuzz.npz"
    array = np.array(labels)
    np.savez(path, images=np.zeros((len(labels), 2, 2), np.uint8), labels=array)
    test = np.arange(len(labels)) % 5 == 4
    train = set(array[~test].tolist())
    dense = train == set(range(len(train))) and len(train) >= 2 and set(array[test].tolist()) <= train
    if not dense:
        fault(path, "label|class")
        return
    data = datasets.load(str(path))
    assert data.classes == len(train)
    assert data.test.labels.tolist() == array[test].tolist()
    kept = sorted(data.train.labels.tolist() + data.validation.labels.tolist())
    assert kept == sorted(array[~test].tolist())
    assert (data.mean, data.std) == ((0.0,), (1.0,))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_every_shape_is_read_or_refused_in_one_sentence(tmp_path, shape):
    path = tmp_path / "fuzz.npz"
    np.savez(path, images=np.ones((10, *shape), np.uint8), labels=np.arange(10) % 2)
    try:
        data = datasets.load(str(path))
    except InputError:
        fault(path, "images")
    else:
        assert 10 * np.prod(shape) == sum(s.images.numel() for s in (data.train, data.validation, data.test))
        assert data.channels in (1, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), compressed=st.booleans())
def test_a_flipped_bit_never_gives_other_data(tmp_path, at, bit, compressed):
    path = tmp_path / "flip.npz"
    pixels = np.arange(20 * 9, dtype=np.uint8).reshape(20, 3, 3)
    (np.savez_compressed if compressed else np.savez)(path, images=pixels, labels=np.arange(20) % 2)
    sound = datasets.load(str(path)).fingerprint
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] ^= 1 << bit
    path.write_bytes(bytes(raw))
    try:
        found = datasets.load(str(path)).fingerprint
    except InputError:
        return
    assert found == sound
