"""`incop export`: a ticket of a run in the form that its target can use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from incop.cli.tables import plain_console, printable, table
from incop.cli.tickets import level_of, subject_of
from incop.errors import InputError
from incop.rundir import RunDir

if TYPE_CHECKING:
    from incop.export import Subject, Written


def export(
    run: Path,
    /,
    *,
    level: int | None = None,
    to: str = "safetensors",
    out: Path | None = None,
    replace: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    run_code: bool = False,
    json_: bool = False,
    debug: bool = False,
) -> None:
    """Write a run's ticket in the form that its target can use, proven to answer as the masked network does.

    Parameters
    ----------
    run
        Folder of the run.
    level
        Level of the ticket; by default the last of a finished run.
    to
        Form, or several with commas between them: folded, safetensors, sparse, compacted, onnx, csr, compacted+onnx, compacted+csr.
        All of them are written, or none.
    out
        Folder to write to; by default RUN/export/level_NN.
    replace
        Write over files of the same names.
    data
        Name or path of the data, where they are not at the place that the run's plan names. The network's input and classes are
        theirs, and the forms are held against the masked network on them.
    data_dir
        Folder of the data, where it is not the one that the run was made with.
    run_code
        Run the code of a model that the run's plan names as FILE:NAME.
    json_
        Print what was written as JSON.
    debug
        Show where an error came from.
    """
    try:
        folder = RunDir.open(run)
        number = level_of(folder, level)
        words = [word.strip() for word in to.split(",") if word.strip()]
        if not words:
            raise InputError("--to names no form: say --to folded, for instance")
        from incop import export as room

        forms = [room.form(word) for word in words]
        subject = subject_of(folder, number, data, data_dir, run_code)
        where = out if out is not None else folder.path / "export" / f"level_{number:02d}"
        written = room.write_all(subject, forms, where, replace=replace)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted: nothing was exported") from error
    (_print_json if json_ else _tell)(written, subject)


def _print_json(written: list[Written], subject: Subject) -> None:
    from incop.export.lossless import dense_size

    found = [
        {
            "form": one.form,
            "files": [str(file) for file in one.files],
            "bytes": one.size,
            "again": [str(file) for file in one.again],
            "difference": one.difference,
            "bound": one.details.get("bound"),
            **({"details": dict(one.details)} if one.details else {}),
        }
        for one in written
    ]
    json.dump({"about": dict(subject.about), "dense_bytes": dense_size(subject), "forms": found}, sys.stdout, indent=1)
    print()


def _tell(written: list[Written], subject: Subject) -> None:
    from incop.export.lossless import dense_size

    dense = dense_size(subject)
    rows = [
        [
            one.form,
            f"{one.size:,}",
            f"{one.size / dense:.3f}",
            f"{one.size / max(one.details['bound'], 1):.2f}" if "bound" in one.details else "",
            "the same bits" if one.difference == 0 else f"{one.difference:.1e}",
            printable(str(one.files[0])),
        ]
        for one in written
    ]
    console = plain_console()
    samples = subject.example.samples if subject.example is not None else 0
    ticket = f"level {subject.about['level']}, sparsity {subject.masks.sparsity:.4f}"
    title = f"{ticket}; held against the masked network on {samples} samples"
    console.print(table(title, ("form", "bytes", "of dense", "of bound", "difference", "file"), rows))
    for one in written:
        for file in one.again:
            told = f"{one.form}: {printable(str(file))}, {file.stat().st_size:,} bytes, holds the same as a program"
            console.print(told, markup=False)
        if "sentence" in one.details:
            console.print(f"{one.form}: {one.details['sentence']}", markup=False)
