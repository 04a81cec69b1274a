"""Inputs of strangers: one sound file of every format incop reads, ways to damage it, and the reader it is given to.

`fuzz_inputs.py` and `tests/faults` draw from here, so that what broke a reader once can be made again from its number.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
import torch
from PIL import Image
from torch import nn

from incop import checkpoint_files, reports, stopping
from incop.experiments import datasets, replays, run_levels
from incop.experiments.comparison import Comparison
from incop.experiments.plan import Plan
from incop.experiments.preparation import prepare, resolve
from incop.masks import Masks
from incop.records import Check, Flow, Level, Run, Spent, Verdict
from incop.rundir import RunDir, read_toml

__all__ = ["FORMATS", "damaged", "read", "sound"]

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    *("-1", "0", "1e308", "-1e308", "1e-320", "99999999999999999999", "NaN", "Infinity", "nan", "inf", "-inf", "2.5"),
    *(
        "0x" + "f" * 400,
        "9" * 5000,
        "true",
        "null",
        '"x"',
        "[]",
        "{}",
        "[" * 3000,
        '{"a":' * 3000,
        '""',
        '"nan"',
        "1979-05-27",
    ),
    *(
        '"../../../etc/passwd"',
        '"/etc/passwd"',
        '"\\u0000"',
        '"\\ud800"',
        '"<script>alert(1)</script>"',
        '"' + "é" * 3000 + '"',
    ),
)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
STRING = re.compile(rb'"[^"\n]{0,80}"')


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def records() -> tuple[list[Level], list[Check], Run]:
    """Three levels of a run, each with three checks, and its summary."""
    levels, checks = [], []
    for k, s in enumerate((0.0, 0.5, 0.8)):
        flow = Flow({"a->b": 0.1 - 0.01 * k, "b->c": 0.2}, meter="information (mean)", samples=50, seconds=0.01)
        checks += [
            Check(
                k, n, float(n), 10 * n, flow, 0.01 * n, 0.9, 0.3, (0.1,), Spent(n, 10 * n), Verdict(n == 2, "why", "r")
            )
            for n in range(3)
        ]
        levels.append(
            Level(
                k,
                s,
                s,
                100,
                4.0,
                40,
                4000,
                1.0,
                0.1,
                500,
                0.9,
                "full budget",
                "init",
                4.0,
                0.9,
                0.01,
                flow,
                {"a": s},
                ("n",),
            )
        )
    spent = Spent.total(level.spent for level in levels)
    dense = {"val_accuracy": 0.9, "test_accuracy": 0.9, "epochs": 4.0}
    command = "incop search r/plan.toml --out NEW_FOLDER"
    return levels, checks, Run(
        "lth", "digits", "lenet-5", 0, "finished", dense, tuple(levels), spent, 12.0, {"torch": "2", "cores": 2}, command
    )  # fmt: skip


PLAN = {
    "data": "digits", "model": "lenet-300-100", "method": "incop-if", "levels": 3, "sparsity": 0.7, "seed": 1,
    "ticket_at": [0.3, 0.5], "max_epochs": 2.0, "limit": 100, "validation": 0.2, "lr": 0.001, "batch_size": 20,
    "probe_size": 50, "meter": "information:mean", "rule": "flow within 0.11 or after 2 epochs", "check_every": "50steps",
    "amount": "to 0.7 in 3", "selection": "layer:0.5", "score": "magnitude", "skip": ["fc3"], "rewind": "early:1",
    "augment": False, "threads": 1, "device": "cpu", "schedule": "cosine", "keep_optimizer": True,
}  # fmt: skip
COMPARISON = {
    "methods": ["lth-rate", "incop", "fixed:2=lth", "oneshot=incop"], "seeds": 2, "sparsities": [0.5, 0.8],
    "pairs": ["digits/lenet-300-100"], "controls": True, "plan": {"max_epochs": 2.0, "limit": 100},
}  # fmt: skip


def idx_bytes(array: np.ndarray) -> bytes:
    shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return (0x0800 + array.ndim).to_bytes(4, "big") + shape + array.astype(np.uint8).tobytes()


def picture(number: int, kind: str = "PNG") -> bytes:
    array = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def npz(compressed: bool) -> bytes:
    stream = io.BytesIO()
    images = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
    (np.savez_compressed if compressed else np.savez)(stream, images=images, labels=np.arange(40) % 4)
    return stream.getvalue()


def parquet(compression: str) -> bytes:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = pa.array([{"bytes": picture(k), "path": None} for k in range(20)], kind)
    stream = io.BytesIO()
    table = pa.table({"image": values, "label": pa.array([k % 2 for k in range(20)])})
    pq.write_table(table, stream, row_group_size=10, compression=compression)
    return stream.getvalue()


def tensors() -> tuple[bytes, ...]:
    """The files of a level's weights and masks."""
    chance = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(tensor.shape, generator=chance) for name, tensor in net().state_dict().items()}
    masks = {name: weights[name] < 0.5 for name in ("0.weight", "2.weight")}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint_files.save_weights(Path(folder), weights)
        checkpoint_files.save_masks(Path(folder), Masks(masks))
        return tuple((Path(folder) / f"{name}.safetensors").read_bytes() for name in ("weights", "masks"))


def lines(found: list) -> bytes:
    return b"".join(json.dumps(one.to_json()).encode() + b"\n" for one in found)


def summary_bytes() -> bytes:
    return json.dumps(records()[2].to_json(), indent=1).encode()


def jobs_bytes() -> bytes:
    entry = {
        "seed": 0,
        "data": "digits",
        "model": "lenet-5",
        "sparsity": None,
        "control_of": [],
        "state": "done",
        "error": None,
    }
    jobs = [entry | {"label": "lth", "folder": "runs/a"}, entry | {"label": "sap", "folder": "runs/b", "seed": 1}]
    return json.dumps(jobs, indent=1).encode()


# format → what makes its sound files; several where a format has several forms
SOUND: dict[str, Callable[[], list[bytes]]] = {
    "idx": lambda: [
        idx_bytes(np.arange(60 * 9).reshape(60, 3, 3) % 256),
        gzip.compress(idx_bytes(np.zeros((60, 3, 3))), 1),
    ],
    "npz": lambda: [npz(False), npz(True)],
    "parquet": lambda: [parquet("snappy"), parquet("zstd"), parquet("none")],
    "png": lambda: [picture(0, kind) for kind in ("PNG", "PNG", "PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")],
    "plan.toml": lambda: [tomli_w.dumps(PLAN).encode()],
    "comparison.toml": lambda: [tomli_w.dumps(COMPARISON).encode()],
    "jobs.json": lambda: [jobs_bytes()],
    "levels.jsonl": lambda: [lines(records()[0])],
    "checks.jsonl": lambda: [lines(records()[1])],
    "summary.json": lambda: [summary_bytes()],
    "safetensors": lambda: [*tensors()],
}
FORMATS = tuple(SOUND)
TEXT = ("plan.toml", "comparison.toml", "jobs.json", "levels.jsonl", "checks.jsonl", "summary.json")
_MADE: dict[str, list[bytes]] = {}


def sound(format_: str) -> list[bytes]:
    """Return the sound files of a format, made once."""
    if format_ not in _MADE:
        _MADE[format_] = SOUND[format_]()
    return _MADE[format_]


def damaged(format_: str, number: int, seed: int = 0) -> bytes:
    """Return a damaged file; the same for the same format, number and seed."""
    chance = random.Random(f"{format_} {number} {seed}")
    content = bytearray(chance.choice(sound(format_)))
    ways = [flip, cut, double, drop, overwrite] + (
        [reword, reword, reword, restring, reline] if format_ in TEXT else []
    )
    ways += {"png": [rechunk], "npz": [repack], "idx": [regzip], "safetensors": [rehead]}.get(format_, []) * 4
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        content = bytearray(chance.choice(ways)(content, chance))
    return bytes(content)


def place(content: bytearray, chance: random.Random) -> int:
    """Return a position, the head and the tail of a file more often: there lie what readers trust."""
    size = max(len(content), 1)
    return chance.choice(
        (chance.randrange(size), chance.randrange(min(size, 64)), size - 1 - chance.randrange(min(size, 400)))
    )


def flip(content: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 8))):
        if content:
            content[place(content, chance)] ^= 1 << chance.randrange(8)
    return bytes(content)


def cut(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: place(content, chance)])


def double(content: bytearray, chance: random.Random) -> bytes:
    at, size = place(content, chance), chance.choice((1, 16, 200, len(content)))
    return bytes(content[:at] + content[at : at + size] * chance.choice((2, 2, 50)) + content[at + size :])


def drop(content: bytearray, chance: random.Random) -> bytes:
    at = place(content, chance)
    return bytes(content[:at] + content[at + chance.choice((1, 4, 100)) :])


def overwrite(content: bytearray, chance: random.Random) -> bytes:
    at, width = place(content, chance), chance.choice((1, 2, 4, 8))
    number = chance.choice(EXTREMES) % 2 ** (8 * width)
    content[at : at + width] = number.to_bytes(width, chance.choice(("big", "little")))
    return bytes(content)


def _replaced(found: list, content: bytearray, chance: random.Random) -> bytes:
    if not found:
        return bytes(content)
    start, end = chance.choice(found).span()
    return bytes(content[:start]) + chance.choice(WORDS).encode() + bytes(content[end:])


def reword(content: bytearray, chance: random.Random) -> bytes:
    return _replaced(list(NUMBER.finditer(bytes(content))), content, chance)


def restring(content: bytearray, chance: random.Random) -> bytes:
    return _replaced(list(STRING.finditer(bytes(content))), content, chance)


def reline(content: bytearray, chance: random.Random) -> bytes:
    rows = bytes(content).split(b"\n")
    one = chance.randrange(len(rows))
    other = chance.randrange(len(rows))
    rows[one], rows[other] = rows[other], rows[one] * chance.choice((1, 1, 2))
    return b"\n".join(rows)


def rechunk(content: bytearray, chance: random.Random) -> bytes:
    """Change a PNG's header and give it the right checksum."""
    if content[12:16] != b"IHDR" or len(content) < 33:
        return flip(content, chance)
    at = 16 + chance.choice((0, 4, 8, 9, 10, 11, 12))
    width = 4 if at < 24 else 1
    content[at : at + width] = (chance.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def repack(content: bytearray, chance: random.Random) -> bytes:
    """Damage an array within its zip file, and give it the right checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return flip(content, chance)
    name = chance.choice(sorted(members))
    way = chance.choice((flip, overwrite, reword, restring, cut))
    members[name] = way(bytearray(members[name][:128]), chance) + members[name][128:]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", chance.choice((0, 8, 8, 12, 14))) as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    return stream.getvalue()


def regzip(content: bytearray, chance: random.Random) -> bytes:
    """Damage an idx file under its gzip stream."""
    try:
        packed = content[:2] == b"\x1f\x8b" and chance.random() < 0.8
        plain = bytearray(gzip.decompress(content)) if packed else content
        return gzip.compress(chance.choice((overwrite, flip, cut))(plain, chance), 1)
    except (OSError, EOFError, zlib.error):  # damaged already
        return flip(content, chance)


def rehead(content: bytearray, chance: random.Random) -> bytes:
    """Damage the JSON header of a safetensors file and give it the right length."""
    if len(content) < 8:
        return bytes(content)
    (size,) = struct.unpack("<Q", content[:8])
    head = bytearray(content[8 : 8 + min(size, len(content))])
    head = bytearray(chance.choice((reword, restring, flip, double))(head, chance))
    return struct.pack("<Q", len(head)) + bytes(head) + bytes(content[8 + min(size, len(content)) :])


def read(format_: str, content: bytes, folder: Path, *, page: bool = False) -> None:
    """Give a file to its reader, as a command would, in an empty folder.

    Args:
        format_: one of FORMATS.
        content: of the file.
        folder: to work in; what is in it is removed.
        page: draw the HTML page of a run too, which takes a second.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    READERS[format_](content, folder, page)


def _idx(content: bytes, folder: Path, page: bool) -> None:
    packed = ".gz" if content[:2] == b"\x1f\x8b" else ""
    (folder / f"train-images-idx3-ubyte{packed}").write_bytes(content)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(60) % 3))
    datasets.load(str(folder))


def _one_file(suffix: str) -> Callable[[bytes, Path, bool], None]:
    def load(content: bytes, folder: Path, page: bool) -> None:
        (folder / f"data{suffix}").write_bytes(content)
        datasets.load(str(folder / f"data{suffix}"))

    return load


def _pictures(content: bytes, folder: Path, page: bool) -> None:
    for label in "ab":
        (folder / label).mkdir()
        for number in range(5):
            (folder / label / f"{number}.png").write_bytes(picture(number))
    (folder / "a" / "0.png").write_bytes(content)
    datasets.load(str(folder))


def _plan(content: bytes, folder: Path, page: bool) -> None:
    (folder / "plan.toml").write_bytes(content)
    plan = Plan.from_mapping(read_toml(folder / "plan.toml"), source="plan.toml")
    plan.check()
    prepare(resolve(plan))


def _comparison(content: bytes, folder: Path, page: bool) -> None:
    (folder / "comparison.toml").write_bytes(content)
    Comparison.from_toml(read_toml(folder / "comparison.toml"), source="comparison.toml").check()


def write_run(folder: Path) -> RunDir:
    run = RunDir.create(folder)
    levels, checks, summary = records()
    run.write_plan({"method": "lth", "data": "digits", "model": "lenet-5", "seed": 0, "rule": "flow within 0.11"})
    for record in (*levels, *checks):
        run.append(record)
    run.write_summary(summary)
    return run


def _jobs(content: bytes, folder: Path, page: bool) -> None:
    for name in "ab":
        write_run(folder / "runs" / name)
    (folder / "jobs.json").write_bytes(content)
    _report(folder, page)


def _report(folder: Path, page: bool) -> None:
    subject = reports.read([folder])
    parts = reports.tables(subject)
    reports.as_json(subject, parts)
    reports.as_markdown(parts)
    if page:
        reports.html(subject)


def _run_file(name: str) -> Callable[[bytes, Path, bool], None]:
    def load(content: bytes, folder: Path, page: bool) -> None:
        run = write_run(folder / "run")
        (run.path / name).write_bytes(content)
        if name == "levels.jsonl":
            run.summary_file.unlink()
        run.levels()
        run.checks()
        replays.replay(run, stopping.parse("flow within 0.05 or after 2 epochs"))
        replays.grid(run, [0.01, 0.1])
        _report(run.path, page)

    return load


def _tensors(content: bytes, folder: Path, page: bool) -> None:
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "masks.safetensors").write_bytes(content)
    weights = checkpoint_files.load_weights(folder)
    if "0.bias" in weights:
        run_levels.put_weights(net(), weights, source=str(folder))
    else:
        checkpoint_files.load_masks(folder).weights(net())


READERS: dict[str, Callable[[bytes, Path, bool], None]] = {
    "idx": _idx,
    "npz": _one_file(".npz"),
    "parquet": _one_file(".parquet"),
    "png": _pictures,
    "plan.toml": _plan,
    "comparison.toml": _comparison,
    "jobs.json": _jobs,
    **{name: _run_file(name) for name in ("levels.jsonl", "checks.jsonl", "summary.json")},
    "safetensors": _tensors,
}
