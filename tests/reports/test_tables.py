import csv
import io
import json
import math

from incop.reports import as_csv, as_json, as_markdown, read, tables
from incop.reports.tables import Table, shown

from .conftest import write_run


def test_rows_of_a_run_as_csv(run_folder):
    parts = tables(read([run_folder]))
    rows = list(csv.DictReader(io.StringIO(as_csv(parts["levels"]))))
    assert [row["level"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["reported_ticket"] for row in rows] == ["False", "False", "True", "True"]
    assert float(rows[3]["total_charged_epochs"]) == 24 + 2.5
    assert rows[0]["distance"] == ""


def test_rows_of_a_comparison(comparison_folder):
    parts = tables(read([comparison_folder]))
    assert list(parts) == ["summaries", "differences", "runs", "tickets"]
    rows = list(csv.DictReader(io.StringIO(as_csv(parts["tickets"]))))
    assert len(rows) == 135
    assert json.loads(rows[0]["epochs_per_level"]) == [20.0]
    assert {"total_flops", "in_all_charged_seconds", "search_record_samples"} <= set(rows[0])


def test_json_has_no_nan(tmp_path, comparison_folder):
    for subject in (read([comparison_folder]), read([write_run(tmp_path / "r", nan=True)])):
        data = json.loads(as_json(subject, tables(subject)), parse_constant=lambda word: 1 / 0)
        assert data["kind"] in ("run", "comparison")
    assert data["plan"]["method"] == "incop-if"
    assert len(data["levels"]) == 4


def test_markdown_shows_names_as_they_are():
    table = Table("t", [{"a": "x|y\n<script>", "b": 0.25, "c": None}, {"a": "`[z](w)", "b": math.nan, "c": None}])
    text = as_markdown({"t": table})
    assert "<script>" not in text
    assert "x\\|y &lt;script&gt; | 0.25 |" in text
    assert "| c |" not in text
    assert as_markdown({"t": Table("empty", [])}) == ""


def test_numbers_for_people():
    assert [shown(v) for v in (0.97, 20.0, 1e-7, math.nan, None, True, [1.0, 2.5], {"a": 1.0}, "")] == [
        "0.97",
        "20",
        "1e-07",
        "–",
        "–",
        "yes",
        "1, 2.5",
        "a 1",
        "–",
    ]
