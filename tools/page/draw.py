"""Drawings of the page as plain SVG: curves by depth, each on an axis of its own; colours come from the style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 150
"""Size of a chart in its own units."""
MOST_DOTS = 120
"""A line of more points is drawn without them."""
STYLES = 6
"""So many lines have a colour and dashes of their own; more share them."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 26


Points = Sequence[tuple[float, float, float]]
"""(place, value, spread) in order of place; a spread is drawn as a band around the value."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: what it goes through.
        names: what each point is called, any text; empty for no names.
        style: which colour and dashes it has, from 0.
    """

    points: Points
    names: Sequence[str] = ()
    style: int = 0


def chart(
    title: str, points: Points, start: float | None = None, along: str = "site, by depth", names: Sequence[str] = ()
) -> str:
    """Returns a chart of one line as SVG; see :func:`chart_of`."""
    return chart_of(title, [Line(points, names)], start, along)


def chart_of(title: str, lines: Iterable[Line], start: float | None = None, along: str = "site, by depth") -> str:
    """Returns a chart as SVG.

    Args:
        title: what is drawn, for those who cannot see it; no text of a model.
        lines: the lines, each with a point at least.
        start: where the values start, drawn as a dashed line; ``None`` for none.
        along: what the places are.
    """
    lines = list(lines)
    every = [point for line in lines for point in line.points]
    lows = [value - spread for _, value, spread in every] + ([] if start is None else [start])
    highs = [value + spread for _, value, spread in every] + ([] if start is None else [start])
    low, high = min(lows), max(highs)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 1e-3
    low, high = low - room, high + room
    first, last = min(place for place, _, _ in every), max(place for place, _, _ in every)

    def x(place: float) -> float:
        inner = WIDTH - _LEFT - _RIGHT
        return round(_LEFT + inner * ((place - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low), 1)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f'<path class="axis" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>',
    ]
    lowest, highest = low + room, high - room
    middle = start if start is not None and min(start - lowest, highest - start) > 0.15 * (high - low) else None
    for value in (lowest, (lowest + highest) / 2 if middle is None else middle, highest):
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:.4g}</text>')
    for place in dict.fromkeys((first, last)):
        anchor = "start" if place == first < last else "end" if first < last else "middle"
        parts.append(f'<text class="tick" x="{x(place)}" y="{HEIGHT - 8}" text-anchor="{anchor}">{place:g}</text>')
    parts.append(f'<text class="tick" x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{along}</text>')
    if start is not None:
        parts.append(f'<path class="start" d="M{_LEFT} {y(start)}H{WIDTH - _RIGHT}"/>')
    for line in lines:
        parts += [f'<g class="s{line.style % STYLES}">', *_drawn(line, x, y), "</g>"]
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    points, names = line.points, line.names
    if any(spread for _, _, spread in points):
        upper = " ".join(f"{x(place)},{y(value + spread)}" for place, value, spread in points)
        lower = " ".join(f"{x(place)},{y(value - spread)}" for place, value, spread in reversed(points))
        yield f'<polygon class="band" points="{upper} {lower}"/>'
    yield f'<polyline class="line" points="{" ".join(f"{x(place)},{y(value)}" for place, value, _ in points)}"/>'
    if len(points) <= MOST_DOTS:
        for i, (place, value, _) in enumerate(points):
            told = escape(f"{names[i]}: {value:.4g}" if names else f"{value:.4g}")
            yield f'<circle class="dot" cx="{x(place)}" cy="{y(value)}" r="2.5"><title>{told}</title></circle>'
