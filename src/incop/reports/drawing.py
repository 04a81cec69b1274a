"""Drawing: an empty picture, the looks of lines and marks, and what makes markup for a page of a finished one.

A picture is drawn in placeholder colours, which are then replaced by the page's CSS variables. Text stays text, ids are
the picture's own, and the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from incop.reports.extras import load

COLOURS = 8  # series colours of the page, --s0 … --s7, told apart by the colour-blind
INK, MUTED, GRID, PAPER = "#fe0100", "#fe0101", "#fe0102", "#fe0103"
PLACEHOLDERS = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--card"} | {
    f"#fe02{number:02x}": f"--s{number}" for number in range(COLOURS)
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
SHAPES = {  # the same markers for the legend, in a box of 10 × 10
    "o": "M5 1A4 4 0 1 1 5 9A4 4 0 1 1 5 1Z",
    "s": "M1.5 1.5H8.5V8.5H1.5Z",
    "^": "M5 1L9 8.5H1Z",
    "D": "M5 .5L9.5 5L5 9.5L.5 5Z",
    "v": "M5 9L9 1.5H1Z",
    "P": "M3.5 1H6.5V3.5H9V6.5H6.5V9H3.5V6.5H1V3.5H3.5Z",
    "X": "M3 1L5 3L7 1L9 3L7 5L9 7L7 9L5 7L3 9L1 7L3 5L1 3Z",
    "p": "M5 .8L9.2 4L7.6 9H2.4L.8 4Z",
}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the reader's own font
    "svg.hashsalt": "incop",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # the widest of the usual fonts: what fits in it fits in the page's
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "patch.linewidth": 0,
}
WIDTH, HEIGHT = 4.8, 3.1  # inches; narrow, so that the text is readable on a phone


@dataclass(frozen=True)
class Style:
    """How a series looks: colour and marker together are its own, a control is hollow and dashed."""

    colour: int
    marker: str
    control: bool = False

    @classmethod
    def of(cls, number: int, *, control: bool = False) -> Style:
        """Return the style of the series with this number."""
        return cls(number % COLOURS, MARKERS[(number + number // COLOURS) % len(MARKERS)], control)


@dataclass(frozen=True)
class Key:
    """One entry of a legend, for the page to show.

    Args:
        name: what it stands for.
        shape: an SVG path in a box of 10 × 10.
        colour: number of the series colour; None: the ink.
        hollow: only the outline.
        dashed: the line is dashed.
    """

    name: str
    shape: str
    colour: int | None = None
    hollow: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Args:
        svg: markup, safe to put into a page as it is.
        legend: what the lines and marks stand for.
    """

    svg: str
    legend: tuple[Key, ...] = ()


@contextmanager
def sheet(name: str, alt: str, *, height: float = HEIGHT) -> Any:
    """Give the axes of a new picture, and what finishes it as markup once the block is left."""
    purpose = "a report with pictures"
    matplotlib = load("matplotlib", extra="report", purpose=purpose)
    figures = load("matplotlib.figure", extra="report", purpose=purpose)
    done: list[str] = []
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the measuring font lacks: the reader's font draws it
        figure = figures.Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        axes.tick_params(length=0)
        yield axes, lambda: done[0]
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
        done.append(_inline(out.getvalue(), name, alt))


def _inline(markup: str, name: str, alt: str) -> str:
    """Turn a standalone SVG into one for a page: no prologue, its own ids, the page's colours and font."""
    body = markup[markup.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    box = re.search(r'viewBox="([\d. -]+)"', body)
    assert box is not None
    body = body[body.index(">") + 1 :]
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'url\(#([^")]+)\)', rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"font-family: [^;\"]*; ", "", body)
    body = re.sub(r' transform="rotate\(-0 [^)]*\)"|<g/>', "", body)
    for placeholder, variable in PLACEHOLDERS.items():
        body = body.replace(placeholder, f"var({variable})")
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{_attribute(alt)}">{body.strip()}'


def _attribute(text: str) -> str:
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(sign, safe)
    return _clean(text)


def _clean(text: str) -> str:
    """Leave out what no markup may hold: control characters and half surrogates."""
    return "".join(" " if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)


def short(text: str, most: int) -> str:
    """Return a text for an axis, cut to so many signs."""
    text = _clean(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def colour_of(number: int) -> str:
    """Return the placeholder of a series colour."""
    return f"#fe02{number % COLOURS:02x}"


def key_of(name: str, style: Style) -> Key:
    """Return the entry of a legend for a series."""
    return Key(name, SHAPES[style.marker], style.colour, hollow=style.control, dashed=style.control)


def look(style: Style) -> dict[str, Any]:
    """Return how matplotlib draws a style."""
    colour = colour_of(style.colour)
    return {
        "color": colour,
        "marker": style.marker,
        "markerfacecolor": PAPER if style.control else colour,
        "markeredgecolor": colour,
        "linestyle": (0, (3, 2)) if style.control else "-",
        "linewidth": 1.1 if style.control else 1.8,
    }


def whole_ticks(axes: Any) -> None:
    """Label the x axis at whole numbers only."""
    ticker = load("matplotlib.ticker", extra="report", purpose="a report with pictures")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, at 1, 2 and 5 of each decade."""
    ticker = load("matplotlib.ticker", extra="report", purpose="a report with pictures")
    plain: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(plain))
    axis.set_minor_locator(ticker.NullLocator())
