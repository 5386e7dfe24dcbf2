"""From an ONNX graph to a torch.fx GraphModule: scopes, functions, subgraphs, and one node after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, defs
from torch import fx

from ..errors import LaurelError, ModelError, UnsupportedOperatorError
from ..onnx_model.order import free_names, in_order
from .bodies import resolve_attributes, schema_body
from .builder import Builder, Origin, Value, ValueName
from .elements import (
    FLOATS,
    HALF,
    STORAGE,
    attribute_value,
    element_type,
    infer_types,
    subgraph_types,
    tensor_to_torch,
    tensor_type,
    type_name,
)
from .fusion import fuse
from .node import Node
from .registry import ADDED, NEWEST, Registry, since_version

MAX_LISTED = 20
"""How many refused nodes one error message lists."""


@dataclass
class Scope:
    """The names that are visible to a node.

    Attributes:
        values: value name to value.
        opsets: domain to operator set version.
        parent: the scope around a subgraph.
        references: attributes of the function call that a body's nodes refer to.
        types: value name to its type as shape inference found it.
    """

    values: dict[str, Value] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)
    parent: Scope | None = None
    references: Mapping[str, AttributeProto] | None = None
    types: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Value | None:
        """Returns the value of that name here or in a scope around, or ``None``."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        return None


class Converter:
    """Translates one model.

    Args:
        model: the model; external data may still be outside.
        registry: the operators known.
        base_dir: the folder that external data is relative to.
        trainable: tells whether an initializer or constant of that name becomes a parameter.
        dropout: whether Dropout nodes are active in training mode.
        laurel: translates a node of ``ai.laurel`` into calls of modules, or returns ``None`` to expand its body.
    """

    def __init__(self, model: ModelProto, registry: Registry, base_dir: Path, trainable: Callable[[str], bool],
                 dropout: bool, laurel: Callable[[Node], Sequence[Value] | None]) -> None:  # fmt: skip
        self.model = model
        self.registry = registry
        self.base_dir = base_dir
        self.trainable = trainable
        self.dropout = dropout
        self.laurel = laurel
        self.refused: list[str] = []
        self.functions = {(_domain(f.domain), f.name, getattr(f, "overload", "")): f for f in model.functions}
        self.tensor_names: dict[str, str] = {}
        self.inner_names: dict[fx.GraphModule, dict[str, str]] = {}

    def run(self) -> fx.GraphModule:
        """Returns the module.

        Raises:
            UnsupportedOperatorError: naming every node that has no differentiable counterpart.
            ModelError: the graph is damaged.
        """
        graph = self.model.graph
        opsets = {_domain(o.domain): o.version for o in self.model.opset_import}
        newest = min(NEWEST, defs.onnx_opset_version())
        if opsets.get("", 1) > newest:
            raise UnsupportedOperatorError(
                f"The model uses operator set {opsets['']}; the newest known here is {newest}. "
                "Update onnx and laurel-graph, or export with an older operator set."
            )
        builder = Builder()
        scope = Scope(opsets=opsets, types=infer_types(self.model))
        self._add_inputs(graph, builder, scope)
        outputs = self.graph_nodes(graph, builder, scope)
        if self.refused:
            listed = "\n  ".join(self.refused[:MAX_LISTED])
            more = f"\n  and {len(self.refused) - MAX_LISTED} more" if len(self.refused) > MAX_LISTED else ""
            raise UnsupportedOperatorError(
                f"{len(self.refused)} node(s) have no differentiable counterpart:\n  {listed}{more}"
            )
        builder.close(outputs)
        fuse(builder.root, builder.graph)
        module = builder.module("ImportedModel")
        self.tensor_names = _tensor_names(module, builder.onnx_names, self.inner_names)
        return module

    def _add_inputs(self, graph: GraphProto, builder: Builder, scope: Scope) -> None:
        stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        values, nested = [], []
        for info in graph.input:
            if info.name in stored:
                continue
            elem_type, shape = tensor_type(info.type)
            if element_type(info.type) not in STORAGE:
                self.refused.append(f"input {info.name!r}: elements of type {type_name(element_type(info.type))}")
            value = builder.input(info.name, elem_type, shape)
            values.append((info.name, value))
            if elem_type is None and element_type(info.type) in HALF:
                nested.append(info.name)
        for name, value in values:
            scope.values[name] = value
            if name in nested:
                scope.values[name] = builder.emit(float_items, value, builder.anchor, name=name)
            if value.elem_type in FLOATS:
                converted = builder.emit(as_float, value, builder.anchor, name=name)
                scope.values[name] = Value(name, node=converted.node, elem_type=value.elem_type, shape=value.shape)

    def graph_nodes(self, graph: GraphProto, builder: Builder, scope: Scope) -> list[Value]:
        """Translates a graph's initializers and nodes into *builder* and returns its output values."""
        for tensor in graph.initializer:
            scope.values[tensor.name] = self.tensor_value(tensor.name, tensor, builder)
        for sparse in graph.sparse_initializer:
            dense = Value(sparse.values.name, const=sparse_to_torch(sparse))
            scope.values[sparse.values.name] = dense
        for proto in in_order(graph.node, "the model"):
            self.translate(proto, builder, scope)
        outputs = []
        for info in graph.output:
            value = scope.find(info.name)
            if value is None:
                raise ModelError(f"The graph's output {info.name!r} is not computed by any node.")
            outputs.append(value)
        return outputs

    def tensor_value(self, name: str, tensor: TensorProto, builder: Builder) -> Value:
        """Returns an initializer or constant as a value: a parameter if it is to be trained and holds floats."""
        try:
            values = tensor_to_torch(tensor, self.base_dir)
        except ValueError as error:
            self.refused.append(f"tensor {name!r}: {error}; only numbers can be imported")
            return Value(name, const=torch.zeros(tuple(tensor.dims)))
        trains = values.is_floating_point() and self.trainable(name)
        value = builder.parameter(name, values) if trains else Value(name, const=values)
        value.elem_type, value.shape = tensor.data_type, tuple(tensor.dims)
        return value

    # ---- nodes ------------------------------------------------------------------------------------------------

    def translate(self, proto: NodeProto, builder: Builder, scope: Scope) -> None:
        """Translates one node and makes its outputs visible; notes it down if it is refused."""
        domain = _domain(proto.domain)
        opset = scope.opsets.get(domain, 1)
        outputs = tuple(name for name in proto.output if name)
        outer = builder.origin
        origin = outer if scope.references is not None and outer else Origin(
            proto.name, proto.op_type, domain, opset, outputs
        )  # fmt: skip
        builder.origin = origin
        try:
            results = self._dispatch(proto, domain, opset, origin, builder, scope)
        except UnsupportedOperatorError as error:
            self.refused.append(str(error))
            results = [Value(name, node=builder.create("call_function", torch.zeros, (1,))) for name in proto.output]
        except LaurelError:
            raise
        except Exception as error:
            raise ModelError(f"{origin} cannot be translated: {type(error).__name__}: {error}") from error
        finally:
            builder.origin = outer
        for name, value in zip(proto.output, results, strict=False):
            if name:
                scope.values[name] = self._described(name, value, scope)

    def _described(self, name: str, value: Value, scope: Scope) -> Value:
        """Returns *value* with its name and what shape inference says about it."""
        elem_type, shape = scope.types.get(name, (None, None))
        if value.is_const and value.node is None:
            value.name = name
        elif value.node is not None and scope.references is None and scope.parent is None:
            value.node.meta.setdefault("onnx_value", ValueName(name))
        if value.elem_type is None:
            value.elem_type = elem_type
        if value.shape is None:
            value.shape = tuple(value.const.shape) if isinstance(value.const, torch.Tensor) else shape
        return value

    def _dispatch(self, proto: NodeProto, domain: str, opset: int, origin: Origin, builder: Builder,
                  scope: Scope) -> Sequence[Value]:  # fmt: skip
        inputs = [self._input(name, origin, scope) for name in proto.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = resolve_attributes(proto, scope.references)
        parsed = {a.name: attribute_value(a) for a in attributes}
        version = since_version(domain, proto.op_type, opset)
        node = Node(proto, inputs, parsed, builder, self, scope, version, origin)
        if domain == "ai.laurel" and (results := self.laurel(node)) is not None:
            return results
        overload = getattr(proto, "overload", "")
        function = self.functions.get((domain, proto.op_type, overload))
        handler = ADDED.find(domain, proto.op_type, opset)
        if handler is None and function is not None:
            return self.expand(function, inputs, attributes, builder)
        handler = handler or self.registry.find(domain, proto.op_type, opset)
        if handler is not None:
            found = handler(node)
            return [found] if isinstance(found, Value) else found
        body = schema_body(proto, domain, opset, inputs)
        if body is None:
            node.refuse("this operator is not known, and its schema has no function body")
        return self.expand(body, inputs, attributes, builder, {domain: opset})

    def _input(self, name: str, origin: Origin, scope: Scope) -> Value | None:
        if not name:
            return None
        value = scope.find(name)
        if value is None:
            raise ModelError(f"{origin} reads {name!r}, which nothing before it computes.")
        if value.is_const and value.const is None:
            return None
        return value

    def expand(self, function: FunctionProto, inputs: Sequence[Value | None], attributes: Iterable[AttributeProto],
               builder: Builder, opsets: Mapping[str, int] | None = None) -> list[Value]:  # fmt: skip
        """Translates a function's body in the place of a call of it."""
        references = {a.name: a for a in function.attribute_proto} | {a.name: a for a in attributes}
        body_opsets = {**(opsets or {}), **{_domain(o.domain): o.version for o in function.opset_import}}
        scope = Scope(opsets=body_opsets, references=references)
        for i, name in enumerate(function.input):
            given = inputs[i] if i < len(inputs) else None
            scope.values[name] = given if given is not None else Value(name, const=None)
        for proto in function.node:
            self.translate(proto, builder, scope)
        return [scope.values[name] for name in function.output if name in scope.values]

    # ---- subgraphs --------------------------------------------------------------------------------------------

    def subgraph(self, graph: GraphProto, scope: Scope, name: str) -> tuple[fx.GraphModule, list[Value]]:
        """Translates a subgraph into a module of its own.

        Returns:
            The module, whose inputs are the subgraph's own followed by the values it takes from around it, and those
            outer values.
        """
        builder = Builder()
        inner = Scope(opsets=scope.opsets, references=scope.references, types=subgraph_types(graph))
        builder.origin = Origin(name, "subgraph", "", scope.opsets.get("", 1), (name,))
        for info in graph.input:
            elem_type, shape = tensor_type(info.type)
            inner.values[info.name] = builder.input(info.name, elem_type, shape)
        captured = []
        for outer_name in free_names(graph):
            value = scope.find(outer_name)
            if value is None:
                raise ModelError(f"The subgraph of {name!r} reads {outer_name!r}, which nothing around it computes.")
            if value.is_const:
                inner.values[outer_name] = Value(outer_name, const=value.const, elem_type=value.elem_type)
                continue
            captured.append(value)
            inner.values[outer_name] = builder.input(outer_name, value.elem_type, value.shape, value.host)
        builder.origin = None
        builder.close(self.graph_nodes(graph, builder, inner))
        fuse(builder.root, builder.graph)
        module = builder.module("Subgraph")
        self.inner_names[module] = builder.onnx_names
        return module, captured

    def inline(self, graph: GraphProto, builder: Builder, scope: Scope) -> list[Value]:
        """Translates a subgraph without inputs in the place of its node."""
        inner = Scope(opsets=scope.opsets, parent=scope, references=scope.references, types=subgraph_types(graph))
        return self.graph_nodes(graph, builder, inner)


def _tensor_names(
    module: fx.GraphModule, names: Mapping[str, str], inner: Mapping[fx.GraphModule, Mapping[str, str]]
) -> dict[str, str]:
    """Returns path to name in the file of all tensors, those in the modules of subgraphs included."""
    whole = dict(names)
    for place, part in module.named_modules():
        if isinstance(part, fx.GraphModule) and part in inner:
            whole |= {f"{place}.{path}": name for path, name in inner[part].items()}
    return whole


def as_float(x: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """Returns *x* in the module's float type."""
    return x.to(anchor.dtype)


def float_items(items: Any, anchor: torch.Tensor) -> Any:
    """Returns a sequence or optional with its 16-bit floats in the module's float type."""
    if isinstance(items, (list, tuple)):
        return [float_items(item, anchor) for item in items]
    return items if items is None else as_float(items, anchor)


def sparse_to_torch(sparse: onnx.SparseTensorProto) -> torch.Tensor:
    """Returns a sparse initializer as a dense tensor."""
    values, indices = tensor_to_torch(sparse.values), tensor_to_torch(sparse.indices)
    dense = torch.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.dim() == 1:
        dense.view(-1)[indices] = values
    else:
        dense[tuple(indices.unbind(1))] = values
    return dense


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
