import math
import re
import xml.etree.ElementTree as ET
from functools import cache

import pytest

from incop.reports.drawing import COLOURS, Style
from incop.reports.plots import (
    Gap,
    Point,
    Series,
    Track,
    bars,
    distances,
    gaps,
    lines,
    points,
)

EVIL = '$\\frac{<script>alert("x")</script> & \x00\ud800 名前 ' + "x" * 300


def all_pictures(text="a name"):
    style = Style.of(1)
    return {
        "lines": lines(
            "one",
            text,
            [Series(text, [0.1, 0.5, 0.9], [0.9, None, 0.7], style, [0.88, None, 0.6], [0.92, None, 0.8])],
            x_label="x",
            y_label="y",
            level=(text, 0.95),
            floor=0.8,
            whole=True,
        ),
        "points": points(
            "two",
            text,
            [Point(text, 3.0, 0.9, style, 0.8, 0.95, True), Point("b", 40.0, 0.5, Style.of(2, control=True))],
            x_label="x",
            y_label="y",
            floor=0.7,
        ),
        "distances": distances(
            "three",
            text,
            [Track(1, [2.0, 4.0], [0.5, 0.01], 1, True), Track(2, [6.0, 8.0], [math.nan, math.nan], 0, False)],
            within=0.1,
            x_label="x",
        ),
        "bars": bars("four", text, [(text, (1.0, 2.0)), ("b", (0.0, 0.5))], parts=("c", "d"), x_label="x"),
        "gaps": gaps(
            "five",
            text,
            [Gap(text, 0, -9.0, -9.5, -8.0, True), Gap("b", 1, 0.1, None, None, False)],
            groups=["s", "t"],
            margin=0.5,
            x_label="x",
        ),
    }


KINDS = ["lines", "points", "distances", "bars", "gaps"]
pictures = cache(all_pictures)


def test_all_kinds_are_drawn():
    assert list(pictures()) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_picture_is_markup_that_fits_into_a_page(kind):
    svg = pictures()[kind].svg
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "a name"
    assert "http" not in svg  # no name space, no metadata
    assert "#fe0" not in svg  # no placeholder is left
    assert "var(--ink)" in svg
    assert set(re.findall(r"var\((--\w+)\)", svg)) <= {"--ink", "--muted", "--grid", "--card"} | {
        f"--s{number}" for number in range(COLOURS)
    }
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
    ids = re.findall(r' id="([^"]+)"', svg)
    assert {a or b for a, b in used} == set(ids)
    assert len(ids) == len(set(ids))


def test_the_same_numbers_give_the_same_bytes():
    assert all_pictures() == pictures()


def test_ids_of_two_pictures_differ():
    ids = [id_ for picture in pictures().values() for id_ in re.findall(r' id="([^"]+)"', picture.svg)]
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_stay_text(kind):
    picture = pictures(EVIL)[kind]
    ET.fromstring(picture.svg)  # well formed: no control character, no half surrogate
    assert "<script" not in picture.svg


def test_styles_are_each_their_own():
    assert len({(s.colour, s.marker) for s in map(Style.of, range(40))}) == 40


def test_nothing_to_draw_is_an_empty_picture():
    for picture in (
        lines("a", "b", [], x_label="x", y_label="y"),
        points("a", "b", [], x_label="x", y_label="y"),
        distances("a", "b", [], within=None, x_label="x"),
        gaps("a", "b", [], groups=[], margin=None, x_label="x"),
    ):
        ET.fromstring(picture.svg)


def test_thousands_of_points_stay_small():
    n = 10_000
    svg = distances(
        "a", "b", [Track(1, range(n), [1 / (i + 1) for i in range(n)], n - 1, True)], within=0.1, x_label="x"
    ).svg
    assert len(svg) < 250_000
