"""ONNX element types as torch tensors, and the types of a graph's values.

A file of 16-bit floats is computed in float32 (16-bit gradients of LAuReL's small factors underflow), so FLOAT16 and
BFLOAT16 have float32 as their *compute* type. 4- and 2-bit integers are held one to an int8 or uint8, 8-bit floats as
torch's own types, 4-bit floats as their float32 values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, numpy_helper

from ..onnx_model.tensors import byte_size, external_reference, inlined

LIGHT = 1024
"""Tensors of more bytes than this do not take part in shape inference: only their types do."""

STORAGE: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
}
"""Element type to the torch type that holds it."""

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, *HALF)
"""The element types that are computed in the module's own float type (float32 unless it is converted)."""

INTEGER_RANGE: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
}
"""Smallest and largest value of the integer types that quantisation uses."""

for _name, _dtype, _range in (("INT2", torch.int8, (-2, 1)), ("UINT2", torch.uint8, (0, 3))):
    if hasattr(TensorProto, _name):  # element types of newer ONNX releases
        STORAGE[getattr(TensorProto, _name)] = _dtype
        INTEGER_RANGE[getattr(TensorProto, _name)] = _range
if hasattr(TensorProto, "FLOAT4E2M1"):
    STORAGE[TensorProto.FLOAT4E2M1] = torch.float32


def type_name(elem_type: int | None) -> str:
    """Returns the ONNX name of an element type, such as ``FLOAT16``."""
    return "unknown" if elem_type is None else str(TensorProto.DataType.Name(elem_type))


def array_to_torch(array: np.ndarray, elem_type: int) -> torch.Tensor:
    """Returns a NumPy array of ONNX element type *elem_type* as a torch tensor in its storage type."""
    dtype = STORAGE[elem_type]
    if elem_type == TensorProto.BFLOAT16 or (dtype.is_floating_point and dtype.itemsize == 1):
        bits = np.ascontiguousarray(array).view(np.uint16 if dtype.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits.copy()).view(dtype).reshape(array.shape)
    if array.dtype.kind not in "biufc" or (array.dtype.itemsize == 1 and dtype == torch.float32):
        array = array.astype(np.float32) if dtype.is_floating_point else array.astype(np.int8)
    tensor = torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
    return tensor.to(dtype)


def tensor_to_torch(proto: TensorProto, base_dir: str | Path = "") -> torch.Tensor:
    """Returns a TensorProto's values in their compute type (16-bit floats as float32).

    External data is mapped copy-on-write, so that values of a large file are read when they are used.

    Raises:
        ValueError: strings, which have no torch counterpart, or external data that is not there.
    """
    if proto.data_type not in STORAGE:
        raise ValueError(f"tensor {proto.name!r} has element type {type_name(proto.data_type)}")
    if proto.data_location == TensorProto.EXTERNAL:
        tensor = _map_external(proto, Path(base_dir))
    else:
        tensor = array_to_torch(numpy_helper.to_array(proto), proto.data_type)
    return tensor.float() if proto.data_type in HALF else tensor


def _map_external(proto: TensorProto, base_dir: Path) -> torch.Tensor:
    location, offset, length = external_reference(proto)
    path = base_dir / location
    if not path.is_file():
        raise ValueError(f"external data of tensor {proto.name!r} is not there: {path}")
    shape, dtype = tuple(proto.dims), STORAGE[proto.data_type]
    size = dtype.itemsize * math.prod(shape)
    if proto.data_type in (*INTEGER_RANGE, *FLOATS, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL) and (
        size == (byte_size(proto) if length is None else length)
    ):
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        bits = np.memmap(path, np.uint8, "c", offset=offset, shape=(size,))
        return torch.from_numpy(bits).view(dtype).reshape(shape)
    return array_to_torch(numpy_helper.to_array(inlined(proto, base_dir)), proto.data_type)


def attribute_value(attribute: AttributeProto) -> object:
    """Returns an attribute's value: Python numbers, text, lists of them, or the proto of a tensor or graph.

    Raises:
        ValueError: text that is not UTF-8.
    """
    kind = attribute.type
    if kind == AttributeProto.STRING:
        return _text(attribute, attribute.s)
    if kind == AttributeProto.STRINGS:
        return [_text(attribute, text) for text in attribute.strings]
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.FLOATS:
        return list(attribute.floats)
    fields = {
        AttributeProto.INT: "i",
        AttributeProto.FLOAT: "f",
        AttributeProto.TENSOR: "t",
        AttributeProto.GRAPH: "g",
        AttributeProto.SPARSE_TENSOR: "sparse_tensor",
        AttributeProto.TYPE_PROTO: "tp",
        AttributeProto.TENSORS: "tensors",
        AttributeProto.GRAPHS: "graphs",
    }
    return getattr(attribute, fields[kind])


def _text(attribute: AttributeProto, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"its attribute {attribute.name!r} holds bytes that are no UTF-8 text") from None


def tensor_type(proto: onnx.TypeProto) -> tuple[int | None, tuple[int | str | None, ...] | None]:
    """Returns element type and dims of a tensor, ``None`` for what is unknown or no tensor."""
    if not proto.HasField("tensor_type"):
        return None, None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type or None, None
    dims = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
    return tensor.elem_type or None, dims


def element_type(proto: onnx.TypeProto) -> int:
    """Returns the element type of a tensor, or of what a sequence or optional holds."""
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return element_type(getattr(proto, kind).elem_type)
    return int(proto.tensor_type.elem_type) if kind == "tensor_type" else 0


def _types_of(infos: Iterable[ValueInfoProto]) -> dict[str, Any]:
    return {info.name: tensor_type(info.type) for info in infos}


def subgraph_types(graph: GraphProto) -> dict[str, Any]:
    """Returns value name to element type and dims, as a body states them."""
    return _types_of([*graph.value_info, *graph.output])


def infer_types(model: ModelProto) -> dict[str, Any]:
    """Returns the types that ONNX shape inference finds, without carrying the weights through it."""
    skeleton = ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = "types"
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    known = {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < LIGHT:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for node in model.graph.node:
        if node.op_type == "Constant" and node.ByteSize() > LIGHT and node.attribute[0].HasField("t"):
            tensor = node.attribute[0].t
            info = onnx.helper.make_tensor_value_info(node.output[0], tensor.data_type, list(tensor.dims))
            graph.input.append(info)
        else:
            graph.node.append(node)
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton).graph
    except Exception:  # a file that shape inference rejects may still be run: its types stay unknown
        graph = model.graph
    return _types_of([*model.graph.value_info, *graph.value_info, *model.graph.output])
