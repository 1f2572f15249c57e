"""Line charts as plain geometry, which a template draws as SVG: no script, no inline style, legible without a browser.

Colours are classes of the style sheet (Okabe and Ito 2008), numbered in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 30
_COLOURS = 7
_TICKS = 5
_TAIL = 0.02  # of the marks, at each end, do not stretch the chart


class Spot(NamedTuple):
    """A point of a series."""

    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points under one name. kind: a line, a line that holds its value until the next point, or marks."""

    label: str
    points: Sequence[Spot]
    kind: str = "line"
    colour: int = 0


class Tick(NamedTuple):
    """Where a label stands on an axis."""

    at: float
    label: str


class Drawn(NamedTuple):
    """A series in the chart's coordinates. path: that of a line; marks: (x, y) of each point."""

    label: str
    colour: int
    path: str
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a template needs to draw a chart."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Drawn, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str) -> Chart | None:
    """Place all series in one chart; None if there is no point. Marks far outside are drawn at the edge."""
    filled = [each for each in series if each.points]
    if not filled:
        return None
    xs = [spot.x for each in filled for spot in each.points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = _vertical(filled)
    across = _Scale(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    up = _Scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP)
    return Chart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        series=tuple(_drawn(each, across, up) for each in filled),
        x_ticks=_ticks(x_low, x_high, across, whole=True),
        y_ticks=_ticks(y_low, y_high, up, whole=False),
    )


class _Scale:
    """The way from values to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._high = low, high
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low) if self._high > self._low else 0.5
        return round(self._start + min(1.0, max(0.0, share)) * (self._end - self._start), 1)


def _vertical(series: Sequence[Series]) -> tuple[float, float]:
    marks = sorted(spot.y for each in series if each.kind == "marks" for spot in each.points)
    kept = marks[math.floor(_TAIL * len(marks)) : math.ceil((1 - _TAIL) * len(marks))]
    values = kept + [spot.y for each in series if each.kind != "marks" for spot in each.points]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _drawn(series: Series, across: _Scale, up: _Scale) -> Drawn:
    places = [(across(spot.x), up(spot.y)) for spot in series.points]
    if series.kind == "marks":
        return Drawn(series.label, series.colour % _COLOURS, "", tuple(places))
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in _steps(places, series.kind))
    ends = (places[-1],) if series.kind == "line" else ()
    return Drawn(series.label, series.colour % _COLOURS, path, ends)


def _steps(places: Sequence[tuple[float, float]], kind: str) -> list[tuple[float, float]]:
    if kind != "steps":
        return list(places)
    found = [places[0]]
    for x, y in places[1:]:
        found += [(x, found[-1][1]), (x, y)]
    return found


def _ticks(low: float, high: float, scale: _Scale, *, whole: bool) -> tuple[Tick, ...]:
    """About five round numbers in the range."""
    span = high - low
    if span <= 0:
        return (Tick(scale(low), _label(low, 1.0)),)
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step)
    count = math.floor(high / step) - first + 1
    return tuple(Tick(scale((first + n) * step), _label((first + n) * step, step)) for n in range(count))


def _label(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step))) if step < 1 else 0
    return f"{value:,.{digits}f}" if abs(value) < 1e7 else f"{value:.2g}"
