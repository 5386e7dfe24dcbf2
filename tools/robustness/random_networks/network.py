"""A network in the making: nodes, weights and the shapes of values, for one opset and element type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

ELEMENTS: dict[str, tuple[int, Any]] = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float64": (TensorProto.DOUBLE, np.float64),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
HOLDERS = ("initializer", "constant", "identity", "sparse")
"""Where a weight may stand: an initializer, a Constant node, an initializer behind an Identity, a sparse tensor."""


@dataclass(frozen=True)
class Value:
    """A value of the network: its name and its shape on a batch of :attr:`Network.batch` rows."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass
class Network:
    """Collects nodes and weights.

    Attributes:
        rng: where all choices come from.
        opset: version of the default domain.
        dtype: element type of all floats.
        listed: weights are graph inputs too, so that a run may be given others.
        ir_version: of the model.
        batch: rows that shapes are worked out for; the first dim of the inputs is symbolic.
        narrow: a 16-bit ONNX element type that residual connections add in, 0 for :attr:`dtype`.
    """

    rng: np.random.Generator
    opset: int
    dtype: str = "float32"
    listed: bool = False
    ir_version: int = 8
    batch: int = 2
    narrow: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    shared: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    count: int = 0

    def fresh(self, word: str) -> str:
        """Returns a new name."""
        self.count += 1
        return f"{word}{self.count}"

    def chance(self, probability: float) -> bool:
        """Whether something of that probability happens."""
        return bool(self.rng.random() < probability)

    def choose(self, items: Sequence[Any]) -> Any:
        """Returns one of *items*."""
        return items[int(self.rng.integers(len(items)))]

    def input(self, shape: tuple[int, ...]) -> Value:
        """Adds a graph input; its first dim is a symbol."""
        name = self.fresh("x")
        dims: list[str | int | None] = ["N", *shape[1:]]
        self.inputs.append(helper.make_tensor_value_info(name, ELEMENTS[self.dtype][0], dims))
        return Value(name, shape)

    def node(self, op: str, inputs: Sequence[Value | str], shape: Sequence[int], **attributes: Any) -> Value:
        """Adds a node with one output of *shape*."""
        return self.several(op, inputs, [shape], **attributes)[0]

    def several(
        self, op: str, inputs: Sequence[Value | str], shapes: Sequence[Sequence[int]], **attributes: Any
    ) -> list[Value]:
        """Adds a node with several outputs."""
        names = [item.name if isinstance(item, Value) else item for item in inputs]
        outputs = [self.fresh(op.lower()) for _ in shapes]
        self.nodes.append(helper.make_node(op, names, outputs, name=f"n_{outputs[0]}", **attributes))
        return [Value(name, tuple(shape)) for name, shape in zip(outputs, shapes, strict=True)]

    def weight(self, shape: tuple[int, ...], scale: float | None = None, shift: float = 0.0) -> str:
        """Returns a normal weight; by default of a size that keeps a product at 1. Sometimes an older one again."""
        known = self.shared.get(shape, [])
        if known and shift == 0 and self.chance(0.06):
            return str(self.choose(known))
        if scale is None:
            scale = float(1 / np.sqrt(max(1, int(np.prod(shape[1:] if len(shape) > 2 else shape[:1])))))
        name = self.constant(self.rng.normal(shift, scale, shape))
        if shift == 0:
            self.shared.setdefault(shape, []).append(name)
        return name

    def constant(self, value: Array | float, dtype: Any = None) -> str:
        """Returns the name of a constant, which stands in one of several places."""
        array = np.asarray(value, dtype or ELEMENTS[self.dtype][1])
        name = self.fresh("w")
        kind = str(self.choose(HOLDERS)) if self.chance(0.12) else "initializer"
        if (
            kind == "sparse"
            and self.dtype == "float32"
            and array.dtype == np.float32
            and array.ndim
            and self.opset > 10
        ):
            self._add_sparse(name, array)
        elif kind == "constant":
            tensor = numpy_helper.from_array(array, name)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        elif kind == "identity":
            self.weights[f"{name}_held"] = array
            self.nodes.append(helper.make_node("Identity", [f"{name}_held"], [name]))
        else:
            self.weights[name] = array
        return name

    def integers(self, values: Sequence[int]) -> str:
        """Returns an int64 constant, always an initializer."""
        name = self.fresh("i")
        self.weights[name] = np.asarray(values, np.int64)
        return name

    def _add_sparse(self, name: str, array: Array) -> None:
        flat = array.reshape(-1)
        places = np.flatnonzero(flat).astype(np.int64)
        values = numpy_helper.from_array(flat[places], name)
        self.sparse.append(helper.make_sparse_tensor(values, numpy_helper.from_array(places), list(array.shape)))

    def model(self) -> onnx.ModelProto:
        """Returns the network as a model."""
        inputs = list(self.inputs)
        if self.listed or self.ir_version < 4:
            inputs += [
                helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), list(v.shape))
                for k, v in self.weights.items()
            ]
        graph = helper.make_graph(
            self.nodes,
            "random",
            inputs,
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self.outputs)],
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
            sparse_initializer=self.sparse,
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
