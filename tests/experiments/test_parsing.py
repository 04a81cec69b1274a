"""A plan's words are read into objects once on their way from the command line to the search."""

import sys
from collections import Counter

import pytest

from incop import flow, pruning, stopping
from incop.cli import main

PARSERS = {
    "rule": stopping.parse,
    "meter": flow.parse_meter,
    "amount": pruning.parse_amount,
    "selection": pruning.parse_selection,
    "score": pruning.parse_score,
}
STATED = {
    "rule": "flow within 0.11",
    "meter": "information:mean",
    "amount": "0.3",
    "selection": "layer:0.5",
    "score": "random",
}


def parses(words):
    """Count how often each part is parsed while a command runs, whoever calls the parser and by what name."""
    codes, counts = {parse.__code__: name for name, parse in PARSERS.items()}, Counter()

    def count(frame, event, argument):
        if event == "call" and frame.f_code in codes:
            counts[codes[frame.f_code]] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        assert main(words) == 0
    finally:
        sys.setprofile(before)
    return dict(counts)


@pytest.mark.parametrize("stated", [(), ("rule",), ("amount", "score"), tuple(STATED)])
def test_a_search_parses_each_part_once(stated, tmp_path):
    flags = [word for key in stated for word in (f"--{key}", STATED[key])]
    quick = ["--method", "incop-if", "--levels", "1", "--max-epochs", "1", "--limit", "50", "--progress", "off"]
    assert parses(["search", *quick, *flags, "--out", str(tmp_path / "R")]) == dict.fromkeys(PARSERS, 1)
