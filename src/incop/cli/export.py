"""`incop export`: a ticket of a run in the form that its target can use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from incop.cli.tables import plain_console, printable, table
from incop.errors import InputError
from incop.rundir import RunDir

if TYPE_CHECKING:
    from incop.export import Subject, Written

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
        Form, or several with commas between them: folded, compacted.
    out
        Folder to write to; by default RUN/export/level_NN.
    replace
        Write over files of the same names.
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
    subject = _subject(folder, number, data_dir, run_code)
    where = out if out is not None else folder.path / "export" / f"level_{number:02d}"
    written = [room.write(subject, form, where, replace=replace) for form in forms]
    _tell(written, subject, json_)


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


def _subject(folder: RunDir, level: int, data_dir: Path | None, run_code: bool) -> Subject:
    import torch

    from incop.experiments.plan import Plan
    from incop.experiments.tickets import rebuild
    from incop.export import Subject

    said = Plan(device="cpu", data_dir=None if data_dir is None else str(data_dir), run_code=run_code or None)
    parts, masks = rebuild(folder, level, said)
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


def _tell(written: list[Written], subject: Subject, json_: bool) -> None:
    if json_:
        found = [
            {
                "form": one.form,
                "files": [str(file) for file in one.files],
                "bytes": one.size,
                "difference": one.difference,
                **({"details": dict(one.details)} if one.details else {}),
            }
            for one in written
        ]
        json.dump({"about": dict(subject.about), "forms": found}, sys.stdout, indent=1)
        print()
        return
    rows = [
        [
            one.form,
            f"{one.size:,}",
            "the same bits" if one.difference == 0 else f"{one.difference:.1e}",
            printable(str(one.files[0])),
        ]
        for one in written
    ]
    console = plain_console()
    samples = subject.example.samples if subject.example is not None else 0
    ticket = f"level {subject.about['level']}, sparsity {subject.masks.sparsity:.4f}"
    title = f"{ticket}; held against the masked network on {samples} samples"
    console.print(table(title, ("form", "bytes", "difference", "file"), rows))
    for one in written:
        if "sentence" in one.details:
            console.print(f"{one.form}: {one.details['sentence']}", markup=False)
