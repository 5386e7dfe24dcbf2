"""Copies of 16-bit models that compute in float32, so that two of them can be compared on more than rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper

from laurel_graph.onnx_model.walk import copy_of, graphs_of, tensors_of

from .compare import EPSILON

_HALF: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_MOST = 3 << 28
"""Bytes of 16-bit weights up to which a copy in float32 is made: one protobuf message must hold it."""


def half_type(model: ModelProto) -> str:
    """Returns the 16-bit type that a model stores weights in or casts to: ``float16``, ``bfloat16``, or ""."""
    found = {tensor.data_type for tensor in tensors_of(model) if math.prod(tensor.dims) > 1}
    found |= {item.i for node in _nodes(model) for item in _type_attributes(node)}
    return next((_HALF[kind] for kind in (TensorProto.BFLOAT16, TensorProto.FLOAT16) if kind in found), "")


def fits_float32(model: ModelProto) -> bool:
    """Whether a copy of a 16-bit model in float32 is small enough to be made."""
    size: int = sum(2 * math.prod(t.dims) for t in tensors_of(model) if t.data_type in _HALF)
    return size <= _MOST


def in_float32(model: ModelProto, folder: Path, rng: np.random.Generator | None = None) -> ModelProto:
    """Returns a copy of a 16-bit model that computes in float32; ask :func:`fits_float32` first.

    Args:
        model: the model.
        folder: where its external weights lie; those of 16 bits become part of the copy.
        rng: moves each 16-bit weight by up to half a unit in its last place, as storing a folded one in 16 bits does.
    """
    copy = copy_of(model)
    for tensor in tensors_of(copy):
        if tensor.data_type in _HALF:
            value = numpy_helper.to_array(tensor, str(folder)).astype(np.float32)
            if rng is not None:
                half = EPSILON[_HALF[tensor.data_type]] / 2
                value = np.asarray(value * (1 + half * rng.uniform(-1, 1, value.shape)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for node in _nodes(copy):
        for item in _type_attributes(node):
            item.i = TensorProto.FLOAT
    for graph in graphs_of(copy.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            _widen_type(value.type)
    return copy


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in graphs_of(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _type_attributes(node: NodeProto) -> Iterator[AttributeProto]:
    """The attributes of a node that name a 16-bit type."""
    for item in node.attribute:
        if item.name in ("to", "dtype") and item.type == AttributeProto.INT and item.i in _HALF:
            yield item


def _widen_type(kind: TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which == "tensor_type" and kind.tensor_type.elem_type in _HALF:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    elif which in ("sequence_type", "optional_type"):
        _widen_type(getattr(kind, which).elem_type)
