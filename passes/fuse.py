"""Chooses for every site the cheapest of its exact forms, after :mod:`~laurel_graph.passes.fold`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx

from laurel_graph.opset import functions
from laurel_graph.passes.costs import CostModel, Place
from laurel_graph.passes.onnx_edit import GraphEditor
from laurel_graph.passes.site_forms import Join, can_widen, emit_chained, emit_operator, emit_widened, joins_of

FORMS = ("operator", "widened", "chained")


@dataclass(frozen=True)
class FusedSite:
    """What became of one site.

    Attributes:
        site: the site.
        node: the key of its join.
        form: one of :data:`FORMS`.
        operator: the type of the ``ai.laurel`` node that is left, or "".
        costs: what the cost model expects each possible form to add to the plain residual, in µs.
    """

    site: str
    node: str
    form: str
    operator: str = ""
    costs: dict[str, float] = field(default_factory=dict)


def fuse(
    model: onnx.ModelProto, costs: CostModel, *, portable: bool = False, base: Path | None = None
) -> tuple[FusedSite, ...]:
    """Gives every ``ai.laurel`` node of the main graph its cheapest form, in place.

    Args:
        model: a folded model.
        costs: what each form costs.
        portable: use operators of ``ai.onnx`` alone.
        base: the folder of external weights.
    """
    functions.detach(model)
    functions.attach(model)  # shapes pass an operator through its body
    editor = GraphEditor(model, base)
    done = [_fuse(editor, join, costs, portable) for join in joins_of(editor)]
    if done:
        editor.finish()
    return tuple(done)


def _fuse(editor: GraphEditor, join: Join, costs: CostModel, portable: bool) -> FusedSite:
    node = join.node.output[0]
    site, block = join.site, costs.block if join.op.layout else 1
    place = place_of(editor, join)
    possible = [
        form for form in FORMS if (form != "operator" or not portable) and (form != "widened" or can_widen(join))
    ]
    expected = {form: costs.cost(form, place) for form in possible}
    form = min(possible, key=lambda name: expected[name])
    operator = ""
    if form == "operator":
        operator = emit_operator(editor, join)
    elif form == "widened":
        emit_widened(editor, join, block)
    else:
        emit_chained(editor, join, block)
    return FusedSite(site, node, form, operator, expected)


def place_of(editor: GraphEditor, join: Join) -> Place:
    """Returns what the cost of a site's forms depends on."""
    shape = editor.shape(join.names["x"]) or editor.shape(join.node.output[0]) or ()
    axis = 1 if join.op.layout else len(shape) - 1
    rows = 1 if shape else 128
    for i, size in enumerate(shape):
        if i != axis and i > 0:
            rows *= size if isinstance(size, int) else (1 if join.op.layout else 128)
    width = shape[axis] if shape and isinstance(shape[axis], int) else join.width
    return Place(
        channels=bool(join.op.layout),
        rows=max(rows, 1),
        width=int(width or 1),
        branch=join.branch.width if join.branch else 0,
        rank=join.rank,
        previous=join.op.previous,
        norm=join.norm is not None,
        rw=join.op.rw,
    )
