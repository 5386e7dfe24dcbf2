"""Lets a linear map at the end of a skip take the low-rank part of its join in: ``z W (I + A B)`` costs nothing.

Projection skips end in a convolution or a linear layer, often with a BatchNormalization or a bias behind it. Where the
join alone reads what they make, ``x + (xA)B`` is that map with other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.onnx_model.walk import attribute_of
from laurel_graph.opset.schema import DOMAIN, Operator

from .forms import Join, features, vector_added_by

Array = NDArray[Any]
Make = Callable[[Array], Array]


@dataclass(frozen=True)
class SkipMap:
    """The linear map that makes a skip.

    Attributes:
        node: the Conv, MatMul or Gemm with constant weights.
        norm: the BatchNormalization behind a Conv, or ``None``.
        adder: the Add of a constant vector behind a MatMul, or ``None``.
    """

    node: onnx.NodeProto
    norm: onnx.NodeProto | None = None
    adder: onnx.NodeProto | None = None


def skip_map(editor: GraphEditor, join: Join) -> SkipMap | None:
    """Returns the linear map that can take the low-rank part of *join* in, ``None`` where there is none."""
    x, op = join.names["x"], join.op
    factors = _constant_factors(editor, join) if op.lr else None
    if factors is None or list(join.node.input).count(x) != 1:
        return None
    width = len(factors[0])
    node = _made_for_one(editor, x)
    if node is None:
        return None
    if op.layout:
        norm = node if node.op_type == "BatchNormalization" else None
        if norm is not None:
            if not editor.is_inference_norm(norm):
                return None
            node = _made_for_one(editor, norm.input[0])
        fit = node is not None and _is_conv(editor, node) and editor.shape(node.input[1])[0] == width  # type: ignore[index]
        return SkipMap(node, norm) if node is not None and fit else None
    adder = node if node.op_type == "Add" else None
    if adder is not None:
        vector = vector_added_by(editor, adder)
        if not vector:
            return None
        node = _made_for_one(editor, next(name for name in adder.input if name != vector))
    if node is None or not _is_matrix(editor, node) or features(editor, node.output[0]) != width:
        return None
    return None if adder is not None and node.op_type == "Gemm" else SkipMap(node, adder=adder)


def _made_for_one(editor: GraphEditor, name: str) -> onnx.NodeProto | None:
    """Returns the ``ai.onnx`` node that makes *name*, if one node alone reads it."""
    node = editor.producer.get(name)
    return node if node is not None and not node.domain and editor.sole_consumer(name) is not None else None


def _constants(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Whether all inputs of a linear map but the first are constant."""
    return not editor.is_constant(node.input[0]) and all(editor.is_constant(name) for name in node.input[1:] if name)


def _is_conv(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and attribute_of(node, "group", 1) == 1 and _constants(editor, node)


def _is_matrix(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    if node.op_type == "Gemm":
        plain = attribute_of(node, "alpha", 1.0) == 1.0 and attribute_of(node, "beta", 1.0) == 1.0
        bias = editor.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return plain and _constants(editor, node) and (bias is None or bias.ndim == 1)
    weights = editor.constant(node.input[1]) if node.op_type == "MatMul" else None
    return weights is not None and weights.ndim == 2 and not editor.is_constant(node.input[0])


def _constant_factors(editor: GraphEditor, join: Join) -> tuple[Array, Array] | None:
    """Returns A and B in float64, ``None`` where they are no constants."""
    A, B = editor.constant(join.names["A"]), editor.constant(join.names["B"])
    return (A.astype(np.float64), B.astype(np.float64)) if A is not None and B is not None else None


def absorb(editor: GraphEditor, join: Join, found: SkipMap) -> Join | None:
    """Gives the map of the skip the weights ``W (I + A B)``, in place.

    Returns:
        What is left of the join, ``None`` where that is a plain Add.

    Raises:
        UnfitError: the new weights overflow or lose digits in their element type; nothing was changed.
    """
    factors = _constant_factors(editor, join)
    if factors is None:
        raise ValueError(f"A and B of {join.node.output[0]!r} are no constants")
    A, B = factors
    key = ("absorb", join.node.output[0])

    def through(rows: Array) -> Array:
        return np.asarray(rows + (rows @ A) @ B)

    x = join.names["x"]
    if found.node.op_type == "Conv":
        x = _absorb_conv(editor, found, through, key)
    else:
        turned = found.node.op_type == "Gemm" and attribute_of(found.node, "transB", 0)
        make: Make = (lambda value: through(value.T).T) if turned else through
        derived = [(found.node, 1, editor.derived(found.node.input[1], key, make))]
        if found.adder is not None:
            vector = vector_added_by(editor, found.adder)
            index = list(found.adder.input).index(vector)
            derived.append((found.adder, index, editor.derived(vector, key, through)))
        elif len(found.node.input) > 2 and found.node.input[2]:
            bias = editor.derived(found.node.input[2], key, lambda value: through(np.broadcast_to(value, len(A))))
            derived.append((found.node, 2, bias))
        for node, index, name in derived:
            editor.set_input(node, index, name)
    op = join.op
    names = {**join.names, "x": x}
    if not op.rw and not op.previous:
        editor.replace(join.node, "Add", [x, names["f"]])
        return None
    rest = Operator(op.rw, False, op.previous, op.low_rank_previous, layout=op.layout)
    editor.replace(join.node, rest.name, [names[role] for role in rest.inputs], DOMAIN)
    return replace(join, op=rest, names={role: names[role] for role in rest.inputs})


def _absorb_conv(editor: GraphEditor, found: SkipMap, through: Make, key: tuple[str, str]) -> str:
    """Rewrites a Conv and the BatchNormalization behind it; returns the name of what the Conv makes."""
    node, norm = found.node, found.norm
    weights = editor.constant(node.input[1])
    if weights is None:
        raise ValueError(f"{node.input[1]!r} is no constant")
    bias = editor.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    gain, shift = np.ones(len(weights)), np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
    if norm is not None:
        scale, offset, mean, variance = (np.asarray(editor.constant(name), np.float64) for name in norm.input[1:5])
        gain = scale / np.sqrt(variance + attribute_of(norm, "epsilon", 1e-5))
        shift = (shift - mean) * gain + offset

    def kernel(value: Array) -> Array:
        rows = np.moveaxis(value, 0, -1) * gain  # (C, ..., D)
        return np.moveaxis(through(rows), -1, 0)

    kernels = editor.derived(node.input[1], key, kernel)
    biases = ""
    if bias is not None or norm is not None:
        biases = editor.add_constant(f"{node.output[0]}_bias", through(shift), weights.dtype)
    editor.set_input(node, 1, kernels)
    if biases:
        node.input.extend([""] * (3 - len(node.input)))
        editor.set_input(node, 2, biases)
    if norm is not None:
        editor.remove(norm)
    return str(node.output[0])
