"""What goes on the page of a run and on the page of a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from incop.errors import InputError
from incop.records import only_incop
from incop.reports.comparison_figures import figures_of_comparison
from incop.reports.costs import costs_of_ticket
from incop.reports.exported import exported
from incop.reports.page import Fact, Page, Section, render
from incop.reports.recorded import RecordedComparison, RecordedRun, reported
from incop.reports.replayed import Replay, section
from incop.reports.run_figures import accuracies, figures_of_run, spending
from incop.reports.statistics import MARGIN, ComparisonAnalysis, analyse
from incop.reports.tables import Table, level_table, shown
from incop.reports.verdict import of_comparison, of_run, points

MAX_INSIDE = 8  # runs whose inside is drawn on a page; each takes two pictures


def html(subject: RecordedRun | RecordedComparison, *, margin: float = MARGIN, replays: Sequence[Replay] = ()) -> str:
    """Return the page of a run or a comparison.

    Args:
        subject: what was read.
        margin: accuracy that may be lost and still be called no loss, a fraction.
        replays: what other rules would have done, for a section of their own.

    Raises:
        MissingExtra: a package of the extra "report" or "stats" is not installed.
    """
    return render(page_of(subject, margin=margin, replays=replays))


def page_of(
    subject: RecordedRun | RecordedComparison, *, margin: float = MARGIN, replays: Sequence[Replay] = ()
) -> Page:
    """Return what goes on the page; see `html`."""
    again = [section(replays)] if replays else []
    return _of_run(subject, again) if isinstance(subject, RecordedRun) else _of_comparison(subject, margin, again)


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    return Table(title, [{"key": key, "value": value} for key, value in values.items()])


def _of_run(recorded: RecordedRun, again: Sequence[Section]) -> Page:
    run = recorded.run
    sections = []
    if run.levels:
        sections.append(Section("Accuracy and cost", figures=(accuracies(recorded), *spending(recorded))))
    figures = figures_of_run(recorded, "run")
    if figures:
        sections.append(Section("Flow and layers", figures=figures))
    sections += again
    notices = [notice for level in run.levels for notice in (f"level {level.level}: {text}" for text in level.notices)]
    try:
        measured = exported(recorded.path)
        sections += [measured] if measured is not None else []
    except InputError as error:  # the run itself is told all the same
        notices.append(f"what was measured of its export cannot be shown: {error}")
    if run.levels:
        sections.append(Section("All numbers", folded=(level_table(recorded),)))
    told = [_pairs("Plan", recorded.plan)] + ([_pairs("Environment", run.environment)] if run.environment else [])
    sections.append(Section("Settings", tables=told))
    return Page(
        f"{run.method} on {run.data}",
        f"{run.model} · seed {run.seed} · {run.status}",
        of_run(recorded),
        _run_facts(recorded),
        notices,
        sections,
        [command] if (command := only_incop(run.command)) else [],
    )


def _run_facts(recorded: RecordedRun) -> list[Fact]:
    tickets = reported(recorded.levels)
    if not tickets:
        return []
    ticket = tickets[-1]
    search, total, in_all = costs_of_ticket(recorded.levels, ticket.level)
    dense = recorded.run.dense.get("test_accuracy")
    assert ticket.test_accuracy is not None
    gap = f"{points(ticket.test_accuracy - dense)} points against dense" if isinstance(dense, int | float) else ""
    return [
        Fact("test accuracy", f"{ticket.test_accuracy:.4f}", gap),
        Fact("sparsity", f"{ticket.sparsity:.4f}", f"{ticket.model_sparsity:.4f} of all parameters"),
        Fact("epochs of the search", f"{search.epochs:.4g}", f"and probing worth {search.probe_epochs:.3g}"),
        Fact("epochs after level 0", f"{total.epochs:.4g}", f"and probing worth {total.probe_epochs:.3g}"),
        Fact("time after level 0", f"{total.charged_seconds:.3g} s", f"of which probing {total.probe_seconds:.3g} s"),
        Fact("epochs in all", f"{in_all.epochs:.4g}", "with the dense network"),
    ]


def _of_comparison(comparison: RecordedComparison, margin: float, again: Sequence[Section]) -> Page:
    analysis = analyse(comparison, margin=margin)
    places = list(dict.fromkeys((job.data, job.model) for job in comparison.jobs))
    sections = []
    for number, place in enumerate(places):
        figures = figures_of_comparison(comparison, analysis, place, f"p{number}")
        if figures:
            sections.append(Section(f"{place[0]} · {place[1]}", figures=figures))
    sections += _insides(comparison)
    sections += again
    sections.append(Section("All numbers", folded=(_tickets(comparison), _runs(comparison))))
    environment = next((r.run.environment for r in comparison.runs if r.run.environment), {})
    told = [_pairs("RecordedComparison", comparison.settings)] if comparison.settings else []
    told += [_pairs("Environment of the first run", environment)] if environment else []
    sections.append(Section("Settings", tables=told))
    return Page(
        comparison.title,
        " · ".join(f"{data}, {model}" for data, model in places),
        of_comparison(comparison, analysis),
        _comparison_facts(comparison, analysis),
        comparison.notices,
        sections,
        _commands(comparison),
    )


def _commands(comparison: RecordedComparison) -> list[str]:
    if not comparison.settings:
        found = (only_incop(r.run.command) for r in comparison.runs)
        return list(dict.fromkeys(command for command in found if command))
    if command := only_incop(comparison.settings.get("command")):
        return [command]
    return [f"incop compare {shlex.quote(f'{comparison.title}/comparison.toml')} --out NEW_FOLDER"]


def _insides(comparison: RecordedComparison) -> list[Section]:
    """Draw the inside of one run for each method, data set and model: the lowest seed that has a flow."""
    chosen: dict[tuple[str, str, str], RecordedRun] = {}
    for recorded in sorted(comparison.runs, key=lambda r: (r.job.seed, -(r.job.sparsity or 0.0))):
        job = recorded.job
        if not job.control_of and any(level.flow is not None for level in recorded.levels):
            chosen.setdefault((job.data, job.model, job.label), recorded)
    ordered = [recorded for _, recorded in sorted(chosen.items())]
    sections: list[Section] = []
    for number, recorded in enumerate(ordered[:MAX_INSIDE]):
        job = recorded.job
        try:
            figures = figures_of_run(recorded, f"i{number}")
        except InputError:  # its checks are damaged; what is compared does not need them
            continue
        sections.append(
            Section(
                f"Inside {job.label} on {job.data} · {job.model}, seed {job.seed}",
                ("One run as an example; every run folder has its own report.",),
                figures=figures,
                link="" if sections else "Inside the runs",
            )
        )
    return sections


def _tickets(comparison: RecordedComparison) -> Table:
    rows = [
        {
            "method": row.label,
            "data": row.data,
            "model": row.model,
            "seed": row.seed,
            "target": row.target,
            "sparsity": row.sparsity,
            "of all parameters": row.model_sparsity,
            "test accuracy": row.test_accuracy,
            "validation": row.val_accuracy,
            "dense test": row.dense_test_accuracy,
            "epochs of the levels": ", ".join(shown(round(value, 3)) for value in row.epochs),
            "search, charged epochs": row.search.charged_epochs,
            "after level 0": row.total.charged_epochs,
            "in all": row.in_all.charged_epochs,
            "after level 0, s": row.total.charged_seconds,
        }
        for row in comparison.rows
    ]
    return Table("Every reported ticket", rows)


def _runs(comparison: RecordedComparison) -> Table:
    rows = [
        {
            "method": job.label,
            "control of": ", ".join(job.control_of) or None,
            "data": job.data,
            "model": job.model,
            "seed": job.seed,
            "sparsity": job.sparsity,
            "state": job.state,
            "error": job.error,
            "folder": job.folder,
        }
        for job in comparison.jobs
    ]
    return Table("Every run", rows)


def _comparison_facts(comparison: RecordedComparison, analysis: ComparisonAnalysis) -> list[Fact]:
    done, seeds = len(comparison.runs), sorted({job.seed for job in comparison.jobs})
    names = comparison.labels
    controls = len(comparison.controls)
    targets = sorted({s.target for s in analysis.summaries})
    first = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}" if seeds else "none"
    return [
        Fact("runs finished", f"{done} of {len(comparison.jobs)}"),
        Fact("methods", str(len(names) - controls), f"and {controls} controls"),
        Fact("seeds", str(len(seeds)), first),
        Fact("sparsities", str(len(targets)), ", ".join(f"{t:g}" for t in targets[:6])),
        Fact("held against", analysis.reference or "nothing", f"margin {100 * analysis.margin:g} points"),
    ]
