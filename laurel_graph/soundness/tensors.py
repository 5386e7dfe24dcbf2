"""Tensors have the bytes that their shapes take, inside the file or in another one of the same folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath

from onnx import GraphProto, SparseTensorProto, TensorProto, TypeProto

from ..errors import ModelError
from ..onnx_model.tensors import BITS, byte_size, external_reference, stored_values
from ..onnx_model.walk import graphs_of

MAX_ELEMENTS = 2**40
"""No tensor of more elements fits into a machine."""
MAX_DENSE = 2**28
"""Bytes that a sparse tensor may take once it is dense, beside sixteen times what the file holds of it."""


def check_tensor(tensor: TensorProto, file: Path | None) -> None:
    """Raises ModelError if a tensor's type, shape and bytes do not go together.

    Args:
        tensor: an initializer, or the value of an attribute.
        file: the model's file, in whose folder external bytes lie; ``None`` leaves them unchecked.
    """
    name = f"tensor {tensor.name!r}"
    if tensor.data_type not in BITS:
        raise ModelError(f"{name} has the element type {tensor.data_type}, which does not exist; it is damaged.")
    _check_dims(name, tensor.dims)
    if tensor.HasField("segment"):
        raise ModelError(f"{name} is cut into segments, which nothing supports; store it whole.")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, file)
        return
    expected = byte_size(tensor)
    if tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
        if expected is None or found != expected:
            raise ModelError(f"{name} {_takes(tensor, expected)}, but {found} are stored; export the model again.")
        return
    field, count = stored_values(tensor)
    if len(getattr(tensor, field)) != count:
        raise ModelError(
            f"{name} of shape {tuple(tensor.dims)} takes {count} values in {field}, but {len(getattr(tensor, field))} "
            "are stored; export the model again."
        )


def _takes(tensor: TensorProto, expected: int | None) -> str:
    shape = f"of shape {tuple(tensor.dims)}"
    return f"{shape} takes {expected} bytes" if expected is not None else f"{shape} holds texts, which have no bytes"


def _check_dims(name: str, dims: Sequence[int]) -> None:
    if any(dim < 0 for dim in dims) or math.prod(dims) > MAX_ELEMENTS or len(dims) > 64:
        shown = ", ".join(map(str, dims[:8])) + (", ..." if len(dims) > 8 else "")
        raise ModelError(f"{name} has the shape ({shown}), which no machine can hold; the file is damaged.")


def _check_external(tensor: TensorProto, file: Path | None) -> None:
    location, offset, length = external_reference(tensor)
    name, expected = f"tensor {tensor.name!r}", byte_size(tensor)
    if expected is None:
        raise ModelError(f"{name} holds texts, which cannot lie in another file; export the model again.")
    if length is not None and length != expected:
        raise ModelError(
            f"{name} {_takes(tensor, expected)}, but {length} are stated for it in {location!r}; "
            "export the model again."
        )
    _check_location(name, location)
    if file is None:
        return
    end = offset + expected
    size = _size_of(name, location, file)
    if end > size:
        raise ModelError(
            f"the external file {location!r} is truncated: {name} ends at byte {end}, the file has {size}."
        )


def _check_location(name: str, location: str) -> None:
    """Raises ModelError if *location* cannot lie in the model's folder, by its text alone."""
    parts = PurePath(location).parts
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            break
    absolute = PurePath(location).is_absolute() or bool(PureWindowsPath(location).drive)
    if not parts or "\0" in location or absolute or depth < 0:
        raise ModelError(
            f"{name} lies in the file {location!r:.200}, which is outside the model's folder; weights must lie beside "
            "the model (runtimes refuse others)."
        )


def _size_of(name: str, location: str, file: Path) -> int:
    """Returns the size of a weight file, after making sure that it lies in the folder of the model's file.

    A model that is itself a link (as in the caches of model hubs) has a second folder: that of the file it leads to.
    """
    target = file.parent / location
    try:
        real = target.resolve()
        folders = (file.parent.resolve(), file.resolve().parent)
        if not any(real.is_relative_to(folder) for folder in folders):
            raise ModelError(
                f"{name} lies in the file {location!r}, which leads outside the model's folder, to {real}; put the "
                "weight file itself beside the model."
            )
        if real.is_file():
            return real.stat().st_size
        found = "is no regular file" if real.exists() else f"is not in {file.parent}"
    except (OSError, RuntimeError) as error:  # names that are too long, links in a ring
        found = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    raise ModelError(f"{name} lies in the file {location!r:.200}, which {found}; put the weight file beside the model.")


def check_sparse(sparse: SparseTensorProto) -> None:
    """Raises ModelError if a sparse tensor does not fit its own shape, or is far larger than what the file holds."""
    name, dims = f"sparse tensor {sparse.values.name!r}", list(sparse.dims)
    _check_dims(name, dims)
    count = math.prod(sparse.values.dims)
    indices = tuple(sparse.indices.dims)
    if not dims or len(sparse.values.dims) != 1 or indices not in ((count,), (count, len(dims))):
        raise ModelError(
            f"{name} of shape {tuple(dims)} has {count} values and indices of shape {indices}; expected ({count},) or "
            f"({count}, {len(dims)})."
        )
    if sparse.indices.data_type != TensorProto.INT64:
        raise ModelError(f"{name} has indices of another type than int64; export the model again.")
    dense = math.prod(dims) * BITS[sparse.values.data_type] // 8
    if dense > MAX_DENSE + 16 * 8 * count:
        raise ModelError(f"{name} would take {dense} bytes when dense, for {count} stored values; store it otherwise.")


def check_infos(graph: GraphProto) -> None:
    """Raises ModelError if a value of the main graph or of a graph inside states a type that cannot be."""
    for info in graph.input:
        kind = info.type.WhichOneof("value")
        if kind is None or (kind == "tensor_type" and not info.type.tensor_type.elem_type):
            raise ModelError(f"its input {info.name!r} has no type; export the model again.")
    for inner in graphs_of(graph):
        for info in (*inner.input, *inner.output, *inner.value_info):
            _check_type(info.name, info.type)


def _check_type(name: str, stated: TypeProto) -> None:
    kind = stated.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        _check_type(name, getattr(stated, kind).elem_type)
    elif kind == "map_type":
        _check_type(name, stated.map_type.value_type)
    elif kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(stated, kind)
        if tensor.elem_type and tensor.elem_type not in BITS:
            raise ModelError(f"value {name!r} has the element type {tensor.elem_type}, which does not exist.")
        dims = [dim.dim_value for dim in tensor.shape.dim if dim.dim_value > 0]
        _check_dims(f"value {name!r}", dims)
