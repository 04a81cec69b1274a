"""Every promise of the security page names a test, and the test is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
FULL = re.findall(r"`(tests/[\w/.]+)::(\w+)`", PAGE)
SHORT = [("tests/faults/test_hostile_files.py", name) for name in re.findall(r"`(test_\w+)`", PAGE)]


def test_the_named_tests_are_there():
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in {*FULL, *SHORT}}
    assert [(file, name) for file, name in sorted({*FULL, *SHORT}) if f"def {name}(" not in texts[file]] == []


def test_every_promise_names_one():
    promised = PAGE.partition("## What is promised")[2].partition("## What is not promised")[0]
    paragraphs = re.split(r"\n\*\*", promised)[1:]
    assert len(paragraphs) == 5
    assert all("test_" in paragraph for paragraph in paragraphs)


def test_the_limits_said_are_the_limits_kept():
    from incop import checkpoint_files, rundir
    from incop.experiments.datasets import pictures, stored_parts
    from incop.experiments.models import MAX_PARAMETERS
    from incop.record_json import MAX_COUNT, MAX_DEPTH
    from incop.reports.recorded import MAX_JOBS

    assert (stored_parts.MAX_BYTES, stored_parts.MAX_EXAMPLES, stored_parts.MAX_RATIO, stored_parts.SMALL) == (
        8 << 30,
        10_000_000,
        100,
        32 << 20,
    )
    assert (rundir.MAX_TOML, rundir.MAX_JSON, rundir.MAX_RECORDS, rundir.MAX_LINE) == (
        1 << 16,
        1 << 24,
        1 << 28,
        1 << 22,
    )
    assert (rundir.MAX_DOTS, MAX_DEPTH, MAX_COUNT, MAX_JOBS, pictures.MAX_SIDE) == (256, 20, 2**53, 10_000, 4096)
    assert (checkpoint_files.MAX_HEADER, MAX_PARAMETERS) == (4 << 20, 500_000_000)
