"""The bodies of If, Loop and Scan: what each is called, and each as a model of its own.

Two bodies may give different values one name: the merged decoders of optimum do. So a value in a body goes by a
*scoped* name, the path of its body with the value's own name behind it: ``optimum::if[then_branch]/logits``. A body is
a model, too: what it takes from around it are its inputs, constants of outer graphs are its initializers. So whatever
is done with a model can be done with a body.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto

from .order import free_names

CONTROL = ("If", "Loop", "Scan")
"""Operators whose bodies are rewritten as the main graph is."""


@dataclass(frozen=True, eq=False)
class Body:
    """One graph inside a node.

    Attributes:
        path: what scoped names of its values begin with; it ends with a slash.
        node: the node that holds it.
        graph: the graph.
        around: the body that the node stands in, ``None`` for the main graph.
    """

    path: str
    node: NodeProto
    graph: GraphProto
    around: Body | None = None


def inside(nodes: GraphProto, around: Body | None = None) -> Iterator[Body]:
    """Yields the bodies of the nodes of one graph, in the order in which :func:`~.walk.subgraphs` gives them."""
    holders = [node for node in nodes.node if any(item.type in _KINDS for item in node.attribute)]
    count = Counter(node.name for node in holders)
    for node in holders:
        label = node.name if node.name and count[node.name] == 1 else next((name for name in node.output if name), "")
        for item in node.attribute:
            parts = [item.g] if item.type == AttributeProto.GRAPH else item.graphs
            for number, graph in enumerate(parts):
                place = item.name if item.type == AttributeProto.GRAPH else f"{item.name}.{number}"
                yield Body(f"{around.path if around else ''}{label}[{place}]/", node, graph, around)


_KINDS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def bodies_of(model: ModelProto) -> dict[str, Body]:
    """Returns path to body of every graph inside the main graph of *model*, outer before inner."""
    found: dict[str, Body] = {}
    waiting = list(inside(model.graph))
    while waiting:
        body = waiting.pop(0)
        found[body.path] = body
        waiting = [*inside(body.graph, body), *waiting]
    return found


def scopes_of(model: ModelProto) -> dict[str, GraphProto]:
    """Returns path to graph: the main graph under "", then every body."""
    return {"": model.graph, **{path: body.graph for path, body in bodies_of(model).items()}}


Constant = TensorProto | SparseTensorProto | NodeProto


def taken_in(model: ModelProto, body: Body) -> tuple[list[str], dict[str, Constant]]:
    """Returns what a body takes from around it: the names of values that are computed, and the constants by name."""
    held = _held_around(model, body)
    names = free_names(body.graph)
    constant = {name: found for name in names if (found := held.get(name)) is not None}
    return [name for name in names if name not in constant], constant


def _held_around(model: ModelProto, body: Body) -> dict[str, Constant | None]:
    """Name to the constant that it is in the graphs around a body, ``None`` for values that are computed."""
    graphs, around = [model.graph], body.around
    while around is not None:
        graphs.insert(1, around.graph)
        around = around.around
    held: dict[str, Constant | None] = {}
    for graph in graphs:
        held.update((value.name, None) for value in graph.input)
        held.update((tensor.name, tensor) for tensor in graph.initializer)
        held.update((sparse.values.name, sparse) for sparse in graph.sparse_initializer)
        for node in graph.node:
            found = node if node.op_type == "Constant" and not node.domain else None
            held.update((name, found) for name in node.output)
    return held


def as_model(
    model: ModelProto, body: Body, inputs: Mapping[str, ValueInfoProto], *, with_weights: bool = True
) -> ModelProto:
    """Returns a body as a model of its own, whose inputs are the body's, then what it takes from around it.

    Args:
        model: the model that holds it; it stays as it is.
        body: the body.
        inputs: name of an input to what is known of it, which goes before what the body states itself.
        with_weights: copy the numbers of constants; without, large ones come as shapes alone.
    """
    alone = ModelProto(ir_version=model.ir_version)
    alone.opset_import.extend(model.opset_import)
    alone.functions.extend(model.functions)
    alone.metadata_props.extend(model.metadata_props)
    source, graph = body.graph, alone.graph
    graph.name = source.name or "body"
    computed, constant = taken_in(model, body)
    formal = [inputs.get(value.name, value) for value in source.input]
    graph.input.extend([*formal, *(inputs.get(name, ValueInfoProto(name=name)) for name in computed)])
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    for tensor in source.initializer:
        _put(graph, tensor, with_weights)
    graph.sparse_initializer.extend(source.sparse_initializer)
    for held in constant.values():
        if isinstance(held, NodeProto):
            graph.node.append(held)
        elif isinstance(held, SparseTensorProto):
            graph.sparse_initializer.append(held)
        else:
            _put(graph, held, with_weights)
    graph.node.extend(source.node)
    return alone


_SMALL = 1024
"""Constants of at most so many bytes are copied whole."""


def _put(graph: GraphProto, tensor: TensorProto, with_weights: bool) -> None:
    if with_weights or tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() <= _SMALL:
        graph.initializer.append(tensor)
    else:
        graph.initializer.add(
            name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL
        )
