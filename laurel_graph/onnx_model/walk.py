"""Walking ONNX models: graphs inside graphs, every tensor, attributes, the opset; copies to walk in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from ..errors import ModelError

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
"""Operators of the default domain that draw random numbers, by their attribute ``seed`` if they have it."""


def default_opset(model: ModelProto) -> int:
    """Returns the model's version of the default domain.

    Raises:
        ModelError: the model imports no version of it.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError("the model imports no opset of the default domain (ai.onnx); expected one opset_import entry.")


_GRAPH, _GRAPHS = AttributeProto.GRAPH, AttributeProto.GRAPHS


def copy_of(model: ModelProto) -> ModelProto:
    """Returns a copy."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def attribute_of(node: NodeProto, name: str, default: Any = None) -> Any:
    """Returns the value of an attribute of *node*, or *default*; text is decoded, with marks for what is no UTF-8."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Returns the graphs that *node* holds as attributes (bodies of If, Loop, Scan)."""
    found: list[GraphProto] = []
    for attribute in node.attribute:
        kind = attribute.type
        if kind == _GRAPH:
            found.append(attribute.g)
        elif kind == _GRAPHS:
            found.extend(attribute.graphs)
    return found


def inner_names(node: NodeProto) -> set[str]:
    """Returns every name that the subgraphs of *node* make; no outer value may take one of them."""
    names: set[str] = set()
    for graph in subgraphs(node):
        names.update(value.name for value in (*graph.input, *graph.initializer))
        for inner in graph.node:
            names.update(inner.output)
            names |= inner_names(inner)
    return names


def captured_names(node: NodeProto) -> set[str]:
    """Returns every name that the subgraphs of *node* read; inner names may be among them."""
    names: set[str] = set()
    for graph in subgraphs(node):
        names.update(value.name for value in graph.output)
        for inner in graph.node:
            names.update(inner.input)
            names |= captured_names(inner)
    return names - {""}


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """Yields *graph* and every graph inside its nodes, outer before inner."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            kind = attribute.type
            if kind == _GRAPH:
                yield from graphs_of(attribute.g)
            elif kind == _GRAPHS:
                for inner in attribute.graphs:
                    yield from graphs_of(inner)


def value_names(model: ModelProto) -> Iterator[str]:
    """Yields every name of a value in any graph of *model*, some more than once."""
    for graph in graphs_of(model.graph):
        yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
        yield from (tensor.values.name for tensor in graph.sparse_initializer)
        for node in graph.node:
            yield from (*node.input, *node.output)


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Yields every tensor of *model*: initializers, tensors in attributes, in subgraphs and in functions."""
    sparse: list[SparseTensorProto] = []
    graphs = list(_all_graphs(model))
    for graph in graphs:
        yield from graph.initializer
        sparse.extend(graph.sparse_initializer)
    for attribute in _attributes(model, graphs):
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        sparse.extend(_sparse_in(attribute))
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def sparse_tensors_of(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Yields every sparse tensor of *model*, wherever it stands."""
    graphs = list(_all_graphs(model))
    for graph in graphs:
        yield from graph.sparse_initializer
    for attribute in _attributes(model, graphs):
        yield from _sparse_in(attribute)


def _sparse_in(attribute: AttributeProto) -> Iterator[SparseTensorProto]:
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors


def _all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Yields the main graph, those inside it, and those inside the nodes of functions."""
    yield from graphs_of(model.graph)
    for function in model.functions:
        for node in function.node:
            for graph in subgraphs(node):
                yield from graphs_of(graph)


def _attributes(model: ModelProto, graphs: Iterable[GraphProto]) -> Iterator[AttributeProto]:
    """Yields the attributes of every node of *graphs* and of the functions of *model*."""
    for function in model.functions:
        yield from function.attribute_proto
        for node in function.node:
            yield from node.attribute
    for graph in graphs:
        for node in graph.node:
            yield from node.attribute
