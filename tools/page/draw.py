"""Drawings of the page as plain SVG: curves by depth, each on an axis of its own; colours come from the style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 460, 150
"""Size of a chart in its own units."""
MOST_DOTS = 120
"""A line of more points is drawn without them."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 26


def chart(
    title: str,
    points: Sequence[tuple[float, float, float]],
    start: float | None = None,
    along: str = "site, by depth",
    names: Sequence[str] = (),
) -> str:
    """Returns a chart as SVG.

    Args:
        title: what is drawn, for those who cannot see it; no text of a model.
        points: (place, value, spread) in order of place; a spread is drawn as a band around the value.
        start: where the values start, drawn as a dashed line; ``None`` for none.
        along: what the places are.
        names: what each point is called, any text; empty for no names.
    """
    lows = [value - spread for _, value, spread in points] + ([] if start is None else [start])
    highs = [value + spread for _, value, spread in points] + ([] if start is None else [start])
    low, high = min(lows), max(highs)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 1e-3
    low, high = low - room, high + room
    first, last = points[0][0], points[-1][0]

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
    if any(spread for _, _, spread in points):
        upper = " ".join(f"{x(place)},{y(value + spread)}" for place, value, spread in points)
        lower = " ".join(f"{x(place)},{y(value - spread)}" for place, value, spread in reversed(points))
        parts.append(f'<polygon class="band" points="{upper} {lower}"/>')
    line = " ".join(f"{x(place)},{y(value)}" for place, value, _ in points)
    parts.append(f'<polyline class="line" points="{line}"/>')
    if len(points) <= MOST_DOTS:
        for i, (place, value, _) in enumerate(points):
            told = escape(f"{names[i]}: {value:.4g}" if names else f"{value:.4g}")
            parts.append(f'<circle class="dot" cx="{x(place)}" cy="{y(value)}" r="2.5"><title>{told}</title></circle>')
    return "".join([*parts, "</svg>"])
