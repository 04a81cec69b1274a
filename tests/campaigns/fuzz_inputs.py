"""Damaged files of every format incop reads, tens of thousands of them: one sentence for each, or sound data.

Each file is read in a worker process that may take 512 MiB above what it takes idle, and 5 seconds. Whatever is raised
must be incop's own error. A file that does otherwise is written to --keep under its format and number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

FILES = {  # of each format; a plan takes 20 ms, its network is built
    "idx": 2500, "npz": 2500, "parquet": 2500, "png": 2500, "plan.toml": 2000, "comparison.toml": 1500, "jobs.json": 1500,
    "levels.jsonl": 1500, "checks.jsonl": 1500, "summary.json": 1500, "safetensors": 2500,
}  # fmt: skip
MAX_MEMORY = 512 * 2**20  # bytes above idle
MAX_SECONDS = 5.0
PAGE_EVERY = 100  # files of which the HTML page is drawn too, which takes a second
ADDRESS_SPACE = 6 * 2**30  # of a worker, so that what is found does not take the machine with it


class HangError(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


def peak() -> int:
    """Return the most memory this process has held since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def judged(format_: str, number: int, content: bytes, folder: Path, idle: int) -> dict:
    """Read one file and say how that went."""
    import hostile_inputs

    from incop.errors import IncopError

    def hang(*_: object) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, hang)
    reset_peak()
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS + (5.0 if (page := number % PAGE_EVERY == 0) else 0.0))
    try:
        hostile_inputs.read(format_, content, folder, page=page)
        outcome, said = "read", ""
    except IncopError as error:
        outcome, said = "refused", str(error)
        if "\n" in said:
            outcome = "several lines"
    except HangError:
        outcome, said = "hang", ""
    except Exception as error:
        trace, at = error.__traceback__, ""
        while trace is not None:
            at, trace = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}", trace.tb_next
        outcome, said = "crash", f"{type(error).__name__}: {str(error)[:200]} at {at}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    above = max(peak() - idle, 0)
    if above > MAX_MEMORY:
        outcome, said = "memory", f"{above >> 20} MiB; {said[:200]}"
    return {"number": number, "outcome": outcome, "said": said, "mib": above >> 20, "seconds": time.monotonic() - start}


def worker(format_: str, start: int, count: int, seed: int) -> None:
    """Read files and print a line about each; the parent learns from a missing line which one ended the process."""
    import hostile_inputs
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with tempfile.TemporaryDirectory() as folder:
        for content in hostile_inputs.sound(format_):  # the first reading loads libraries
            hostile_inputs.read(format_, content, Path(folder) / "x", page=True)
        reset_peak()
        idle = peak()
        for number in range(start, start + count):
            content = hostile_inputs.damaged(format_, number, seed)
            print(json.dumps(judged(format_, number, content, Path(folder) / "x", idle)), flush=True)


def run_worker(format_: str, start: int, count: int, seed: int) -> list[dict]:
    words = [sys.executable, __file__, "--worker", format_, str(start), str(count), "--seed", str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    limit = 120 + count * 2  # a hang in a library that takes no signal
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, env=environment, check=False)
        out, status = done.stdout, f"status {done.returncode} {done.stderr[-300:]}"
    except subprocess.TimeoutExpired as error:
        out, status = (error.stdout or b"").decode(), "no answer"
    found = [json.loads(line) for line in out.splitlines()]
    if len(found) < count:
        found.append(
            {"number": start + len(found), "outcome": "process ended", "said": status, "mib": 0, "seconds": 0.0}
        )
    return found


def fuzz(format_: str, count: int, seed: int, keep: Path | None) -> dict:
    found: list[dict] = []
    while len(found) < count:
        found += run_worker(format_, len(found), count - len(found), seed)
    bad = [one for one in found if one["outcome"] not in ("read", "refused")]
    if keep is not None and bad:
        import hostile_inputs

        for one in bad:
            (keep / format_).mkdir(parents=True, exist_ok=True)
            (keep / format_ / str(one["number"])).write_bytes(hostile_inputs.damaged(format_, one["number"], seed))
    outcomes: dict[str, int] = {}
    for one in found:
        outcomes[one["outcome"]] = outcomes.get(one["outcome"], 0) + 1
    return {
        "format": format_,
        "files": len(found),
        "outcomes": outcomes,
        "most_mib_above_idle": max(one["mib"] for one in found),
        "longest_seconds": round(max(one["seconds"] for one in found), 2),
        "seconds": round(sum(one["seconds"] for one in found), 1),
        "bad": bad[:50],
    }


def write(rows: list[dict], file: Path, seed: int) -> None:
    import incop

    total, bad = sum(row["files"] for row in rows), sum(len(row["bad"]) for row in rows)
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    file.write_text(json.dumps({"seed": seed, "incop": incop.__version__, **about, "rows": rows}, indent=1) + "\n")
    text = [
        f"# {file.stem[11:]}, {file.stem[:10]}",
        "",
        f"{total} damaged files in all, seed {seed}: {bad} of them did anything but be read or be refused in one sentence.",
        f"Limits of each: {MAX_MEMORY >> 20} MiB above the idle process, {MAX_SECONDS:g} s (twice that where a page is drawn).",
        "",
        f"- command: `python tests/campaigns/fuzz_inputs.py --seed {seed}`; python {about['python']}, {about['cores']} cores, busy",
        "",
        "| format | files | read | refused | anything else | most MiB above idle | longest, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        known = row["outcomes"].get("read", 0), row["outcomes"].get("refused", 0)
        text.append(
            f"| {row['format']} | {row['files']} | {known[0]} | {known[1]} | {row['files'] - sum(known)} | "
            f"{row['most_mib_above_idle']} | {row['longest_seconds']:.2f} |"
        )
    file.with_suffix(".md").write_text("\n".join([*text, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the number of files written in the script")
    parser.add_argument("--formats", default=",".join(FILES))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("FORMAT", "START", "COUNT"))
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], int(options.worker[1]), int(options.worker[2]), options.seed)
        return
    rows = []
    for format_ in options.formats.split(","):
        rows.append(fuzz(format_, max(round(FILES[format_] * options.share), 1), options.seed, options.keep))
        shown = {key: value for key, value in rows[-1].items() if key != "bad"}
        print(json.dumps(shown), flush=True)
        for one in rows[-1]["bad"]:
            print("   ", one["number"], one["outcome"], one["said"][:300].replace("\n", " "), flush=True)
    if options.out is not None:
        write(rows, options.out, options.seed)


if __name__ == "__main__":
    main()
