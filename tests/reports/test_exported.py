"""What `incop bench-export` has measured is shown on a run's page; a file of a stranger's is read or passed over."""

import json

import pytest

from incop import InputError, reports
from incop.reports.exported import exported
from incop.rundir import RunDir

RATIO = {"median": 2.5, "low": 2.25, "high": 2.75, "won": 1.0}


def speed(batch, ratio=None, runtime=None):
    return {"batch": batch, "ms": 0.75, "against_dense": ratio, "against_runtime": runtime}


def form(word, **more):
    return {"form": word, "bytes": 4096, "memory": 2**21, "speeds": [speed(1), speed(64, RATIO, RATIO)], **more}


def measured():
    return {
        "schema": 2,
        "rows": [form("dense"), form("<b>csr</b>")],
        "not_made": {"onnx": "not installed", "csr": "not faster", "compacted+onnx": "not installed"},
        "verdict": "Faster by pruning: at batch 64 csr is 2.50 times as fast as the dense network",
        "settings": {"rounds": 40, "threads": 1, "memory": "growth", "clock": "processor time", "samples": 256},
        "environment": {"cpu": "a processor", "load": [0.5, 0.25, 0.1], "versions": {"torch": "2.13.0"}},
        "about": {"level": 7, "sparsity": 0.79},
        "date": "2026-11-26",
    }


def put(folder, value):
    RunDir(folder).bench_file.parent.mkdir(exist_ok=True)
    RunDir(folder).bench_file.write_text(value if isinstance(value, str) else json.dumps(value))


def test_the_section_shows_every_form_and_batch(run_folder):
    assert exported(run_folder) is None
    put(run_folder, measured())
    section = exported(run_folder)
    rows = section.tables[0].rows
    assert [(row["form"], row["batch"]) for row in rows] == [
        ("dense", 1), ("dense", 64), ("<b>csr</b>", 1), ("<b>csr</b>", 64)
    ]  # fmt: skip
    assert rows[3]["times as fast"] == "2.50 (2.25 to 2.75)"
    assert rows[3]["memory, MiB"] == 2.0
    assert "Level 7, sparsity 0.79" in section.tables[0].note
    page = reports.html(reports.read([run_folder]))
    assert "2.50 times as fast as the dense network." in page
    assert "&lt;b&gt;csr&lt;/b&gt;" in page
    assert "<b>csr</b>" not in page
    assert "Not made: onnx, compacted+onnx (not installed); csr (not faster)." in page


def test_a_file_of_the_first_schema_is_read(run_folder):
    old = measured() | {"schema": 1}
    counts = {"zipped": 1024, "parameters": 1000, "nonzero": 100, "macs": 900, "macs_nonzero": 90}
    old["rows"] = [{**row, **counts, "difference": None, "same_answers": 1.0} for row in old["rows"]]
    for row in old["rows"]:
        row["speeds"] = [{**speed, "q1": 0.5, "q3": 1.0, "per_second": 1000.0} for speed in row["speeds"]]
    put(run_folder, old)
    before = exported(run_folder)
    put(run_folder, measured())
    assert exported(run_folder).tables[0] == before.tables[0]


def damaged():
    whole = measured()
    yield "not json", "{"
    yield "a list", []
    yield "no rows", whole | {"rows": []}
    yield "too many rows", whole | {"rows": [form("x")] * 101}
    yield "nan", json.dumps(whole).replace("0.75", "NaN", 1)
    yield "infinite", json.dumps(whole).replace("0.75", "1e999", 1)
    yield "below 0", whole | {"rows": [form("x", bytes=-1)]}
    yield "a word for a number", whole | {"rows": [form("x", bytes="many")]}
    yield "true for a number", whole | {"rows": [form("x", bytes=True)]}
    yield "a huge number", whole | {"rows": [form("x", bytes=10**400)]}
    yield "memory below 0", whole | {"rows": [form("x", memory=-1)]}
    yield "no speeds", whole | {"rows": [form("x", speeds=[])]}
    yield "a speed that is a list", whole | {"rows": [form("x", speeds=[[]])]}
    yield "a long verdict", whole | {"verdict": "x" * 10_000}
    yield "no verdict", {key: value for key, value in whole.items() if key != "verdict"}
    yield "settings that are a list", whole | {"settings": []}
    yield "schema of another kind", whole | {"schema": "1"}
    yield "newer", whole | {"schema": 3}


@pytest.mark.parametrize(("what", "content"), list(damaged()), ids=[what for what, _ in damaged()])
def test_a_damaged_file_is_refused_and_the_page_told_without_it(what, content, run_folder):
    put(run_folder, content)
    with pytest.raises(InputError) as caught:
        exported(run_folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert ("newer incop" in str(caught.value)) == (what == "newer")
    if what not in ("not json", "newer"):  # a page takes a while
        return
    page = reports.html(reports.read([run_folder]))
    assert "what was measured of its export cannot be shown" in page
    assert "Forms of the ticket" not in page


@pytest.mark.parametrize("odd", [{"level": [[[1]]], "sparsity": None}, {"level": 10**300}, {}])
def test_odd_values_beside_the_numbers_are_never_long(odd, run_folder):
    put(run_folder, measured() | {"about": odd, "settings": {"threads": {"a": "b" * 9000}}, "environment": {}})
    assert len(exported(run_folder).tables[0].note) < 1000
    assert len(reports.html(reports.read([run_folder]))) < 2**20


def test_a_link_out_of_the_folder_is_not_followed(run_folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "bench.json"
    elsewhere.write_text(json.dumps(measured()))
    (run_folder / "export").mkdir()
    (run_folder / "export" / "bench.json").symlink_to(elsewhere)
    with pytest.raises(InputError, match="leads out of the folder"):
        exported(run_folder)
