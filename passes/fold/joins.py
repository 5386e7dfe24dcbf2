"""The ``ai.laurel`` nodes of a trained model with their tensors, as folding reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.editor import GraphEditor
from laurel_graph.opset.schema import DOMAIN, PREFIX, Operator

Array = NDArray[Any]

TENSORS = ("alpha", "beta", "A", "B", "gamma", "previous_A", "previous_B")
"""The learned inputs of an operator."""


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
        for role in ("alpha", "A", "gamma"):
            name = self.names.get(role, "")
            if name.startswith(PREFIX + ".") and "." in name[len(PREFIX) + 1 :]:
                return name[len(PREFIX) + 1 :].rpartition(".")[0]
        return str(self.node.output[0])

    @property
    def width(self) -> int:
        """D, from the low-rank maps of earlier activations."""
        return int(self.tensors["previous_B"].shape[-1])

    @property
    def previous(self) -> list[str]:
        """The earlier activations, nearest first."""
        return [self.names[f"previous_{j + 1}"] for j in range(self.op.previous)]

    @property
    def values(self) -> list[str]:
        """All values that it reads and makes."""
        return [str(self.node.output[0]), self.names["x"], self.names["f"], *self.previous]

    def along(self, factor: Array) -> Array:
        """Returns a factor per channel in a shape that multiplies one of the values."""
        return factor.reshape(-1, *(1,) * int(self.op.layout[:1] or 0)) if factor.ndim else factor


def site_of(node: onnx.NodeProto, op: Operator) -> str:
    """Returns the site that an ``ai.laurel`` node belongs to."""
    return TrainedJoin(node, op, dict(zip(op.inputs, node.input, strict=True)), {}).site


def joins_of(editor: GraphEditor) -> list[TrainedJoin]:
    """Returns the ``ai.laurel`` nodes of the main graph whose tensors are constants, in graph order.

    Raises:
        RewriteError: a node of ``ai.laurel`` is unknown, or the model is deployed already.
    """
    joins = []
    for node in editor:
        if node.domain != DOMAIN:
            continue
        op = Operator.parse(node.op_type)
        if op is None or len(op.inputs) != len(node.input):
            raise RewriteError(
                f"node {node.output[0]!r} is {DOMAIN}.{node.op_type}, which is no operator of this version; "
                "expected a model that `laurel transform` of this version wrote."
            )
        if op.bias or op.epilogue or op.quantized:
            raise RewriteError(f"the model is deployed already (node {node.output[0]!r} is {node.op_type}).")
        names = dict(zip(op.inputs, node.input, strict=True))
        tensors = {r: editor.constant(n) for r, n in names.items() if r in TENSORS}
        if all(value is not None for value in tensors.values()):
            known = {r: np.asarray(value, np.float64) for r, value in tensors.items() if value is not None}
            joins.append(TrainedJoin(node, op, names, known))
    return joins
