"""The page: one self-contained HTML file from sections of figures and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from incop.reports.drawing import Picture
from incop.reports.extras import load
from incop.reports.tables import Table, shown


@dataclass(frozen=True)
class Heat:
    """A table whose cells are shaded by their numbers: one row a name, one column a level.

    Args:
        columns: the levels.
        rows: the numbers of each name; None where there is none.
        span: the number that is shaded in full.
    """

    columns: Sequence[int]
    rows: Mapping[str, Sequence[float | None]]
    span: float = 1.0

    def shade(self, value: float | None) -> str:
        """Return how much of the shade a cell gets, as a CSS percentage."""
        if value is None or not math.isfinite(value) or not self.span:
            return "0%"
        return f"{100 * min(abs(value) / self.span, 1.0):.1f}%"


@dataclass(frozen=True)
class Figure:
    """One figure: a picture with its table behind it, or a heat table.

    Args:
        title: what it shows.
        caption: how to read it.
        picture: the drawing, or None.
        heat: a heat table instead.
        table: the numbers behind the drawing.
    """

    title: str
    caption: str
    picture: Picture | None = None
    heat: Heat | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        title: its heading, unique on the page.
        text: sentences under the heading.
        figures: its figures.
        tables: tables that are shown openly.
        folded: tables that are opened by the reader.
        link: what the list of sections calls it; None: its title; empty: it is not listed.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    link: str | None = None


@dataclass(frozen=True)
class Fact:
    """A number with its name, for the head of the page."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that a page holds.

    Args:
        title: its heading.
        subtitle: what was run, in a line.
        verdict: sentences, the main one first.
        facts: numbers to see at a glance.
        notices: what is missing or wrong.
        sections: the sections, in their order.
        commands: what repeats it.
    """

    title: str
    subtitle: str
    verdict: Sequence[str]
    facts: Sequence[Fact] = ()
    notices: Sequence[str] = ()
    sections: Sequence[Section] = ()
    commands: Sequence[str] = ()


def render(page: Page) -> str:
    """Return the page as HTML; every text is escaped, only the drawings are markup."""
    purpose = "an HTML report"
    jinja2 = load("jinja2", extra="report", purpose=purpose)
    markup = load("markupsafe", extra="report", purpose=purpose).Markup
    folder = resources.files("incop.reports") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _text
    environment.filters["drawing"] = lambda picture: markup(picture.svg)
    environment.tests["narrow"] = _narrow
    style = markup((folder / "page.css").read_text(encoding="utf-8"))
    html: str = environment.get_template("page.html").render(page=page, style=style)
    return html


def _text(value: Any) -> str:
    """Return a value as text without half surrogates, which no encoding can write."""
    return shown(value).encode("utf-8", "replace").decode("utf-8")


def _narrow(value: Any) -> bool:
    """Say whether a cell fits on one line."""
    return len(shown(value)) <= 24
