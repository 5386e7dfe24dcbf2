"""Seeded inputs for an ONNX model that nobody gave data for: what verify, deploy and bench run on by default."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .errors import ModelError

BATCH = 1
SEQUENCE = 16
SIGNAL = 512
IMAGE = 224
INDEX_BOUND = 2
LARGEST = 2**26
"""Sizes of unknown dims, the bound of integer inputs that no lookup table bounds, and the elements of a drawn input."""

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
_PASS = {"Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Concat"}


STYLES: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: np.abs(rng.standard_normal(shape)) + 0.1,
    "unit": lambda rng, shape: rng.uniform(0.01, 0.99, shape),
    "small": lambda rng, shape: 0.01 * rng.standard_normal(shape),
    "pixels": lambda rng, shape: rng.uniform(0, 255, shape),
    "large": lambda rng, shape: 100 * rng.standard_normal(shape),
}
"""How the floats of a sample may be drawn, by name; what a model takes at its input decides which one exercises it."""


def sample_inputs(
    model: onnx.ModelProto,
    *,
    batch: int = BATCH,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    style: str = "normal",
    ragged: bool = False,
) -> dict[str, NDArray[Any]]:
    """Returns one array for each required input of *model*.

    Floats are drawn as *style* says, masks are ones, integers stay below the smallest table that they index.

    Args:
        model: the model; its weights may be external.
        batch: size of an unknown first dim.
        seed: seed of the draw.
        sizes: sizes of symbolic dims by name; an unknown dim is otherwise 16, or 512 in a float signal ``(N, T)``, or
            224 in an image ``(N, C, H, W)``.
        style: one of :data:`STYLES`.
        ragged: masks end in zeros, in each row from another place on.

    Raises:
        ModelError: an input is no tensor, its shape is unknown or too large, or *sizes* names a dim that the
            model does not have.
    """
    rng = np.random.default_rng(seed)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    known = dict(sizes or {})
    symbols = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    if unknown := sorted(set(known) - symbols):
        raise ModelError(f"no input has a dim named {unknown[0]!r}; its symbolic dims are {sorted(symbols) or 'none'}.")
    draw = STYLES[style]
    return {value.name: _draw(value, model.graph, rng, batch, known, draw, ragged) for value in inputs}


def open_dims(model: onnx.ModelProto) -> list[str]:
    """Returns the symbolic dims of the inputs that are the size of no first axis: lengths, heights, widths."""
    held = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in held]
    first = {dim.dim_param for dims in shapes for dim in dims[:1]}
    return list(
        dict.fromkeys(d.dim_param for dims in shapes for d in dims[1:] if d.dim_param and d.dim_param not in first)
    )


def has_masks(model: onnx.ModelProto) -> bool:
    """Whether :func:`sample_inputs` takes some input for a mask."""
    held = {tensor.name for tensor in model.graph.initializer}
    return any(_is_mask(value) for value in model.graph.input if value.name not in held)


def _is_mask(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.BOOL or "mask" in value.name.lower()


def _mask(shape: tuple[int, ...], dtype: np.dtype[Any], ragged: bool) -> NDArray[Any]:
    """Ones; where *ragged*, zeros behind a position that differs from row to row, the first one always in."""
    mask = np.ones(shape, dtype)
    if ragged and len(shape) > 0 and shape[-1] > 1:
        rows = mask.reshape(-1, shape[-1])
        for i, row in enumerate(rows):
            row[max(1, shape[-1] - 1 - (i * 3) % shape[-1]) :] = 0
    return mask


def _draw(
    value: onnx.ValueInfoProto,
    graph: onnx.GraphProto,
    rng: np.random.Generator,
    batch: int,
    known: dict[str, int],
    draw: Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]],
    ragged: bool,
) -> NDArray[Any]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ModelError(
            f"input {value.name!r} has no tensor shape to draw a sample for; pass the data to run on instead."
        )
    floating = tensor.elem_type in _FLOATS
    unknown = {2: SIGNAL, 4: IMAGE}.get(len(tensor.shape.dim), SEQUENCE) if floating else SEQUENCE
    shape = tuple(_size(dim, unknown if axis else batch, known) for axis, dim in enumerate(tensor.shape.dim))
    if math.prod(shape) > LARGEST:
        raise ModelError(
            f"input {value.name!r} of shape {shape} is too large to draw a sample for (more than {LARGEST} elements); "
            "pass the data to run on, or smaller sizes, instead."
        )
    if tensor.elem_type == onnx.TensorProto.STRING:
        return np.full(shape, "", dtype=object)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if _is_mask(value):
        return _mask(shape, np.dtype(dtype), ragged)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, _index_bound(graph, value.name), shape).astype(dtype)
    return draw(rng, shape).astype(dtype)


def _size(dim: onnx.TensorShapeProto.Dimension, unknown: int, known: dict[str, int]) -> int:
    """Returns the size of one dim; what a symbol was first given is remembered in *known*."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # 0 is a size too: an empty past; some write -1 for unknown
        return int(dim.dim_value)
    symbol = dim.dim_param
    if symbol in known:
        return known[symbol]
    terms = re.findall(r"[^\s+]+", symbol) if "+" in symbol else []
    if terms and all(term.isdigit() or term in known for term in terms):
        return sum(int(term) if term.isdigit() else known[term] for term in terms)
    if symbol:
        known[symbol] = unknown
    return unknown


def _index_bound(graph: onnx.GraphProto, name: str) -> int:
    """Returns the size of the smallest constant table that *name* indexes, directly or through reshapes and casts."""
    rows = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    rows.update((t.values.name, tuple(t.dims)) for t in graph.sparse_initializer)
    followed, bounds = {name}, []
    for node in graph.node:  # topological order: one sweep follows every chain
        if node.op_type in _PASS and node.input and followed & set(node.input):
            followed.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in followed and node.input[0] in rows:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            bounds.append(rows[node.input[0]][axis])
        elif node.op_type == "EmbedLayerNormalization" and followed & set(node.input[:2]):
            tables = [t for i, t in zip(node.input[:2], node.input[2:5:2], strict=True) if i in followed and t in rows]
            bounds.extend(rows[table][0] for table in tables)
    return min(bounds, default=INDEX_BOUND)
