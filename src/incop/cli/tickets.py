"""Tickets: the level of a run that is meant on the command line, and its ticket as what is exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from incop.errors import InputError
from incop.rundir import RunDir

if TYPE_CHECKING:
    from incop.export import Subject

SAMPLES = 256  # of the probe, by which a form's answers are held against the masked network's


def level_of(folder: RunDir, level: int | None) -> int:
    """Return the level that is meant where none is named: the one that was searched for, else the last of a finished run."""
    have = [record.level for record in folder.levels()]
    if level is None:
        status = folder.read_summary().status if folder.summary_file.is_file() else "running"
        if status != "finished":
            finished = f"--level {max(have)} exports the last finished level" if have else "no level of it is finished"
            raise InputError(
                f"the run {str(folder.path)!r} is not finished ({status}): {folder.resume_command} goes on with it; {finished}"
            )
        chosen = folder.read_summary().chosen
        level = max(have, default=0) if chosen is None or chosen.level is None else chosen.level
    if level not in have:
        told = f"levels 0 to {max(have)}" if have else "no finished level"
        raise InputError(f"the run {str(folder.path)!r} has no level {level}: it has {told}")
    return level


def subject_of(folder: RunDir, level: int, data: str | None, data_dir: Path | None, run_code: bool) -> Subject:
    """Return a run's ticket as what is exported, with samples of the probe."""
    import torch

    from incop.experiments.plan import Plan
    from incop.experiments.run_levels import rebuild
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


def _is_gone(data: str) -> bool:
    """Say whether the data are named by a path that leads nowhere; a name or a library's data are looked for when they are read."""
    named = os.sep in data or Path(data).suffix in (".npz", ".parquet")
    return named and ":" not in data and not os.path.exists(data)
