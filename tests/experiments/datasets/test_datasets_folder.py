from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from incop.errors import InputError, MissingExtra
from incop.experiments import datasets
from incop.experiments.datasets import pictures


@pytest.fixture
def tree(rng):
    """Write an image folder: `each` pictures in each class, returned by relative path."""

    def write(root, classes=("ant", "bee", "cow"), each=5, mode="RGB", size=(6, 4), suffix=".png"):
        made = {}
        for name in classes:
            (root / name).mkdir(parents=True)
            for number in range(each):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                array = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(array).save(root / name / f"{number:02d}{suffix}")
                made[f"{name}/{number:02d}"] = array
        return made

    return write


def fault(path, message):
    with pytest.raises(InputError, match=message) as caught:
        datasets.load(str(path))
    assert "\n" not in str(caught.value)


def test_plain_folder(tmp_path, tree):
    made = tree(tmp_path)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "ant" / "Thumbs.db").write_bytes(b"x")
    data = datasets.load(str(tmp_path))
    ordered = np.stack([made[key] for key in sorted(made)])
    assert (data.name, data.classes, data.channels, data.size) == (tmp_path.name, 3, 3, (4, 6))
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), ordered[4::5])
    assert data.test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("given", ["val", "valid", "validation"])
def test_parts_and_symlinks(tmp_path, tree, given):
    root = tmp_path / "root"
    tree(root / "train", mode="L")
    valid = tree(root / given, mode="L", each=2)
    tree(tmp_path / "elsewhere", mode="L", classes=("bee", "cow"), each=3, suffix=".BMP")
    (root / "test").symlink_to(tmp_path / "elsewhere")
    data = datasets.load(str(root))
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (15, 6, 6, 1)
    assert data.test.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert np.array_equal(data.validation.images.squeeze(1).numpy(), np.stack([valid[key] for key in sorted(valid)]))
    shutil.rmtree(root / given)
    assert len(datasets.load(str(root), validation=0.2).validation) == 3


def test_limit_spreads_over_sorted_classes(tmp_path, tree):
    tree(tmp_path, each=40)
    data = datasets.load(str(tmp_path), limit=30)
    assert len(set(data.train.labels.tolist())) == 3
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 24)


def test_pictures_that_differ(tmp_path, tree):
    tree(tmp_path)
    Image.new("RGB", (7, 4)).save(tmp_path / "bee" / "03.png")
    fault(tmp_path, r"ant/00.png is 6×4 pixels but .*bee/03.png is 7×4")
    Image.new("L", (6, 4)).save(tmp_path / "bee" / "03.png")
    fault(tmp_path, r"ant/00.png has the mode RGB but .*bee/03.png has L")


def test_parts_that_differ(tmp_path, tree):
    tree(tmp_path / "train")
    tree(tmp_path / "test", size=(6, 5))
    fault(tmp_path, r"train/ant/00.png is 6×4 pixels but .*test/ant/00.png is 6×5")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("1", 1), ("LA", 1), ("RGBA", 3), ("P", 3)])
def test_modes_kept_without_loss(tmp_path, tree, mode, channels):
    tree(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        with Image.open(path) as image:
            image.convert(mode).save(path)
    data = datasets.load(str(tmp_path))
    assert data.channels == channels
    path = sorted(tmp_path.glob("ant/*.png"))[4]
    with Image.open(path) as image:
        assert image.mode == mode
        oracle = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(4, 6, channels)
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), oracle)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGBA", (6, 4), (1, 2, 3, 254)), "transparent pixels"),
        (Image.new("LA", (6, 4), (1, 0)), "transparent pixels"),
        (Image.new("I;16", (6, 4)), "the mode I;16"),
        (Image.new("CMYK", (6, 4)), "the mode CMYK"),
    ],
)
def test_modes_refused(tmp_path, tree, image, message):
    tree(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
        image.save(path.with_suffix(".tif"))
    fault(tmp_path, message)


def test_transparent_palette_is_refused(tmp_path, tree):
    tree(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        Image.new("P", (6, 4)).save(path, transparency=0)
    fault(tmp_path, "transparent pixels")


def test_files_that_cannot_be_read(tmp_path, tree):
    tree(tmp_path, size=(30, 30))
    path = tmp_path / "cow" / "02.png"
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[len(sound) // 2] ^= 255
    for content in (b"", b"junk", sound[:-300], sound[:20], bytes(damaged)):
        path.write_bytes(content)
        fault(tmp_path, "cow/02.png cannot be read as a picture")
    Image.new("RGB", (30, 30)).save(path, "GIF")
    fault(tmp_path, "cow/02.png cannot be read as a picture")


def test_too_large_pictures_are_not_decoded(tmp_path, tree, monkeypatch):
    tree(tmp_path)
    for width, message in ((5000, "5000×1 pixels, more than 4096"), (10**9, "cow/02.png")):
        Image.new("L", (5000, 1)).save(tmp_path / "cow" / "02.png")
        raw = (tmp_path / "cow" / "02.png").read_bytes()
        header = b"IHDR" + width.to_bytes(4, "big") + raw[20:29]
        import zlib

        lying = raw[:12] + header + zlib.crc32(header).to_bytes(4, "big") + raw[33:]
        (tmp_path / "cow" / "02.png").write_bytes(lying)
        fault(tmp_path, message)
    monkeypatch.setattr(pictures, "MAX_BYTES", 500)
    fault(tmp_path, "would take 864 bytes decoded")


def test_animated_picture(tmp_path, tree):
    tree(tmp_path)
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "ant" / "00.png", save_all=True, append_images=frames[1:])
    fault(tmp_path, "several frames")


def test_empty_and_misplaced(tmp_path, tree):
    fault(tmp_path, "holds no data set")
    tree(tmp_path)
    (tmp_path / "cow" / "notes.gif").write_bytes(b"x")
    fault(tmp_path, "cow/notes.gif is not a picture")
    (tmp_path / "cow" / "notes.gif").unlink()
    (tmp_path / "cow" / "more").mkdir()
    fault(tmp_path, "cow/more is not a picture")
    (tmp_path / "cow" / "more").rmdir()
    shutil.copy(tmp_path / "cow" / "00.png", tmp_path / "loose.png")
    fault(tmp_path, "loose.png lies outside")
    (tmp_path / "loose.png").unlink()
    (tmp_path / "empty").mkdir()
    fault(tmp_path, "empty is an empty class folder")
    shutil.rmtree(tmp_path / "empty")
    for name in ("bee", "cow"):
        shutil.rmtree(tmp_path / name)
    fault(tmp_path, "one class only")


def test_part_folders_that_do_not_fit(tmp_path, tree):
    tree(tmp_path / "test")
    fault(tmp_path, "no train folder")
    tree(tmp_path / "train", classes=("ant", "bee"))
    fault(tmp_path, "test/cow is a class that train does not have")
    shutil.rmtree(tmp_path / "test" / "cow")
    (tmp_path / "Test").mkdir()
    fault(tmp_path, "Test stands beside train")
    (tmp_path / "Test").rmdir()
    (tmp_path / "val").mkdir()
    fault(tmp_path, "val holds no")
    (tmp_path / "valid").mkdir()
    fault(tmp_path, "both val and valid")


def test_missing_pillow_is_named(tmp_path, tree, monkeypatch):
    tree(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"reading image files needs the package 'pillow'"):
        datasets.load(str(tmp_path))
