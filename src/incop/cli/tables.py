"""Tables and sentences of a run for the terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from incop.experiments.plan import Plan
from incop.records import ACCURACY, ChosenTicket, Level, Run, Spent, full_retraining
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
    """Return the table of levels; of a search for the sparsest ticket only the stops on its path and what was tried."""
    if any(level.role for level in levels):
        return _edge_table([level for level in levels if level.role or level.level == 0], title=title)
    made = _bare(title)
    for column in ("level", "sparsity", "of model", "epochs", "validation", "test", "flow distance"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("why it ended", justify="left")
    for level in levels:
        made.add_row(
            *_beginning(level),
            _fraction(level.test_accuracy),
            "–" if level.distance is None else f"{level.distance:.3g}",
            printable("; ".join([level.stop_reason, *level.notices])),
        )
    return made


def _edge_table(levels: Sequence[Level], *, title: str) -> Table:
    made = _bare(title)
    for column in (
        "level",
        "sparsity",
        "of model",
        "epochs",
        "validation",
        "likeness",
        "drop",
        "95 % interval",
        "test",
    ):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("what", justify="left")
    what = {"path": "stop on the path", "tried": "tried by a short last level", "finished": "last level in full"}
    for level in levels:
        known = level.drop_low is not None and level.drop_high is not None
        made.add_row(
            *_beginning(level),
            "–" if level.likeness is None else f"{level.likeness:.3f}",
            "–" if level.drop is None else f"{level.drop:.4f}",
            f"{level.drop_low:.4f}, {level.drop_high:.4f}" if known else "–",
            _fraction(level.test_accuracy),
            printable("; ".join([what.get(level.role, level.stop_reason), *level.notices])),
        )
    return made


def _beginning(level: Level) -> tuple[str, ...]:
    budget = "" if level.max_epochs is None else f"/{level.max_epochs:g}"
    return (
        str(level.level),
        f"{level.sparsity:.4f}",
        f"{level.model_sparsity:.4f}",
        f"{round(level.trained, 2):g}{budget}",
        _fraction(level.val_accuracy)
        if level.metric == ACCURACY
        else printable(level.judged or f"{level.metric.name} –"),
    )


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
    if pruned and run.chosen is None:
        before, after = run.levels[0].test_accuracy, pruned[-1].test_accuracy
        if before is not None and after is not None:
            lines.append(
                f"last ticket: sparsity {pruned[-1].sparsity:.4f}, test accuracy {after:.4f} "
                f"({100 * (after - before):+.2f} points against the dense network)"
            )
    if run.chosen is not None:
        lines.append(chosen_line(run, run.chosen))
    if run.error:
        lines.append(f"{run.status}: {run.error}")
    return lines


def chosen_line(run: Run, chosen: ChosenTicket) -> str:
    """Say which ticket is the sparsest that does the job, what it lost, and what finding it took."""
    cost = f"{chosen.epochs_after_dense:.3g} epochs after the dense network, probing counted"
    if chosen.level is None or chosen.sparsity is None or chosen.drop is None:
        return f"{chosen.verdict} ({cost})"
    interval = (
        ""
        if chosen.drop_low is None or chosen.drop_high is None
        else f" [{chosen.drop_low:.4f}, {chosen.drop_high:.4f}]"
    )
    dense = run.levels[0].test_accuracy
    test = "" if chosen.test_accuracy is None else f", test accuracy {chosen.test_accuracy:.4f}"
    beside = "" if dense is None or not test else f" (dense {dense:.4f})"
    return f"{chosen.verdict}: sparsity {chosen.sparsity:.4f}, {chosen.drop:.4f} lost on validation{interval}{test}{beside}; {cost}"


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
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"run folder: {run.path}", highlight=False, soft_wrap=True)
