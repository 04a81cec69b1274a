"""Tables: plain rows of a run or a comparison, and the same as text, CSV, Markdown or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from incop.records import ACCURACY
from incop.reports.costs import TicketCost, costs_of_ticket, level_cost, samples_per_epoch
from incop.reports.recorded import RecordedComparison, RecordedRun, reported
from incop.reports.statistics import MARGIN, ComparisonAnalysis, Estimate, analyse

COSTS = (
    "epochs",
    "probe_epochs",
    "charged_epochs",
    "samples",
    "probe_samples",
    "seconds",
    "probe_seconds",
    "charged_seconds",
    "flops",
    "dense_flops",
    "record_samples",
    "record_seconds",
)


@dataclass(frozen=True)
class Table:
    """A table of plain values.

    Args:
        title: what it shows.
        rows: one mapping a row, all with the same keys, which are the columns.
        note: a sentence on how to read it.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = field(default="")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))


def shown(value: object) -> str:
    """Return a value as a person reads it: four digits of a fraction, a dash for nothing."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None or value == "" else str(value)


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if value.is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def _cost(prefix: str, cost: TicketCost) -> dict[str, Any]:
    return {f"{prefix}_{unit}": getattr(cost, unit) for unit in COSTS}


def _estimate(prefix: str, value: Estimate | None) -> dict[str, Any]:
    return {
        prefix: None if value is None else value.mean,
        f"{prefix}_low": None if value is None else value.low,
        f"{prefix}_high": None if value is None else value.high,
    }


def level_table(recorded: RecordedRun) -> Table:
    """Return the levels of a run: what each reached, and what it and the search up to it have cost."""
    levels = recorded.levels
    per_epoch = samples_per_epoch(levels)
    tickets = {level.level for level in reported(levels)}
    rows = []
    for level in levels:
        search, total, in_all = costs_of_ticket(levels, level.level)
        rows.append(
            {
                "level": level.level,
                "sparsity": level.sparsity,
                "model_sparsity": level.model_sparsity,
                "remaining": level.remaining,
                "test_accuracy": level.test_accuracy,
                "val_accuracy": level.val_accuracy,
                **(
                    {}
                    if level.metric == ACCURACY
                    else {"metric": level.metric.name, "metric_value": level.metric_value}
                ),
                "reported_ticket": level.level in tickets,
                "max_epochs": level.max_epochs,
                "searched_epochs": level.searched.epochs,
                "distance": level.distance,
                "stop_reason": level.stop_reason,
                "rewind": level.rewind,
                "notices": "; ".join(level.notices),
            }
            | {unit: getattr(level_cost(level, level.spent, per_epoch), unit) for unit in COSTS}
            | {
                "search_charged_epochs": search.charged_epochs,
                "total_charged_epochs": total.charged_epochs,
                "in_all_charged_epochs": in_all.charged_epochs,
            }
        )
    return Table("Levels", rows)


def row_table(comparison: RecordedComparison) -> Table:
    """Return the reported tickets of a comparison, one row for each method, seed and sparsity."""
    rows = [
        {
            "data": row.data,
            "model": row.model,
            "target": row.target,
            "label": row.label,
            "control_of": ", ".join(row.control_of) or None,
            "seed": row.seed,
            "level": row.level,
            "sparsity": row.sparsity,
            "model_sparsity": row.model_sparsity,
            "test_accuracy": row.test_accuracy,
            "val_accuracy": row.val_accuracy,
            "dense_test_accuracy": row.dense_test_accuracy,
            "epochs_per_level": list(row.epochs),
            "stop_reasons": list(row.stop_reasons),
        }
        | _cost("search", row.search)
        | _cost("total", row.total)
        | _cost("in_all", row.in_all)
        | {"folder": row.folder}
        for row in comparison.rows
    ]
    return Table("Reported tickets", rows)


def summary_table(analysis: ComparisonAnalysis) -> Table:
    """Return the methods at each sparsity, over seeds."""
    rows = [
        {
            "data": s.data,
            "model": s.model,
            "target": s.target,
            "label": s.label,
            "control_of": ", ".join(s.control_of) or None,
            "n": s.accuracy.n,
        }
        | _estimate("test_accuracy", s.accuracy)
        | {"dense_test_accuracy": s.dense.mean if s.dense else None}
        | _estimate("search_epochs", s.search_epochs)
        | _estimate("total_epochs", s.total_epochs)
        | _estimate("total_seconds", s.total_seconds)
        | {"on_front": s.on_front}
        for s in analysis.summaries
    ]
    return Table(
        "Methods over seeds", rows, "Epochs and seconds after level 0, probing included; 95 % bootstrap intervals."
    )


def difference_table(analysis: ComparisonAnalysis) -> Table:
    """Return the paired differences: every method against the reference, and against its controls."""
    rows = [
        {
            "data": d.data,
            "model": d.model,
            "target": d.target,
            "label": d.label,
            "against": d.against,
            "role": d.role,
            "n": d.accuracy.n,
        }
        | _estimate("difference", d.accuracy)
        | {"p": d.p, "p_adjusted": d.p_adjusted, "verdict": d.verdict, "outcome": d.outcome}
        for d in analysis.differences
    ]
    points = f"{100 * analysis.margin:g} points"
    return Table("Paired differences of test accuracy", rows, f"First minus second over seeds; margin {points}.")


def job_table(comparison: RecordedComparison) -> Table:
    """Return the runs of a comparison and their states."""
    rows = [
        {
            "label": job.label,
            "control_of": ", ".join(job.control_of) or None,
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
    return Table("Runs", rows)


def tables(subject: RecordedRun | RecordedComparison, *, margin: float = MARGIN) -> dict[str, Table]:
    """Return all tables of a run or a comparison by name, the finest rows last."""
    if isinstance(subject, RecordedRun):
        return {"levels": level_table(subject)}
    analysis = analyse(subject, margin=margin)
    return {
        "summaries": summary_table(analysis),
        "differences": difference_table(analysis),
        "runs": job_table(subject),
        "tickets": row_table(subject),
    }


def as_csv(table: Table) -> str:
    """Return a table as CSV: numbers in full, lists as JSON, nothing for what is not known."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([_plain(row.get(column)) for column in table.columns])
    return out.getvalue()


def _plain(value: object) -> object:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value


def as_markdown(parts: Mapping[str, Table]) -> str:
    """Return tables as Markdown, for people; columns in which no row says anything are left out."""
    return "\n".join(_markdown(table) for table in parts.values() if table.rows)


def _markdown(table: Table) -> str:
    columns = [c for c in table.columns if any(row.get(c) not in (None, "", [], ()) for row in table.rows)]
    lines = [f"## {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    lines.append(f"| {' | '.join(columns)} |")
    lines.append(f"|{' --- |' * len(columns)}")
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in table.rows]
    return "\n".join([*lines, ""])


def _cell(value: object) -> str:
    text = " ".join(shown(value).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(sign, safe)
    return text


def as_json(subject: RecordedRun | RecordedComparison, parts: Mapping[str, Table]) -> str:
    """Return tables as one JSON object, with what is missing said under "notices"; NaN is null."""
    if isinstance(subject, RecordedRun):
        run = subject.run
        head: dict[str, Any] = {
            "kind": "run",
            "method": run.method,
            "data": run.data,
            "model": run.model,
            "seed": run.seed,
            "status": run.status,
            "error": run.error,
            "plan": subject.plan,
            "environment": run.environment,
            "command": run.command,
        }
    else:
        head = {
            "kind": "comparison",
            "title": subject.title,
            "settings": subject.settings,
            "notices": list(subject.notices),
        }
    content = head | {name: list(table.rows) for name, table in parts.items()}
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
