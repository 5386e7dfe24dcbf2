"""The trained network in float64: every ``ai.laurel`` node by the formula, all else by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from laurel_graph.formula import residual
from laurel_graph.onnx_model.walk import copy_of, graphs_of
from laurel_graph.opset.schema import DOMAIN, Operator

Array = NDArray[Any]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def values_of(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Returns every value of the main graph in float64 arithmetic, by name."""
    double = in_double(model)
    wide = {name: value.astype(np.float64) if _is_float(value) else value for name, value in feeds.items()}
    evaluator = ReferenceEvaluator(double, new_ops=[*_laurel_operators(double), *_OWN])
    found = evaluator.run(None, wide, intermediate=True)
    values = {name: np.asarray(value) for name, value in dict(found).items() if name and not isinstance(value, list)}
    return {t.name: numpy_helper.to_array(t) for t in double.graph.initializer} | values


def _is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of *model* whose floats are all float64: weights, constants, casts, inputs; without functions."""
    double = copy_of(model)
    del double.functions[:]
    for graph in graphs_of(double.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(numpy_helper.from_array(_dense(sparse), sparse.values.name))
        del graph.sparse_initializer[:]
        del graph.value_info[:]
        for tensor in graph.initializer:
            _widen(tensor)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in FLOATS:
                info.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            _widen_node(node)
    return double


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    flat = np.zeros(int(np.prod(list(sparse.dims))), values.dtype)
    flat[places] = values
    return flat.reshape(list(sparse.dims))


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float64), tensor.name))


def _widen_node(node: onnx.NodeProto) -> None:
    for item in node.attribute:
        if item.type == AttributeProto.TENSOR:
            _widen(item.t)
        elif node.op_type == "Constant" and item.name in ("value_float", "value_floats"):
            value = np.asarray(item.f if item.name == "value_float" else list(item.floats), np.float64)
            item.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
        elif node.op_type == "Cast" and item.name == "to" and item.i in FLOATS:
            item.i = TensorProto.DOUBLE


def _laurel_operators(model: onnx.ModelProto) -> list[type[OpRun]]:
    names = {node.op_type for graph in graphs_of(model.graph) for node in graph.node if node.domain == DOMAIN}
    return [_operator(name) for name in sorted(names)]


def _operator(name: str) -> type[OpRun]:
    op = Operator.parse(name)
    if op is None:
        raise ValueError(f"no operator of {DOMAIN}: {name!r}")

    def run(_self: OpRun, *inputs: Array) -> tuple[Array]:
        given = dict(zip(op.inputs, inputs, strict=True))
        tensors = {k: v for k, v in given.items() if k not in ("x", "f") and not k.removeprefix("previous_").isdigit()}
        previous = [given[f"previous_{j + 1}"] for j in range(op.previous)]
        if op.layout:  # the formula's α and β are along the last axis, where it moves the features
            return (residual(given["x"], given["f"], tensors, previous, 1),)
        return (residual(given["x"], given["f"], tensors, previous),)

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})


def _group_norm(
    _self: OpRun, x: Array, scale: Array, bias: Array, epsilon: float = 1e-5, num_groups: int = 1, **_: Any
) -> tuple[Array]:
    """ONNX's own reference is a function body with casts to float32."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    normed = ((groups - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    scale, bias = (np.repeat(v, x.shape[1] // len(v)).reshape(-1, *(1,) * (x.ndim - 2)) for v in (scale, bias))
    return (normed * scale + bias,)


def _batch_norm(
    _self: OpRun, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float = 1e-5, **_: Any
) -> tuple[Array]:
    """ONNX's own reference of the older versions forgets the ε that is given."""
    scale, bias, mean, variance = (v.reshape(-1, *(1,) * (x.ndim - 2)) for v in (scale, bias, mean, variance))
    return ((x - mean) / np.sqrt(variance + epsilon) * scale + bias,)


def _rms_norm(_self: OpRun, x: Array, scale: Array, epsilon: float = 1e-5, **_: Any) -> tuple[Array]:
    """The same holds here."""
    return (x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale,)


def _quantize(_self: OpRun, x: Array, scale: Array, zero: Array, **_: Any) -> tuple[Array]:
    """ONNX's own reference does not know the older versions."""
    ends = np.iinfo(zero.dtype)
    return (np.clip(np.rint(x / scale) + zero, ends.min, ends.max).astype(zero.dtype),)


def _dequantize(_self: OpRun, x: Array, scale: Array, zero: Array | None = None, **_: Any) -> tuple[Array]:
    return ((x.astype(np.float64) - (0 if zero is None else zero)) * scale,)


def _lrn(
    _self: OpRun, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
) -> tuple[Array]:
    """ONNX's own reference takes images alone, and leaves out the last row of them."""
    low, high = (size - 1) // 2, size // 2
    squares = np.pad(x * x, [(0, 0), (low, high), *[(0, 0)] * (x.ndim - 2)])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return (x / (bias + alpha / size * total) ** beta,)


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], fill: float) -> Array:
    """Returns the windows of a pooling, on new last axes."""
    space = len(kernel)
    ends = [(0, 0), (0, 0), *zip(pads[:space], pads[space:], strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ends, constant_values=fill), list(kernel), tuple(range(2, x.ndim))
    )
    return found[(slice(None), slice(None), *(slice(None, None, step) for step in strides))]


def _max_pool(_self: OpRun, x: Array, kernel_shape: Sequence[int] = (), **given: Any) -> tuple[Array]:
    """ONNX's own reference of poolings fails on three axes of space."""
    space = len(kernel_shape)
    strides, pads = given.get("strides") or [1] * space, given.get("pads") or [0] * 2 * space
    return (_windows(x, kernel_shape, strides, pads, -np.inf).max(tuple(range(-space, 0))),)


def _average_pool(_self: OpRun, x: Array, kernel_shape: Sequence[int] = (), **given: Any) -> tuple[Array]:
    space = len(kernel_shape)
    strides, pads = given.get("strides") or [1] * space, given.get("pads") or [0] * 2 * space
    axes = tuple(range(-space, 0))
    totals, counts = (_windows(v, kernel_shape, strides, pads, 0.0).sum(axes) for v in (x, np.ones_like(x)))
    return (totals / counts,)


_OWN = tuple(
    type(name, (OpRun,), {"op_domain": "", "_run": run})
    for name, run in (
        ("GroupNormalization", _group_norm),
        ("RMSNormalization", _rms_norm),
        ("BatchNormalization", _batch_norm),
        ("LRN", _lrn),
        ("MaxPool", _max_pool),
        ("AveragePool", _average_pool),
        ("QuantizeLinear", _quantize),
        ("DequantizeLinear", _dequantize),
    )
)
