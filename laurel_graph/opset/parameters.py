"""How many parameters a model has: weights wherever exporters and quantisers keep them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from ..onnx_model.walk import graphs_of, subgraphs
from .schema import PREFIX

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_INTEGERS = ("INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1", "INT8", "UINT8", "FLOAT8E4M3FN", "FLOAT8E5M2")
_WEIGHTS = {*_FLOATS, *(getattr(TensorProto, name) for name in _INTEGERS if hasattr(TensorProto, name))}
"""Element types of weights; other integers are weights where a quantised operator reads them."""

_QUANTISERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (1, 2)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), (2, 3)),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "DynamicQuantizeMatMul"), (2, 3)),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul"), (1, 2, 4, 5, 6, 7)),
    "QGemm": (1, 2, 4, 5, 7, 8),
}
"""Operators and which of their inputs are scales and zero points, which are no parameters of the network."""

_WIDE = {"DequantizeLinear": 0, "QLinearConv": 8}
"""Operators that read a bias of 32-bit integers, and where."""


def count_parameters(model: ModelProto) -> int:
    """Returns how many parameters *model* has, in external files too; tensors of ours do not count.

    Floats and integers that stand for them count one by one, in initializers (dense and sparse), in Constant nodes, in
    subgraphs and in functions; of weights that are packed each number counts. Scales and zero points of quantised
    weights do not, nor do single numbers in Constant nodes, which are exponents and epsilons.
    """
    return sum(count for name, count in weights_of(model) if not name.startswith(f"{PREFIX}."))


def weights_of(model: ModelProto) -> Iterator[tuple[str, int]]:
    """Yields name and number of elements of every weight as :func:`count_parameters` counts, ours included."""
    scopes: list[GraphProto | FunctionProto] = list(graphs_of(model.graph))
    for function in model.functions:
        scopes.append(function)
        scopes += [inner for node in function.node for body in subgraphs(node) for inner in graphs_of(body)]
    aside: set[str] = set()
    wide: set[str] = set()
    packed: dict[str, int] = {}
    for scope in scopes:
        for node in scope.node:
            aside.update(node.input[i] for i in _QUANTISERS.get(node.op_type, ()) if i < len(node.input))
            if (place := _WIDE.get(node.op_type, 1 << 30)) < len(node.input):
                wide.add(node.input[place])
            if node.op_type in ("MatMulNBits", "MatMulBnb4") and len(node.input) > 1:
                packed[node.input[1]] = _size(node)
    for scope in scopes:
        for name, data_type, count in _held(scope):
            if name not in aside and (data_type in _WEIGHTS or (data_type == TensorProto.INT32 and name in wide)):
                yield name, packed.get(name) or count


def _size(node: NodeProto) -> int:
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return int(sizes.get("N", 0) * sizes.get("K", 0))


def _held(scope: GraphProto | FunctionProto) -> Iterator[tuple[str, int, int]]:
    """Yields name, element type and number of elements of the constants of one graph."""
    if isinstance(scope, GraphProto):
        for tensor in scope.initializer:
            yield tensor.name, tensor.data_type, math.prod(tensor.dims)
        for sparse in scope.sparse_initializer:
            yield sparse.values.name, sparse.values.data_type, math.prod(sparse.values.dims)
    for node in scope.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.output:
            continue
        for attribute in node.attribute:
            data_type, count = _constant(attribute)
            if count > 1:
                yield node.output[0], data_type, count


def _constant(attribute: AttributeProto) -> tuple[int, int]:
    if attribute.name == "value":
        return attribute.t.data_type, math.prod(attribute.t.dims)
    if attribute.name == "sparse_value":
        values = attribute.sparse_tensor.values
        return values.data_type, math.prod(values.dims)
    return TensorProto.FLOAT, len(attribute.floats)
