"""Values of the tensors in an ONNX model, by name: read, replaced, made.

Weights are not always initializers: exporters also write them as Constant nodes, sparse, or into external files.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from ..errors import ModelError, near
from .walk import graphs_of

Array = NDArray[Any]

_SAMPLE = 4096
"""How many bytes at either end of a tensor :func:`sample_bytes` takes."""


def tensor_array(model: ModelProto, name: str, base_dir: str | Path = "") -> Array:
    """Returns the value of an initializer (dense or sparse) or of a Constant node's output; bfloat16 as float32.

    Args:
        model: the model; it is not changed.
        name: the tensor's name, in the graph or any subgraph.
        base_dir: folder of the model's file, for external data.

    Raises:
        ModelError: no tensor has that name, or its external data is missing.
    """
    found = _find(model, name)
    if isinstance(found, TensorProto):
        return array_of(found, base_dir)
    if isinstance(found, SparseTensorProto):
        return _densified(found, base_dir)
    if isinstance(found, AttributeProto) and found.name in _NUMBERS:
        field, dtype = _NUMBERS[found.name]
        return np.array(getattr(found, field), dtype)
    raise _no_tensor(model, name)


_NUMBERS = {
    "value_float": ("f", np.float32),
    "value_floats": ("floats", np.float32),
    "value_int": ("i", np.int64),
    "value_ints": ("ints", np.int64),
}
"""Attributes of Constant that are no tensors: the field that holds them and their type."""


def _densified(sparse: SparseTensorProto, base_dir: str | Path) -> Array:
    values, indices = array_of(sparse.values, base_dir), array_of(sparse.indices, base_dir)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"sparse tensor {sparse.values.name!r} is damaged: {error}.") from None
    return dense


def set_tensor(model: ModelProto, name: str, array: Array) -> None:
    """Puts a new value into an initializer or a Constant node, in place; its name, shape and dtype stay.

    Values are rounded to the tensor's dtype (to nearest even). A tensor in an external file moves into the model, so
    that the file stays as it is.

    Raises:
        ModelError: no tensor has that name, it is sparse, or *array* has another shape.
    """
    found = _find(model, name)
    if found is None or isinstance(found, SparseTensorProto):
        raise _no_tensor(model, name)
    shape = tuple(found.dims) if isinstance(found, TensorProto) else np.shape(tensor_array(model, name))
    if np.shape(array) != shape:
        raise ModelError(f"tensor {name!r} has the shape {shape}, found a value of shape {np.shape(array)}.")
    if isinstance(found, AttributeProto):
        field, dtype = _NUMBERS[found.name]
        value = np.asarray(array).astype(dtype).tolist()
        if shape:
            getattr(found, field)[:] = value
        else:
            setattr(found, field, value)
        return
    _fill(found, array)


def set_tensors(model: ModelProto, values: Mapping[str, Array]) -> None:
    """As :func:`set_tensor` for many names, at the cost of one look at the graph where they are its initializers."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, array in values.items():
        if name in held and tuple(held[name].dims) == np.shape(array):
            _fill(held[name], array)
        else:
            set_tensor(model, name, array)


def _fill(tensor: TensorProto, array: Array) -> None:
    """Puts a value of the tensor's shape in; equal bits change nothing."""
    raw = _raw_bytes(np.asarray(array), tensor.data_type)
    external = tensor.data_location == TensorProto.EXTERNAL
    if not external and raw == _raw_bytes(array_of(tensor), tensor.data_type):
        return
    for stored in _STORAGE:
        tensor.ClearField(stored)
    tensor.raw_data = raw


_STORAGE = (
    *("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"),
    *("external_data", "data_location"),
)
"""Where a TensorProto may hold its values."""


def make_tensor(name: str, array: Array, data_type: int) -> TensorProto:
    """Returns a tensor of ONNX element type *data_type* (bfloat16 included) with the rounded values of *array*."""
    return TensorProto(
        name=name, dims=np.shape(array), data_type=data_type, raw_data=_raw_bytes(np.asarray(array), data_type)
    )


def _no_tensor(model: ModelProto, name: str) -> ModelError:
    names = [tensor.name for graph in graphs_of(model.graph) for tensor in graph.initializer]
    return ModelError(f"the model has no initializer or constant {name!r}.{near(name, names)}")


def _find(model: ModelProto, name: str) -> Any:
    """The tensor, sparse tensor or number attribute of a Constant that gives the value *name*, or ``None``."""
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            if tensor.name == name:
                return tensor
        for sparse in graph.sparse_initializer:
            if sparse.values.name == name:
                return sparse
        for node in graph.node:
            if node.op_type == "Constant" and name in node.output and node.attribute:
                value = node.attribute[0]
                return {"value": value.t, "sparse_value": value.sparse_tensor}.get(value.name, value)
    return None


def array_of(tensor: TensorProto, base_dir: str | Path = "") -> Array:
    """Returns the value of one tensor; bfloat16 as float32.

    Raises:
        ModelError: it is damaged, or its external data is missing.
    """
    tensor = inlined(tensor, base_dir)
    try:
        if tensor.data_type == TensorProto.BFLOAT16:
            bits = np.frombuffer(tensor.raw_data, "<u2") if tensor.HasField("raw_data") else np.array(tensor.int32_data)
            return (bits.astype(np.uint32) << 16).view(np.float32).reshape(tuple(tensor.dims))
        return np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"tensor {tensor.name!r} is damaged: {error}") from None


def inlined(tensor: TensorProto, base_dir: str | Path) -> TensorProto:
    """Returns *tensor* with its bytes in it: itself, or a copy of one whose bytes lie in another file.

    Raises:
        ModelError: that file cannot be read, or is too short.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    location, offset, length = external_reference(tensor)
    length = byte_size(tensor) if length is None else length
    inline = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    try:
        with (Path(base_dir) / location).open("rb") as file:
            file.seek(offset)
            inline.raw_data = file.read(-1 if length is None else length)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the external data of tensor {tensor.name!r} cannot be read: {location!r} in {base_dir or '.'}: "
            f"{getattr(error, 'strerror', None) or error}."
        ) from None
    return inline


def _raw_bytes(array: Array, data_type: int) -> bytes:
    """The values of *array* as little-endian bytes of that element type."""
    if data_type == TensorProto.BFLOAT16:
        return round_to_bfloat16(array).view(np.uint32).__rshift__(16).astype("<u2").tobytes()
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    return array.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def round_to_bfloat16(array: Array) -> Array:
    """Returns float32 values rounded to nearest even to what bfloat16 can hold; NaN stays NaN."""
    values = np.array(array, np.float32, order="C")
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))


def external_reference(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length (``None``: as the shape takes) of an external tensor.

    Raises:
        ModelError: offset or length is no number.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers: dict[str, int | None] = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text and not _DIGITS.fullmatch(text):
            raise ModelError(f"tensor {tensor.name!r} states the {key} {text[:40]!r}; expected a number of bytes.")
        numbers[key] = int(text) if text else None
    return entries.get("location", ""), numbers["offset"] or 0, numbers["length"] or None


_DIGITS = re.compile("[0-9]{1,19}")

BITS = {
    getattr(TensorProto, name): bits
    for bits, names in {
        2: ("INT2", "UINT2"),
        4: ("INT4", "UINT4", "FLOAT4E2M1"),
        6: ("FLOAT6E2M3", "FLOAT6E3M2"),
        8: ("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"),
        16: ("INT16", "UINT16", "FLOAT16", "BFLOAT16"),
        32: ("INT32", "UINT32", "FLOAT"),
        64: ("INT64", "UINT64", "DOUBLE", "COMPLEX64"),
        128: ("COMPLEX128",),
        0: ("STRING",),
    }.items()
    for name in names
    if hasattr(TensorProto, name)
}
"""Element type to its size in bits, as ONNX packs it; texts have none."""

_FIELDS: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}


def stored_values(tensor: TensorProto) -> tuple[str, int]:
    """Returns the field that holds a tensor's values where they are not raw bytes, and how many it must hold."""
    count, bits = math.prod(tensor.dims), BITS[tensor.data_type]
    if tensor.data_type in _FIELDS:
        field, each = _FIELDS[tensor.data_type]
        return field, count * each
    return "int32_data", -(-count * bits // 8) if 0 < bits < 8 else count


def byte_size(tensor: TensorProto) -> int | None:
    """Returns how many bytes a tensor's elements take, ``None`` for texts and unknown types."""
    bits = BITS.get(tensor.data_type)
    return -(-math.prod(tensor.dims) * bits // 8) if bits else None


def sample_bytes(tensor: TensorProto, base_dir: str | Path) -> bytes:
    """The first and last bytes of a tensor's value."""
    if tensor.data_location == TensorProto.EXTERNAL:
        location, offset, length = external_reference(tensor)
        try:
            with (Path(base_dir) / location).open("rb") as file:
                end = offset + length if length is not None else file.seek(0, os.SEEK_END)
                file.seek(offset)
                first = file.read(min(_SAMPLE, end - offset))
                file.seek(max(offset, end - _SAMPLE))
                return first + file.read(min(_SAMPLE, end - offset))
        except OSError as error:
            raise ModelError(f"external data {location!r} cannot be read: {error.strerror or error}.") from None
    raw = tensor.raw_data if tensor.HasField("raw_data") else array_of(tensor).tobytes()
    return raw[:_SAMPLE] + raw[-_SAMPLE:]
