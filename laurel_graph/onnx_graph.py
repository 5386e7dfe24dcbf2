"""Walking ONNX models: graphs inside graphs, every tensor, the opset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from .errors import ModelError

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


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yields the graphs that *node* holds as attributes (bodies of If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """Yields *graph* and every graph inside its nodes, outer before inner."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Yields every tensor of *model*: initializers, tensors in attributes, in subgraphs and in functions."""
    bodies: list[Iterable[NodeProto]] = [function.node for function in model.functions]
    for graph in graphs_of(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        bodies.append(graph.node)
    for nodes in bodies:
        for node in nodes:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    sparse: list[SparseTensorProto] = list(attribute.sparse_tensors)
    if attribute.type == AttributeProto.TENSOR:
        yield attribute.t
    elif attribute.type == AttributeProto.SPARSE_TENSOR:
        sparse.append(attribute.sparse_tensor)
    yield from attribute.tensors
    for one in sparse:
        yield from (one.values, one.indices)
