"""Values out of nothing: constants, ranges, windows, random numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..convert import sparse_to_torch
from ..elements import FLOATS, STORAGE, tensor_to_torch
from ..node import Node, integers
from ..registry import Registry


def _constant(node: Node) -> Value:
    for name in ("value_string", "value_strings"):
        node.require(name not in node.attributes, "strings have no torch counterpart")
    if "value" in node.attributes:
        return node.converter.tensor_value(node.name, node.attr("value"), node.builder)
    if "sparse_value" in node.attributes:
        return node.constant(sparse_to_torch(node.attr("sparse_value")))
    for name, dtype in (("value_int", torch.int64), ("value_ints", torch.int64)):
        if name in node.attributes:
            return node.constant(torch.tensor(node.attr(name), dtype=dtype))
    floats = node.attr("value_float", node.attr("value_floats"))
    return node.constant(torch.tensor(floats, dtype=torch.float32))


def full(shape: Any, value: Tensor) -> Tensor:
    """A tensor of that shape filled with one value."""
    return value.reshape(()).expand(tuple(integers(shape))).clone()


def _constant_of_shape(node: Node) -> Value:
    proto = node.attr("value")
    value = torch.zeros(1) if proto is None else tensor_to_torch(proto)
    return node.emit(full, node.shape_argument(0), Value(f"{node.name}_value", const=value))


def arange(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... up to but without limit."""
    if start.dtype.is_floating_point:
        count = max(0, math.ceil((float(limit) - float(start)) / float(delta)))
        return start + torch.arange(count, dtype=start.dtype, device=start.device) * delta
    return torch.arange(int(start), int(limit), int(delta), dtype=start.dtype)


def _range(node: Node) -> Value:
    return node.emit(arange, *node.inputs[:3])


def eye_like(x: Tensor, dtype: torch.dtype | None, k: int) -> Tensor:
    """Ones on diagonal *k* of a matrix of x's shape."""
    rows, columns = x.shape
    row = torch.arange(rows, device=x.device).unsqueeze(1)
    return (torch.arange(columns, device=x.device) - row == k).to(dtype or x.dtype)


def _eye_like(node: Node) -> Value:
    elem_type = node.attr("dtype")
    dtype = None if elem_type is None else _compute_type(elem_type)
    return node.emit(eye_like, node[0], dtype, node.attr("k", 0))


def _compute_type(elem_type: int) -> torch.dtype:
    return torch.float32 if elem_type in FLOATS else STORAGE[elem_type]


def one_hot(indices: Tensor, depth: Any, values: Tensor, axis: int) -> Tensor:
    """``values[1]`` where the class on the new axis is the index, else ``values[0]``; out of range: nowhere."""
    depth = integers(depth)[0]
    wide = indices.to(torch.int64)
    wide = torch.where(wide < 0, wide + depth, wide)
    axis = axis % (indices.dim() + 1)
    classes = torch.arange(depth, device=indices.device).reshape((-1,) + (1,) * (indices.dim() - axis))
    return torch.where(wide.unsqueeze(axis) == classes, values[1], values[0])


def _one_hot(node: Node) -> Value:
    return node.emit(one_hot, node[0], node.shape_argument(1), node[2], node.attr("axis", -1))


def window(size: Any, coefficients: tuple[float, ...], periodic: bool, dtype: torch.dtype) -> Tensor:
    """A cosine window: Σ (-1)^k a_k cos(2πkn/N)."""
    count = integers(size)[0]
    period = count if periodic else count - 1
    steps = torch.arange(count, dtype=torch.float64)
    total = sum((-1) ** k * a * torch.cos(2 * math.pi * k * steps / period) for k, a in enumerate(coefficients))
    return torch.as_tensor(total).to(dtype)


_WINDOWS = {"HannWindow": (0.5, 0.5), "HammingWindow": (25 / 46, 21 / 46), "BlackmanWindow": (0.42, 0.5, 0.08)}


def _window(node: Node) -> Value:
    dtype = _compute_type(node.attr("output_datatype", TensorProto.FLOAT))
    size = node.shape_argument(0)
    return node.emit(window, size, _WINDOWS[node.op], bool(node.attr("periodic", 1)), dtype)


def mel_weights(bins: Any, dft_length: Any, sample_rate: Any, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix (dft_length//2 + 1, bins) that takes a spectrum to the mel scale."""
    bins, dft_length, sample_rate = (integers(v)[0] for v in (bins, dft_length, sample_rate))
    spectrum = dft_length // 2 + 1
    out = torch.zeros(spectrum, bins, dtype=torch.float64)  # first: sizes that no machine holds end here

    def to_mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    first, last = to_mel(float(low)), to_mel(float(high))
    step = (last - first) / (bins + 2)
    edges = [700 * (10 ** ((first + i * step) / 2595) - 1) for i in range(bins + 2)]
    points = [int((dft_length + 1) * edge // sample_rate) for edge in edges]
    for i in range(bins):
        lower, centre, upper = points[i : i + 3]
        if centre == lower:
            out[centre, i] = 1
        for j in range(lower, centre + 1) if centre != lower else ():
            out[j, i] = (j - lower) / (centre - lower)
        for j in range(centre, upper) if upper != centre else ():
            out[j, i] = (upper - j) / (upper - centre)
    return out.to(dtype)


def _mel_weights(node: Node) -> Value:
    dtype = _compute_type(node.attr("output_datatype", TensorProto.FLOAT))
    sizes = [node.shape_argument(i) for i in range(3)]
    return node.emit(mel_weights, *sizes, node[3], node[4], dtype)


def dropout(x: Tensor, ratio: Any) -> tuple[Tensor, Tensor]:
    """Training-mode dropout: the scaled values and the mask of what was kept."""
    mask = torch.rand_like(x) >= float(ratio)
    return torch.where(mask, x / (1 - float(ratio)), torch.zeros_like(x)), mask


def all_true(x: Tensor) -> Tensor:
    """A mask that keeps everything."""
    return torch.ones_like(x, dtype=torch.bool)


def _dropout(node: Node) -> list[Value]:
    """Off, as at inference, unless dropout was asked for: then active in training mode."""
    x = node[0]
    ratio = node.attr("ratio", 0.5)
    if node.has(1):
        known = node.const(1)
        node.require(known is not None or not node.converter.dropout, "the dropout ratio is computed")
        ratio = ratio if known is None else float(known)
    if node.converter.dropout:
        module = torch.nn.Dropout(ratio)
        outputs = [node.builder.call(f"dropout.{len(list(node.builder.graph.nodes))}", module, x, name=node.name)]
    else:
        outputs = [x]
    if node.output_count > 1:
        outputs.append(node.emit(all_true, x))
    return outputs


def random_like(x: Tensor, kind: str, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Random numbers of x's shape: uniform in [low, high), or normal with mean *low* and scale *high*."""
    return _random(tuple(x.shape), kind, low, high, dtype, x.device)


def random(shape: tuple[int, ...], kind: str, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Random numbers of that shape."""
    return _random(shape, kind, low, high, dtype, torch.device("cpu"))


def _random(shape: tuple[int, ...], kind: str, low: float, high: float, dtype: torch.dtype, device: Any) -> Tensor:
    if kind == "Normal":
        return low + high * torch.randn(shape, dtype=dtype, device=device)
    return low + (high - low) * torch.rand(shape, dtype=dtype, device=device)


def _random_node(node: Node) -> Value:
    kind = "Normal" if "Normal" in node.op else "Uniform"
    names = (("mean", 0.0), ("scale", 1.0)) if kind == "Normal" else (("low", 0.0), ("high", 1.0))
    limits = [node.attr(name, default) for name, default in names]
    if node.op.endswith("Like"):
        elem_type = node.attr("dtype", node[0].elem_type)
        return node.emit(random_like, node[0], kind, *limits, _compute_type(elem_type or 1), fold=False)
    dtype = _compute_type(node.attr("dtype", TensorProto.FLOAT))
    return node.emit(random, tuple(node.attr("shape")), kind, *limits, dtype, fold=False)


def bernoulli(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """1 with probability x, else 0."""
    return torch.bernoulli(x.detach()).to(dtype or x.dtype)


def _bernoulli(node: Node) -> Value:
    elem_type = node.attr("dtype")
    return node.emit(bernoulli, node[0], None if elem_type is None else _compute_type(elem_type), fold=False)


def multinomial(x: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """*count* class indices drawn from the unnormalised log probabilities of each row."""
    return torch.multinomial(F.softmax(x.detach(), -1), count, replacement=True).to(dtype)


def _multinomial(node: Node) -> Value:
    dtype = STORAGE[node.attr("dtype", TensorProto.INT32)]
    return node.emit(multinomial, node[0], node.attr("sample_size", 1), dtype, fold=False)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("Constant", _constant)
    add("ConstantOfShape", _constant_of_shape, 9)
    add("Range", _range, 11)
    add("EyeLike", _eye_like, 9)
    add("OneHot", _one_hot, 9)
    add("HannWindow HammingWindow BlackmanWindow", _window, 17)
    add("MelWeightMatrix", _mel_weights, 17)
    add("Dropout", _dropout, 6)
    add("RandomNormal RandomUniform RandomNormalLike RandomUniformLike", _random_node)
    add("Bernoulli", _bernoulli, 15)
    add("Multinomial", _multinomial, 7)
