"""Live progress of a comparison: one bar, and a line for each run under way, on whatever host it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from incop.cli.tables import printable
from incop.locks import holder
from incop.rundir import RunDir

if TYPE_CHECKING:
    from incop.experiments.comparison import Job
    from incop.experiments.engines import Task

MAX_LINES = 16  # of runs under way; a terminal has some 24 lines


class Listeners(NamedTuple):
    """Who is told what happens, as `compare` takes them."""

    tell: Callable[[Job, int, int], None]
    notice: Callable[[str], None]
    look: Callable[[Sequence[tuple[str, Task]]], None] | None


@contextmanager
def watch_comparison(console: Console, *, lines: bool) -> Iterator[Listeners]:
    """Yield listeners that show on a console how a comparison stands.

    Args:
        console: on a terminal it shows a bar and the runs under way; elsewhere only what failed, was lost or is waited for.
        lines: elsewhere too, a line for each run that has ended.
    """
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    whole = bar.add_task("comparing", total=None)
    terminal = console.is_terminal

    def say(sentence: str) -> None:
        console.print(printable(sentence), highlight=False, soft_wrap=True)

    def tell(job: Job, done: int, of: int) -> None:
        bar.update(whole, completed=done, total=of, description=printable(job.name))
        if job.state == "failed":
            say(f"failed: {job.name}: {job.error}")
        elif lines and not terminal:
            say(f"{job.state}: {job.name} ({done} of {of})")

    if not terminal:
        yield Listeners(tell, say, None)
        return
    with Live(bar, console=console, refresh_per_second=4) as live:

        def look(under_way: Sequence[tuple[str, Task]]) -> None:
            lines = [f"  {standing(name, task)}" for name, task in under_way[:MAX_LINES]]
            if len(under_way) > MAX_LINES:
                lines.append(f"  and {len(under_way) - MAX_LINES} more")
            live.update(Group(bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)), refresh=True)

        yield Listeners(tell, say, look)
        live.update(bar)


def standing(name: str, task: Task) -> str:
    """Say in a line how far a run is, by its records and its folder's lock."""
    who = holder(task.folder)
    if who is None:
        return printable(f"{name} · handed out")
    parts = [name, "level 0"]
    check = RunDir(task.folder).newest_check()
    if check is not None:
        parts[1] = f"level {check.level} · epoch {check.epoch:.1f}"
        if check.judged:
            parts.append(check.judged)
    return printable(" · ".join([*parts, who.partition(" since ")[0]]))
