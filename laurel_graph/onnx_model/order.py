"""Puts the nodes of an ONNX graph in an order in which producers come first."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import onnx

from ..errors import ModelError
from .walk import subgraphs


def in_order(nodes: Sequence[onnx.NodeProto], model: str) -> Iterator[onnx.NodeProto]:
    """Yields the nodes so that producers come first.

    Raises:
        ModelError: a cycle of names.
    """
    made: set[str] = set()
    makers: dict[str, int] = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    reads = [_reads(node, makers) for node in nodes]
    for node, needs in zip(nodes, reads, strict=True):
        if not made.issuperset(needs):
            break
        made.update(node.output)
    else:
        yield from nodes
        return
    import networkx as nx

    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from((makers[name], i) for i, needs in enumerate(reads) for name in needs)
    try:
        order = list(nx.lexicographical_topological_sort(graph))
    except nx.NetworkXUnfeasible:
        cycle = [nodes[i].output[0] for i, _ in nx.find_cycle(graph)]
        raise ModelError(
            f"{model} has a cycle of names: {' -> '.join([*cycle[:6], cycle[0]])}. "
            "A value must not depend on itself; check the names of these nodes."
        ) from None
    for i in order:
        yield nodes[i]


def _reads(node: onnx.NodeProto, makers: Container[str]) -> list[str]:
    """Which names of *makers* a node reads, the graphs inside it included."""
    read = [*node.input, *(name for body in subgraphs(node) for name in free_names(body))]
    return [name for name in read if name in makers]


def free_names(graph: onnx.GraphProto) -> list[str]:
    """Returns the names that a graph's nodes (and its outputs) take from around it, in order of first use."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own |= {sparse.values.name for sparse in graph.sparse_initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        names = [*filter(None, node.input), *(name for body in subgraphs(node) for name in free_names(body))]
        found.update((name, None) for name in names if name not in own)
        own.update(node.output)
    found.update((o.name, None) for o in graph.output if o.name not in own)
    return list(found)
