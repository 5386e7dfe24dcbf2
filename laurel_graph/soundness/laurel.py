"""The tensors of operators of ``ai.laurel`` have the shapes that the operator set states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, TensorProto

from ..errors import ModelError
from ..onnx_model.walk import graphs_of
from ..opset.laurel_node import LaurelNode
from ..variants.term import Axis, size_of
from .nodes import label

_AXES: dict[str, tuple[Axis, ...]] = {"bias": ("D",), "scale": ("D",), "offset": ("D",)}
"""Axes of inputs that belong to no term; D, r and k are one size each within a node."""
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
    sizes = {"k": ours.operator.links}
    of_terms = {
        name: tuple(f"r of {term.name}" if axis == "r" else axis for axis in axes)  # each term has a rank of its own
        for term in ours.operator.terms
        for name, axes in term.tensors.items()
    }
    for name, given in ours.inputs.items():
        found, axes = held.get(given), of_terms.get(name, _AXES.get(name))
        if found is None or axes is None:
            continue
        shape, kind = found
        if "C" in axes:  # one value per channel, or one for all
            axes = tuple("D" if axis == "C" else axis for axis in axes if axis != "C" or len(shape) == len(axes))
        expected = tuple(_size(axis, size, sizes) for axis, size in zip(axes, shape, strict=False))
        if len(shape) != len(axes) or shape != expected or 0 in shape or kind not in _FLOATS:
            raise ModelError(
                f"{label(ours.node)}: its input {name} is the tensor {given!r} of shape {shape} and element type "
                f"{kind}; expected floats of shape ({', '.join(map(str, axes))}) as the other tensors of the node."
            )


def _size(axis: Axis, found: int, sizes: dict[str, int]) -> int:
    """Returns what an axis must be, given one that was found where its symbol has no size yet."""
    if isinstance(axis, str) and "+" not in axis:
        sizes.setdefault(axis, found)
    try:
        return size_of(axis, sizes)
    except KeyError:  # "D+1" before any "D"
        return found
