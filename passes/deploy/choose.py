"""Chooses for every site the cheapest of its exact forms, after :mod:`~laurel_graph.passes.fold.fold`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from laurel_graph.onnx_model.bodies import bodies_of
from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.onnx_model.element_range import UnfitError
from laurel_graph.onnx_model.shapes import Types
from laurel_graph.opset import functions
from laurel_graph.opset.laurel_node import known_nodes
from laurel_graph.opset.schema import Operator

from .absorb import absorb, skip_map
from .costs import CostModel, SiteSizes
from .forms import Join, can_widen, emit_chained, emit_operator, emit_widened, join_at, nodes_to_write
from .quantized import emit_quantized, island_of

FORMS = ("absorbed", "quantized", "operator", "widened", "chained")


@dataclass(frozen=True)
class FusedSite:
    """What became of one site.

    Attributes:
        site: the site.
        node: the key of its join, with the path of its body before it.
        form: one of :data:`FORMS`.
        operator: the type of the ``ai.laurel`` node that is left, or "".
        costs: what the cost model expects each possible form to add to the plain residual, in µs.
        reason: what could not be taken in, and why, or "".
        altered: values of the graph that have a part of the join in them now, so that they are not what they were.
    """

    site: str
    node: str
    form: str
    operator: str = ""
    costs: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    altered: tuple[str, ...] = ()


def fuse(
    model: onnx.ModelProto,
    costs: CostModel,
    *,
    portable: bool = False,
    base: Path | None = None,
    types: Types | None = None,
) -> tuple[FusedSite, ...]:
    """Gives every ``ai.laurel`` node of the main graph its cheapest form, in place.

    Args:
        model: a folded model.
        costs: what each form costs.
        portable: use operators of ``ai.onnx`` alone.
        base: the folder of external weights.
        types: what is known of its values already (folding says it); by default shape inference finds it out.
    """
    if types is None:
        functions.detach(model)
        functions.attach(model)  # shapes pass an operator through its body
    editor = GraphEditor(model, base, types)
    done = []
    for node in nodes_to_write(editor):
        join = join_at(editor, node)
        site = _fuse(editor, join, costs, portable)
        done.append(replace(site, reason="; ".join(dict.fromkeys(join.notes))))
    if done:
        editor.finish()
    return (*done, *_inner_sites(model, portable))


def absorb_all(
    model: onnx.ModelProto, *, base: Path | None = None, types: Types | None = None
) -> tuple[FusedSite, ...]:
    """Lets every skip that ends in a linear map take the low-rank part of its join in, in place, whatever it costs.

    Args:
        model: a trained model, folded or not.
        base: the folder of external weights.
        types: what is known of its values already; by default shape inference finds it out.

    Returns:
        One record per ``ai.laurel`` node of the main graph; ``form`` is "" where nothing was absorbed.
    """
    editor = GraphEditor(model, base, types)
    done = []
    for node in nodes_to_write(editor):
        join = join_at(editor, node)
        skip = None if join.obstacle else skip_map(editor, join)
        reason = join.obstacle or ("" if skip is not None else "no linear map that this join alone reads ends its skip")
        record = FusedSite(join.site, node.output[0], "", join.op.name, reason=reason)
        if skip is not None:
            try:
                left = absorb(editor, join, skip)
                altered = _made_by(skip.node, skip.norm, skip.adder)
                record = replace(record, form="absorbed", operator=left.op.name if left else "", altered=altered)
            except UnfitError:
                why = "the weights of its skip cannot hold its low-rank part in their element type"
                record = replace(record, reason=why)
        done.append(record)
    editor.finish()
    return tuple(done)


def _inner_sites(model: onnx.ModelProto, portable: bool) -> list[FusedSite]:
    """Returns the records of sites in subgraphs, which keep their operator or get its function body."""
    why = "it stands in a subgraph"
    return [
        FusedSite(ours.site, body.path + ours.output, *_kept(ours.operator, portable), reason=why)
        for body in bodies_of(model).values()
        for ours in known_nodes(body.graph.node)
    ]


def _kept(op: Operator, portable: bool) -> tuple[str, str]:
    """Returns form and operator of a site that keeps its operator, in whose place a portable file has the body."""
    return ("chained", "") if portable else ("operator", op.name)


def _fuse(editor: GraphEditor, join: Join, costs: CostModel, portable: bool) -> FusedSite:
    node, site = join.node.output[0], join.site
    if join.obstacle:
        join.notes.append(join.obstacle)
        return FusedSite(site, node, *_kept(join.op, portable))
    island = None if portable else island_of(editor, join)
    if island is not None:  # not measured: each other form makes floats of whole arrays
        return FusedSite(site, node, "quantized", emit_quantized(editor, join, island))
    place = place_of(editor, join)
    expected = _expected(costs, join, place, portable)
    form = min(expected, key=expected.__getitem__)
    skip = skip_map(editor, join)
    if skip is not None:
        rest = replace(place, rank=0)
        left = min(_expected(costs, join, rest, portable).values()) if place.previous or place.rw else 0.0
        expected["absorbed"] = costs.cost("absorbed", place) + left
        if expected["absorbed"] <= expected[form]:
            try:
                left_over, altered = absorb(editor, join, skip), _made_by(skip.node, skip.norm, skip.adder)
            except UnfitError:
                join.notes.append("the weights of its skip cannot hold its low-rank part in their element type")
            else:
                operator = _finish(editor, left_over, costs, portable)
                return FusedSite(site, node, "absorbed", operator, expected, altered=altered)
    altered = _widened(join) if form == "widened" else ()
    return FusedSite(site, node, form, _emit(editor, join, form, costs), expected, altered=altered)


def _made_by(*nodes: onnx.NodeProto | None) -> tuple[str, ...]:
    return tuple(node.output[0] for node in nodes if node is not None)


def _widened(join: Join) -> tuple[str, ...]:
    """Returns the values from the branch's last linear map on, which have the low-rank part in them once it is wide."""
    return tuple(dict.fromkeys((*_made_by(join.branch.node if join.branch else None), join.names["f"])))


def _finish(editor: GraphEditor, rest: Join | None, costs: CostModel, portable: bool) -> str:
    """Gives what is left of a join whose low-rank part is absorbed its cheapest form."""
    if rest is None:
        return ""
    expected = _expected(costs, rest, place_of(editor, rest), portable)
    return _emit(editor, rest, min(expected, key=expected.__getitem__), costs)


def _expected(costs: CostModel, join: Join, place: SiteSizes, portable: bool) -> dict[str, float]:
    """Returns what each form in which the join keeps all its parts adds to the plain residual, in µs."""
    possible = {"operator": not portable, "widened": can_widen(join) and place.rank > 0, "chained": True}
    return {form: costs.cost(form, place) for form, can in possible.items() if can}


def _emit(editor: GraphEditor, join: Join, form: str, costs: CostModel) -> str:
    """Writes the join in one form; returns the type of the operator of ``ai.laurel`` that is left, or ""."""
    block = costs.block if join.op.layout else 1
    if form == "operator":
        return emit_operator(editor, join)
    if form == "widened":
        emit_widened(editor, join, block)
    else:
        emit_chained(editor, join, block)
    return ""


def place_of(editor: GraphEditor, join: Join) -> SiteSizes:
    """Returns what the cost of a site's forms depends on."""
    shape = editor.shape(join.names["x"]) or editor.shape(join.node.output[0]) or ()
    axis = 1 if join.op.layout else len(shape) - 1
    rows = 1 if shape else 128
    for i, size in enumerate(shape):
        if i != axis and i > 0:
            rows *= size if isinstance(size, int) else (1 if join.op.layout else 128)
    width = shape[axis] if shape and isinstance(shape[axis], int) else join.width
    return SiteSizes(
        channels=bool(join.op.layout),
        rows=max(rows, 1),
        width=int(width or 1),
        branch=join.branch.width if join.branch else 0,
        rank=join.rank,
        previous=join.op.previous,
        norm=join.norm is not None,
        rw=join.op.rw,
    )
