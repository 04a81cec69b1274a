"""Live progress of a search on a terminal: level, epoch, flow distance, sparsity, accuracy, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from incop.cli.tables import plain_console, printable
from incop.experiments.plan import Plan
from incop.records import Check, Level

REDRAW = 0.1  # seconds between two redraws: steps come a thousand times a second


def say(sentence: str) -> None:
    """Print what the user should know at once to the standard error stream."""
    print(f"incop: {printable(sentence)}", file=sys.stderr)


@contextmanager
def watch_progress(plan: Plan, mode: str) -> Iterator[tuple[Console, tuple[Any, Any, Any]]]:
    """Yield a console, and listeners for checks, levels and steps, as the mode wants them."""
    console = plain_console()
    if mode == "lines":
        yield console, (None, lambda level: console.print(_line(level), highlight=False), None)
    elif mode == "off" or not console.is_terminal:
        yield console, (None, None, None)
    else:
        bar = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=console, transient=True)
        with bar:
            yield console, _listeners(plan, bar)


def _listeners(
    plan: Plan, bar: Progress
) -> tuple[Callable[[Check], None], Callable[[Level], None], Callable[..., None]]:
    levels = plan.levels or 0
    budget = plan.max_epochs or 1.0
    task = bar.add_task("starting", total=(levels + 1) * budget)
    state: dict[str, Any] = {"sparsity": 0.0, "check": None, "drawn": 0.0, "spent": 0.0, "start": time.monotonic()}

    def draw(level: int, epoch: float) -> None:
        parts = [f"level {level} of {levels}", f"epoch {epoch:.1f} of {budget:g}"]
        check: Check | None = state["check"]
        if check is not None and check.level == level:
            if check.distance is not None:
                parts.append(f"flow {check.distance:.3g} from dense ({plan.rule})")
            if check.judged:
                parts.append(check.judged)
        parts.append(f"last sparsity {state['sparsity']:.3f}")
        done = state["spent"] + epoch
        if done:
            left = ((levels - level + 1) * budget - epoch) * (time.monotonic() - state["start"]) / done
            parts.append(f"at most {_clock(left)} left")
        bar.update(task, completed=level * budget + epoch, description=" · ".join(parts))

    def on_check(check: Check) -> None:
        state["check"] = check
        draw(check.level, check.epoch)

    def on_level(level: Level) -> None:
        state["sparsity"] = level.sparsity
        state["spent"] += level.epochs
        bar.console.print(_line(level), highlight=False)

    def on_step(level: int, epoch: float, step: int) -> None:
        now = time.monotonic()
        if now - state["drawn"] >= REDRAW:
            state["drawn"] = now
            draw(level, epoch)

    return on_check, on_level, on_step


def _line(level: Level) -> str:
    test = "" if level.test_accuracy is None else f" · test {level.test_accuracy:.3f}"
    return f"{level}{test}" + "".join(f" · {notice}" for notice in level.notices)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
