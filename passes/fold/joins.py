"""The ``ai.laurel`` nodes of a trained model with their tensors, as folding reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.schema import DOMAIN, Operator, unknown_operator

Array = NDArray[Any]


@dataclass
class TrainedJoin:
    """One ``ai.laurel`` node: its operator, its inputs by name, its tensors in float64."""

    node: onnx.NodeProto
    op: Operator
    names: dict[str, str]
    tensors: dict[str, Array]
    reasons: list[str] = field(default_factory=list)

    @property
    def site(self) -> str:
        """The site, from the name of one of its tensors."""
        return LaurelNode(self.node, self.op, self.names).site

    @property
    def width(self) -> int:
        """D, from the low-rank maps of earlier activations."""
        return int(self.tensors["previous_B"].shape[-1])

    @property
    def previous(self) -> list[str]:
        """The earlier activations, nearest first."""
        return LaurelNode(self.node, self.op, self.names).previous

    @property
    def values(self) -> list[str]:
        """All values that it reads and makes."""
        return [str(self.node.output[0]), self.names["x"], self.names["f"], *self.previous]

    def along(self, factor: Array) -> Array:
        """Returns a factor per channel in a shape that multiplies one of the values."""
        return factor.reshape(-1, *(1,) * int(self.op.layout[:1] or 0)) if factor.ndim else factor


def joins_of(editor: GraphEditor) -> list[TrainedJoin]:
    """Returns the ``ai.laurel`` nodes of the main graph whose tensors are constants, in graph order.

    Those with terms beside RW, LR and PA are not among them: what folding knows of those is a rule, if anything.

    Raises:
        RewriteError: a node of ``ai.laurel`` is unknown, or the model is deployed already.
    """
    joins = []
    for node in editor:
        if node.domain != DOMAIN:
            continue
        ours = LaurelNode.of(node)
        if ours is None or not ours.is_whole:
            raise RewriteError(f"node {node.output[0]!r} ({node.op_type}): {unknown_operator(node.op_type)}")
        op = ours.operator
        if op.bias or op.epilogue or op.quantized:
            raise RewriteError(f"the model is deployed already (node {node.output[0]!r} is {node.op_type}).")
        if op.further:
            continue
        tensors = {role: editor.constant(name) for role, name in ours.tensors.items()}
        if all(value is not None for value in tensors.values()):
            known = {r: np.asarray(value, np.float64) for r, value in tensors.items() if value is not None}
            joins.append(TrainedJoin(node, op, dict(ours.inputs), known))
    return joins
