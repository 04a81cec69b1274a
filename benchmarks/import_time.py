"""What `import incop` takes: processor time of the import in a fresh process, beside that of `import json` in another."""

from __future__ import annotations

import os
import subprocess
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import statistics

from side_by_side import WARM_UP, arguments, write

NAME = "import-time"
GOAL_MS = 100.0
CASES = [
    ("incop", True),
    ("incop.cli.app", False),
    ("torch", False),
]  # what is imported, and whether the goal is for it
CODE = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"


def seconds(module: str) -> float:
    """Import a module in a process of its own and return the processor time that took."""
    ended = subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True)
    return float(ended.stdout)


def case(module: str, n: int) -> dict[str, object]:
    """Time n pairs of processes, one after the other; who goes first alternates."""
    pairs = []
    for pair in range(WARM_UP + n):
        first, second = (module, "json") if pair % 2 else ("json", module)
        times = {first: seconds(first), second: seconds(second)}
        pairs.append((times[module], times["json"]))
    pairs = pairs[WARM_UP:]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    ms, plain = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    return {"n": n, "median": middle, "q1": low, "q3": high, "ms": ms, "plain_ms": plain}


def main() -> None:
    """Time every case and write the result."""
    options = arguments(NAME, __doc__)
    rows = []
    for module, goal in CASES:
        found = case(module, options.repeats or (101 if goal else 21))
        limit = GOAL_MS / found["plain_ms"] if goal else 0.0  # as a ratio, as the other benchmarks are held
        rows.append({"model": f"import {module}", "data": "–", "what": "per import json", **found, "goal": goal})
        if goal:
            bound = round(limit, 1)
    title = (
        f"Processor time of an import in a fresh process, per that of `import json`; {bound} times is {GOAL_MS:g} ms."
    )
    write(options, NAME, title, bound, rows)


if __name__ == "__main__":
    main()
