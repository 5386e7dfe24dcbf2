"""The exact forms that a LAuReL residual can take in a served graph, and the nodes that each is made of.

``absorbed``   the linear map that the skip ends in takes the low-rank part in (:mod:`.absorb`)
``quantized``  the fused operator on bytes, between quantised tensors (:mod:`.quantized`)
``operator``   the fused operator of ``ai.laurel``, with its surroundings taken in: the bias before it, a ReLU, a norm
``widened``    the branch's last 1×1 convolution or linear map takes ``[W; B]`` on ``Concat(h, xA)``
``chained``    plain nodes; on channel axes 1×1 convolutions, each of which the runtime fuses with the next add

Every function changes the graph in place through a :class:`~laurel_graph.onnx_model.editor.GraphEditor`; the join's
output keeps its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.onnx_model.element_range import UnfitError
from laurel_graph.onnx_model.walk import attribute_of
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.schema import DOMAIN, Operator

from .norms import NormMatch, match_norm

Array = NDArray[Any]


@dataclass
class Branch:
    """The linear map at the end of a branch, when widening can use it.

    Attributes:
        node: the Conv, MatMul or Gemm.
        value: what it reads (h).
        width: the number of features of h.
        features: the number of features that it makes.
    """

    node: onnx.NodeProto
    value: str
    width: int
    features: int


@dataclass
class Join:
    """One ``ai.laurel`` node and what stands around it.

    Attributes:
        node: the node.
        op: its operator.
        names: its inputs by role.
        width: D, 0 if unknown.
        branch: the last linear map of the branch, or ``None`` where it cannot be widened.
        bias: the constant (D,) vector that the branch ends with, or "".
        relu: the ReLU that alone reads the join, or ``None``.
        norm: the norm behind the join, or ``None``.
        rank: r, 0 without a low-rank part.
        obstacle: why it cannot be written as plain nodes, or "".
        notes: what could not be taken in, and why.
    """

    node: onnx.NodeProto
    op: Operator
    names: dict[str, str]
    width: int = 0
    branch: Branch | None = None
    bias: str = ""
    relu: onnx.NodeProto | None = None
    norm: NormMatch | None = None
    rank: int = 0
    obstacle: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def site(self) -> str:
        """The site."""
        return LaurelNode(self.node, self.op, self.names).site


def nodes_to_write(editor: GraphEditor) -> list[onnx.NodeProto]:
    """Returns the ``ai.laurel`` nodes of the main graph that have no form yet, in graph order."""
    found = (ours for node in editor if (ours := LaurelNode.of(node)) is not None)
    return [ours.node for ours in found if not ours.operator.epilogue and not ours.operator.bias]


def join_at(editor: GraphEditor, node: onnx.NodeProto) -> Join:
    """Returns an ``ai.laurel`` node with what stands around it *now*: the form of one site changes that of others."""
    ours = LaurelNode.of(node)
    if ours is None or not ours.is_whole:
        raise ValueError(f"{node.op_type!r} of {len(node.input)} inputs is no operator of {DOMAIN}")
    op, names, out, last = ours.operator, dict(ours.inputs), ours.output, ours.operator.axis == -1
    join = Join(node, op, names)
    if op.lr:
        join.width, join.rank = (int(d) for d in editor.shape(names["A"]) or (0, 0))  # type: ignore[arg-type]
    elif last:
        join.width = next((w for name in (out, names["x"], names["f"]) if (w := features(editor, name))), 0)
    elif op.low_rank_previous:
        join.width = int((editor.shape(names["previous_B"]) or (0,))[-1])  # type: ignore[arg-type]
    join.obstacle = _obstacle(editor, join)
    if join.obstacle:
        return join
    follower = editor.sole_consumer(out)
    relu = follower if follower is not None and follower.op_type == "Relu" and not follower.domain else None
    join.relu = relu if op.layout else None
    join.bias = _bias(editor, names["f"]) if last else ""
    if list(node.input).count(names["f"]) == 1:
        join.branch = _branch(editor, names["f"], last, join.notes)
    join.norm = match_norm(editor, out, join.width, join.notes) if last else None
    return join


def _obstacle(editor: GraphEditor, join: Join) -> str:
    """Returns why a join must keep its operator as it is (a portable file has its function body in the place)."""
    tensors = {role: join.names[role] for role in join.op.tensors}
    if join.op.further:
        return f"{', '.join(join.op.further)} has no form beside its operator and its function body"
    loose = [role for role, name in tensors.items() if not editor.is_constant(name)]
    if loose:
        return f"{loose[0]} is no constant"
    kinds = {editor.elem_type(name) for name in (*tensors.values(), join.names["x"], join.names["f"])}
    if onnx.TensorProto.BFLOAT16 in kinds:
        return "bfloat16 is added in float32"
    if onnx.TensorProto.DOUBLE in kinds and join.op.layout:
        return "ONNX Runtime has no convolution of float64"
    return ""


def features(editor: GraphEditor, name: str) -> int | None:
    """Returns the size of the last axis of a value, from its shape or the weights that make it; ``None`` if unknown."""
    shape = editor.shape(name)
    if shape and isinstance(shape[-1], int):
        return shape[-1]
    node = editor.producer.get(name)
    if node is None or node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    weights = editor.shape(node.input[1]) or ()
    size = weights[0 if attribute_of(node, "transB", 0) else 1] if len(weights) == 2 else None
    return size if isinstance(size, int) else None


def _bias(editor: GraphEditor, f: str) -> str:
    """Returns the constant (D,) that the Add behind the branch adds, if nothing else reads its sum."""
    node = editor.producer.get(f)
    if node is None or node.op_type != "Add" or node.domain or editor.sole_consumer(f) is None:
        return ""
    return vector_added_by(editor, node)


def vector_added_by(editor: GraphEditor, node: onnx.NodeProto) -> str:
    """Returns the constant (D,) that an Add puts on its other operand of D features, or ""."""
    for i, name in enumerate(node.input):
        shape, other = editor.shape(name), node.input[1 - i]
        if editor.is_constant(name) and not editor.is_constant(other) and shape == (features(editor, other),):
            return str(name)
    return ""


def _branch(editor: GraphEditor, f: str, last: bool, notes: list[str]) -> Branch | None:
    """Finds the linear map that makes *f*, through a bias behind it, when nothing else reads what it makes."""
    node = editor.producer.get(f)
    if node is None or editor.sole_consumer(f) is None:
        return None
    if last and node.op_type == "Add" and not node.domain:
        inner = [name for name in node.input if not editor.is_constant(name)]
        if len(inner) != 1 or not _bias(editor, f) or editor.sole_consumer(inner[0]) is None:
            return None
        node = editor.producer.get(inner[0])
    if node is None or node.domain or len(node.input) < 2 or editor.is_constant(node.input[0]):
        return None
    if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in editor.overridable:
        notes.append(f"weight {node.input[1]!r} of its branch is a graph input too: a run may be given another")
    weights = editor.shape(node.input[1]) if editor.is_constant(node.input[1]) else None
    shape = tuple(d for d in weights or () if isinstance(d, int))
    if not shape:
        return None
    if not last:
        pointwise = node.op_type == "Conv" and len(shape) > 2 and all(d == 1 for d in shape[2:])
        plain = (
            attribute_of(node, "group", 1) == 1
            and not any(attribute_of(node, "pads", ()))
            and all(s == 1 for s in attribute_of(node, "strides", ()))
        )
        return Branch(node, node.input[0], shape[1], shape[0]) if pointwise and plain else None
    if node.op_type == "MatMul" and len(shape) == 2:
        return Branch(node, node.input[0], *shape)
    if node.op_type == "Gemm" and not attribute_of(node, "transA", 0) and attribute_of(node, "alpha", 1.0) == 1.0:
        return Branch(node, node.input[0], *(shape[::-1] if attribute_of(node, "transB", 0) else shape))
    return None


def _kernel(editor: GraphEditor, matrix: str, spatial: int, pad: tuple[int, int], key: str) -> str:
    """Returns an (in, out) matrix as the weights of a 1×1 convolution, zeros added up to *pad* rows and columns."""

    def make(value: Array) -> Array:
        wide = np.pad(value, ((0, max(0, pad[0] - value.shape[0])), (0, max(0, pad[1] - value.shape[1]))))
        return wide.T.reshape(wide.shape[1], wide.shape[0], *(1,) * spatial)

    return editor.derived(matrix, ("kernel", key, spatial, pad), make)


def _padded(rank: int, block: int) -> int:
    """Returns *rank* rounded up to whole blocks of the runtime's channel layout."""
    return -(-rank // block) * block


def _times(editor: GraphEditor, join: Join, value: str, first: str, second: str, block: int, like: str) -> str:
    """Adds value·first·second along the feature axis and returns its name."""
    if not join.op.layout:
        return editor.add_node("MatMul", [editor.add_node("MatMul", [value, first], like=like), second], like=like)
    spatial = int(join.op.layout[0])
    rank = _padded(int(editor.shape(first)[1]), block)  # type: ignore[arg-type, index]
    down = _kernel(editor, first, spatial, (0, rank), "down")
    up = _kernel(editor, second, spatial, (rank, 0), "up")
    return editor.add_node("Conv", [editor.add_node("Conv", [value, down], like=like), up], like=like)


def _vector(editor: GraphEditor, join: Join, name: str) -> str:
    """Returns α or β in a shape that broadcasts along the feature axis."""
    value = editor.constant(name)
    if not join.op.layout or value is None or value.ndim == 0:
        return name
    shape = (-1, *(1,) * int(join.op.layout[0]))
    return editor.derived(name, ("column", shape), lambda v: v.reshape(shape))


def _pick(values: Array, j: int, by: float = 1.0) -> Array:
    return np.asarray(values[j] * by)


def _depthwise(gamma: Array, j: int, shape: tuple[int, ...]) -> Array:
    return np.full(shape, gamma[j])


def _previous_terms(editor: GraphEditor, join: Join, block: int, carried: str, like: str) -> str:
    """Adds Σ γ_j·h_j(previous_j) to *carried*, one term at a time."""
    op = join.op
    for j in range(op.previous):
        value = join.names[f"previous_{j + 1}"]
        if op.low_rank_previous:
            first = editor.derived(join.names["previous_A"], ("pick", j), partial(_pick, j=j))
            term = _low_rank_term(editor, join, j, first, block, like)
        elif op.layout and (width := _channels(editor, join)):
            # a depthwise 1×1 convolution: the runtime fuses it with the add and stays in its channel layout
            shape = (width, 1, *(1,) * int(op.layout[0]))
            weights = editor.derived(
                join.names["gamma"], ("depthwise", j, shape), partial(_depthwise, j=j, shape=shape)
            )
            term = editor.add_node("Conv", [value, weights], like=like, group=width)
        else:
            gamma_j = editor.derived(join.names["gamma"], ("scalar", j), partial(_pick, j=j))
            term = editor.add_node("Mul", [value, gamma_j], like=like)
        carried = editor.add_node("Add", [carried, term], like=like)
    return carried


def _low_rank_term(editor: GraphEditor, join: Join, j: int, first: str, block: int, like: str) -> str:
    """Adds γ_j·h_j(previous_j), with γ_j in the second factor of h_j where the element type can hold that."""
    value, matrices = join.names[f"previous_{j + 1}"], join.names["previous_B"]
    gamma = editor.constant(join.names["gamma"])
    by = float(gamma[j]) if gamma is not None else 1.0
    try:
        second = editor.derived(matrices, ("pick", j, by), partial(_pick, j=j, by=by))
    except UnfitError:
        second = editor.derived(matrices, ("pick", j, 1.0), partial(_pick, j=j))
        number = editor.derived(join.names["gamma"], ("scalar", j), partial(_pick, j=j))
        return editor.add_node("Mul", [_times(editor, join, value, first, second, block, like), number], like=like)
    return _times(editor, join, value, first, second, block, like)


def _channels(editor: GraphEditor, join: Join) -> int:
    for role in ("x", "f"):
        shape = editor.shape(join.names[role])
        if shape is not None and isinstance(shape[1], int):
            return shape[1]
    return join.width


def emit_chained(editor: GraphEditor, join: Join, block: int = 1) -> None:
    """Turns a join into plain nodes; no function of ``ai.laurel`` is left."""
    op, names, out = join.op, join.names, join.node.output[0]
    carried, f = names["x"], names["f"]
    last = not op.layout
    if op.lr:
        low = _times(editor, join, names["x"], names["A"], names["B"], block, out)
        if last and not op.rw:
            f = editor.add_node("Add", [f, low], like=out)  # the outer add stays one that a norm can be fused with
        elif not op.rw and not op.previous:
            # the branch's convolution takes x, the one of B adds to that in place
            carried, f = low, editor.add_node("Add", [f, carried], like=out)
        else:
            carried = editor.add_node("Add", [carried, low], like=out)
    carried = _previous_terms(editor, join, block, carried, out)
    if op.rw:
        scales = [editor.constant(names[role]) for role in ("alpha", "beta")]
        if scales[0] is None or not np.all(scales[0] == 1):
            f = editor.add_node("Mul", [f, _vector(editor, join, names["alpha"])], like=out)
        if scales[1] is None or not np.all(scales[1] == 1):
            carried = editor.add_node("Mul", [carried, _vector(editor, join, names["beta"])], like=out)
    editor.replace(join.node, "Add", [f, carried])


def can_widen(join: Join) -> bool:
    """Whether the branch ends in a linear map that can take B in."""
    return join.op.lr and not join.op.rw and join.branch is not None and join.branch.features == join.width


def emit_widened(editor: GraphEditor, join: Join, block: int = 1) -> None:
    """Lets the branch's last linear map take [W; B] on Concat(h, xA); what is left of the join is plain nodes."""
    op, names, out = join.op, join.names, join.node.output[0]
    branch = join.branch
    if branch is None:
        raise ValueError(f"the branch of {out!r} cannot be widened")
    node, x = branch.node, names["x"]
    B = editor.constant(names["B"])
    if B is None:
        raise ValueError(f"B of {out!r} is no constant")
    B = B.astype(np.float64)
    if op.layout:
        spatial = int(op.layout[0])
        rank = _padded(B.shape[0], block)
        low = editor.add_node("Conv", [x, _kernel(editor, names["A"], spatial, (0, rank), "down")], like=out)
        extra = np.pad(B, ((0, rank - B.shape[0]), (0, 0))).T.reshape(B.shape[1], rank, *(1,) * spatial)
        axis = 1
    else:
        low = editor.add_node("MatMul", [x, names["A"]], like=out)
        extra, axis = (B.T, 1) if node.op_type == "Gemm" and attribute_of(node, "transB", 0) else (B, 0)
    wide = editor.add_node("Concat", [branch.value, low], like=out, axis=1 if op.layout else _last(editor, x))
    weights = editor.derived(node.input[1], ("widen", out), lambda v: np.concatenate([v, extra], axis))
    editor.set_input(node, 0, wide)
    editor.set_input(node, 1, weights)
    carried = _previous_terms(editor, join, block, x, out)
    editor.replace(join.node, "Add", [names["f"], carried])


def _last(editor: GraphEditor, name: str) -> int:
    """Returns the last axis, counted from the front where that is known: older opsets count no other way."""
    rank = editor.rank(name)
    return rank - 1 if rank is not None else -1


def emit_operator(editor: GraphEditor, join: Join) -> str:
    """Keeps the fused operator, lets it take in the bias before it and the ReLU or norm behind it; returns its name."""
    op, node, names = join.op, join.node, dict(join.names)
    out = node.output[0]
    bias, f = join.bias, names["f"]
    if bias:
        adder = editor.producer[f]
        f = next(name for name in adder.input if name != bias)
        names |= {"f": f, "bias": bias}
    norm, epilogue = join.norm, ""
    if norm is not None:
        epilogue = norm.kind
        names |= {"scale": norm.scale} | ({"offset": norm.offset} if norm.offset else {})
    elif join.relu is not None:
        epilogue = "Relu"
    new = Operator(
        op.rw, op.lr, op.previous, op.low_rank_previous, bias=bool(bias), layout=op.layout, epilogue=epilogue
    )
    if new == op:
        return op.name
    if norm is None and join.relu is None:
        editor.replace(node, new.name, [names[role] for role in new.inputs], DOMAIN)
        return new.name
    final = norm.output if norm is not None else join.relu.output[0]  # type: ignore[union-attr]
    for dead in norm.nodes if norm is not None else [join.relu]:
        editor.remove(dead)  # type: ignore[arg-type]
    seen = norm is not None and (editor.is_visible(out) or bool(editor.consumers(out)))
    editor.replace(node, new.name, [names[role] for role in new.inputs], DOMAIN)
    editor.set_outputs(node, [final] if norm is None else [final, out if seen else ""])
    if norm is not None:
        node.attribute.append(onnx.helper.make_attribute("epsilon", norm.epsilon))
    return new.name
