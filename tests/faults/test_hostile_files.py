"""Files of strangers: one sentence or sound data, in bounded memory and time, and nothing written elsewhere."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import time
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

import fuzz_inputs
import hostile_inputs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import planned, signalled_at
from PIL import Image
from safetensors.torch import save

from incop import checkpoint_files, reports
from incop.cli import main
from incop.errors import IncopError, InputError
from incop.experiments import comparison, comparison_runs, datasets, runs
from incop.experiments.plan import Plan
from incop.experiments.signals import Interrupted
from incop.records import Check
from incop.rundir import RunDir, read_toml

MIB = 2**20
SECONDS = 5
EVERY_FORMAT = 30  # damaged files of each format here; the benchmark reads 22,000


@contextlib.contextmanager
def bounded(mib=512, seconds=SECONDS):
    """Allow 5 seconds and so much memory; refusing in one sentence is allowed, nothing else is raised."""

    def hang(*_):
        raise fuzz_inputs.HangError

    before = signal.signal(signal.SIGALRM, hang)
    measured = Path("/proc/self/clear_refs").exists()
    if measured:
        fuzz_inputs.reset_peak()
        idle = fuzz_inputs.peak()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if measured:
        assert fuzz_inputs.peak() - idle < mib * MIB


def refused(call, sentence, mib=512):
    with bounded(mib), pytest.raises(InputError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("format_", hostile_inputs.FORMATS)
def test_damaged_files_are_read_or_refused_in_one_sentence(format_, tmp_path):
    for number in range(EVERY_FORMAT):
        content = hostile_inputs.damaged(format_, number, seed=1)
        with bounded(), contextlib.suppress(IncopError):
            hostile_inputs.read(format_, content, tmp_path / "x", page=number == 0)


@pytest.mark.parametrize("format_", hostile_inputs.FORMATS)
def test_what_is_damaged_was_sound(format_, tmp_path):
    for content in hostile_inputs.sound(format_):
        if content[:2] not in (b"\xff\xd8", b"II", b"BM", b"RI", b"P6"):  # of one name with a picture of another kind
            hostile_inputs.read(format_, content, tmp_path / "x")


# --- data


def idx_folder(folder, images, labels=None, suffix=""):
    folder.mkdir()
    (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(images)
    labels = hostile_inputs.idx_bytes(np.arange(60) % 3) if labels is None else labels
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    return lambda: datasets.load(str(folder))


def header(*shape):
    return (0x0800 + len(shape)).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in shape)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2**31, 1, 1), "more than 10000000|announces"),
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), "is not between 1 and"),
        ((2**16, 2**16, 2**16), "is not between 1 and"),
        ((9_000_000, 28, 28), "as many|holds 100"),
    ],
)
def test_an_idx_header_that_lies(tmp_path, shape, sentence, suffix):
    content = header(*shape) + bytes(100)
    refused(idx_folder(tmp_path / "d", gzip.compress(content) if suffix else content, suffix=suffix), sentence, mib=64)


def test_a_gzip_bomb(tmp_path):
    content = gzip.compress(header(100, 1000, 1000) + bytes(10**8), 9)  # 100 MB in 97 kB
    refused(idx_folder(tmp_path / "d", content, suffix=".gz"), "more than 100 times as many", mib=64)


def test_ten_million_labels_of_no_image(tmp_path):
    labels = header(2**28)
    refused(idx_folder(tmp_path / "d", hostile_inputs.sound("idx")[0], labels), "268435456 examples, more than", mib=64)


def npz(path, members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return lambda: datasets.load(str(path))


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def lying(head):
    text = f"{head}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


LABELS = npy(np.arange(40) % 4)


def test_a_zip_bomb(tmp_path):
    call = npz(tmp_path / "a.npz", {"images": npy(np.zeros((100, 1000, 1000), np.uint8)), "labels": LABELS})
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    refused(call, "more than 100 times as many", mib=64)


@pytest.mark.parametrize(
    "images",
    [
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4611686018427387904, 4611686018427387904)}"),
        lying("{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999999,)}"),
        lying("{'descr': '<U0', 'fortran_order': False, 'shape': (5,)}"),
        lying("{'descr': '|O', 'fortran_order': False, 'shape': (5,)}"),
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 4000 + ")" * 4000 + "}"),
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}"),
        lying("__import__('os').abort()"),
        lying("{'descr': [('a', '|u1', (2**40,))], 'fortran_order': False, 'shape': ()}"),
        lying("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 200 + ")}") + b"x",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b'\x93NUMPY\x01\x00\xff\xff\'"""(',
    ],
)
def test_an_array_header_that_lies(tmp_path, images):
    refused(npz(tmp_path / "a.npz", {"images": images, "labels": LABELS}), "a.npz", mib=64)


class Bomb:
    """An object whose unpickling leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path(self.path).touch, ()


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "exploded"
    array = np.empty(40, dtype=object)
    array[:] = [Bomb(str(mark))] * 40
    np.savez(tmp_path / "a.npz", images=array, labels=np.arange(40))
    refused(lambda: datasets.load(str(tmp_path / "a.npz")), "pickled objects, which are never loaded")
    content = pickle.dumps(Bomb(str(mark)))
    for format_ in hostile_inputs.FORMATS:
        with bounded(), contextlib.suppress(IncopError):
            hostile_inputs.read(format_, content, tmp_path / "x")
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # it would have


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_packing_that_numpy_does_not_use(tmp_path, kind):
    refused(
        npz(tmp_path / "a.npz", {"images": npy(np.zeros((40, 4, 4), np.uint8)), "labels": LABELS}, kind),
        "packed in a way",
    )


def png(width, height, colour=0):
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG", compress_level=9)
    return stream.getvalue()


def claiming(width, height):
    content = bytearray(png(8, 8))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def picture_folder(folder, each):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for number in range(5):
            (folder / name / f"{number}.png").write_bytes(each)
    return lambda: datasets.load(str(folder))


@pytest.mark.parametrize("size", [(100_000, 10_000), (2**31 - 1, 2**31 - 1), (4097, 1), (2**31 - 1, 1)])
def test_a_picture_of_a_billion_pixels(tmp_path, size):
    refused(
        picture_folder(tmp_path / "d", claiming(*size)), "more than 4096 on a side|cannot be read as a picture", mib=64
    )


def test_a_picture_that_holds_less_than_it_claims(tmp_path):
    refused(picture_folder(tmp_path / "d", claiming(4096, 4096)), "cannot be read as a picture|as many", mib=256)


def test_pictures_that_grow_a_thousand_times(tmp_path):
    refused(picture_folder(tmp_path / "d", png(4096, 4096)), "more than 100 times as many", mib=256)


def parquet(path, pictures, labels, **how):
    pq.write_table(pa.table({"image": pictures, "label": pa.array(labels)}), path, **how)
    return lambda: datasets.load(str(path))


def repeated(path, picture, count):
    """Write a parquet file in which one picture, stored once, stands in every row."""
    pictures = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([picture], pa.binary()))
    return parquet(path, pictures, np.arange(count) % 2, store_schema=False)


def test_a_parquet_file_of_few_bytes_and_many_rows(tmp_path):
    call = repeated(tmp_path / "a.parquet", png(8, 8), 300_000)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    refused(call, "announces 300000 rows", mib=64)


def test_one_large_picture_for_all_rows_of_a_parquet_file(tmp_path):
    call = repeated(tmp_path / "a.parquet", png(8, 8) + bytes(500_000), 10_000)  # 5 GB if each row had its own
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    refused(call, "more than 100 times as many")


def test_the_bounds_hold_what_they_should():
    with pytest.raises(AssertionError), bounded(64):
        assert len(b"x" * (100 * MIB)) > 0
    with pytest.raises(fuzz_inputs.HangError), bounded(seconds=0.05):
        time.sleep(1)


def test_a_pipe_and_a_device_among_pictures(tmp_path):
    call = picture_folder(tmp_path / "d", png(8, 8))
    call()
    (tmp_path / "d" / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "d" / "a" / "0.png")
    refused(call, "is not a picture", mib=64)
    (tmp_path / "d" / "a" / "0.png").unlink()
    (tmp_path / "d" / "a" / "0.png").symlink_to("/dev/zero")
    refused(call, "is not a picture", mib=64)


def test_more_pictures_than_can_be_listed(tmp_path, monkeypatch):
    call = picture_folder(tmp_path / "d", png(8, 8))
    monkeypatch.setattr("incop.experiments.datasets.folder.MAX_EXAMPLES", 4)
    refused(call, "more than 4 entries", mib=64)


# --- run folders


@pytest.fixture
def run(tmp_path):
    return hostile_inputs.write_run(tmp_path / "run")


READ = {
    "plan.toml": lambda run: run.read_plan(),
    "summary.json": lambda run: run.read_summary(),
    "levels.jsonl": lambda run: run.levels(),
    "checks.jsonl": lambda run: run.checks(),
}


@pytest.mark.parametrize("name", READ)
def test_a_link_that_leads_out_of_a_run_is_not_followed(run, tmp_path, name, capsys):
    secret = tmp_path / "secret"
    (run.path / name).rename(secret)
    before = secret.read_bytes()
    (run.path / name).symlink_to(secret)
    refused(lambda: READ[name](run), "leads out of the folder")
    if name == "checks.jsonl":
        refused(lambda: run.append(Check(1, 1, 1.0)), "leads out of the folder")
    for command in ("show", "report", "replay"):
        words = [command, str(run.path)] + (["--rule", "after 1 epochs"] if command == "replay" else [])
        assert main(words) in (0, 2)
    assert secret.read_bytes() == before


def test_a_link_within_a_run_is_followed(run):
    (run.path / "checks.jsonl").rename(run.path / "real")
    (run.path / "checks.jsonl").symlink_to("real")
    assert len(run.checks()) == 9


def test_a_level_that_lies_outside(run, tmp_path):
    checkpoint_files.save_weights(tmp_path / "outside", hostile_inputs.net().state_dict())
    (run.path / "level_01").symlink_to(tmp_path / "outside")
    refused(lambda: run.level_dir(1), "leads out of the folder")
    (run.path / "level_02").mkdir()
    (run.path / "level_02" / "weights.safetensors").symlink_to(tmp_path / "outside" / "weights.safetensors")
    refused(lambda: checkpoint_files.load_weights(run.level_dir(2)), "leads out of the folder")


@pytest.mark.parametrize("name", READ)
def test_a_pipe_a_device_and_a_circle_of_links(run, name):
    file = run.path / name
    for make in (lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), lambda: file.symlink_to(name)):
        file.unlink()
        make()
        with bounded(64), contextlib.suppress(InputError):
            READ[name](run)


@pytest.mark.parametrize("name", READ)
def test_a_file_of_a_gigabyte_is_not_read(run, name):
    with (run.path / name).open("wb") as out:
        out.truncate(2**30)
    refused(lambda: READ[name](run), "has 1073741824 bytes, and at most", mib=16)


def test_a_line_of_a_hundred_megabytes_is_not_held(run):
    with run.checks_file.open("ab") as out:
        out.write(b"{")
        out.truncate(10**8)
    refused(run.checks, "line 10: it has more than 4194304 bytes", mib=64)


TOML = {
    "deep": "a = " + "[" * 60_000,
    "deep and closed": "a = " + "[" * 400 + "]" * 400,
    "tables": "a" + ".a" * 30_000 + " = 1",
    "many tables": "\n".join("[a" + ".a" * 250 + "]" for _ in range(1)) + "\nx = 1" * 9000,
    "quoted tables": '"=".' * 15_000 + "a = 1",
    "hexadecimal": "levels = 0x" + "f" * 60_000,
    "octal word": "amount = 0o" + "7" * 400,
    "digits": "seed = " + "9" * 60_000,
    "float": "lr = 1" + "0" * 60_000 + ".0",
    "infinite": "lr = inf",
    "nan": "lr = nan",
    "date": "seed = 1979-05-27",
    "NUL": 'data = "a\\u0000b"',
    "long name": f'data = "{"x" * 5000}"',
    "long key": f"{'k' * 60_000} = 1",
    "many keys": "\n".join(f"k{n} = 1" for n in range(5000)),
    "home": 'data = "~nobody-at-all/x"',
    "parentheses": f'rule = "{"(" * 60_000}"',
    "many rules": f'rule = "{" or ".join(["after 1 epochs"] * 3000)}"',
    "levels": 'amount = "flow to 0.9 in 999999999999"',
    "pattern": f'skip = ["{"*a" * 2000}b"]',
}


@pytest.mark.parametrize("name", TOML)
def test_a_hostile_plan(name, tmp_path):
    with bounded(), contextlib.suppress(InputError):
        hostile_inputs.read("plan.toml", TOML[name].encode(), tmp_path / "x")
    (tmp_path / "comparison.toml").write_text(f'methods = ["lth"]\n[plan]\n{TOML[name]}')
    with bounded(), contextlib.suppress(InputError):
        comparison.Comparison.from_toml(read_toml(tmp_path / "comparison.toml"), source="c").check()


def test_a_plan_of_all_of_these_shows_none_at_length(tmp_path, capsys):
    (tmp_path / "p.toml").write_text("\n".join(f"{'k' * n} = 1" for n in range(20, 300)))
    assert main(["search", str(tmp_path / "p.toml"), "--out", str(tmp_path / "R")]) == 2
    assert len(capsys.readouterr().err) < 5000
    assert not (tmp_path / "R").exists()


NUMBERS = [10**400, -(10**400), 2**63, -1, 1e308, "inf", "nan", float("nan"), [[]], {}, None, True, "x" * 10_000]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: str(value)[:8])
def test_a_summary_of_extreme_numbers(run, value):
    data = json.loads(run.summary_file.read_text())
    for place in ("seed", "full_epochs", "spent", "dense", "environment"):
        changed = json.loads(json.dumps(data))
        changed[place] = {"test_accuracy": value, "cores": value} if place in ("dense", "environment") else value
        run.summary_file.write_text(json.dumps(changed))
        with bounded(), contextlib.suppress(InputError):
            reports.tables(reports.read([run.path]))
    for key in data["levels"][1]:
        changed = json.loads(json.dumps(data))
        changed["levels"][1][key] = value
        run.summary_file.write_text(json.dumps(changed))
        with bounded(), contextlib.suppress(InputError):
            subject = reports.read([run.path])
            reports.as_json(subject, reports.tables(subject))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, -1e300, 2**62, True, "0.5"])
def test_a_page_of_odd_numbers_is_drawn_or_refused(run, value):
    data = json.loads(run.summary_file.read_text())
    data["dense"]["test_accuracy"] = value
    data["levels"][1]["distance"] = value
    data["levels"][1]["flow"]["values"]["a->b"] = value
    data["levels"][1]["layers"]["a"] = value
    run.summary_file.write_text(json.dumps(data))
    with contextlib.suppress(InputError):
        reports.html(reports.read([run.path]))


def test_a_summary_nested_without_end(run):
    data = json.loads(run.summary_file.read_text())
    for text in ("[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500):
        run.summary_file.write_text(json.dumps(data | {"environment": {"x": 0}}).replace('"x": 0', f'"x": {text}'))
        refused(run.read_summary, "20 levels of lists")


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "..", "runs/../../elsewhere", "runs/link"])
def test_a_comparison_whose_runs_lie_elsewhere(tmp_path, folder):
    hostile_inputs.write_run(tmp_path / "elsewhere")
    (tmp_path / "c" / "runs").mkdir(parents=True)
    (tmp_path / "c" / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    jobs = json.loads(hostile_inputs.jobs_bytes())
    (tmp_path / "c" / "jobs.json").write_text(json.dumps([jobs[0] | {"folder": folder}]))
    found = reports.read([tmp_path / "c"])
    assert not found.runs
    assert "leads out of the folder" in found.notices[0]


def test_a_comparison_is_not_gone_on_with_through_links(tmp_path):
    folder = tmp_path / "c"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    (folder / "comparison.toml").write_text("")
    (folder / "runs").symlink_to(tmp_path / "elsewhere")
    plan = comparison.Comparison(methods=("lth",), plan=Plan(max_epochs=1.0))
    refused(lambda: comparison_runs.compare(plan, folder), "leads out of the folder")
    assert not any((tmp_path / "elsewhere").iterdir())


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e--></svg>]]>{{7*7}}$x$"


class Tags(HTMLParser):
    """The tags of a page, and attributes that could run something or fetch something."""

    def __init__(self, text):
        super().__init__()
        self.names, self.bad = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.bad += [name for name, value in attrs if name.startswith("on") or "javascript:" in str(value)]


def test_a_run_of_nothing_but_markup_is_text_on_its_page_and_on_the_terminal(run, capsys):
    text = json.dumps(EVIL)[1:-1]
    for name in ("summary.json", "levels.jsonl", "checks.jsonl"):
        content = (run.path / name).read_text()
        for word in (
            "lth",
            "digits",
            "lenet-5",
            "full budget",
            "why",
            "a->b",
            '"a"',
            '"n"',
            "torch",
            '"init"',
            "information (mean)",
        ):
            content = content.replace(word, f'"{text}"' if word.startswith('"') else f"{text}{word[0]}")
        (run.path / name).write_text(content)
    run.write_plan({EVIL: EVIL, "method": EVIL, "skip": [EVIL], "rule": f"flow within 0.1 {EVIL}"})
    page = reports.html(reports.read([run.path]))
    tags = Tags(page)
    assert not tags.names & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not tags.bad
    assert "{{7*7}}" in page
    assert main(["show", str(run.path)]) == 0
    assert main(["replay", str(run.path), "--rule", "after 1 epochs"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out


@pytest.mark.parametrize(
    "command", ["rm -rf ~", "incop search x; rm -rf ~", "incop list\nrm -rf ~", "incop $(rm -rf ~)", "incop 'x"]
)
def test_a_foreign_command_is_not_offered_to_be_copied(run, command, capsys):
    data = json.loads(run.summary_file.read_text())
    run.summary_file.write_text(json.dumps(data | {"command": command}))
    assert "rm -rf" not in reports.html(reports.read([run.path]))
    assert main(["show", str(run.path)]) == 0
    assert "rm -rf" not in capsys.readouterr().out


# --- weights


def tensors(head, data=b""):
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(head)) + head + data


WEIGHTS = {
    "endless header": struct.pack("<Q", 2**63) + b"{}",
    "large header": struct.pack("<Q", 2**22 + 1) + b" " * (2**22 + 1),
    "beyond the file": tensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "overflow": tensors({"w": {"dtype": "F32", "shape": [2**32, 2**32, 2**32], "data_offsets": [0, 0]}}),
    "overlap": tensors({n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}, b"1234"),
    "hole": tensors({"w": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"1234"),
    "negative": tensors({"w": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"1"),
    "deep": tensors(b'{"w":' * 3000),
    "no type": tensors({"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_whose_header_lies(tmp_path, name):
    (tmp_path / "weights.safetensors").write_bytes(WEIGHTS[name])
    refused(lambda: checkpoint_files.load_weights(tmp_path), "is damaged or no safetensors file", mib=64)


@pytest.mark.parametrize(
    "about",
    [
        '{"w": {"shape": [0, 1180591620717411303424], "remaining": 0}}',
        "[" * 3000,
        '{"w": {"shape": [' + "9" * 4000 + '], "remaining": 0}}',
    ],
)
def test_masks_whose_shapes_lie(tmp_path, about):
    import torch

    (tmp_path / "masks.safetensors").write_bytes(save({"w": torch.zeros(0, dtype=torch.uint8)}, {"masks": about}))
    refused(lambda: checkpoint_files.load_masks(tmp_path), "holds no masks of incop", mib=64)


def test_many_empty_tensors(tmp_path):
    head = {f"{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}
    (tmp_path / "weights.safetensors").write_bytes(tensors(head))
    with bounded(256), contextlib.suppress(InputError):
        checkpoint_files.load_weights(tmp_path)


# --- checkpoints: their hash tells of damage, not of an edit


@pytest.fixture(scope="module")
def cut_off_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut") / "run"
    plan = planned(method="incop-if", levels=2, limit=60, max_epochs=1.0, batch_size=20)
    with pytest.raises(Interrupted):
        runs.execute(plan, folder, signalled_at(5))
    return folder


def edited(run, folder, words):
    """Copy a run and edit what its checkpoint says, with the right length and hash."""
    shutil.copytree(run, folder)
    (old,) = (file for file in (folder / "checkpoint").iterdir() if file.name[0] == "0")
    content = old.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    told = head["__metadata__"]["incop"]
    for word, other in words.items():
        assert word in told
        told = told.replace(word, other)
    content = tensors(head | {"__metadata__": {"incop": told}}, content[8 + size :])
    old.unlink()
    (old.parent / f"000009-{hashlib.sha256(content).hexdigest()[:32]}.safetensors").write_bytes(content)
    return folder


EDITS = {
    "deep": {'"facts": {': '"facts": {"x": ' + "[" * 3000 + ","},
    "level": {'"level": 1,': '"level": "x",'},
    "no level": {'"level": 1,': ""},
    "epoch": {'"watch/epoch": 0.3': '"watch/epoch": null, "x": 0.3'},
    "older": {'"watch/older": 0': '"watch/older": 99999999999'},
    "NaN": {'"trainer/begin": 0': '"trainer/begin": NaN, "x": 0'},
    "endless": {'"trainer/begin": 0': '"trainer/begin": -1e300, "x": 0'},
    "step": {'"trainer/step": ': '"trainer/step": "x", "y": '},
    "probed": {'"watch/probed": [': '"watch/probed": ["a", '},
    "optimizer": {'"trainer/optimizer/0/step", ': ""},
    "order": {'"model/fc1.weight", ': ""},
    "point": {'"points": {"': '"points": {"../../x": "../../../etc/passwd", "'},
    "threads": {'"threads": ': '"threads": 1000000000, "x": '},
    "schema": {'"schema": 2': '"schema": "2"'},
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_checkpoint_is_refused_in_one_sentence(cut_off_run, tmp_path, name):
    folder = edited(cut_off_run, tmp_path / "run", EDITS[name])
    with bounded(), contextlib.suppress(IncopError):
        runs.resume(folder)


def test_a_pipe_for_a_checkpoint_and_a_level_that_leads_out(cut_off_run, tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(cut_off_run, folder)
    outside.mkdir()
    (outside / ".mine.txt.abcdefgh").write_text("mine")
    (folder / "level_77").symlink_to(outside)
    os.mkfifo(folder / "checkpoint" / f"000010-{'0' * 32}.safetensors")
    with bounded():
        runs.resume(folder)
    assert (outside / ".mine.txt.abcdefgh").exists()  # what a killed run leaves is swept within it only


def test_a_checkpoint_folder_that_leads_out(cut_off_run, tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(cut_off_run, folder)
    (folder / "checkpoint").rename(outside)
    (folder / "checkpoint").symlink_to(outside)
    before = sorted(file.name for file in outside.iterdir())
    refused(lambda: runs.resume(folder), "leads out of the folder")
    assert sorted(file.name for file in outside.iterdir()) == before


def test_run_folders_of_these_tests_are_sound(run):
    assert RunDir.open(run.path).read_summary().status == "finished"
