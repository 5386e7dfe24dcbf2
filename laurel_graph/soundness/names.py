"""Names of values: each is computed once, read only where it is computed, and depends on itself nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import FunctionProto, GraphProto, NodeProto

from ..errors import ModelError
from ..onnx_model.walk import subgraphs
from .functions import Functions, opsets_of
from .nodes import check_node, label


@dataclass
class _Scope:
    """What all nodes of one graph or function are held against."""

    opsets: Mapping[str, int]
    functions: Functions
    function: FunctionProto | None = None
    readers: dict[str, str] = field(default_factory=dict)


def check_graph(graph: GraphProto, opsets: Mapping[str, int], functions: Functions) -> None:
    """Raises ModelError if a node of the main graph or of a graph inside is not sound, or a name is not."""
    scope = _Scope(opsets, functions)
    _check_whole(_free_names(graph, scope, "the graph"), scope)


def check_function(function: FunctionProto, functions: Functions) -> None:
    """Raises ModelError if a node or a name of a function is not sound."""
    scope = _Scope(opsets_of(function.opset_import), functions, function)
    where = f"its function {function.name!r}"
    inputs = list(function.input)
    if len(set(inputs)) != len(inputs) or "" in inputs:
        raise ModelError(f"{where} has two inputs of one name, or one without.")
    free, made = _sound_nodes(function.node, set(inputs), scope, where)
    _check_whole(free, scope)
    for name in function.output:
        if name not in made and name not in inputs:
            raise ModelError(f"{where} has the output {name!r}, which none of its nodes computes.")


def _check_whole(free: Iterable[str], scope: _Scope) -> None:
    for name in sorted(free):
        raise ModelError(
            f"{scope.readers[name]} needs {name!r}, which is no input, no initializer and computed by no node; "
            "the model was cut in two or is damaged."
        )


def _stored(graph: GraphProto) -> list[str]:
    return [tensor.name for tensor in graph.initializer] + [sparse.values.name for sparse in graph.sparse_initializer]


def _free_names(graph: GraphProto, scope: _Scope, where: str) -> set[str]:
    """Checks a graph; returns the names that it takes from around it."""
    inputs, stored = [info.name for info in graph.input], _stored(graph)
    for what, names in (("inputs", inputs), ("initializers", stored)):
        if twice := _repeated(names):
            raise ModelError(f"{where} has two {what} named {twice!r}; export the model again.")
    if "" in inputs or any(not info.name for info in graph.output):
        raise ModelError(f"{where} has an input or an output without a name; export the model again.")
    free, made = _sound_nodes(graph.node, {*inputs, *stored}, scope, where)
    for info in graph.output:
        if info.name not in made:
            free.add(info.name)
            scope.readers.setdefault(info.name, where)
    return free.difference(inputs, stored)


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen and name:
            return name
        seen.add(name)
    return None


def _sound_nodes(
    nodes: Sequence[NodeProto], given: set[str], scope: _Scope, where: str
) -> tuple[set[str], dict[str, int]]:
    """Checks nodes; returns the names that they take from around them, and where each name is computed."""
    made: dict[str, int] = {}
    reads: list[set[str]] = []
    for index, node in enumerate(nodes):
        check_node(node, scope.opsets, scope.functions, scope.function)
        names = set(node.input)
        names.discard("")
        for inner in subgraphs(node) if node.attribute else ():
            names |= _free_names(inner, scope, f"a graph inside {label(node)}")
        reads.append(names)
        for name in node.output:
            if not name:
                continue
            if name in made or name in given:
                what = "another node computes" if name in made else "is an input or initializer"
                raise ModelError(f"{label(node)} computes {name!r}, which {what} too; each value has one source.")
            made[name] = index
    free: set[str] = set()
    needs: list[list[int]] = []
    for index, names in enumerate(reads):
        befores: list[int] = []
        for name in names:
            if (before := made.get(name)) is not None:
                befores.append(before)
            elif name not in given:
                free.add(name)
                scope.readers.setdefault(name, label(nodes[index]))
        needs.append(befores)
    _check_order(nodes, needs, where)
    return free, made


def _check_order(nodes: Sequence[NodeProto], needs: Sequence[Sequence[int]], where: str) -> None:
    """Raises ModelError if the nodes cannot be put into an order in which each comes after those it needs."""
    if all(before < index for index, befores in enumerate(needs) for before in befores):
        return
    waiting = [len(befores) for befores in needs]
    users: list[list[int]] = [[] for _ in needs]
    for index, befores in enumerate(needs):
        for before in befores:
            users[before].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    while ready:
        for user in users[ready.pop()]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    for index, count in enumerate(waiting):
        if count:
            raise ModelError(f"{where} has a cycle: {label(nodes[index])} reads what is computed from its own output.")
