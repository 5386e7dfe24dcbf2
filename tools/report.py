"""One HTML page about a model: five answers, what it learned by depth, its streams, and every join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import laurel_graph
from laurel_graph import onnx_file
from laurel_graph.detection import Detection, Residual
from laurel_graph.errors import ConfigError, OutputError
from laurel_graph.foreign_names import printable
from laurel_graph.model_folder import folder_files, graph_path
from laurel_graph.onnx_model import tensors as onnx_tensors
from laurel_graph.opset.parameters import count_parameters
from laurel_graph.opset.recover import is_deployed
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.outputs import check_outputs, write
from laurel_graph.outputs.kinds import PICTURE, TEXT
from laurel_graph.outputs.models import model_files
from laurel_graph.passes.detect.reasons import REASONS
from laurel_graph.passes.pipeline import inspect

from .console import relative
from .page.draw import chart
from .page.facts import Curve, SiteRow, by_stream, learned, read_training, site_row
from .page.picture import Panel, check_picture, write_picture
from .page.template import page_template

if TYPE_CHECKING:
    from onnx import ModelProto

    from laurel_graph.config import SiteSpec
    from laurel_graph.passes.verify import VerifyReport
    from laurel_graph.tools.benchmarks.latency import BenchRow

    from .page.draw import Points
    from .page.facts import Training

_COLOURS = 3
"""Variants that have a colour of their own; more share them."""
_SHOWN = 200
"""Characters of a name that a drawing shows; the tables have it whole."""


@dataclass(frozen=True)
class Answer:
    """One of the five answers.

    Attributes:
        question: what it answers.
        short: the answer in a few words.
        lines: more of it.
        mood: ``good`` or ``bad`` where it is a verdict.
    """

    question: str
    short: str
    lines: tuple[str, ...]
    mood: str = ""


@dataclass(frozen=True)
class _Facts:
    """What the page and the picture tell about a model."""

    model: str
    state: str
    found: Detection
    rows: list[SiteRow]
    curves: list[Curve]
    answers: list[Answer]
    history: Training | None
    compared: VerifyReport | None

    @property
    def colours(self) -> dict[str, str]:
        """Variant to the name of its colour."""
        return {
            variant: f"c{i % _COLOURS}" for i, variant in enumerate(dict.fromkeys(row.variant for row in self.rows))
        }

    @property
    def training_curves(self) -> list[tuple[str, Points]]:
        """How training went, epoch by epoch."""
        if self.history is None:
            return []
        named = (("loss", self.history.loss), ("validation metric", self.history.metric))
        return [(name, [(i, v, 0.0) for i, v in enumerate(values, 1)]) for name, values in named if values]


def write_report(
    model: str | Path,
    output: str | Path | None = None,
    *,
    served: str | Path | None = None,
    against: str | Path | None = None,
    training: str | Path | None = None,
    png: str | Path | None = None,
) -> Path:
    """Writes the page for an ONNX file or a model folder, transformed or not, and returns its path.

    Args:
        model: the file or folder.
        output: the page; ``None`` for the picture alone.
        served: a deployed file that is held against *model*: whether it is right.
        against: the original, whose latency is measured beside that of *served*, or of *model*: what it costs.
        training: what ``laurel finetune --json`` printed: how training went.
        png: a picture of it: the answers, the curves and the streams.

    Returns:
        The page, or the picture where that is all.

    Raises:
        ModelError: a model cannot be read, or does not run.
        DataError: *training* is something else.
        OutputError: *output* or *png* cannot be written.
        DependencyError: jinja2 is missing, or matplotlib for the picture.
        ConfigError: neither a page nor a picture is asked for.
    """
    if output is None and png is None:
        raise ConfigError("a report needs a page (output) or a picture (png) to write.")
    template = None if output is None else page_template("page.html")
    if png is not None:
        check_picture(png)
    path = graph_path(model)
    proto = onnx_file.read_with_records(path)
    read = (*model_files(path, proto), *folder_files(model), served, against, training)
    check_outputs(output, png, inputs=read)
    check_outputs(output, inputs=read, kind=TEXT)
    check_outputs(png, inputs=read, kind=PICTURE)
    facts = _facts(model, proto, path.parent, served, against, training)
    if png is not None:
        lanes = {number: [each.site for each in lane] for number, lane in by_stream(facts.found.residuals).items()}
        variants = {row.site: row.variant for row in facts.rows}
        panels = [Panel(curve.name, curve.start, (("", curve.points, 0),)) for curve in facts.curves]
        panels += [Panel(name, None, (("", points, 0),), "epoch") for name, points in facts.training_curves]
        told = [(answer.question, answer.short) for answer in facts.answers]
        write_picture(png, facts.model, told, panels, read, lanes=lanes, variants=variants)
    if template is None or output is None:
        return Path(str(png))
    return write(output, _rendered(template, facts, served).encode(), read)


def site_tensors(proto: ModelProto, folder: Path) -> dict[SiteSpec, dict[str, Any]]:
    """Returns what each site of a transformed model is, and its tensors; empty for a deployed one."""
    return {
        spec: {
            name: onnx_tensors.tensor_array(proto, tensor_name(spec.site, name), folder)
            for name in spec.tensor_shapes()
        }
        for spec in read_specs(proto).values()
    }


def _facts(
    model: str | Path,
    proto: ModelProto,
    folder: Path,
    served: str | Path | None,
    against: str | Path | None,
    training: str | Path | None,
) -> _Facts:
    history = None if training is None else read_training(training)
    found, tensors = inspect(proto), site_tensors(proto, folder)
    rows, curves = [site_row(spec, held) for spec, held in tensors.items()], learned(tensors)
    compared = _compared(model, served)
    measured = _measured(served or model, against)
    answers = [
        _rewritten(found, rows),
        _what_it_learned(curves, rows),
        _costs(rows, count_parameters(proto), measured),
        _right(compared, served),
        _training(history),
    ]
    state = "deployed" if is_deployed(proto) else "transformed" if rows else "not transformed"
    return _Facts(Path(model).name, state, found, rows, curves, answers, history, compared)


def _rendered(template: Any, facts: _Facts, served: str | Path | None) -> str:
    from markupsafe import Markup

    found, rows, curves, compared = facts.found, facts.rows, facts.curves, facts.compared
    page: str = template.render(
        model=facts.model,
        state=facts.state,
        version=laurel_graph.__version__,
        nodes=found.nodes,
        answers=facts.answers,
        charts=[
            {
                "name": curve.name,
                "start": curve.start,
                "furthest": curve.furthest,
                "svg": Markup(chart(curve.name, curve.points, curve.start, names=_named(curve, rows))),
            }
            for curve in curves
        ],
        bands=any(spread for curve in curves for _, _, spread in curve.points),
        curves=[
            {"name": name, "svg": Markup(chart(name, points, along="epoch"))} for name, points in facts.training_curves
        ],
        legend=[{"name": variant, "colour": colour} for variant, colour in facts.colours.items()],
        lanes=_lanes(found, rows, facts.colours),
        rows=rows,
        others=any(row.others for row in rows),
        compared=[] if compared is None else [_item(item) for item in (*compared.outputs, *compared.sites)],
        compared_with="" if served is None else Path(served).name,
        residuals=found.residuals,
        reasons=_reasons(found),
    )
    return page


def default_page(model: Path) -> Path:
    """Returns where the page of *model* goes when nobody says: ``MODEL.html``.

    Raises:
        OutputError: another file than such a page has that name.
    """
    page = model.with_name(f"{model.name}.html") if model.is_dir() else model.with_suffix(".html")
    if page.is_file() and b"<title>LAuReL report" not in page.read_bytes():
        raise OutputError(f"{page} is there and is no report of ours; name the page with --output.")
    return page


def _rewritten(found: Detection, rows: Sequence[SiteRow]) -> Answer:
    kinds = Counter(residual.kind for residual in found.residuals)
    variants = Counter(row.variant for row in rows)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    streams = len(by_stream(found.residuals))
    short = f"{len(rows)} of {len(found.residuals)} residual connections"
    lines = (
        ", ".join(f"{count} × {variant}" for variant, count in variants.items()) or "nothing is rewritten yet",
        f"{listed or 'none'}, in {streams} stream{'s' * (streams != 1)}; {len(found.rejected)} other joins left alone",
    )
    return Answer("What was rewritten?", short, lines)


def _what_it_learned(curves: Sequence[Curve], rows: Sequence[SiteRow]) -> Answer:
    if not curves:
        return Answer("What did it learn?", "nothing: no learned tensors", ())
    moved = [curve for curve in curves if curve.furthest > 0]
    lines = []
    for curve in curves:
        depth = curve.furthest_at
        value, at = next(v for d, v, _ in curve.points if d == depth), printable(rows[depth].site, _SHOWN)
        lines.append(f"{curve.name}: {value:.4g} furthest from its start {curve.start:g}, at {at} (depth {depth})")
    return Answer("What did it learn?", f"{len(moved)} of {len(curves)} quantities moved", tuple(lines))


def _costs(rows: Sequence[SiteRow], base: int, measured: Sequence[BenchRow]) -> Answer:
    parameters, work = sum(row.parameters for row in rows), sum(row.multiplications for row in rows)
    from laurel_graph.tools.benchmarks.latency import findings

    lines = [
        f"{parameters:,} on {base:,} parameters",
        f"{work:,} more multiplications for each row of features, before folding",
    ]
    if measured:
        first, last = measured
        lines.append(f"latency {last.median_ms:.4g} ms against {first.median_ms:.4g} ms, ratio {last.ratio or 0:.3f}")
        lines += findings(measured)
    else:
        lines.append("latency was not measured: give --against ORIGINAL")
    return Answer("What does it cost?", f"{100 * parameters / max(base, 1):.3g} % more parameters", tuple(lines))


def _right(compared: VerifyReport | None, served: str | Path | None) -> Answer:
    question = "Is it right?"
    if compared is None or served is None:
        return Answer(
            question, "not compared here", ("give --served FILE, the deployed file, to hold it against this one",)
        )
    import onnxruntime

    short = "equal" if compared.equal else "NOT equal"
    drawn = f" ({compared.style})" if compared.style else ""
    lines = (
        f"{Path(served).name} on {compared.samples} samples{drawn}, ONNX Runtime {onnxruntime.__version__}",
        compared.summary,
        *compared.notes,
    )
    return Answer(question, short, tuple(filter(None, lines)), "good" if compared.equal else "bad")


def _training(history: Training | None) -> Answer:
    if history is None:
        text = "give --training FILE, what laurel finetune --json printed"
        return Answer("How did training go?", "not at hand", (text,))
    last = f"loss {history.loss[-1]:.4g}" if history.loss else "no epochs"
    return Answer("How did training go?", last, (history.summary,))


def _compared(model: str | Path, served: str | Path | None) -> VerifyReport | None:
    if served is None:
        return None
    from laurel_graph.passes.verify import verify

    return verify(model, served)


def _measured(model: str | Path, against: str | Path | None) -> list[BenchRow]:
    if against is None:
        return []
    from laurel_graph.tools.benchmarks.latency import bench

    return bench([model], against, fresh=0)


def _named(curve: Curve, rows: Sequence[SiteRow]) -> list[str]:
    return [printable(rows[depth].site, _SHOWN) for depth, _, _ in curve.points]


def _item(item: Any) -> dict[str, Any]:
    name = getattr(item, "site", "") or item.output
    return {"name": name, **{key: getattr(item, key) for key in ("max_rel", "tolerance", "noise", "equal")}}


def _lanes(found: Detection, rows: Iterable[SiteRow], colours: dict[str, str]) -> list[dict[str, Any]]:
    by_site = {row.site: row for row in rows}
    place = {id(residual): i for i, residual in enumerate(found.residuals)}
    return [
        {"number": number, "joins": [_join(each, place[id(each)], by_site.get(each.site), colours) for each in members]}
        for number, members in by_stream(found.residuals).items()
    ]


def _join(residual: Residual, row: int, site: SiteRow | None, colours: dict[str, str]) -> dict[str, Any]:
    def short(text: str) -> str:
        return printable(text, _SHOWN)

    what = (
        f"{site.variant}{f', rank {site.rank}' if site.rank else ''}" if site else residual.blocked or "left as it was"
    )
    width = f", width {residual.width}" if residual.width else ""
    source = f"; {short(relative(residual.source))}" if residual.source else ""
    names = f"{short(residual.skip)} + {short(' + '.join(residual.branches))}"
    return {
        "row": row,
        "colour": colours[site.variant] if site else "none",
        "fill": "full" if site else "empty",
        "kind": residual.kind if residual.kind in ("identity", "projection") else "laurel",
        "text": f"{short(residual.site)}: {residual.kind}, {short(what)}{width}; {names}{source}",
    }


def _reasons(found: Detection) -> list[dict[str, Any]]:
    """The other joins by reason."""
    joins: dict[str, list[Any]] = {}
    for rejected in found.rejected:
        joins.setdefault(rejected.reason, []).append(rejected)
    return [{"name": name, "meaning": REASONS[name], "joins": held} for name, held in joins.items()]
