"""Folds RW to nothing: α and β go into weights that are there anyway, exactly.

The join ``y = α·f + β·(x + ...)`` becomes ``y' = f' + x' + ...`` when y, f and x are stored as y/s(y), f/s(f) and
x/s(x) with ``s(y) = β·s(x) = α·s(f)``. Which scale each value of the graph gets is found by
:class:`~laurel_graph.passes.scales.ScaleSystem` under the rules of :mod:`~laurel_graph.passes.scale_rules`: branches
take α into their last weights, norms turn ε into ε/s², ReLU and pooling hand a scale on, weights behind the stream take
it back out. A and B of LR and γ of PA take in what is left. Where the graph leaves no room, α or β stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.errors import RewriteError
from laurel_graph.opset.schema import DOMAIN, PREFIX, Operator
from laurel_graph.passes.onnx_edit import GraphEditor
from laurel_graph.passes.scale_context import ONE, RIGID, Context
from laurel_graph.passes.scale_rules import channel_axes, rule_for
from laurel_graph.passes.scales import ScaleSystem, same

Array = NDArray[Any]

_LIMITS: dict[int, float] = {onnx.TensorProto.FLOAT16: 2.0**4, onnx.TensorProto.BFLOAT16: 2.0**16}
"""How far apart two scales may be, by element type; 2⁴⁰ in float32 and float64."""


@dataclass(frozen=True)
class FoldedSite:
    """What folding did to one ``ai.laurel`` node.

    Attributes:
        site: the site.
        node: the key of the node (its output before the pass).
        operator: its operator type before.
        result: its operator type after, ``Add`` when nothing of LAuReL is left.
        alpha: ``absent``, ``folded`` or ``kept``.
        beta: ``absent``, ``folded`` or ``kept``.
        reason: why α or β was kept, or "".
    """

    site: str
    node: str
    operator: str
    result: str
    alpha: str = "absent"
    beta: str = "absent"
    reason: str = ""


@dataclass(frozen=True)
class FoldReport:
    """What :func:`fold` did.

    Attributes:
        sites: one record per ``ai.laurel`` node, in graph order.
        rescaled: keys of the nodes whose constants took a scale in.
        multiplied: keys of the nodes that got a ``Mul`` on an input, because nothing else could take the scale.
        renamed: value to what it is called now, for values seen from outside that a ``Mul`` behind them makes.
    """

    sites: tuple[FoldedSite, ...] = ()
    rescaled: tuple[str, ...] = ()
    multiplied: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, Array] = field(default_factory=dict)


@dataclass
class _Join:
    """One ``ai.laurel`` node: its operator, its inputs by name, its tensors in float64."""

    node: onnx.NodeProto
    op: Operator
    names: dict[str, str]
    tensors: dict[str, Array]
    reasons: list[str] = field(default_factory=list)

    @property
    def site(self) -> str:
        """The site, from the name of one of its tensors."""
        for role in ("alpha", "A", "gamma"):
            name = self.names.get(role, "")
            if name.startswith(PREFIX + ".") and "." in name[len(PREFIX) + 1 :]:
                return name[len(PREFIX) + 1 :].rpartition(".")[0]
        return str(self.node.output[0])

    @property
    def width(self) -> int:
        """D, from the low-rank maps of earlier activations."""
        return int(self.tensors["previous_B"].shape[-1])

    @property
    def previous(self) -> list[str]:
        """The earlier activations, nearest first."""
        return [self.names[f"previous_{j + 1}"] for j in range(self.op.previous)]


def site_of(node: onnx.NodeProto, op: Operator) -> str:
    """Returns the site that an ``ai.laurel`` node belongs to."""
    return _Join(node, op, dict(zip(op.inputs, node.input, strict=True)), {}).site


def _joins(editor: GraphEditor) -> list[_Join]:
    joins = []
    for node in editor:
        if node.domain != DOMAIN:
            continue
        op = Operator.parse(node.op_type)
        if op is None or len(op.inputs) != len(node.input):
            raise RewriteError(
                f"node {node.output[0]!r} is {DOMAIN}.{node.op_type}, which is no operator of this version; "
                "expected a model that `laurel transform` of this version wrote."
            )
        if op.bias or op.epilogue:
            raise RewriteError(f"the model is deployed already (node {node.output[0]!r} is {node.op_type}).")
        names = dict(zip(op.inputs, node.input, strict=True))
        tensors = {
            r: editor.constant(n)
            for r, n in names.items()
            if r in ("alpha", "beta", "A", "B", "gamma", "previous_A", "previous_B")
        }
        if all(value is not None for value in tensors.values()):
            known = {r: np.asarray(value, np.float64) for r, value in tensors.items() if value is not None}
            joins.append(_Join(node, op, names, known))
    return joins


def fold(model: onnx.ModelProto, base: Path | None = None) -> FoldReport:
    """Folds α and β of every ``ai.laurel`` node of the main graph into the constants around it, in place.

    Args:
        model: a transformed model.
        base: the folder of its external weights.

    Raises:
        RewriteError: a node of ``ai.laurel`` is unknown, or the model is deployed already.
    """
    editor = GraphEditor(model, base)
    joins = _joins(editor)
    if not joins:
        return FoldReport()
    limits = [_LIMITS.get(editor.elem_type(n), 2.0**40) for j in joins for n in (j.names["x"], *j.node.input[2:3])]
    context = Context(editor, ScaleSystem(min(limits)))
    _relate(context, joins)
    order = [*(v.name for v in model.graph.input), *(name for node in editor for name in node.output if name)]
    context.scales = context.system.settle(order)
    known = {id(join.node) for join in joins}
    for node in editor:
        if id(node) not in known:
            (RIGID if node.domain == DOMAIN else rule_for(node, editor)).rescale(node, context)
    sites = tuple(_rescale_join(join, context) for join in joins)
    renamed = _restore_visible(context)
    editor.finish()
    changed, multiplied = (tuple(dict.fromkeys(keys)) for keys in (context.changed, context.multiplied))
    return FoldReport(sites, changed, multiplied, renamed, _scales(context, renamed))


def _scales(context: Context, renamed: Mapping[str, str]) -> dict[str, Array]:
    made = {name for node in context.editor.graph.node for name in node.output}
    found = {}
    for name, scale in context.scales.items():
        stored = renamed.get(name, name)
        if stored in made and not same(scale, 1.0):
            found[stored] = context.along(scale, name, context.editor.rank(stored)) if scale.ndim else scale
    return found


def _relate(context: Context, joins: list[_Join]) -> None:
    editor, system = context.editor, context.system
    by_node = {id(join.node): join for join in joins}
    seeds: dict[str, int] = {}
    for join in joins:
        out = join.node.output[0]
        context.sites |= {out, join.names["x"], join.names["f"]}
        if any(t.ndim and r in ("alpha", "beta") for r, t in join.tensors.items()):
            for name in (out, join.names["x"], join.names["f"], *join.previous):
                rank = editor.rank(name)
                if rank is None:
                    rank = int(join.op.layout[0]) + 2 if join.op.layout else None
                if rank is not None:
                    seeds[name] = join.op.axis % rank
    context.axes = channel_axes(editor, seeds)
    for value in (*editor.inputs, *editor.initializers):
        system.fix(value)
    for node in editor:
        if id(node) not in by_node:
            (RIGID if node.domain == DOMAIN else rule_for(node, editor)).relate(node, context)
    for join in joins:
        _relate_join(join, context)
    for name in sorted(editor.outputs | (editor.captured & set(editor.producer))):
        system.fix(name)


def _relate_join(join: _Join, context: Context) -> None:
    system, out = context.system, join.node.output[0]
    for role, value in (("beta", join.names["x"]), ("alpha", join.names["f"])):
        if context.editor.is_constant(value):
            system.fix(value)
        factor = join.tensors.get(role, ONE)
        if np.any(factor == 0) or not np.all(np.isfinite(factor)):
            join.reasons.append(f"{role} is zero or not finite in some channel")
        elif factor.ndim and (out not in context.axes or context.axes.get(value) != context.axes[out]):
            join.reasons.append(
                f"{role} has one value per channel, and the axis of the channels of {value!r} is unknown"
            )
        elif not system.link(out, value, factor):
            join.reasons.append(f"{role} reaches values that are seen as they are or cannot be scaled")


def _rescale_join(join: _Join, context: Context) -> FoldedSite:
    editor, node, op = context.editor, join.node, join.op
    x, f, out = join.names["x"], join.names["f"], node.output[0]
    s_x, s_out = context.scale(x), context.scale(out)
    alpha, beta = join.tensors.get("alpha", ONE), join.tensors.get("beta", ONE)
    a, b = alpha * context.scale(f) / s_out, beta * s_x / s_out
    keep_a, keep_b = not same(a, 1.0), not same(b, 1.0)
    keep = keep_a or keep_b
    a, b = (a, b) if keep else (ONE, ONE)
    names = dict(join.names)
    if op.lr:
        names["A"] = _times(editor, names["A"], s_x[:, None] if s_x.ndim else ONE)
        names["B"] = _times(editor, names["B"], beta / (s_out * b) if s_x.ndim else beta * s_x / (s_out * b))
    if op.previous:
        _rescale_previous(join, names, context, beta / (s_out * b))
    if keep and op.rw:
        names["alpha"], names["beta"] = (_replace(editor, names[r], v) for r, v in (("alpha", a), ("beta", b)))
    elif keep:
        dtype = editor.elem_type(x) or editor.elem_type(names.get("A", names.get("gamma", ""))) or 1
        kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
        for role, value in (("alpha", a), ("beta", b)):
            names[role] = editor.add_constant(f"{PREFIX}.{join.site}.{role}", np.asarray(value, kind))
    new = (
        Operator(keep, op.lr, op.previous, op.low_rank_previous, layout=op.layout)
        if keep or op.lr or op.previous
        else None
    )
    result = "Add" if new is None else new.name
    inputs = [x, f] if new is None else [names[role] for role in new.inputs]
    editor.replace(node, result, inputs, DOMAIN if new else "")
    state = {True: "kept", False: "folded"}
    return FoldedSite(
        join.site,
        out,
        op.name,
        result,
        state[keep_a] if op.rw else "absent",
        state[keep_b] if op.rw else "absent",
        "; ".join(dict.fromkeys(join.reasons)) if keep else "",
    )


def _rescale_previous(join: _Join, names: dict[str, str], context: Context, rest: Array) -> None:
    """Lets γ, or where scales differ by channel the low-rank maps, take the scales of the earlier activations."""
    editor, scales = context.editor, [context.scale(name) for name in join.previous]
    factors = [rest * scale for scale in scales]
    if join.op.low_rank_previous and any(factor.ndim for factor in factors):
        columns = np.stack([np.broadcast_to(scale, join.width) for scale in scales])[:, :, None]
        names["previous_A"] = _times(editor, names["previous_A"], columns)
        names["previous_B"] = _times(editor, names["previous_B"], np.broadcast_to(rest, join.width))
        return
    for j, factor in enumerate(factors):
        if factor.ndim and same(factor, factor.flat[0]):
            factors[j] = np.asarray(factor.flat[0])
        elif factor.ndim:  # γ is one number per activation: the value itself is scaled
            name = join.previous[j]
            along = context.along(factor, name)
            names[f"previous_{j + 1}"] = editor.multiplied(name, along, editor.elem_type(name))
            context.multiplied.append(join.node.output[0])
            factors[j] = ONE
    names["gamma"] = _times(editor, names["gamma"], np.stack(factors))


def _times(editor: GraphEditor, name: str, factor: Array) -> str:
    """Returns a constant times *factor*: itself where the factor is 1."""
    if same(factor, 1.0):
        return name
    return editor.derived(name, ("·", factor.shape, factor.tobytes()), lambda value: value * factor)


def _replace(editor: GraphEditor, name: str, value: Array) -> str:
    old = editor.constant(name)
    if old is not None and old.shape == value.shape and same(np.where(old == value, 1.0, 2.0), 1.0):
        return name
    return editor.derived(name, ("=", value.shape, value.tobytes()), lambda _: value)


def _restore_visible(context: Context) -> dict[str, str]:
    """Gives values that are seen from outside their true scale back; returns what the stored ones are called now."""
    editor = context.editor
    renamed = {}
    for name in sorted(editor.outputs | editor.captured):
        scale = context.scale(name)
        node = editor.producer.get(name)
        if same(scale, 1.0) or node is None:
            continue
        stored = renamed[name] = editor.unique(f"{name}_stored")
        editor.rename_output(node, name, stored)
        kind = onnx.helper.tensor_dtype_to_np_dtype(editor.elem_type(stored) or onnx.TensorProto.FLOAT)
        factor = editor.add_constant(f"{name}_scale", context.along(scale, name, editor.rank(stored)).astype(kind))
        editor.add_node("Mul", [stored, factor], name)
        context.multiplied.append(name)
    return renamed
