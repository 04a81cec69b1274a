"""Reports: what run folders say, as tables, statistics and one page; never trains, and needs no torch."""

from incop.reports.page_contents import html
from incop.reports.recorded import RecordedComparison, RecordedRun, RunEntry, TicketRow, read
from incop.reports.replayed import Replay
from incop.reports.statistics import MARGIN, ComparisonAnalysis, Difference, Estimate, Summary, analyse
from incop.reports.tables import Table, as_csv, as_json, as_markdown, tables

__all__ = [
    "MARGIN",
    "ComparisonAnalysis",
    "Difference",
    "Estimate",
    "RecordedComparison",
    "RecordedRun",
    "Replay",
    "RunEntry",
    "Summary",
    "Table",
    "TicketRow",
    "analyse",
    "as_csv",
    "as_json",
    "as_markdown",
    "html",
    "read",
    "tables",
]
