"""Walks a model once and learns what its operators demand: shapes, sizes in shape arithmetic, bounds of integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from ..errors import ModelError
from ..onnx_model.walk import attribute_of, subgraphs
from ..opset.schema import DOMAIN
from .dim_formula import parsed
from .sizes import Dim, Sizes, plus, symbol

Shape = tuple[Dim, ...]
Numbers = tuple[Dim, ...]

SMALL = 64
"""Integer tensors of up to so many elements are followed by value."""

_INTS = {TensorProto.INT64, TensorProto.INT32}
_CONTROL = {"If", "Loop", "Scan", "SequenceMap"}


@dataclass
class Input:
    """What is known about one input of a model.

    Attributes:
        name: its name.
        dtype: its ONNX element type.
        shape: its dims.
        bounds: what its integers have to stay below.
        uses: what operators take it for: ``position``, ``seqlens``, ``lengths``, ``condition`` (of an If), ``past``.
        tops: the largest number that it may hold where it says how long rows are.
    """

    name: str
    dtype: int
    shape: Shape
    bounds: list[Dim] = field(default_factory=list)
    uses: set[str] = field(default_factory=set)
    tops: list[Dim] = field(default_factory=list)


class Walk:
    """The values of a graph as far as they can be known without running it.

    Attributes:
        sizes: the symbols.
        inputs: what the model needs, by name.
        shapes: value to dims.
        flows: value to the inputs whose integers it carries, each with what was added to them.
        tops: value to what all its integers are below.
        windows: sizes of sliding attention windows.
        rolling: those whose cache is a buffer of that size, in which places that nothing has come to hold anything.
        spans: how many tokens such attention has met, and how many of them are new.
    """

    def __init__(self, model: onnx.ModelProto, known: dict[str, int]) -> None:
        self.sizes = Sizes()
        self.shapes: dict[str, Shape] = {}
        self.flows: dict[str, frozenset[tuple[str, int]]] = {}
        self.tops: dict[str, Dim] = {}
        self.inputs: dict[str, Input] = {}
        self.windows: set[int] = set()
        self.rolling: set[int] = set()
        self.spans: list[tuple[Dim, Dim]] = []
        self._numbers: dict[str, Numbers | None] = {}
        self._tensors: dict[str, TensorProto] = {}
        self._stated: dict[str, onnx.TypeProto.Tensor] = {}
        held = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
        for value in model.graph.input:
            if value.name not in held:
                self._declare(value)
        for name, size in known.items():
            self.sizes.wish(name, size)
        self._graph(model.graph)
        self._outputs(model.graph)
        self.sizes.solve()

    def _declare(self, value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelError(
                f"input {value.name!r} has no tensor shape to draw a sample for; pass the data to run on instead "
                "(--data)."
            )
        dims = [self._dim(dim, f"{value.name}:{axis}") for axis, dim in enumerate(tensor.shape.dim)]
        self.inputs[value.name] = Input(value.name, tensor.elem_type, tuple(dims))
        self.shapes[value.name] = tuple(dims)
        self.flows[value.name] = frozenset(((value.name, 0),))
        count = math.prod(d if isinstance(d, int) else SMALL + 1 for d in dims)
        if tensor.elem_type in _INTS and len(dims) < 2 and count <= SMALL:
            self._numbers[value.name] = tuple(symbol(f"{value.name}[{i}]") for i in range(count))

    def _dim(self, dim: onnx.TensorShapeProto.Dimension, anonymous: str) -> Dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:  # 0 is a size, of an empty past; some write -1 for unknown
            return int(dim.dim_value)
        return parsed(dim.dim_param, self.sizes.declare) if dim.dim_param else self.sizes.declare(anonymous)

    def _outputs(self, graph: GraphProto) -> None:
        """Outputs state what the symbols of the inputs have to do with each other."""
        for value in graph.output:
            shape = self.shape(value.name)
            stated = self._stated_shape(value.type.tensor_type)
            if shape is not None and stated is not None and len(stated) == len(shape):
                for a, b in zip(shape, stated, strict=True):
                    self.sizes.equal(a, b, firm=False)

    def _stated_shape(self, tensor: onnx.TypeProto.Tensor) -> Shape | None:
        """A shape as the file states it, in symbols of inputs alone."""
        if not tensor.HasField("shape"):
            return None
        dims: list[Dim] = []
        for dim in tensor.shape.dim:
            if dim.HasField("dim_value"):
                dims.append(int(dim.dim_value))
            else:
                dims.append(parsed(dim.dim_param, self._of_inputs))
        return tuple(dims)

    def _of_inputs(self, name: str) -> Dim:
        return symbol(name) if name in self.sizes.order else None

    # ---- walking ------------------------------------------------------------------------------------------------

    def _graph(self, graph: GraphProto) -> None:
        from .operators import RULES, laurel

        for tensor in graph.initializer:
            self._tensors[tensor.name] = tensor
            self.shapes[tensor.name] = tuple(tensor.dims)
        for sparse in graph.sparse_initializer:
            self.shapes[sparse.values.name] = tuple(sparse.dims)
        for info in graph.value_info:
            self._stated[info.name] = info.type.tensor_type
        for node in graph.node:
            inner = subgraphs(node) if node.op_type in _CONTROL else []
            if inner and node.op_type == "If":
                Call(self, node).use(0, "condition")
            made = [self._body(body) for body in inner]
            rule = laurel if node.domain == DOMAIN else RULES.get(f"{node.domain}.{node.op_type}")
            rule = rule or RULES.get(node.op_type)
            if rule is not None:
                rule(Call(self, node))
            for i, name in enumerate(node.output):
                if name not in self.shapes:
                    stated = self._stated_shape(self._stated[name]) if name in self._stated else None
                    if stated is None and made and i < len(made[0]):
                        stated = made[0][i] if node.op_type == "If" else None
                    if stated is not None:
                        self.shapes[name] = stated

    def _body(self, graph: GraphProto) -> list[Shape | None]:
        """Walks a body and returns the shapes of its outputs; another one may give its values the same names."""
        self._graph(graph)
        found = [self.shapes.get(value.name) for value in graph.output]
        names = {value.name for value in (*graph.input, *graph.initializer, *graph.value_info)}
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        names.update(name for node in graph.node for name in node.output)
        tables: tuple[dict[str, Any], ...] = (self.shapes, self.flows, self.tops, self._numbers, self._tensors)
        for table in (*tables, self._stated):
            for name in names:
                table.pop(name, None)
        return found

    # ---- values -------------------------------------------------------------------------------------------------

    def shape(self, name: str) -> Shape | None:
        """Returns the dims of a value, ``None`` for an unknown rank."""
        return self.shapes.get(name)

    def numbers(self, name: str) -> Numbers | None:
        """Returns the integers that a small tensor holds, in order."""
        if name not in self._numbers:
            tensor = self._tensors.get(name)
            self._numbers[name] = None if tensor is None else self.read(tensor)
        return self._numbers[name]

    def set_numbers(self, name: str, numbers: Sequence[Dim]) -> None:
        """Says which integers a value holds."""
        if len(numbers) <= SMALL:
            self._numbers[name] = tuple(numbers)

    def put_constant(self, name: str, tensor: TensorProto) -> None:
        """Says that a value is a constant."""
        self._tensors[name] = tensor
        self.shapes[name] = tuple(tensor.dims)

    def is_constant(self, name: str) -> bool:
        """Whether a value is a tensor that the file holds."""
        return name in self._tensors

    @staticmethod
    def read(tensor: TensorProto) -> Numbers | None:
        """Returns the whole numbers of a small tensor, ``None`` for others."""
        if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > SMALL:
            return None
        if tensor.data_type == TensorProto.INT64 and tensor.HasField("raw_data"):  # most of them: no detour
            return tuple(np.frombuffer(tensor.raw_data, "<i8").tolist())
        if tensor.data_type not in (*_INTS, TensorProto.FLOAT, TensorProto.INT16, TensorProto.UINT8, TensorProto.INT8):
            return None
        values = numpy_helper.to_array(tensor).reshape(-1).tolist()
        if tensor.data_type == TensorProto.FLOAT:
            return tuple(map(int, values)) if all(value.is_integer() for value in values) else None
        return tuple(values)


class Call:
    """One node as a rule sees it; what a rule does not say stays unknown."""

    def __init__(self, walk: Walk, node: NodeProto) -> None:
        self.walk, self.node, self.sizes = walk, node, walk.sizes
        self.inputs, self.outputs = tuple(node.input), tuple(node.output)

    def name(self, index: int) -> str:
        """Returns the name of an input, "" for one that is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def shape(self, index: int = 0) -> Shape | None:
        """Returns the dims of an input."""
        name = self.name(index)
        return self.walk.shape(name) if name else None

    def dim(self, index: int, axis: int) -> Dim:
        """Returns one dim of an input."""
        shape = self.shape(index)
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def numbers(self, index: int) -> Numbers | None:
        """Returns the integers that an input holds."""
        name = self.name(index)
        return self.walk.numbers(name) if name else None

    def ints(self, index: int, attribute: str = "") -> list[int] | None:
        """Returns the integers of an input, or of the attribute that older versions have; ``None`` if unknown."""
        numbers = self.numbers(index)
        if numbers is None:
            found = self.attribute(attribute)
            return list(found) if found is not None else None
        known = [n for n in numbers if isinstance(n, int)]
        return known if len(known) == len(numbers) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Returns the value of an attribute."""
        return attribute_of(self.node, name, default)

    def put(self, shape: Sequence[Dim] | None, output: int = 0) -> None:
        """Says what shape an output has."""
        if shape is not None and output < len(self.outputs) and self.outputs[output]:
            self.walk.shapes[self.outputs[output]] = tuple(shape)

    def put_numbers(self, numbers: Sequence[Dim]) -> None:
        """Says which integers the output holds."""
        self.walk.set_numbers(self.outputs[0], numbers)

    def carry(self, *indices: int, added: int = 0) -> None:
        """Says that the output holds the integers of inputs, *added* to each."""
        walk, output = self.walk, self.outputs[0]
        flows = {(n, off + added) for i in indices for n, off in walk.flows.get(self.name(i), ())}
        if flows:
            walk.flows[output] = frozenset(flows)
        tops = [walk.tops[self.name(i)] for i in indices if self.name(i) in walk.tops]
        if tops:
            walk.tops[output] = plus(tops[0], added)

    def below(self, index: int, bound: Dim, use: str = "") -> None:
        """Says that the integers of an input index something of that size."""
        for name, added in self.walk.flows.get(self.name(index), ()):
            self.walk.inputs[name].bounds.append(plus(bound, -added))
            if use:
                self.walk.inputs[name].uses.add(use)
        if (top := self.walk.tops.get(self.name(index))) is not None:
            self.sizes.limit(top, bound)

    def use(self, index: int, use: str) -> None:
        """Says what an input of the model is for that comes in here."""
        for name, _ in self.walk.flows.get(self.name(index), ()):
            self.walk.inputs[name].uses.add(use)

    def equal(self, a: Dim, b: Dim, *, firm: bool = True) -> None:
        """Says that two dims are equal."""
        self.sizes.equal(a, b, firm=firm)


Rule = Callable[[Call], None]


def broadcast(call: Call, shapes: Sequence[Shape | None]) -> Shape | None:
    """Returns the shape of several values put together element by element; sizes that are not 1 are equal."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known:
        return None
    result: list[Dim] = []
    for axis in range(-max(map(len, known)), 0):
        merged: Dim = 1
        for dim in (shape[axis] for shape in known if len(shape) >= -axis):
            if merged == 1:
                merged = dim
            elif dim != 1:
                call.equal(merged, dim, firm=False)
                merged = dim if isinstance(dim, int) or merged is None else merged
        result.append(merged)
    return tuple(result)


def table_of(rule: Rule, names: str) -> dict[str, Rule]:
    """Returns one rule for several operators, their names with spaces between them."""
    return dict.fromkeys(names.split(), rule)
