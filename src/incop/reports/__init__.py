"""Reports: what run folders say, as tables, statistics and one page; never trains, and needs no torch."""

from incop.reports.compare import Comparison, Job, Recorded, Row, read
from incop.reports.replayed import Replay
from incop.reports.statistics import MARGIN, Analysis, Difference, Estimate, Summary, analyse
from incop.reports.subjects import html
from incop.reports.tables import Table, as_csv, as_json, as_markdown, tables

__all__ = [
    "MARGIN",
    "Analysis",
    "Comparison",
    "Difference",
    "Estimate",
    "Job",
    "Recorded",
    "Replay",
    "Row",
    "Summary",
    "Table",
    "analyse",
    "as_csv",
    "as_json",
    "as_markdown",
    "html",
    "read",
    "tables",
]
