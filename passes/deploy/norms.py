"""Recognises a layer norm or RMS norm behind a value: the one operator, or the nodes that older exports have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.onnx_model.walk import attribute_of


@dataclass(frozen=True)
class NormMatch:
    """A norm over the last axis.

    Attributes:
        kind: ``LayerNorm`` or ``RMSNorm``.
        nodes: its nodes; nothing else reads what they make, but for the last one's output.
        output: the name of its result.
        scale: the constant (D,) that it multiplies by.
        offset: the constant (D,) that it adds, "" in an RMS norm.
        epsilon: ε.
    """

    kind: str
    nodes: tuple[onnx.NodeProto, ...]
    output: str
    scale: str
    offset: str
    epsilon: float


def match_norm(editor: GraphEditor, value: str, width: int, notes: list[str]) -> NormMatch | None:
    """Returns the norm that reads *value*, or ``None`` if there is none, or more than one.

    Args:
        editor: the graph.
        value: the value, of *width* features on its last axis.
        width: D; 0 if unknown.
        notes: takes the reason why a norm that is there cannot be taken in.
    """
    found = [match for node in editor.consumers(value) if (match := _match(editor, value, node)) is not None]
    unique = {match.output: match for match in found}
    if len(unique) != 1:
        notes += ["several norms read it"] if unique else []
        return None
    match = next(iter(unique.values()))
    if any(editor.shape(name) != (width,) for name in (match.scale, match.offset) if name):
        notes.append(f"scale and offset of the norm behind it are not known to have one value for each of {width}")
    elif seen := _seen(editor, match):
        notes.append(f"value {seen!r} inside the norm behind it is read elsewhere, too")
    else:
        return match
    return None


def _seen(editor: GraphEditor, match: NormMatch) -> str:
    """Returns a value inside the norm that something besides its nodes reads, "" where there is none."""
    ours = {id(node) for node in match.nodes}
    inside = [name for node in match.nodes for name in node.output if name and name != match.output]
    for name in inside:
        if editor.is_visible(name) or any(id(reader) not in ours for reader in editor.consumers(name)):
            return str(name)
    return ""


def _match(editor: GraphEditor, value: str, node: onnx.NodeProto) -> NormMatch | None:
    if node.domain:  # somebody else's operator of the same name
        return None
    if node.op_type in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        return _operator(editor, value, node)
    if node.op_type == "ReduceMean" and _over_last(editor, node):
        return _spelled_layer_norm(editor, value, node)
    if node.op_type in ("Pow", "Mul"):
        return _spelled_rms_norm(editor, value, node)
    return None


def _operator(editor: GraphEditor, value: str, node: onnx.NodeProto) -> NormMatch | None:
    rank = editor.rank(value)
    axis = attribute_of(node, "axis", -1)
    if node.input[0] != value or any(node.output[1:]) or (axis != -1 and axis != (rank or 0) - 1):
        return None
    layer = node.op_type == "LayerNormalization"
    if len(node.input) != 2 + layer or not all(_is_vector(editor, name) for name in node.input[1:]):
        return None
    offset = node.input[2] if layer else ""
    epsilon = attribute_of(node, "epsilon", 1e-5)
    kind = "LayerNorm" if layer else "RMSNorm"
    return NormMatch(kind, (node,), node.output[0], node.input[1], offset, float(epsilon))


def _is_vector(editor: GraphEditor, name: str) -> bool:
    shape = editor.shape(name) if editor.is_constant(name) else None
    return shape is not None and len(shape) == 1


def _over_last(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    axes = attribute_of(node, "axes")
    if len(node.input) > 1 and node.input[1]:
        axes = editor.constant(node.input[1])
    rank = editor.rank(node.input[0])
    last = (-1,) if rank is None else (-1, rank - 1)
    return axes is not None and len(axes) == 1 and int(axes[0]) in last and bool(attribute_of(node, "keepdims", 1))


def _next(editor: GraphEditor, name: str, *ops: str) -> onnx.NodeProto | None:
    node = editor.sole_consumer(name)
    return node if node is not None and node.op_type in ops and not node.domain else None


def _number(editor: GraphEditor, node: onnx.NodeProto, data: str) -> float | None:
    """Returns the one-number constant that *node* has beside *data*."""
    others = [name for name in node.input if name != data]
    value = editor.constant(others[0]) if len(others) == 1 else None
    return float(value.flat[0]) if value is not None and value.size == 1 else None


def _vector(editor: GraphEditor, node: onnx.NodeProto, data: str) -> str:
    """Returns the name of the constant (D,) that *node* has beside *data*, or ""."""
    others = [name for name in node.input if name != data]
    return others[0] if len(others) == 1 and _is_vector(editor, others[0]) else ""


def _squared(editor: GraphEditor, node: onnx.NodeProto, data: str) -> bool:
    if node.domain:
        return False
    if node.op_type == "Mul":
        return list(node.input) == [data, data]
    return node.op_type == "Pow" and node.input[0] == data and _number(editor, node, data) == 2.0


def _deviation(editor: GraphEditor, square: onnx.NodeProto) -> tuple[list[onnx.NodeProto], float] | None:
    """Follows ReduceMean, Add ε, Sqrt behind a square; returns those nodes and ε."""
    mean = _next(editor, square.output[0], "ReduceMean")
    if mean is None or not _over_last(editor, mean):
        return None
    add = _next(editor, mean.output[0], "Add")
    epsilon = _number(editor, add, mean.output[0]) if add is not None else None
    root = _next(editor, add.output[0], "Sqrt") if add is not None else None
    return ([mean, add, root], epsilon) if add is not None and root is not None and epsilon is not None else None


def _spelled_layer_norm(editor: GraphEditor, value: str, mean: onnx.NodeProto) -> NormMatch | None:
    subs = [
        n
        for n in editor.consumers(mean.output[0])
        if n.op_type == "Sub" and not n.domain and list(n.input) == [value, mean.output[0]]
    ]
    if not subs or len(subs) != len(editor.consumers(mean.output[0])):
        return None
    nodes: list[onnx.NodeProto] = [mean, *subs]
    squares = [(s, n) for s in subs for n in editor.consumers(s.output[0]) if _squared(editor, n, s.output[0])]
    divisions = [(s, n) for s in subs for n in editor.consumers(s.output[0]) if n.op_type == "Div" and not n.domain]
    if len(squares) != 1 or len(divisions) != 1:
        return None
    readers = {id(n) for s in subs for n in editor.consumers(s.output[0])}
    square, (centred, division) = squares[0][1], divisions[0]
    rest = _deviation(editor, square)
    if rest is None or readers != {id(square), id(division)}:
        return None
    behind, epsilon = rest
    if list(division.input) != [centred.output[0], behind[-1].output[0]]:
        return None
    if editor.sole_consumer(behind[-1].output[0]) is not division:
        return None
    multiply = _next(editor, division.output[0], "Mul")
    scale = _vector(editor, multiply, division.output[0]) if multiply is not None else ""
    add = _next(editor, multiply.output[0], "Add") if multiply is not None and scale else None
    offset = _vector(editor, add, multiply.output[0]) if add is not None and multiply is not None else ""
    if multiply is None or add is None or not offset:
        return None
    nodes += [square, *behind, division, multiply, add]
    return NormMatch("LayerNorm", tuple(nodes), add.output[0], scale, offset, epsilon)


def _spelled_rms_norm(editor: GraphEditor, value: str, square: onnx.NodeProto) -> NormMatch | None:
    if not _squared(editor, square, value):
        return None
    rest = _deviation(editor, square)
    if rest is None:
        return None
    behind, epsilon = rest
    inverse = _next(editor, behind[-1].output[0], "Reciprocal", "Div")
    if inverse is None:
        return None
    nodes = [square, *behind, inverse]
    if inverse.op_type == "Div" and inverse.input[0] == value:
        normed = inverse
    else:
        one = editor.constant(inverse.input[0]) if inverse.op_type == "Div" else np.ones(1)
        if one is None or not np.all(one == 1):
            return None
        product = _next(editor, inverse.output[0], "Mul")
        if product is None or value not in product.input:
            return None
        normed = product
        nodes.append(product)
    multiply = _next(editor, normed.output[0], "Mul")
    scale = _vector(editor, multiply, normed.output[0]) if multiply is not None else ""
    if multiply is None or not scale:
        return None
    nodes.append(multiply)
    return NormMatch("RMSNorm", tuple(nodes), multiply.output[0], scale, "", epsilon)
