"""What the benchmarks share: timing two things side by side, real images, and the dated files of a result."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import incop
from incop.experiments import datasets

WARM_UP = 3  # pairs run before any is counted


def arguments(name: str, description: str) -> argparse.Namespace:
    """Read the command line; `out` defaults to the dated file of this benchmark in `results/`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, help="pairs to time for every row (default: as written in the script)")
    dated = Path(__file__).parent / "results" / f"{datetime.date.today()}-{name}.json"
    parser.add_argument("--out", type=Path, default=dated, help="the .json to write; the .md is written beside it")
    return parser.parse_args()


def images(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first training images, normalised, and their labels; found through INCOP_DATA."""
    data = datasets.load(name, limit=2048)  # 1,843 to train on
    mean, std = (torch.tensor(s).view(1, -1, 1, 1) for s in (data.mean, data.std))
    return (data.train.images[:count].float() / 255 - mean) / std, data.train.labels[:count]


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of one call: on one thread the wall time, less the waiting for other jobs."""
    started = time.process_time()
    run()
    return time.process_time() - started


def side_by_side(a: Callable[[], object], b: Callable[[], object], n: int) -> dict[str, float]:
    """Time n pairs of calls and return the spread of the ratio a / b within a pair.

    The two of a pair run right after each other, so a busy or throttled machine slows both alike; who goes first
    alternates, so neither always finds the caches warmed by the other.
    """
    pairs = []
    for pair in range(WARM_UP + n):
        if pair % 2:
            time_b, time_a = seconds(b), seconds(a)
        else:
            time_a, time_b = seconds(a), seconds(b)
        pairs.append((time_a, time_b))
    pairs = pairs[WARM_UP:]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    ms_a, ms_b = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    return {"n": n, "median": middle, "q1": low, "q3": high, "ms": ms_a, "plain_ms": ms_b}


def machine() -> dict[str, object]:
    """Describe the machine by what decides its speed, not by its name."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def write(options: argparse.Namespace, name: str, title: str, goal: float, rows: list[dict[str, object]]) -> None:
    """Write the result as JSON and as a Markdown table, and print the table.

    Args:
        options: from `arguments`.
        name: of the benchmark, as in its file.
        title: a sentence that says what the ratio is.
        goal: the largest median that will do; rows whose "goal" is False are only for information.
        rows: "model", "data", "what" and the result of `side_by_side`.
    """
    for row in rows:
        row["holds"] = bool(row["median"] <= goal) if row.pop("goal", True) else None
    versions = {"incop": incop.__version__, "torch": torch.__version__, "numpy": np.__version__}
    result = {
        "benchmark": name,
        "date": str(datetime.date.today()),
        "command": f"python benchmarks/{name.replace('-', '_')}.py"
        + (f" --repeats {options.repeats}" if options.repeats else ""),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        "ratio": title,
        "goal": goal,
        "holds": all(row["holds"] is not False for row in rows),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(text := _markdown(result), encoding="utf-8")
    print(text)


def _markdown(result: dict) -> str:
    m, verdicts = result["machine"], {True: "yes", False: "**no**", None: "–"}
    lines = [
        f"# {result['benchmark']}, {result['date']}",
        "",
        f"{result['ratio']} Goal: a median of at most {result['goal']}; {'it holds' if result['holds'] else 'MISSED'}.",
        "",
        f"- machine: {m['cpu']} ({m['instructions']}), {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}; "
        f"{m['threads']} thread used",
        "- versions: " + ", ".join(f"{what} {version}" for what, version in result["versions"].items()),
        f"- command: `{result['command']}`",
        f"- n pairs a row, side by side in one process, after {WARM_UP} to warm up; times are medians of processor time",
        "",
        "| network | data | what | n | ratio: median | quartiles | ms | plain ms | goal holds |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r['model']} | {r['data']} | {r['what']} | {r['n']} | {r['median']:.3f} | {r['q1']:.3f} – {r['q3']:.3f} "
        f"| {r['ms']:.2f} | {r['plain_ms']:.2f} | {verdicts[r['holds']]} |"
        for r in result["rows"]
    ]
    return "\n".join(lines) + "\n"
