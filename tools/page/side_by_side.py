"""The page and the picture of ``laurel compare``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import laurel_graph
from laurel_graph.foreign_names import printable
from laurel_graph.outputs import check_outputs, write
from laurel_graph.outputs.kinds import PICTURE, TEXT

from .draw import STYLES, Line, chart_of
from .picture import Panel, check_picture, write_picture
from .template import page_template

if TYPE_CHECKING:
    from laurel_graph.tools.compare import Comparison

_SHOWN = 200
"""Characters of a name that a drawing shows; the tables have it whole."""


def write_comparison(
    found: Comparison,
    output: str | Path | None,
    png: str | Path | None = None,
    inputs: Iterable[str | Path] = (),
) -> None:
    """Writes the page of a comparison, its picture, or both.

    Raises:
        OutputError: a file cannot be written.
        DependencyError: jinja2 is missing for the page, or matplotlib for the picture.
    """
    inputs = tuple(map(Path, inputs))
    if png is not None:
        panels = [
            Panel(name, start, tuple((found.candidates[i].name, points, i) for i, points in _lines(found, name)))
            for name, start in found.quantities.items()
        ]
        told = [(each.name, f"{each.sites} sites\n{each.parameters:,} parameters") for each in found.candidates]
        write_picture(png, "LAuReL: side by side", told, panels, inputs)
    if output is not None:
        write(output, _page(found).encode(), inputs)


def check_comparison(output: str | Path | None, png: str | Path | None, models: Iterable[str | Path]) -> None:
    """Checks, before anything is read, that page and picture can be made and are none of the *models*.

    Raises:
        OutputError: one cannot be written.
        DependencyError: jinja2 is missing for the page, or matplotlib for the picture.
    """
    if output is not None:
        page_template("compare.html")
    if png is not None:
        check_picture(png)
    read = tuple(map(Path, models))
    check_outputs(output, png, inputs=read)
    check_outputs(output, inputs=read, kind=TEXT)
    check_outputs(png, inputs=read, kind=PICTURE)


def _lines(found: Comparison, quantity: str) -> list[tuple[int, list[tuple[int, float, float]]]]:
    """Which candidates learned a quantity, and their points by place among all sites."""
    lines = []
    for i, (each, places) in enumerate(zip(found.candidates, found.places, strict=True)):
        for curve in each.curves:
            if curve.name == quantity:
                lines.append((i, sorted((places[depth], value, spread) for depth, value, spread in curve.points)))
    return lines


def _page(found: Comparison) -> str:
    from markupsafe import Markup

    charts: list[Mapping[str, Any]] = []
    for name, start in found.quantities.items():
        lines = [
            Line(
                points,
                [f"{found.candidates[i].name[:_SHOWN]}, {printable(found.sites[p], _SHOWN)}" for p, _, _ in points],
                i,
            )
            for i, points in _lines(found, name)
        ]
        charts.append({"name": name, "start": start, "svg": Markup(chart_of(name, lines, start))})
    curves = []
    for title in ("loss", "metric"):
        lines = [
            Line([(e, v, 0.0) for e, v in enumerate(values, 1)], style=i)
            for i, each in enumerate(found.candidates)
            if each.training is not None and (values := getattr(each.training, title))
        ]
        if lines:
            curves.append({"name": title, "svg": Markup(chart_of(title, lines, along="epoch"))})
    page: str = page_template("compare.html").render(
        version=laurel_graph.__version__,
        candidates=found.candidates,
        styles=[i % STYLES for i in range(len(found.candidates))],
        charts=charts,
        bands=any(spread for each in found.candidates for c in each.curves for _, _, spread in c.points),
        quantities=list(found.quantities),
        learned=[
            (each.name, [{c.name: c for c in each.curves}.get(name) for name in found.quantities], each.rows)
            for each in found.candidates
            if each.curves
        ],
        curves=curves,
        with_sites=found.with_sites,
        sites=found.by_site(),
        notes=found.notes,
        trained=any(each.training is not None for each in found.candidates),
    )
    return page
