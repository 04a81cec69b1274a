"""Tables and sentences of a run for the terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from incop.experiments.plan import Plan
from incop.records import ACCURACY, Level, Run, Spent, full_retraining
from incop.rundir import RunDir


def plain_console() -> Console:
    """Return the console the commands print on: wide enough not to fold tables when it is no terminal."""
    # no markup: what is printed holds names and sentences of users, in which [data] is no colour
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=160, no_color=True, markup=False)


def printable(text: str) -> str:
    """Return a text without what steers a terminal: a record may be a stranger's, and an escape can hide or forge lines."""
    steering = ("Cc", "Cf", "Cs")
    return "".join("�" if unicodedata.category(s) in steering and s not in "\n\t" else s for s in text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> Table:
    """Return a plain table; the last `numbers` columns are aligned to the right."""
    made = _bare(title)
    for position, column in enumerate(columns):
        right = position >= len(columns) - numbers
        made.add_column(column, justify="right" if right else "left", no_wrap=right or position == 0)
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def _bare(title: str) -> Table:
    # no wrapping of the title: rich would fold it to the width of a narrow table
    return Table(
        title=Text(printable(title), no_wrap=True, overflow="ignore"), title_justify="left", box=None, pad_edge=False
    )


def level_table(levels: Sequence[Level], *, title: str) -> Table:
    """Return the table of levels."""
    made = _bare(title)
    for column in ("level", "sparsity", "of model", "epochs", "validation", "test", "flow distance"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("why it ended", justify="left")
    for level in levels:
        budget = "" if level.max_epochs is None else f"/{level.max_epochs:g}"
        made.add_row(
            str(level.level),
            f"{level.sparsity:.4f}",
            f"{level.model_sparsity:.4f}",
            f"{round(level.trained, 2):g}{budget}",
            _fraction(level.val_accuracy)
            if level.metric == ACCURACY
            else printable(level.judged or f"{level.metric.name} –"),
            _fraction(level.test_accuracy),
            "–" if level.distance is None else f"{level.distance:.3g}",
            printable("; ".join([level.stop_reason, *level.notices])),
        )
    return made


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def spent_lines(run: Run) -> list[str]:
    """Say what was spent, against full retraining to the same sparsity."""
    pruned = [level for level in run.levels if level.level > 0]
    spent = Spent.total(level.spent for level in pruned)
    full = full_retraining(run.levels)
    lines = []
    if pruned and full is not None:
        share = f" ({spent.epochs / full:.0%})" if full else ""
        lines.append(
            f"spent after the dense network: {round(spent.epochs, 2):g} epochs of the {round(full, 2):g} that full retraining "
            f"takes to this sparsity{share}; training {spent.seconds:.1f} s, probing {spent.probe_seconds:.1f} s "
            f"({spent.probe_samples} samples)"
        )
    if pruned:
        before, after = run.levels[0].test_accuracy, pruned[-1].test_accuracy
        if before is not None and after is not None:
            lines.append(
                f"last ticket: sparsity {pruned[-1].sparsity:.4f}, test accuracy {after:.4f} "
                f"({100 * (after - before):+.2f} points against the dense network)"
            )
    if run.error:
        lines.append(f"{run.status}: {run.error}")
    return lines


def say_code(plan: Plan) -> None:
    """Say on standard error that a plan's model is code which now runs, and which."""
    from incop.experiments import models  # imports torch

    named = models.code_of(plan.model)
    if named is not None:
        print(f"incop: the model is code, which is run: {printable(named)}", file=sys.stderr)


def print_run(console: Console, run: RunDir) -> None:
    """Print the levels of a run that has ended, what was spent, and where it lies."""
    summary = run.read_summary()
    title = f"{summary.method} · {summary.model} · {summary.data} · seed {summary.seed}"
    console.print(level_table(summary.levels, title=title))
    for line in spent_lines(summary):
        console.print(line, highlight=False)
    console.print(f"run folder: {run.path}", highlight=False, soft_wrap=True)
