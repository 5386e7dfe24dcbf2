"""One HTML page about a model: its streams drawn, its parameters, and the learned α, β, γ by depth."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laurel_graph import onnx_file
from laurel_graph.config import SiteSpec
from laurel_graph.detection import Detection, Residual
from laurel_graph.errors import OutputError
from laurel_graph.foreign_names import printable
from laurel_graph.model_folder import folder_files, graph_path
from laurel_graph.onnx_model import tensors as onnx_tensors
from laurel_graph.opset.parameters import count_parameters
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.outputs import check_outputs, write
from laurel_graph.outputs.kinds import TEXT
from laurel_graph.outputs.models import model_files
from laurel_graph.passes.pipeline import inspect
from laurel_graph.tools.dependencies import missing

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>LAuReL report: {{ model }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1b1f; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } .muted { color: #5f6368; }
table { border-collapse: collapse; font-size: 13px; width: 100%; } th { text-align: left; }
td, th { border-bottom: 1px solid #e0e0e6; padding: .25rem .6rem; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } code { font-size: 12px; overflow-wrap: anywhere; }
.stream { overflow-x: auto; margin: .6rem 0 1.4rem; } .chart svg { max-width: 100%; height: auto; }
</style></head><body>
<h1>{{ model }}</h1>
<p class="muted">{{ residuals|length }} residual connections, {{ rejected|length }} other joins, {{ nodes }} nodes.
{%- if rows %} {{ rows|length }} LAuReL sites with {{ "{:,}".format(parameters) }} parameters
({{ "%.3g"|format(percent) }} % of the model's {{ "{:,}".format(base) }}).{% endif %}</p>
<h2>Streams</h2>
{% for stream in streams %}<div class="stream">{{ stream }}</div>{% endfor %}
{% if chart %}<h2>Learned weights by depth</h2><div class="chart">{{ chart }}</div>{% endif %}
{% if rows %}<h2>Sites</h2><table><tr><th>site<th>variant<th>width<th>rank<th>parameters<th>α<th>β<th>γ
<th>size of AB{% if rows|map(attribute="others")|select|list %}<th>other tensors{% endif %}</tr>
{% for row in rows %}<tr><td><code>{{ row.site }}</code><td>{{ row.variant }}<td class="n">{{ row.width }}
<td class="n">{{ row.rank or "" }}<td class="n">{{ "{:,}".format(row.parameters) }}<td class="n">{{ row.alpha }}
<td class="n">{{ row.beta }}<td class="n">{{ row.gamma }}<td class="n">{{ row.product }}
{%- if row.others %}<td>{{ row.others }}{% endif %}</tr>{% endfor %}</table>
<p class="muted">α and β per channel are shown as mean ± standard deviation. Size of AB is the Frobenius norm of the
low-rank product: the length of its answer to a random input of unit variance, per unit of that input.</p>{% endif %}
<h2>Residual connections</h2>
<table><tr><th>site<th>kind<th>skip<th>branch<th>join<th>stream<th>index<th>source</tr>
{% for r in residuals %}<tr><td><code>{{ r.site }}</code><td>{{ r.kind }}<td><code>{{ r.skip }}</code>
<td><code>{{ r.branches|join(" + ") }}</code><td><code>{{ r.join }}</code><td class="n">{{ r.stream }}
<td class="n">{{ r.index }}<td>{{ r.source }} {{ r.blocked }}</tr>{% endfor %}</table>
{% if rejected %}<h2>Other joins</h2><table><tr><th>join<th>reason<th>detail</tr>
{% for r in rejected %}<tr><td><code>{{ r.join }}</code><td>{{ r.reason }}<td>{{ r.detail }}</tr>{% endfor %}</table>
{% endif %}</body></html>
"""

STEP = 56
"""Distance of two joins in a drawn stream, in pixels."""


@dataclass(frozen=True)
class SiteRow:
    """The learned tensors of one site in numbers.

    Attributes:
        site: its name.
        variant: its variant.
        width: D.
        rank: r, or 0.
        parameters: how many it has.
        alpha: α, or mean ± standard deviation over the channels; "" without RW.
        beta: β likewise.
        gamma: the k values of γ; "" without PA.
        product: ‖AB‖_F / sqrt(D); "" without LR.
        others: the tensors of other terms, each as its number or mean ± standard deviation.
    """

    site: str
    variant: str
    width: int
    rank: int
    parameters: int
    alpha: str
    beta: str
    gamma: str
    product: str
    others: str = ""


def write_report(model: str | Path, output: str | Path) -> Path:
    """Writes the page for an ONNX file or a model folder, transformed or not, and returns its path.

    Raises:
        ModelError: the model cannot be read.
        OutputError: *output* cannot be written.
        DependencyError: jinja2 or matplotlib is missing.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
        from markupsafe import Markup
    except ImportError as error:
        raise missing("the page", str(error.name)) from error
    path = graph_path(model)
    proto = onnx_file.read_with_records(path)
    read = (*model_files(path, proto), *folder_files(model))
    check_outputs(output, inputs=read, kind=TEXT)
    found = inspect(proto)
    tensors = {
        spec: {
            name: onnx_tensors.tensor_array(proto, tensor_name(spec.site, name), path.parent)
            for name in spec.tensor_shapes()
        }
        for spec in read_specs(proto).values()
    }
    rows = [_row(spec, held) for spec, held in tensors.items()]
    parameters = sum(row.parameters for row in rows)
    base = count_parameters(proto)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, finalize=_cell)
    page = environment.from_string(PAGE).render(
        model=Path(model).name,
        residuals=found.residuals,
        rejected=found.rejected,
        nodes=found.nodes,
        streams=[Markup(svg) for svg in draw_streams(found)],
        chart=Markup(draw_weights(tensors)) if any(s.has_rw or s.has_pa for s in tensors) else "",
        rows=rows,
        parameters=parameters,
        base=base,
        percent=100 * parameters / max(base, 1),
    )
    return write(output, page.encode(), read)


def default_page(model: Path) -> Path:
    """Returns where the page of *model* goes when nobody says: ``MODEL.html``.

    Raises:
        OutputError: another file than such a page has that name.
    """
    page = model.with_name(f"{model.name}.html") if model.is_dir() else model.with_suffix(".html")
    if page.is_file() and b"<title>LAuReL report" not in page.read_bytes():
        raise OutputError(f"{page} is there and is no report of ours; name the page with --output.")
    return page


def _cell(value: Any) -> Any:
    """Returns foreign text without control characters; what is markup of ours, or no text, as it is."""
    return printable(value) if type(value) is str else value


def _row(spec: SiteSpec, tensors: dict[str, Any]) -> SiteRow:
    def spread(name: str) -> str:
        if name not in tensors:
            return ""
        values = np.asarray(tensors[name], np.float64)
        return f"{values:.4g}" if values.ndim == 0 else f"{values.mean():.4g} ± {values.std():.2g}"

    gamma = ", ".join(f"{value:.3g}" for value in np.asarray(tensors.get("gamma", ()), np.float64))
    product = ""
    if spec.has_lr:
        ab = np.asarray(tensors["A"], np.float64) @ np.asarray(tensors["B"], np.float64)
        product = f"{np.linalg.norm(ab) / np.sqrt(spec.width):.3g}"
    further = [name for one in spec.terms if not one.has_kernels for name in one.tensors]
    others = ", ".join(f"{name} {spread(name)}" for name in further)
    weights, count = (spread("alpha"), spread("beta")), spec.parameter_count()
    return SiteRow(spec.site, spec.variant, spec.width, spec.rank, count, *weights, gamma, product, others)


def draw_streams(found: Detection) -> list[str]:
    """Returns one SVG per stream: a line with a circle per join, filled where LAuReL is, with each branch as an arc."""
    streams: dict[int, list[Residual]] = {}
    for residual in found.residuals:
        streams.setdefault(residual.stream, []).append(residual)
    return [_draw_stream(number, members) for number, members in streams.items()]


def _draw_stream(number: int, members: list[Residual]) -> str:
    from xml.sax.saxutils import escape

    width = 90 + STEP * len(members) + 30
    shapes = [
        f'<line x1="70" y1="46" x2="{width - 10}" y2="46" stroke="#1b1b1f" stroke-width="1.5"/>',
        f'<text x="4" y="50" font-size="12">stream {number}</text>',
    ]
    for place, residual in enumerate(members):
        x = 90 + STEP * (place + 1) - 10
        colour = {"identity": "#1a73e8", "projection": "#b06000"}.get(residual.kind, "#188038")
        dash = ' stroke-dasharray="4 3"' if residual.kind == "projection" else ""
        title = f"{residual.site}: {residual.kind}, {residual.skip} + {' + '.join(residual.branches)}"
        title = escape(printable(title))
        shapes.append(
            f'<g><title>{title}</title><path d="M{x - STEP + 14} 46 C{x - STEP + 14} 4 {x} 4 {x} 40" fill="none" '
            f'stroke="{colour}"{dash}/><circle cx="{x}" cy="46" r="6" fill="white" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{x}" y="68" font-size="10" text-anchor="middle">{place}</text></g>'
        )
    return f'<svg width="{width}" height="76" font-family="system-ui, sans-serif">{"".join(shapes)}</svg>'


def draw_weights(tensors: dict[SiteSpec, dict[str, Any]]) -> str:
    """Returns an SVG chart of α, β and γ over the depth of the sites; per-channel weights as mean with a ±1σ band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in (("alpha", "#1a73e8"), ("beta", "#d93025")):
        points = [(depth, held[name]) for depth, held in enumerate(tensors.values()) if name in held]
        if not points:
            continue
        depths = [depth for depth, _ in points]
        mean = np.array([np.mean(value, dtype=np.float64) for _, value in points])
        spread = np.array([np.std(np.asarray(value, np.float64)) for _, value in points])
        axes.plot(depths, mean, "o-", color=colour, label={"alpha": "α", "beta": "β"}[name], markersize=4)
        if spread.any():
            axes.fill_between(depths, mean - spread, mean + spread, color=colour, alpha=0.15)
    gammas = [(depth, held["gamma"]) for depth, held in enumerate(tensors.values()) if "gamma" in held]
    for j in range(max((len(gamma) for _, gamma in gammas), default=0)):
        points = [(depth, gamma[j]) for depth, gamma in gammas if len(gamma) > j]
        axes.plot(*zip(*points, strict=True), "s--", label=f"γ{j + 1}", markersize=3, linewidth=1)
    axes.set_xlabel("site, in depth order")
    axes.axhline(1, color="#9aa0a6", linewidth=0.8)
    axes.legend(ncols=2)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
