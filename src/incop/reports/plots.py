"""Plots: the kinds of picture of a report, from plain numbers to inline SVG that suits light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from incop.reports.drawing import (
    COLOURS,
    INK,
    MUTED,
    PAPER,
    SHAPES,
    Key,
    Picture,
    Style,
    colour_of,
    key_of,
    look,
    plain_ticks,
    sheet,
    short,
    whole_ticks,
)
from incop.reports.extras import load

MAX_POINTS = 2000  # of one line; more cannot be told apart on paper


@dataclass(frozen=True)
class Series:
    """A line: its name, its points, and where known their intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: Style
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Point:
    """A method as one point: what it has cost, what it reached, with the interval, and whether it is on the front."""

    name: str
    x: float
    y: float
    style: Style
    low: float | None = None
    high: float | None = None
    on_front: bool = False


@dataclass(frozen=True)
class Track:
    """The distances of one level: epochs since the dense network, distances, and the index of where it stopped.

    Args:
        level: the level.
        x: epochs since the dense network.
        y: distances; what is not finite is left out.
        stop: index of the check that ended the search of the level.
        by_rule: a rule ended it; False: its budget.
    """

    level: int
    x: Sequence[float]
    y: Sequence[float]
    stop: int
    by_rule: bool


@dataclass(frozen=True)
class Gap:
    """A difference in points with its interval.

    Args:
        row: the name of its row.
        group: the number of its group, which gives it its colour.
        mean: the difference.
        low: lower bound, or None.
        high: upper bound, or None.
        told_apart: the difference is told from 0.
    """

    row: str
    group: int
    mean: float
    low: float | None
    high: float | None
    told_apart: bool


def lines(
    name: str,
    alt: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    level: tuple[str, float] | None = None,
    floor: float | None = None,
    ticks: Sequence[float] = (),
    whole: bool = False,
) -> Picture:
    """Draw lines with intervals.

    Args:
        name: of the picture, unique on its page.
        alt: what it shows, for those who do not see it.
        series: the lines.
        x_label: title of the axis, with the unit.
        y_label: title of the axis, with the unit.
        level: a name and a value to draw as a horizontal line, such as the dense network's accuracy.
        floor: where the y axis begins; what lies below is marked at its edge. None: at the lowest number.
        ticks: where the x axis is labelled; empty: where matplotlib likes.
        whole: the x axis counts whole things.
    """
    with sheet(name, alt) as (axes, finish):
        for one in series:
            _line(axes, one)
        keys = [key_of(one.name, one.style) for one in series]
        if level is not None and math.isfinite(level[1]):
            axes.axhline(level[1], color=INK, linewidth=1, linestyle=(0, (1, 2)))
            keys.append(Key(level[0], "M0 4.5H2V5.5H0ZM4 4.5H6V5.5H4ZM8 4.5H10V5.5H8Z"))
        if floor is not None:
            below = [(x, y, one.style) for one in series for x, y in zip(one.x, one.y, strict=True)]
            _cut(axes, floor, [(x, y, style) for x, y, style in below if y is not None and y < floor])
        if ticks:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if whole:
            whole_ticks(axes)
        axes.set(xlabel=x_label, ylabel=y_label)
    return Picture(finish(), tuple(keys))


def points(
    name: str, alt: str, given: Sequence[Point], *, x_label: str, y_label: str, floor: float | None = None
) -> Picture:
    """Draw methods as points of cost and accuracy, those on the front ringed, and the best mean so far as a line.

    Args:
        name: of the picture, unique on its page.
        alt: what it shows.
        given: the methods.
        x_label: title of the axis, with the unit.
        y_label: title of the axis, with the unit.
        floor: where the y axis begins; what lies below is marked at its edge. None: at the lowest number.
    """
    with sheet(name, alt) as (axes, finish):
        best, steps = -math.inf, []
        for one in sorted(given, key=lambda p: (p.x, -p.y)):
            if one.y > best:
                best = one.y
                steps.append((one.x, one.y))
        positive = all(one.x > 0 for one in given)
        widest = max((one.x for one in given), default=1.0)
        if steps:
            xs, ys = [x for x, _ in steps] + [widest], [y for _, y in steps] + [best]
            axes.step(xs, ys, where="post", color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        for one in given:
            _point(axes, one)
        if positive and given and widest > 5 * min(one.x for one in given):
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
        axes.margins(0.08)
        if floor is not None:
            _cut(axes, floor, [(one.x, one.y, one.style) for one in given if one.y < floor])
        axes.set(xlabel=x_label, ylabel=y_label)
    keys = [key_of(one.name, one.style) for one in given]
    if any(one.on_front for one in given):
        keys.append(Key("on the front: no method as cheap is significantly better", SHAPES["o"], None, hollow=True))
    keys.append(Key("best mean accuracy for so much", "M0 4.5H4V5.5H0ZM6 4.5H10V5.5H6Z"))
    return Picture(finish(), tuple(keys))


def distances(name: str, alt: str, tracks: Sequence[Track], *, within: float | None, x_label: str) -> Picture:
    """Draw the flow's distance to the dense network's over the checks, the threshold, and where each level stopped."""
    with sheet(name, alt) as (axes, finish):
        finite = [y for track in tracks for y in track.y if math.isfinite(y)]
        for track in tracks:
            style = {"color": colour_of(track.level % 2 * 5)}
            kept = [(x, y) for x, y in zip(track.x, track.y, strict=True) if math.isfinite(y)]
            kept = _thinned(kept)
            axes.plot([x for x, _ in kept], [y for _, y in kept], marker=".", markersize=4, **style)
            if track.y and math.isfinite(track.y[track.stop]):
                fill = style["color"] if track.by_rule else PAPER
                axes.plot(
                    [track.x[track.stop]],
                    [track.y[track.stop]],
                    marker="o",
                    markersize=7,
                    markerfacecolor=fill,
                    markeredgecolor=style["color"],
                    linestyle="none",
                )
        if within is not None:
            axes.axhline(within, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        drawn = [*finite, *([within] if within is not None else [])]
        if drawn and min(drawn) > 0 and max(drawn) > 5 * min(drawn):
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        _level_names(axes, tracks)
        axes.set(xlabel=x_label, ylabel="distance to the dense flow")
    keys = [
        Key("stopped by its rule", SHAPES["o"], 0),
        Key("ended by its budget", SHAPES["o"], 0, hollow=True),
    ]
    if within is not None:
        keys.append(Key(f"threshold {within:.3g}", "M0 4.5H4V5.5H0ZM6 4.5H10V5.5H6Z"))
    return Picture(finish(), tuple(keys))


def bars(
    name: str, alt: str, rows: Sequence[tuple[str, Sequence[float]]], *, parts: Sequence[str], x_label: str
) -> Picture:
    """Draw stacked horizontal bars, one a row, the first at the top.

    Args:
        name: of the picture, unique on its page.
        alt: what it shows.
        rows: a name and one number for each part.
        parts: what the numbers are.
        x_label: title of the axis, with the unit.
    """
    colours = (0, 4, 2, 3)
    with sheet(name, alt, height=max(1.6, 0.75 + 0.27 * len(rows))) as (axes, finish):
        for place, (_, values) in enumerate(rows):
            left = 0.0
            for part, value in enumerate(values):
                axes.barh(place, value, left=left, height=0.62, color=colour_of(colours[part]))
                left += value
        axes.set_yticks(range(len(rows)), [short(label, 26) for label, _ in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=x_label)
    return Picture(finish(), tuple(Key(part, SHAPES["s"], colours[number]) for number, part in enumerate(parts)))


def gaps(
    name: str, alt: str, given: Sequence[Gap], *, groups: Sequence[str], margin: float | None, x_label: str
) -> Picture:
    """Draw differences with their intervals, row by row, with 0 and the margin as vertical lines.

    Args:
        name: of the picture, unique on its page.
        alt: what it shows.
        given: the differences.
        groups: the names of the groups.
        margin: drawn as a line at −margin; None: not drawn.
        x_label: title of the axis, with the unit.
    """
    rows = list(dict.fromkeys(one.row for one in given))
    step = 0.62 / max(len(groups), 1)
    reach = max([abs(v) for one in given for v in (one.mean, one.low, one.high) if v is not None], default=1.0)
    with sheet(name, alt, height=max(1.7, 0.8 + (0.18 + 0.13 * len(groups)) * len(rows))) as (axes, finish):
        axes.axvline(0.0, color=INK, linewidth=1)
        if margin is not None:
            axes.axvline(-margin, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        for one in given:
            y = rows.index(one.row) + step * (one.group - (len(groups) - 1) / 2)
            colour = colour_of(one.group)
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6)
            face = colour if one.told_apart else PAPER
            axes.plot([one.mean], [y], marker="o", color=colour, markerfacecolor=face, markersize=5, linestyle="none")
        if reach > 3.0:  # points: one bad control would press all others together
            axes.set_xscale("symlog", linthresh=1.0, linscale=1.0)
            _marks(axes)
        axes.set_yticks(range(len(rows)), [short(row, 26) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=x_label)
    keys = [Key(group, SHAPES["o"], number % COLOURS) for number, group in enumerate(groups)]
    keys.append(Key("hollow: not told apart from 0", SHAPES["o"], None, hollow=True))
    if margin is not None:
        keys.append(Key(f"margin, {margin:g} points lost", "M0 4.5H4V5.5H0ZM6 4.5H10V5.5H6Z"))
    return Picture(finish(), tuple(keys))


def _marks(axes: Any) -> None:
    """Label a scale that is even within ±1 point and logarithmic beyond."""
    ticker = load("matplotlib.ticker", extra="report", purpose="a report with pictures")
    axes.xaxis.set_major_locator(ticker.FixedLocator([s * v for s in (-1, 1) for v in (50, 20, 5, 2, 1, 0.5, 0)]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _line(axes: Any, one: Series) -> None:
    kept = [i for i, y in enumerate(one.y) if y is not None and math.isfinite(y)]
    kept = _thinned(kept)
    axes.plot([one.x[i] for i in kept], [one.y[i] for i in kept], **look(one.style))
    for i in kept:
        low = one.low[i] if i < len(one.low) else None
        high = one.high[i] if i < len(one.high) else None
        if low is not None and high is not None:
            axes.plot([one.x[i]] * 2, [low, high], color=colour_of(one.style.colour), linewidth=1.2, alpha=0.75)


def _point(axes: Any, one: Point) -> None:
    colour = colour_of(one.style.colour)
    if one.low is not None and one.high is not None:
        axes.plot([one.x] * 2, [one.low, one.high], color=colour, linewidth=1.2, alpha=0.75, zorder=2)
    if one.on_front:
        axes.plot([one.x], [one.y], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=INK, zorder=3)
    axes.plot([one.x], [one.y], **(look(one.style) | {"linestyle": "none", "markersize": 6.5}), zorder=4)


def _cut(axes: Any, floor: float, below: Sequence[tuple[float, float, Style]]) -> None:
    """Begin the y axis at the floor, and mark what lies below at its edge, with its value where there is room."""
    axes.set_ylim(bottom=floor)
    last = -math.inf
    for x, y, style in sorted(below, key=lambda entry: entry[0]):
        edge = {"transform": axes.get_xaxis_transform(), "color": colour_of(style.colour)}
        axes.plot([x], [0.02], marker="v", markersize=5, linestyle="none", clip_on=False, **edge)
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, floor)))[0]
        if place - last > 0.1:
            axes.text(x, 0.05, f"{y:.3f}", size=8, ha="center", va="bottom", **edge)
            last = place


def _thinned(given: list[Any]) -> list[Any]:
    stride = max(1, math.ceil(len(given) / MAX_POINTS))
    return given if stride == 1 else [*given[::stride], given[-1]]


def _level_names(axes: Any, tracks: Iterable[Track]) -> None:
    """Write each level's number above its stretch, leaving out what would lie on another."""
    given = [track for track in tracks if track.x]
    low, high = axes.get_xlim()
    last = -math.inf
    for track in given:
        middle = (track.x[0] + track.x[-1]) / 2
        if not low <= middle <= high or middle - last < 0.045 * (high - low):
            continue
        last = middle
        above = {"transform": axes.get_xaxis_transform(), "ha": "center", "color": MUTED, "size": 8}
        axes.text(middle, 1.01, str(track.level), **above)
    if given:
        axes.text(-0.01, 1.01, "level", transform=axes.transAxes, ha="right", color=MUTED, size=8)
