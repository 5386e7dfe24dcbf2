"""Quantisation with straight-through gradients: the forward value is the quantised one, the gradient passes round().

Scales and zero points are frozen. What is clipped away gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from ..builder import Value
from ..elements import INTEGER_RANGE, STORAGE, type_name
from ..node import Node
from ..registry import Registry
from .casting import to_float4, to_float8

QOPERATOR_ADVICE = (
    "integer arithmetic has no gradient; quantise again in QDQ format "
    "(onnxruntime.quantization: quant_format=QuantFormat.QDQ), or fine-tune the float model and quantise afterwards"
)

_FLOAT4 = getattr(TensorProto, "FLOAT4E2M1", -1)
_FLOAT8 = (
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
)


def along(x: Tensor, scale: Tensor, axis: int, block: int) -> Tensor:
    """Returns *scale* (one, one per slice of *axis*, or one per block of it) in a shape that broadcasts against x."""
    if scale.dim() == 0 or (scale.numel() == 1 and not block):
        return scale.reshape(())
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return scale.reshape(shape)


def quantised(x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, axis: int, block: int) -> Tensor:
    """Returns the integers that x is quantised to, as floats that pass the gradient straight through round()."""
    ratio = x / along(x, scale, axis, block)
    steps = ratio + (torch.round(ratio) - ratio).detach() if ratio.requires_grad else torch.round(ratio)
    if zero is not None:
        steps = steps + along(x, zero, axis, block).to(steps.dtype)
    return steps.clamp(low, high)


def to_storage(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers held as floats, in their own type."""
    return steps.detach().to(torch.int64).to(dtype)


def dequantise(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int) -> Tensor:
    """(x - zero)·scale."""
    wide = x.to(scale.dtype)
    if zero is not None:
        wide = wide - along(x, zero, axis, block).to(scale.dtype)
    return wide * along(x, scale, axis, block)


def _stored(node: Node, steps: Value, elem_type: int) -> Value:
    """Returns integers in their own type that remember their differentiable form."""
    value = node.emit(to_storage, steps, STORAGE[elem_type])
    value.elem_type, value.steps = elem_type, steps
    return value


def _differentiable(value: Value) -> Value:
    return value if value.steps is None else value.steps


def _quantize(node: Node) -> Value:
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)
    zero = node.get(2)
    elem_type = zero.elem_type if zero is not None else None
    if elem_type is None and isinstance(node.const(2), Tensor):
        elem_type = next((k for k, v in STORAGE.items() if v == node.const(2).dtype and k in INTEGER_RANGE), None)
    elem_type = node.attr("output_dtype", 0) or elem_type or TensorProto.UINT8
    if elem_type in _FLOAT8 or elem_type == _FLOAT4:
        known = node.const(2)
        node.require(known is None or bool((known.float() == 0).all()), "a zero point of an 8-bit float that is not 0")
        ratio = node.emit(scaled, node[0], node[1], axis, block)
        if elem_type == _FLOAT4:
            value = node.emit(to_float4, ratio)
        else:
            value = node.emit(to_float8, ratio, elem_type, bool(node.attr("saturate", 1)))
        value.elem_type = elem_type
        return value
    node.require(elem_type in INTEGER_RANGE, f"quantisation to {type_name(elem_type)}")
    low, high = INTEGER_RANGE[elem_type]
    steps = node.emit(quantised, node[0], node[1], zero, low, high, axis, block)
    return _stored(node, steps, elem_type)


def scaled(x: Tensor, scale: Tensor, axis: int, block: int) -> Tensor:
    """x / scale."""
    return x / along(x, scale, axis, block)


def _dequantize(node: Node) -> Value:
    source = _differentiable(node[0])
    return node.emit(dequantise, source, node[1], node.get(2), node.attr("axis", 1), node.attr("block_size", 0))


def dynamic_quantise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The uint8 steps of x (as floats that pass the gradient), the scale and the zero point of its own range."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(0, 255))
    return quantised(x, scale, zero, 0, 255, 0, 0), scale, zero.to(torch.uint8)


def _dynamic_quantize(node: Node) -> list[Value]:
    steps, scale, zero = node.unpack(node.emit(dynamic_quantise, node[0]), 3)
    return [_stored(node, steps, TensorProto.UINT8), scale, zero]


def centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """x - zero in float64, in which sums of integer products are exact."""
    wide = x.to(torch.float64)
    if zero is None:
        return wide
    return wide - along(x, zero, axis, 0).to(torch.float64)


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """(a - a_zero) @ (b - b_zero) with exact sums, as float64."""
    return centred(a, a_zero, -2) @ centred(b, b_zero, -1)


def conv_integer(
    x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None, options: tuple[Any, ...]
) -> Tensor:
    """The convolution of x - x_zero and w - w_zero with exact sums, as float64."""
    from .convolution import conv

    auto, pads, strides, dilations, groups = options
    return conv(centred(x, x_zero, 1), centred(w, w_zero, 0), None, auto, pads, strides, dilations, groups)


def _matmul_integer(node: Node) -> Value:
    a, b = _differentiable(node[0]), _differentiable(node[1])
    return _stored(node, node.emit(matmul_integer, a, b, node.get(2), node.get(3)), TensorProto.INT32)


def _conv_integer(node: Node) -> Value:
    names: dict[str, Any] = {"auto_pad": "NOTSET", "pads": [], "strides": None, "dilations": None, "group": 1}
    options = tuple(node.attr(name, default) for name, default in names.items())
    x, w = _differentiable(node[0]), _differentiable(node[1])
    return _stored(node, node.emit(conv_integer, x, w, node.get(2), node.get(3), options), TensorProto.INT32)


def _qoperator(node: Node) -> Value:
    node.refuse(QOPERATOR_ADVICE)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("QuantizeLinear", _quantize, 10)
    add("DequantizeLinear", _dequantize, 10)
    add("DynamicQuantizeLinear", _dynamic_quantize, 11)
    add("MatMulInteger", _matmul_integer, 10)
    add("ConvInteger", _conv_integer, 10)
    add("QLinearConv QLinearMatMul", _qoperator, 10)
    add("QuantizeLinear", _quantize, domain="com.microsoft")
    add("DequantizeLinear", _dequantize, domain="com.microsoft")
    add(
        "QLinearAdd QLinearMul QLinearSigmoid QLinearLeakyRelu QLinearSoftmax QLinearConcat QLinearAveragePool "
        "QLinearGlobalAveragePool QLinearReduceMean QLinearWhere QGemm "
        "QAttention QOrderedMatMul QEmbedLayerNormalization",
        _qoperator,
        domain="com.microsoft",
    )
