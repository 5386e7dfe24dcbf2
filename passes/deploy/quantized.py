"""Lets a join between quantised tensors stay in bytes: one operator for it, the quantisers around it and a ReLU.

In graphs in QDQ format every other form of a join turns whole arrays into floats and back, while the convolutions and
additions around it run on bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.opset.schema import DOMAIN, Operator

from .forms import Join

_BYTES = (np.uint8, np.int8)


@dataclass(frozen=True)
class Island:
    """What stands around a join whose inputs and output are quantised.

    Attributes:
        x: the DequantizeLinear that makes x.
        f: the one that makes f.
        relu: the ReLU between the join and the quantiser, or ``None``.
        y: the QuantizeLinear that alone reads the result.
    """

    x: onnx.NodeProto
    f: onnx.NodeProto
    relu: onnx.NodeProto | None
    y: onnx.NodeProto


def island_of(editor: GraphEditor, join: Join) -> Island | None:
    """Returns the quantisers around *join*, ``None`` where a fused operator on bytes cannot take their place.

    They have one scale and one zero point for the whole tensor, and x, f and y are all uint8 or all int8.
    """
    op = join.op
    if not op.lr or op.previous or op.bias or op.epilogue:
        return None
    tensors = [editor.constant(name) for role, name in join.names.items() if role not in ("x", "f")]
    if any(value is None or value.dtype != np.float32 for value in tensors):
        return None
    makers = [editor.producer.get(join.names[role]) for role in ("x", "f")]
    if any(node is None or node.op_type != "DequantizeLinear" or node.domain for node in makers):
        return None
    reader = editor.sole_consumer(join.node.output[0])
    relu = reader if reader is not None and reader.op_type == "Relu" and not reader.domain else None
    if relu is not None:
        reader = editor.sole_consumer(relu.output[0])
    if reader is None or reader.op_type != "QuantizeLinear" or reader.domain:
        return None
    nodes = [node for node in (*makers, reader) if node is not None]
    kinds = {_kind(editor, node) for node in nodes}
    if len(kinds) != 1 or None in kinds:
        return None
    return Island(nodes[0], nodes[1], relu, nodes[2])


def _kind(editor: GraphEditor, node: onnx.NodeProto) -> str | None:
    """Returns the integer type of a quantiser of whole tensors by constants, ``None`` for any other."""
    scale, zero = (editor.constant(name) for name in (*node.input[1:3], "")[:2])
    if scale is None or zero is None or scale.dtype != np.float32 or scale.size != 1 or zero.size != 1:
        return None
    return str(zero.dtype) if zero.dtype in _BYTES else None


def emit_quantized(editor: GraphEditor, join: Join, island: Island) -> str:
    """Puts the operator on bytes in the place of the join and of what stands around it; returns its name.

    The operator has its features on the last axis. Where the join has them on axis 1, transpositions stand around it,
    which ONNX Runtime cancels against those of its own quantised convolutions.
    """
    node, names, last = join.node, join.names, not join.op.layout
    out, made = node.output[0], island.y.output[0]
    spatial = 0 if last else int(join.op.layout[0])
    to_last = [0, *range(2, spatial + 2), 1]
    to_first = [0, spatial + 1, *range(1, spatial + 1)]
    op = Operator(join.op.rw, True, epilogue="Relu" if island.relu is not None else "", quantized=True)
    inputs = {role: names[role] for role in op.inputs if role in names}
    for array, end in (("x", island.x), ("f", island.f), ("y", island.y)):
        inputs |= {f"{array}_scale": end.input[1], f"{array}_zero_point": end.input[2]}
        if array != "y":
            value = str(end.input[0])
            inputs[array] = value if last else editor.add_node("Transpose", [value], like=out, perm=to_last)
    for dead in (island.relu, island.y):
        if dead is not None:
            editor.remove(dead)
    editor.replace(node, op.name, [inputs[role] for role in op.inputs], DOMAIN)
    editor.set_outputs(node, [made if last else editor.unique(f"{made}_last")])
    if not last:
        editor.add_node("Transpose", [node.output[0]], made, perm=to_first)
    return op.name
