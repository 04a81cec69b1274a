"""`incop bench-export`: what the forms of a run's ticket take in time, on disk and in memory, against the dense network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from incop.cli.tables import plain_console, printable, table
from incop.cli.tickets import level_of, subject_of
from incop.errors import TrainingError
from incop.reports.exported import absent
from incop.rundir import RunDir, write_atomically

if TYPE_CHECKING:
    from incop.export.benchmark import Bench, Speed


def bench_export(
    run: Path,
    /,
    *,
    level: int | None = None,
    forms: str | None = None,
    batch: str = "1,64",
    threads: int = 1,
    repeats: int = 40,
    data: str | None = None,
    data_dir: Path | None = None,
    run_code: bool = False,
    json_: bool = False,
    debug: bool = False,
) -> None:
    """Measure what the forms of a run's ticket take in time, on disk and in memory, against the dense network.

    All are timed in turn in one run. The result is kept as RUN/export/bench.json and shown by `incop report`.

    Parameters
    ----------
    run
        Folder of the run.
    level
        Level of the ticket; by default the last of a finished run.
    forms
        Forms with commas between them, as of `incop export --to`, compacted+onnx, csr@64, …; by default all.
    batch
        Batch sizes with commas between them.
    threads
        Threads of torch and of onnxruntime.
    repeats
        Rounds in which each is timed.
    data
        Name or path of the run's data, where they have moved.
    data_dir
        Folder of the data, where it is not the one that the run was made with.
    run_code
        Run the code of a model that the run's plan names as FILE:NAME.
    json_
        Print the result as JSON.
    debug
        Show where an error came from.
    """
    folder = RunDir.open(run)
    number = level_of(folder, level)
    from incop import export as room
    from incop.export.forms import batch_sizes

    sizes = batch_sizes(batch)
    words = None if forms is None else [word.strip() for word in forms.split(",") if word.strip()]
    for word in words or ():
        room.form(word)
    subject = subject_of(folder, number, data, data_dir, run_code)
    found = room.bench(subject, words, batch_sizes=sizes, rounds=repeats, threads=threads)
    told = json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        folder.bench_file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{str(folder.bench_file.parent)!r} cannot be made: {error.strerror or error}; it was measured for nothing"
        ) from error
    write_atomically(folder.bench_file, told.encode("utf-8", "backslashreplace"))
    if json_:
        sys.stdout.write(told + "\n")
        return
    _tell(found, folder)


def _tell(found: Bench, folder: RunDir) -> None:
    """Print the verdict, what it rests on, and in one line what could not be made."""
    console = plain_console()
    console.print(found.verdict, highlight=False, soft_wrap=True)
    about, settings, environment = found.about, found.settings, found.environment
    load = environment.get("load")
    busy = f", load {load[0]:g}" if load else ""
    title = (
        f"level {about['level']}, sparsity {about['sparsity']:.4f}; {environment['cpu']}, threads {settings['threads']}, "
        f"{settings['rounds']} rounds of {settings['clock']}{busy}"
    )
    columns = ["form", "bytes", "memory"]
    for speed in found.rows[0].speeds:
        columns += [f"ms at {speed.batch}", "times as fast"]
    rows = [
        [
            row.form,
            f"{row.bytes:,}",
            "–" if row.memory is None else f"{row.memory / 2**20:.1f} MiB",
            *(cell for speed in row.speeds for cell in (f"{speed.ms:.3g}", _times(speed))),
        ]
        for row in found.rows
    ]
    console.print(table(title, columns, rows, numbers=len(columns) - 1), soft_wrap=True)
    console.print(printable(f"kept as {folder.bench_file}"), highlight=False, soft_wrap=True)
    if found.not_made:
        console.print(printable(f"not made: {absent(found.not_made)}"), highlight=False, soft_wrap=True)


def _times(speed: Speed) -> str:
    ratio = speed.against_dense
    return "1" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
