"""Which values of an fx graph may share memory: what an in-place operator touches besides its own operand."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn

from laurel_graph.graph_view import Role
from laurel_graph.passes.read_fx.roles import ROLE_OF, is_in_place, operator_name

_ALIASING_ROLES = (Role.PASS, Role.RESHAPE, Role.SLICE)
_FRESH_LAYERS = (
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.conv._ConvNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)


class Memory:
    """What of a graph may share memory: views, pass-through layers and in-place operators tie values together."""

    def __init__(self, graph: fx.Graph) -> None:
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._base: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            source = node.all_input_nodes[0] if node.all_input_nodes else None
            tied = source is not None and _may_alias(node)
            self._base[node] = self._base[source] if tied and source is not None else node
        self._writers: list[fx.Node] = [node for node in graph.nodes if node.all_input_nodes and is_in_place(node)]

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._place

    def before(self, first: fx.Node, second: fx.Node) -> bool:
        """Tells whether *first* is computed before *second*."""
        return self._place[first] < self._place[second]

    def base(self, node: fx.Node) -> fx.Node:
        """Returns the value whose memory *node* may be."""
        return self._base[node]

    def readers_after(self, node: fx.Node, of: fx.Node) -> Iterable[tuple[fx.Node, fx.Node]]:
        """Yields ``(value, reader)`` for every read after *node* of what may share memory with *of*."""
        for value in self._place:
            if self._base[value] is self._base[of] and value is not node:
                yield from ((value, user) for user in value.users if self.before(node, user))

    def overwriter(self, value: fx.Node, last: fx.Node) -> fx.Node | None:
        """Returns the first in-place operator that may change *value* after it is computed and before *last*."""
        for node in self._writers:
            if self.before(value, node) and self.before(node, last) and self._base[node] is self._base[value]:
                return node
        return None


def _may_alias(node: fx.Node) -> bool:
    """Tells whether the result of *node* may be the memory of its first operand."""
    if is_in_place(node):
        return True
    if node.op == "call_module":
        owner = node.graph.owning_module
        layer = owner.get_submodule(str(node.target)) if owner is not None else None
        return not isinstance(layer, _FRESH_LAYERS) and not type(layer).__module__.startswith("laurel_graph.")
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        written = any(argument.alias_info is not None for argument in node.target._schema.arguments)
        return written or ROLE_OF.get(operator_name(node.target)) in _ALIASING_ROLES
    return ROLE_OF.get(operator_name(node.target), Role.OTHER) in (*_ALIASING_ROLES, Role.OTHER)
