"""The model's own functions: none calls itself, and expanding them all stays within bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto

from ..errors import ModelError
from ..onnx_model.walk import subgraphs

Key: TypeAlias = tuple[str, str, str]
Functions: TypeAlias = Mapping[Key, FunctionProto]
"""Domain, name and overload to function."""

MAX_OPSET = 1000
"""Far above what is there today; versions beyond are damage."""
MAX_DEPTH = 64
"""How deep calls of functions may lie in each other."""
MAX_NODES = 200_000
"""How many nodes a small model may have once its functions are expanded; a large one ten times what it holds."""


def plain_domain(domain: str) -> str:
    """Returns the one spelling of a domain: ``ai.onnx`` is the default domain ``""``."""
    return "" if domain == "ai.onnx" else domain


def opsets_of(entries: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    """Returns domain to version of what a model or a function imports.

    Raises:
        ModelError: a version that does not exist, or two versions of one domain.
    """
    opsets: dict[str, int] = {}
    for entry in entries:
        domain = plain_domain(entry.domain)
        low, high = (1, MAX_OPSET) if domain == "" else (0, 2**31 - 1)
        if not low <= entry.version <= high:
            raise ModelError(f"its operator set {entry.version} of domain {domain!r} does not exist; it is damaged.")
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"it imports two versions of the domain {domain!r}; expected one.")
    return opsets


def function_table(model: ModelProto) -> Functions:
    """Returns the functions by what calls them.

    Raises:
        ModelError: two have one name, or one has none.
    """
    table: dict[Key, FunctionProto] = {}
    for function in model.functions:
        key = (plain_domain(function.domain), function.name, function.overload)
        if not function.name or key in table:
            raise ModelError(f"its function {function.name!r} of domain {function.domain!r} is there twice or unnamed.")
        table[key] = function
    return table


def check_calls(model: ModelProto, functions: Functions) -> None:
    """Raises ModelError if functions call each other in a ring, too deep, or expand to too many nodes."""
    if not functions:
        return
    sizes: dict[Key, int] = {}
    calls = {key: _nodes(function.node) for key, function in functions.items()}
    for key in functions:
        _size(key, functions, calls, sizes, [])
    main, own = _nodes(model.graph.node), sum(count for count, _ in calls.values())
    total = main[0] + sum(sizes[key] for key in main[1] if key in sizes)
    if total > max(MAX_NODES, 10 * (main[0] + own)):
        raise ModelError(f"its functions expand to {total:.3g} nodes; inline or simplify the model first.")


def _nodes(nodes: Iterable[NodeProto]) -> tuple[int, list[Key]]:
    """How many nodes there are, subgraphs included, and what they call."""
    count, called = 0, []
    for node in nodes:
        count += 1
        called.append((plain_domain(node.domain), node.op_type, node.overload))
        for graph in subgraphs(node):
            inner = _nodes(graph.node)
            count += inner[0]
            called += inner[1]
    return count, called


def _size(
    key: Key,
    functions: Functions,
    calls: Mapping[Key, tuple[int, list[Key]]],
    sizes: dict[Key, int],
    path: list[Key],
) -> int:
    """How many nodes a call expands to."""
    if key in sizes:
        return sizes[key]
    if key in path:
        raise ModelError(f"its function {key[1]!r} of domain {key[0]!r} calls itself; a function cannot.")
    if len(path) >= MAX_DEPTH:
        raise ModelError(f"its functions call each other more than {MAX_DEPTH} deep; inline some of them first.")
    path.append(key)
    count, called = calls[key]
    sizes[key] = count + sum(_size(name, functions, calls, sizes, path) for name in called if name in functions)
    path.pop()
    return sizes[key]
