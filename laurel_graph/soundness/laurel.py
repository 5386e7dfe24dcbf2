"""The tensors of operators of ``ai.laurel`` have the shapes that the operator set states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, TensorProto

from ..errors import ModelError
from ..onnx_model.walk import graphs_of
from ..opset.laurel_node import LaurelNode
from .nodes import label

_AXES = {
    "A": ("D", "r"), "B": ("r", "D"), "gamma": ("k",), "previous_A": ("k", "D", "R"), "previous_B": ("k", "R", "D"),
    "bias": ("D",), "scale": ("D",), "offset": ("D",),
}  # fmt: skip
"""Input to its axes; D, r and the others are one size each within a node. α and β are () or (D,)."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def check_laurel(graph: GraphProto) -> None:
    """Raises ModelError if a stored tensor of an operator of ours has another shape or type than it must have."""
    held = {name: (shape, kind) for inner in graphs_of(graph) for name, shape, kind in _stored(inner)}
    for inner in graphs_of(graph):
        for node in inner.node:
            if (ours := LaurelNode.of(node)) is not None:
                _check(ours, held)


def _stored(graph: GraphProto) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yields name, shape and element type of the initializers and Constant nodes of a graph."""
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims), tensor.data_type
    for node in graph.node:
        if node.op_type != "Constant" or node.domain:
            continue
        for item in node.attribute:
            if item.name == "value":
                yield node.output[0], tuple(item.t.dims), item.t.data_type
            elif item.name in _SCALARS:
                yield node.output[0], (), _SCALARS[item.name]
            elif item.name in _LISTS:
                yield node.output[0], (len(item.floats) or len(item.ints),), _LISTS[item.name]


_SCALARS = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64}
_LISTS = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64}


def _check(ours: LaurelNode, held: Mapping[str, tuple[tuple[int, ...], int]]) -> None:
    sizes = {"k": ours.operator.previous} if ours.operator.previous else {}
    for name, given in ours.inputs.items():
        found = held.get(given)
        if found is None or not (name in _AXES or name in ("alpha", "beta")):
            continue
        shape, kind = found
        axes = _AXES.get(name, ("D",) if shape else ())
        expected = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=False))
        if len(shape) != len(axes) or shape != expected or 0 in shape or kind not in _FLOATS:
            raise ModelError(
                f"{label(ours.node)}: its input {name} is the tensor {given!r} of shape {shape} and element type "
                f"{kind}; expected floats of shape ({', '.join(axes)}) as the other tensors of the node."
            )
