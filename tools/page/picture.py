"""The page's drawings as one PNG picture, by matplotlib: for where a page cannot go, such as a slide or a mail."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurel_graph.errors import OutputError
from laurel_graph.foreign_names import printable
from laurel_graph.outputs import write
from laurel_graph.tools.dependencies import missing

if TYPE_CHECKING:
    from laurel_graph.outputs.files import Input

    from .draw import Points

_COLUMNS = 3
"""Drawings in a row."""
_DPI = 120
_SOFT = {"fontsize": 9, "color": "#55585f", "va": "top"}
_LEFT_ALONE = "#b0b3ba"
_COLOURS = ("#0b57d0", "#c26a00", "#0b6b35", "#7a2ea0", "#b3261e", "#1b1b1f")
_DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 2)))


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        title: what is drawn.
        start: where the values start, drawn as a dashed line; ``None`` for none.
        lines: name, "" for none, points and style, from 0, of each line.
        along: what the places are.
    """

    title: str
    start: float | None
    lines: tuple[tuple[str, Points, int], ...]
    along: str = "site, by depth"


def check_picture(output: str | Path) -> None:
    """Checks, before any work, that a picture can be drawn and has a name by which viewers know it.

    Raises:
        OutputError: the name does not end in ``.png``.
        DependencyError: matplotlib is missing.
    """
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise OutputError(f"--png {path}: expected a name that ends in .png, such as {path.with_suffix('.png')}.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise missing("--png", "matplotlib") from error


def write_picture(
    output: str | Path,
    title: str,
    told: Sequence[tuple[str, str]],
    panels: Sequence[Panel],
    inputs: Iterable[Input] = (),
    *,
    lanes: Mapping[int, Sequence[str]] | None = None,
    variants: Mapping[str, str] | None = None,
) -> Path:
    """Writes the picture and returns its path.

    Args:
        output: the file to write.
        title: its heading.
        told: questions and their answers, from left to right.
        panels: the drawings.
        inputs: what was read, none of which is written.
        lanes: stream to its sites, drawn as a row of dots.
        variants: site to its variant; the other sites are grey.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lanes = {number: sites for number, sites in (lanes or {}).items() if sites}
    rows = -(-len(panels) // _COLUMNS)
    high = min(0.22 * len(lanes) + 1.1, 6.0) if lanes else 0.0
    size = (4.2 * _COLUMNS, 1.5 + 2.5 * rows + high)
    plain: dict[Any, Any] = {
        "text.usetex": False,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with mpl.rc_context({**mpl.rcParamsDefault, **plain}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no installed font has: a box stands for them
        figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
        parts = figure.subfigures(1 + bool(rows) + bool(lanes), 1, height_ratios=_heights(rows, high), squeeze=False)
        queue = [part[0] for part in parts]
        _tell(queue.pop(0), title, told)
        if rows:
            axes = queue.pop(0).subplots(rows, _COLUMNS, squeeze=False).ravel()
            for at, panel in zip(axes, panels, strict=False):
                _draw(at, panel)
            for at in axes[len(panels) :]:
                at.axis("off")
        if lanes:
            _draw_lanes(queue.pop(0).subplots(), lanes, variants or {})
        return write(output, lambda path: figure.savefig(path, format="png", metadata={"Software": None}), inputs)


def _heights(rows: int, lanes: float) -> list[float]:
    return [1.5, *([2.5 * rows] if rows else []), *([lanes] if lanes else [])]


def _tell(figure: Any, title: str, told: Sequence[tuple[str, str]]) -> None:
    figure.text(0.01, 0.92, printable(title, 100), fontsize=14, weight="bold", va="top")
    width = max(10, 130 // max(len(told), 1))
    for i, (question, answer) in enumerate(told):
        place = 0.01 + i * 0.98 / len(told)
        figure.text(place, 0.64, "\n".join(textwrap.wrap(printable(question, 60), width)[:2]), **_SOFT)
        lines = [line for part in answer.split("\n") for line in textwrap.wrap(printable(part, 200), width)]
        figure.text(place, 0.4, "\n".join(lines[:3]), fontsize=10, weight="bold", va="top")


def _draw(at: Any, panel: Panel) -> None:
    at.set_title(panel.title, fontsize=10)
    if panel.start is not None:
        at.axhline(panel.start, color="#6b6f76", linewidth=1, linestyle=(0, (4, 4)))
    for name, points, i in panel.lines:
        places, values, spreads = zip(*points, strict=True)
        colour, dash = _COLOURS[i % len(_COLOURS)], _DASHES[i % len(_DASHES)]
        marker = "o" if len(points) <= 60 else None
        at.plot(places, values, color=colour, linestyle=dash, marker=marker, markersize=3, label=printable(name, 40))
        if any(spreads):
            low, high = zip(*((v - s, v + s) for v, s in zip(values, spreads, strict=True)), strict=True)
            at.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    at.set_xlabel(panel.along)
    if any(name for name, _, _ in panel.lines):
        at.legend(fontsize=7)


def _draw_lanes(at: Any, lanes: Mapping[int, Sequence[str]], variants: Mapping[str, str]) -> None:
    order = list(dict.fromkeys(variants.values()))
    for row, sites in enumerate(lanes.values()):
        at.plot([-0.5, len(sites) - 0.5], [row, row], color=_LEFT_ALONE, linewidth=1, zorder=1)
    for i, variant in enumerate([*order, None]):
        dots = [
            (place, row)
            for row, sites in enumerate(lanes.values())
            for place, site in enumerate(sites)
            if variants.get(site) == variant
        ]
        if dots:
            colour = _LEFT_ALONE if variant is None else _COLOURS[i % len(_COLOURS)]
            at.scatter(*zip(*dots, strict=True), s=22, color=colour, label=variant or "left as it was", zorder=2)
    at.set_yticks(range(len(lanes)), [f"stream {number}" for number in lanes])
    at.invert_yaxis()
    at.set_ylim(len(lanes) - 0.4, -0.6)
    at.set_xlabel("place in the stream")
    at.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(order) + 1, frameon=False)
    for side in ("top", "right", "left"):
        at.spines[side].set_visible(False)
