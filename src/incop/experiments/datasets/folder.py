"""Image folders: one folder a class, with or without train, val and test above."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from incop.errors import InputError
from incop.experiments.datasets.pictures import SUFFIXES, Decoder
from incop.experiments.datasets.stored_parts import MAX_EXAMPLES, StoredPart, StoredParts, check_count

_VALIDATION = ("val", "valid", "validation")
_DEBRIS = frozenset({"thumbs.db", "desktop.ini"})  # what file managers leave behind


def read_folder(root: Path) -> StoredParts:
    """The parts of an image folder.

    Either `root/train/<class>/*.png` with optional `root/test` and `root/val` (also `valid`, `validation`) of
    the same form, or plain `root/<class>/*.png`. Classes are numbered in sorted order of their names,
    pictures of a class come in sorted order of theirs. Hidden files are passed over; any other file that is
    not a picture is refused, because leaving it out could mean a part of the data set.

    Args:
        root: the folder.
    """
    folders = {path.name: path for path in _entries(root) if path.is_dir()}
    given = [name for name in _VALIDATION if name in folders]
    if "train" not in folders and not given and "test" not in folders:
        classes = _numbered(root)
        return StoredParts(_read_part(root, classes, Decoder()))
    if "train" not in folders:
        raise InputError(f"{root} has {', '.join(sorted(folders))} but no train folder: put the training classes there")
    if len(given) > 1:
        raise InputError(f"{root} has both {given[0]} and {given[1]}: leave one validation folder there")
    strange = sorted(folders.keys() - {"train", "test", *given})
    if strange:
        raise InputError(
            f"{root / strange[0]} stands beside train but is neither test nor val: rename it or move it away"
        )
    decoder = Decoder()
    classes = _numbered(folders["train"])
    return StoredParts(
        _read_part(folders["train"], classes, decoder),
        _read_part(folders["test"], classes, decoder) if "test" in folders else None,
        _read_part(folders[given[0]], classes, decoder) if given else None,
    )


def _entries(folder: Path) -> list[Path]:
    entries = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    entries.append(folder / entry.name)
                if len(entries) > MAX_EXAMPLES:
                    raise InputError(f"{folder} has more than {MAX_EXAMPLES} entries: take a part of them")
    except OSError as fault:
        raise InputError(f"{folder} cannot be read ({fault.strerror}): check that it is a readable folder") from None
    return sorted((path for path in entries if path.name.lower() not in _DEBRIS), key=lambda path: path.name)


def _classes(folder: Path) -> list[str]:
    """Names of the class folders, sorted."""
    entries = _entries(folder)
    loose = [path for path in entries if not path.is_dir() and path.suffix.lower() in SUFFIXES]
    if loose:
        raise InputError(f"{loose[0]} lies outside any class folder: move it into the folder of its class")
    classes = [path.name for path in entries if path.is_dir()]
    if not classes:
        raise InputError(
            f"{folder} holds no data set that can be read: give a folder with one folder of pictures a class,"
            " idx files or parquet files"
        )
    return classes


def _numbered(folder: Path) -> dict[str, int]:
    return {name: number for number, name in enumerate(_classes(folder))}


def _read_part(folder: Path, classes: dict[str, int], decoder: Decoder) -> StoredPart:
    files: list[Path] = []
    labels: list[int] = []
    for name in _classes(folder):
        if name not in classes:
            raise InputError(
                f"{folder / name} is a class that train does not have: add pictures of it there or leave it out"
            )
        pictures = _pictures(folder / name)
        files += pictures
        labels += [classes[name]] * len(pictures)
        check_count(str(folder), len(files))
    return StoredPart(
        torch.tensor(labels, dtype=torch.int64),
        lambda rows: decoder.stack(((str(files[row]), files[row]) for row in rows.tolist()), len(rows)),
        str(folder),
    )


def _pictures(folder: Path) -> list[Path]:
    """The pictures of one class, sorted by name."""
    paths = _entries(folder)
    for path in paths:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:  # a pipe would block, a device never end
            raise InputError(
                f"{path} is not a picture ({', '.join(sorted(SUFFIXES))}): convert it or move it away, so"
                " that no part of the data set is left out unseen"
            )
    if not paths:
        raise InputError(f"{folder} is an empty class folder: put its pictures there or remove it")
    return paths
