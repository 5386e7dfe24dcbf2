"""One node of ``ai.laurel`` as everything reads it: its operator, and its inputs by the names of the operator set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .schema import DOMAIN, PREFIX, Operator

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class LaurelNode:
    """A node and what it is.

    Attributes:
        node: the node, of domain ``ai.laurel``.
        operator: its operator.
        inputs: name of an input in the operator set (``x``, ``f``, ``A`` ...) to the value that the node reads.
    """

    node: NodeProto
    operator: Operator
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, node: NodeProto) -> LaurelNode | None:
        """Returns the node with its operator; ``None`` for other domains and for operators that are unknown here."""
        operator = Operator.parse(node.op_type) if node.domain == DOMAIN else None
        return None if operator is None else cls(node, operator, dict(zip(operator.inputs, node.input, strict=False)))

    @property
    def is_whole(self) -> bool:
        """Whether the node has as many inputs as its operator takes."""
        return len(self.node.input) == len(self.operator.inputs)

    @property
    def output(self) -> str:
        """What it makes: the residual, or what its epilogue makes of that."""
        return str(self.node.output[0])

    @property
    def tensors(self) -> dict[str, str]:
        """The learned inputs: name in the operator set to value."""
        return {name: self.inputs[name] for name in self.operator.tensors if name in self.inputs}

    @property
    def previous(self) -> list[str]:
        """The earlier activations, nearest first."""
        return [self.inputs[f"previous_{j + 1}"] for j in range(self.operator.links)]

    @property
    def site(self) -> str:
        """The site, from the name of the first tensor that carries one; the output's name where none does."""
        for value in self.tensors.values():
            site = value.removeprefix(f"{PREFIX}.").rpartition(".")[0] if value.startswith(f"{PREFIX}.") else ""
            if site:
                return site
        return self.output


def known_nodes(nodes: Iterable[NodeProto]) -> list[LaurelNode]:
    """Returns those of *nodes* that are whole nodes of operators known here, in their order."""
    found = (LaurelNode.of(node) for node in nodes)
    return [ours for ours in found if ours is not None and ours.is_whole]
