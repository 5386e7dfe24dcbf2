"""Folds RW to nothing: α and β go into weights that are there anyway, exactly.

The join ``y = α·f + β·(x + ...)`` becomes ``y' = f' + x' + ...`` when y, f and x are stored as y/s(y), f/s(f) and
x/s(x) with ``s(y) = β·s(x) = α·s(f)``. Which scale each value of the graph gets is found by
:class:`~.system.ScaleSystem` under the rules of :mod:`.rules`: branches
take α into their last weights, norms turn ε into ε/s², ReLU and pooling hand a scale on, weights behind the stream take
it back out. A and B of LR and γ of PA take in what is left. Where the graph leaves no room, α or β stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.bodies import bodies_of
from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.onnx_model.element_range import UnfitError
from laurel_graph.onnx_model.shapes import Types, tensor_types
from laurel_graph.opset.laurel_node import LaurelNode, known_nodes
from laurel_graph.opset.schema import DOMAIN, PREFIX, Operator

from .channels import channel_axes
from .context import ONE, RIGID, Context, Rule, added_rule
from .joins import TrainedJoin, joins_of
from .rules import rule_for
from .system import ScaleSystem, same

Array = NDArray[Any]

RESCALE = ("all", "unquantised", "nothing")
"""Which values folding may store at another scale: all, those that are not quantised as they come (their integers
stay the same but for one that lay on the edge between two), or none, so that α and β stay where they are."""

_LIMITS: dict[int, float] = {onnx.TensorProto.FLOAT16: 2.0**4, onnx.TensorProto.BFLOAT16: 2.0**16}
"""How much smaller than it is a value may be stored, by element type; other types are bounded by ``scales.WIDE``."""


@dataclass(frozen=True)
class FoldedSite:
    """What folding did to one ``ai.laurel`` node.

    Attributes:
        site: the site.
        node: the key of the node (its output before the pass), with the path of its body before it.
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
        scales: value of the folded graph to the factor s by which its stored value times s is the true one, of a shape
            that broadcasts against the value; values that are stored as they are have no entry. What is the true value
            of a renamed one stands under its new name.
        types: value of the folded graph to shape and element type, as far as they are known.
        rescale: which values were allowed another scale, one of :data:`RESCALE`.
    """

    sites: tuple[FoldedSite, ...] = ()
    rescaled: tuple[str, ...] = ()
    multiplied: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, Array] = field(default_factory=dict)
    types: Types = field(default_factory=dict, repr=False)
    rescale: str = "all"


def fold(
    model: onnx.ModelProto,
    base: Path | None = None,
    types: Types | None = None,
    rescale: str = "all",
) -> FoldReport:
    """Folds α and β of every ``ai.laurel`` node of the main graph into the constants around it, in place.

    Args:
        model: a transformed model.
        base: the folder of its external weights.
        types: what is known of its values already; by default shape inference finds it out.
        rescale: the values that may be stored at another scale, one of :data:`RESCALE`.

    Raises:
        RewriteError: a node of ``ai.laurel`` is unknown, or the model is deployed already.
    """
    blocked: set[str] = set()
    types = tensor_types(model)[0] if types is None else types
    while True:
        editor = GraphEditor(model, base, types)
        joins = joins_of(editor)
        if not joins:
            return FoldReport(_inner_sites(model), types=types, rescale=rescale)
        if rescale == "nothing":
            blocked = {name for join in joins for name in join.values}
        context = Context(editor, ScaleSystem(_limits(editor, joins)), blocked=blocked, dynamic=rescale == "all")
        _link_all(context, joins)
        order = [*(v.name for v in model.graph.input), *(name for node in editor for name in node.output if name)]
        context.scales = context.system.solve(order)
        sites, unfit = _rescale(context, joins)
        renamed, unseen = _restore_visible(context)
        unfit |= unseen
        every = {name for join in joins for name in join.values}
        if not unfit:
            break
        if every <= blocked:  # nothing is scaled any more
            raise RewriteError(
                f"no scale fits around {sorted(unfit)[0]!r}, the true one included; expected finite weights."
            )
        blocked = blocked | (every if unfit <= blocked else unfit)
    editor.finish()
    changed, multiplied = (tuple(dict.fromkeys(keys)) for keys in (context.changed, context.multiplied))
    every_site = (*sites, *_inner_sites(model))
    return FoldReport(every_site, changed, multiplied, renamed, _scales(context, renamed), editor.types, rescale)


def _limits(editor: GraphEditor, joins: list[TrainedJoin]) -> Callable[[str], float | None]:
    """Returns what says how much smaller a value may be stored, ``None`` for one that is not of a 16-bit type.

    A value of unknown type is taken for one of the narrowest type that a join has.
    """
    kinds = {editor.elem_type(n) for j in joins for n in (*j.values, *j.node.input[2:3])}
    unknown = min((_LIMITS[kind] for kind in kinds if kind in _LIMITS), default=None)

    def limit(name: str) -> float | None:
        kind = editor.elem_type(name)
        return _LIMITS.get(kind) if kind else unknown

    return limit


def _rescale(context: Context, joins: list[TrainedJoin]) -> tuple[list[FoldedSite], set[str]]:
    """Writes the scales into the constants; returns the sites and the values whose scale some constant cannot hold."""
    editor, known = context.editor, {id(join.node): join for join in joins}
    unfit: set[str] = set()
    sites: list[FoldedSite] = []
    for node in editor:
        if id(node) in known:
            continue
        try:
            _rule(node, editor).rescale(node, context)
        except UnfitError:
            unfit.update(name for name in (*node.input, *node.output) if name and not editor.is_constant(name))
    for join in joins:
        try:
            sites.append(_rescale_join(join, context))
        except UnfitError:
            unfit.update(join.values)
    return sites, unfit


def _rule(node: onnx.NodeProto, editor: GraphEditor) -> Rule:
    if node.domain != DOMAIN:
        return rule_for(node, editor)
    ours = LaurelNode.of(node)
    return (added_rule(DOMAIN, ours.operator.variant) if ours is not None else None) or RIGID


def _inner_sites(model: onnx.ModelProto) -> tuple[FoldedSite, ...]:
    """Returns the records of sites that stay as they are: in subgraphs, and of terms beside RW, LR and PA."""
    left = []
    for ours in known_nodes(model.graph.node):
        if ours.operator.further:
            variant = ours.operator.variant
            left.append(("", ours, "" if added_rule(DOMAIN, variant) else f"{variant} has no rule to fold by"))
    why = "it stands in a subgraph (If, Loop, Scan), where nothing is folded: several bodies may read one weight"
    left += [(body.path, ours, why) for body in bodies_of(model).values() for ours in known_nodes(body.graph.node)]
    sites = []
    for path, ours, reason in left:
        name, state = ours.operator.name, "kept" if ours.operator.rw else "absent"
        sites.append(FoldedSite(ours.site, path + ours.output, name, name, state, state, reason))
    return tuple(sites)


def _scales(context: Context, renamed: Mapping[str, str]) -> dict[str, Array]:
    """Returns the scales of the values that the finished graph has; see :attr:`FoldReport.scales`."""
    made = {name for node in context.editor.graph.node for name in node.output}
    names = {name: renamed.get(name, name) for name in context.scales}
    return {
        new: context.along(context.scales[name], name, context.editor.rank(new))
        for name, new in names.items()
        if new in made
    }


def _link_all(context: Context, joins: list[TrainedJoin]) -> None:
    editor, system = context.editor, context.system
    by_node = {id(join.node): join for join in joins}
    context.sites |= {name for join in joins for name in join.values[:3]}
    context.axes = channel_axes(editor, _seeds(editor, joins))
    read = {name for node in editor for name in node.input if name}
    for value in sorted(editor.inputs | (read - editor.producer.keys()) | context.blocked):
        system.fix(value)
    for node in editor:
        if id(node) not in by_node:
            _rule(node, editor).link_scales(node, context)
    for join in joins:
        _link_join(join, context)
    for name in sorted(editor.outputs | (editor.captured & set(editor.producer))):
        system.fix(name)


def _seeds(editor: GraphEditor, joins: list[TrainedJoin]) -> dict[str, tuple[int, int]]:
    """Returns the values of joins with a weight per channel: the axis of their channels and how many those are."""
    seeds = {}
    for join in joins:
        width = max((t.size for r, t in join.tensors.items() if r in ("alpha", "beta") and t.ndim), default=0)
        for name in join.values if width else ():
            rank = editor.rank(name)
            if rank is not None:
                seeds[name] = (join.op.axis % rank, width)
    return seeds


def _link_join(join: TrainedJoin, context: Context) -> None:
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
            join.reasons += _obstacles(context, system.members(out) | system.members(value))


def _obstacles(context: Context, values: set[str]) -> list[str]:
    """Returns what may have kept the scales of *values* from being changed, beyond their being seen from outside."""
    editor, found = context.editor, []
    around = [editor.producer[v] for v in values if v in editor.producer]
    around += [reader for v in values for reader in editor.consumers(v)]
    inputs = sorted({name for node in around for name in node.input} & editor.overridable)
    if inputs:
        found.append(f"weight {inputs[0]!r} is a graph input too: a run may be given another, so it takes no scale")
    if values & context.blocked:
        found.append("constants around would overflow or lose digits in their element type")
    if any(map(context.is_narrow, values)):
        found.append("16-bit values are never stored larger than they are")
    return found


def _rescale_join(join: TrainedJoin, context: Context) -> FoldedSite:
    editor, node, op = context.editor, join.node, join.op
    x, f, out = join.names["x"], join.names["f"], node.output[0]
    s_x, s_out = context.scale(x), context.scale(out)
    alpha, beta = join.tensors.get("alpha", ONE), join.tensors.get("beta", ONE)
    a, b = alpha * context.scale(f) / s_out, beta * s_x / s_out
    keep_a, keep_b = not same(a, 1.0), not same(b, 1.0)
    keep = keep_a or keep_b
    rest = 1 / s_x  # what x's own part, the low-rank part and the earlier activations are multiplied by
    names = dict(join.names)
    if op.lr:
        names["A"] = _times(editor, names["A"], s_x[:, None] if s_x.ndim else ONE)
        names["B"] = _times(editor, names["B"], rest if s_x.ndim else ONE)
    if op.previous:
        _rescale_previous(join, names, context, rest)
    if keep and op.rw:
        names["alpha"], names["beta"] = (_replace(editor, names[r], v) for r, v in (("alpha", a), ("beta", b)))
    elif keep:
        dtype = editor.elem_type(x) or editor.elem_type(names.get("A", names.get("gamma", ""))) or 1
        kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
        for role, value in (("alpha", a), ("beta", b)):
            names[role] = editor.add_constant(f"{PREFIX}.{join.site}.{role}", value, np.dtype(kind))
    new = (
        Operator(keep, op.lr, op.previous, op.low_rank_previous, layout=op.layout)
        if keep or op.lr or op.previous
        else None
    )
    result = "Add" if new is None else new.name
    if new is None:
        _add_plainly(editor, node, x, f)
    else:
        editor.replace(node, new.name, [names[role] for role in new.inputs], DOMAIN)
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


def _add_plainly(editor: GraphEditor, node: onnx.NodeProto, x: str, f: str) -> None:
    """Turns a join into an Add; one of bfloat16, which CPUs do not add, is rounded from float32."""
    if editor.elem_type(x) != onnx.TensorProto.BFLOAT16:
        editor.replace(node, "Add", [x, f])
        return
    out = node.output[0]
    wide = [editor.add_node("Cast", [name], like=out, to=onnx.TensorProto.FLOAT) for name in (x, f)]  # read by one Add
    editor.replace(node, "Cast", [editor.add_node("Add", wide, like=out)])
    node.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.BFLOAT16))


def _rescale_previous(join: TrainedJoin, names: dict[str, str], context: Context, rest: Array) -> None:
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
            names[f"previous_{j + 1}"] = editor.multiplied(name, join.along(factor), editor.elem_type(name))
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


def _restore_visible(context: Context) -> tuple[dict[str, str], set[str]]:
    """Gives values that are seen from outside their true scale back.

    Returns:
        What the stored ones are called now, and the values for which there is no factor that their type can hold.
    """
    editor = context.editor
    renamed: dict[str, str] = {}
    unfit: set[str] = set()
    for name in sorted(editor.outputs | editor.captured):
        scale, node = context.scale(name), editor.producer.get(name)
        if same(scale, 1.0) or node is None:
            continue
        kind = editor.elem_type(name) or onnx.TensorProto.FLOAT
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
            factor = editor.add_constant(f"{name}_scale", context.along(scale, name), dtype)
        except UnfitError:
            factor = ""
        if not factor or kind == onnx.TensorProto.BFLOAT16:
            unfit.add(name)
            continue
        stored = renamed[name] = editor.unique(f"{name}_stored")
        editor.rename_output(node, name, stored)
        editor.add_node("Mul", [stored, factor], name)
        context.multiplied.append(name)
    return renamed, unfit
