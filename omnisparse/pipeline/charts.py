"""Charts as SVG, drawn here so that a page needs no script and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLOURS = (
    "#2563eb", "#d9730d", "#448361", "#ad1a72", "#0891b2", "#c9a400", "#6940a5", "#787774",
)  # fmt: skip
_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
_MOST_POINTS = 300
_TICKS = 5
_SMALLEST, _LARGEST = 1e-200, 1e300


class Line(NamedTuple):
    """One curve."""

    label: str
    points: Sequence[tuple[float, float]]
    """In order of x; finite."""
    colour: str
    is_scatter: bool = False
    """Whether points are marked."""


def chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> str:
    """An SVG of curves with axes and a title on every marked point; empty if there is no point.

    Args:
        lines: The curves; a legend is drawn for more than one.
        x_label: What x is.
        y_label: What y is.
        log_x: Whether x is logarithmic; points at or below 0 are left out then.
        log_y: The same of y.
        from_zero: Whether y begins at 0.
    """
    kept = []
    for line in lines:
        points = [(x, y) for x, y in line.points if _fits(x, log_x) and _fits(y, log_y)]
        kept += [line._replace(points=points)] if points else []
    if not kept:
        return ""
    x_axis = _Axis([x for line in kept for x, _ in line.points], log=log_x)
    y_axis = _Axis(
        [y for line in kept for _, y in line.points] + ([0.0] if from_zero else []), log=log_y
    )
    legend = kept if len(kept) > 1 else []
    height = _HEIGHT + 16 * ((len(legend) + 1) // 2)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(y_label)}">',
        *_axes(x_axis, y_axis, x_label, y_label),
    ]
    for line in kept:
        parts += _drawn(line, x_axis, y_axis)
    for number, line in enumerate(legend):
        left, top = _LEFT + (number % 2) * 180, _HEIGHT + 10 + 16 * (number // 2)
        label = line.label if len(line.label) <= 26 else line.label[:25] + "…"
        parts.append(
            f'<rect x="{left}" y="{top - 8}" width="10" height="10" fill="{line.colour}"/>'
            f'<text x="{left + 14}" y="{top + 1}">{escape(label)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _fits(value: float, log: bool) -> bool:
    """Whether a value can be drawn; so large or so small that sums with it fail, it cannot."""
    is_plain = value == 0 or _SMALLEST < abs(value) < _LARGEST
    return is_plain and (value > 0 or not log)


class _Axis:
    """Values to places from 0 to 1, and round numbers among them."""

    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self.log = log
        low, high = (self._scale(bound(values)) for bound in (min, max))
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
        self.low, self.high = low, high

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        return (self._scale(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values; of a logarithmic axis powers of ten where there are two."""
        if self.log and 1 <= math.floor(self.high) - math.ceil(self.low) < 2 * _TICKS:
            return [10.0**n for n in range(math.ceil(self.low), math.floor(self.high) + 1)]
        low, high = (10.0**self.low, 10.0**self.high) if self.log else (self.low, self.high)
        step = (high - low) / _TICKS
        power = 10.0 ** math.floor(math.log10(step))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step)
        first = math.ceil(low / step)
        values = [step * (first + n) for n in range(2 * _TICKS)]
        return [value for value in values if value <= high and (value > 0 or not self.log)]


def figure(value: float) -> str:
    """A number in a few letters: ``1.2M``, ``0.003``."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def _axes(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in y_axis.ticks():
        y = _y(y_axis, value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{figure(value)}</text>'
        )
    for value in x_axis.ticks():
        x = _x(x_axis, value)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{figure(value)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text x="{right}" y="{bottom + 29}" text-anchor="end" class="label">{escape(x_label)}'
        f'</text><text x="{_LEFT}" y="{bottom + 29}" class="label">{escape(y_label)}</text>'
    )
    return parts


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: _Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _drawn(line: Line, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    points = [(_x(x_axis, x), _y(y_axis, y)) for x, y in thinned(line.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline points="{path}" stroke="{line.colour}"/>'] if len(points) > 1 else []
    if line.is_scatter or len(points) == 1:
        parts += [
            f'<circle cx="{_x(x_axis, x):.1f}" cy="{_y(y_axis, y):.1f}" r="3.5" '
            f'fill="{line.colour}"><title>{escape(line.label)}: {figure(x)}, {figure(y)}</title>'
            "</circle>"
            for x, y in thinned(line.points)
        ]
    return parts


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most some hundred points, with the lowest and the highest of each part of the curve."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept
