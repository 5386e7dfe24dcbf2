"""The fingerprint of an ONNX model's base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from ..errors import ModelError
from ..onnx_model.tensors import array_of, external_reference
from ..onnx_model.walk import graphs_of, subgraphs
from ..opset.schema import PREFIX
from . import quantised
from .depth import Step, depths
from .sketch import QUANTISED, Array, Fingerprint, Sketch, grid, sketch, squeezed

_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
_PACKED = (TensorProto.INT8, TensorProto.UINT8)
"""Integers that are quantised weights even where nothing tells how."""
_SMALL = 2**24
"""Scales and zero points of more elements are not read."""
_REORDERED = ("LSTM", "GRU", "RNN")
"""Operators whose weights stand in another order than torch's."""
_BLOCKED_LAYOUT = "com.microsoft.nchwc"
"""Domain of ONNX Runtime's own layout, in which weights are stored in another order."""


def of_model(model: ModelProto, base_dir: str | Path = "") -> Fingerprint:
    """Returns the fingerprint of what *model* holds besides LAuReL tensors.

    External data is read where the sample lies. Weights whose order or packing cannot be told (recurrent operators,
    ONNX Runtime's blocked layout, unknown quantisers) are counted as unread.

    Raises:
        ModelError: external data is missing.
    """
    graphs = list(graphs_of(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    tensors = dict(_tensors(graphs))
    recipes = quantised.recipes(nodes, set(tensors))
    reordered = {name for node in nodes if _reorders(node) for name in node.input}
    parts = {name for recipe in recipes.values() for name in (recipe.scale, recipe.zero)}
    reader = _Reader(tensors, Path(base_dir))
    sketches: dict[str, Sketch] = {}
    unread = 0
    for name, tensor in tensors.items():
        if name.startswith(f"{PREFIX}.") or name in parts:
            continue
        recipe = recipes.get(name)
        if name in reordered or (recipe is None and tensor.data_type in _PACKED):
            unread += math.prod(tensor.dims)
            continue
        made = reader.sketch(name, tensor, recipe)
        if made is not None:
            sketches[name] = made
    matrices = {name for name, one in sketches.items() if one.profile is not None}
    found = depths(_steps(model.graph), matrices)
    return Fingerprint(tuple(replace(one, depth=found.get(name, -1)) for name, one in sketches.items()), unread)


def _tensors(graphs: list[GraphProto]) -> Iterator[tuple[str, TensorProto]]:
    """Name and value of every dense initializer and constant, the first of each name."""
    seen: set[str] = set()
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.name not in seen:
                seen.add(tensor.name)
                yield tensor.name, tensor
        for node in graph.node:
            if node.op_type == "Constant" and node.output and node.output[0] not in seen:
                for attribute in node.attribute:
                    if attribute.type == AttributeProto.TENSOR:
                        seen.add(node.output[0])
                        yield node.output[0], attribute.t


def _reorders(node: NodeProto) -> bool:
    return node.op_type in _REORDERED or node.domain == _BLOCKED_LAYOUT


class _Reader:
    """Reads the samples of one model's tensors; a weight file is mapped, not loaded."""

    def __init__(self, tensors: dict[str, TensorProto], base_dir: Path) -> None:
        self.tensors, self.base_dir = tensors, base_dir

    def sketch(self, name: str, tensor: TensorProto, recipe: quantised.Recipe | None) -> Sketch | None:
        if recipe is not None:
            read = quantised.sample(self.values(tensor), recipe, self.small)
            if read is None:
                return None
            sample, steps, shape = read
            return sketch(sample, shape, QUANTISED, steps=steps, name=name)
        dims = squeezed(tensor.dims)
        if tensor.data_type not in _FLOATS or math.prod(dims) == 0:
            return None
        sample = self.values(tensor).reshape(dims)[np.ix_(*grid(dims))]
        if tensor.data_type == TensorProto.BFLOAT16 and sample.dtype == np.uint16:
            sample = (sample.astype(np.uint32) << 16).view(np.float32)
        return sketch(sample, tensor.dims, _FLOATS[tensor.data_type], name=name)

    def values(self, tensor: TensorProto) -> Array:
        """The tensor's values, bfloat16 in mapped files and raw data as its bits."""
        raw = _plain_type(tensor.data_type)
        if raw is None:
            return array_of(tensor, self.base_dir)
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._mapped(tensor, raw)
        if not tensor.HasField("raw_data"):
            return array_of(tensor, self.base_dir)
        return _shaped(np.frombuffer(tensor.raw_data, raw), tensor)

    def _mapped(self, tensor: TensorProto, raw: np.dtype[np.generic]) -> Array:
        location, offset, _ = external_reference(tensor)
        count = math.prod(tensor.dims)
        if not count:
            return np.empty(tuple(tensor.dims), raw)
        try:
            return np.memmap(self.base_dir / location, raw, "r", offset, tuple(tensor.dims))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the external data of tensor {tensor.name!r} cannot be read: {location!r} in {self.base_dir}: {error}."
            ) from None

    def small(self, name: str) -> Array | None:
        """The value of a scale or zero point."""
        tensor = self.tensors[name]
        return array_of(tensor, self.base_dir) if math.prod(tensor.dims) <= _SMALL else None


def _plain_type(data_type: int) -> np.dtype[np.generic] | None:
    """The NumPy type of the bytes of an element type that has whole bytes, else ``None``."""
    if data_type == TensorProto.BFLOAT16:
        return np.dtype("<u2")
    kinds = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32)
    if data_type not in (*_FLOATS, *kinds):
        return None
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).newbyteorder("<")


def _shaped(values: Array, tensor: TensorProto) -> Array:
    try:
        return values.reshape(tuple(tensor.dims))
    except ValueError as error:
        raise ModelError(f"tensor {tensor.name!r} is damaged: {error}") from None


def _steps(graph: GraphProto) -> Iterator[Step]:
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {sparse.values.name for sparse in graph.sparse_initializer}
    entries = [info.name for info in graph.input if info.name not in stored]
    yield Step((), entries, entry=True)
    yield from (Step((), (name,), (name,)) for name in stored)
    for node in graph.node:
        inputs, inner = [name for name in node.input if name], subgraphs(node)
        weights = [node.output[0]] if node.op_type == "Constant" and node.output else []
        for one in (part for body in inner for part in graphs_of(body)):
            weights += [tensor.name for tensor in one.initializer]
            inputs += [name for other in one.node for name in other.input if name]
        yield Step(inputs, [name for name in node.output if name], weights)
