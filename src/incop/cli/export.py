"""`incop export`: a ticket of a run in the form that its target can use."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from incop.cli.tables import plain_console, printable, table
from incop.errors import InputError
from incop.rundir import RunDir

if TYPE_CHECKING:
    from incop.export import Form, Subject, Written

__all__ = ["export"]

SAMPLES = 256  # of the probe, by which a form's answers are held against the masked network's


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
        Form, or several with commas between them: folded, safetensors, sparse, compacted, onnx, csr, 2:4, compacted+onnx,
        compacted+csr. All of them are written, or none.
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
    folder = RunDir.open(run)
    number = _level(folder, level)
    words = [word.strip() for word in to.split(",") if word.strip()]
    if not words:
        raise InputError("--to names no form: say --to folded, for instance")
    from incop import export as room

    forms = [room.form(word) for word in words]
    subject = _subject(folder, number, data, data_dir, run_code)
    where = out if out is not None else folder.path / "export" / f"level_{number:02d}"
    try:
        written = room.write_all(subject, forms, where, replace=replace)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted: nothing was exported") from error
    _tell(written, _sizes(forms, written, subject), subject, json_)


def _level(folder: RunDir, level: int | None) -> int:
    have = [record.level for record in folder.levels()]
    if level is None:
        status = folder.read_summary().status if folder.summary_file.is_file() else "running"
        if status != "finished":
            finished = f"--level {max(have)} exports the last finished level" if have else "no level of it is finished"
            raise InputError(
                f"the run {str(folder.path)!r} is not finished ({status}): {folder.resume_command} goes on with it; {finished}"
            )
        level = max(have, default=0)
    if level not in have:
        told = f"levels 0 to {max(have)}" if have else "no finished level"
        raise InputError(f"the run {str(folder.path)!r} has no level {level}: it has {told}")
    return level


def _subject(folder: RunDir, level: int, data: str | None, data_dir: Path | None, run_code: bool) -> Subject:
    import torch

    from incop.experiments.plan import Plan
    from incop.experiments.tickets import rebuild
    from incop.export import Subject

    place = None if data_dir is None else str(data_dir)
    said = Plan(device="cpu", data=data, data_dir=place, run_code=run_code or None)
    if data is None and _is_gone(wanted := str(folder.read_plan().get("data", ""))):
        raise InputError(
            f"the run's data {wanted!r} are not there any more: export needs them for the shape of the input, the classes, and "
            "to prove what it writes; say where they are with --data"
        )
    parts, masks = rebuild(folder, level, said)
    made_by = folder.read_summary().environment.get("model_code") if folder.summary_file.is_file() else None
    if made_by is not None and parts.origin != made_by:
        raise InputError(
            f"the model's code is not what made the run: it was {made_by}, and now is {parts.origin}; put the old file back"
        )
    record = next(one for one in folder.levels() if one.level == level)
    inputs = torch.cat([images for images, _ in parts.probe])[:SAMPLES].contiguous()
    about = {
        "model": parts.plan.model,
        "data": parts.plan.data,
        "method": parts.plan.method,
        "seed": parts.plan.seed,
        "level": level,
        "sparsity": masks.sparsity,
        "test_accuracy": record.test_accuracy,
        "input": {
            "shape": list(inputs.shape[1:]),
            "mean": list(parts.data.mean),
            "std": list(parts.data.std),
            "of": "pixels / 255",
        },
        "classes": parts.data.classes,
    }
    parts.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch forgot to type it
    return Subject.of(parts.model, masks, example=inputs, about=about)


@dataclass(frozen=True)
class _Sizes:
    dense: int  # bytes of the dense network in float32
    bounds: list[int | None]  # bytes that the entropy of masks and values asks for, of a form that aims at it


def _is_gone(data: str) -> bool:
    """Say whether the data are named by a path that leads nowhere; a name or a library's data are looked for when they are read."""
    named = os.sep in data or Path(data).suffix in (".npz", ".parquet")
    return named and ":" not in data and not os.path.exists(data)


def _sizes(forms: list[Form], written: list[Written], subject: Subject) -> _Sizes:
    from incop.export.stored import SparseForm, dense_size

    bounds = [form.bound(subject) if isinstance(form, SparseForm) else None for form in forms]
    return _Sizes(dense_size(subject), bounds)


def _tell(written: list[Written], sizes: _Sizes, subject: Subject, json_: bool) -> None:
    if json_:
        found = [
            {
                "form": one.form,
                "files": [str(file) for file in one.files],
                "bytes": one.size,
                "difference": one.difference,
                "bound": bound,
                **({"details": dict(one.details)} if one.details else {}),
            }
            for one, bound in zip(written, sizes.bounds, strict=True)
        ]
        json.dump({"about": dict(subject.about), "dense_bytes": sizes.dense, "forms": found}, sys.stdout, indent=1)
        print()
        return
    rows = [
        [
            one.form,
            f"{one.size:,}",
            f"{one.size / sizes.dense:.3f}",
            "" if bound is None else f"{one.size / max(bound, 1):.2f}",
            "the same bits" if one.difference == 0 else f"{one.difference:.1e}",
            printable(str(one.files[0])),
        ]
        for one, bound in zip(written, sizes.bounds, strict=True)
    ]
    console = plain_console()
    samples = subject.example.samples if subject.example is not None else 0
    ticket = f"level {subject.about['level']}, sparsity {subject.masks.sparsity:.4f}"
    title = f"{ticket}; held against the masked network on {samples} samples"
    console.print(table(title, ("form", "bytes", "of dense", "of bound", "difference", "file"), rows))
    for one in written:
        if "sentence" in one.details:
            console.print(f"{one.form}: {one.details['sentence']}", markup=False)
