"""Puts a new linear classifier on a value of an ONNX graph: what a model needs to be fine-tuned to another task.

Two nodes and two initializers are appended, and one graph output; nothing that was there changes. That is why protos
are edited here: graphsurgeon builds every node and tensor anew when it exports, so that the bytes of the others move.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from laurel_graph.errors import ModelError, near
from laurel_graph.onnx_model.shapes import tensor_types
from laurel_graph.onnx_model.tensors import make_tensor

PREFIX = "head"
WEIGHT, BIAS, LOGITS = f"{PREFIX}.weight", f"{PREFIX}.bias", f"{PREFIX}.logits"
"""Names of the initializers ``(D, classes)`` and ``(classes,)`` and of the new output ``(N, classes)``."""

_TAIL = {"Softmax", "LogSoftmax", "Sigmoid", "Add", "Identity", "Reshape", "Flatten", "Squeeze", "Cast"}
_LINEAR = {"Gemm", "MatMul"}
_ONNX = ("", "ai.onnx")
_ELEMENT_TYPES = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "DOUBLE"}


@dataclass(frozen=True)
class AddHead:
    """Appends ``logits = value @ weight + bias``; both tensors start at zero.

    Attributes:
        classes: number of classes.
        value: name of the value ``(N, D)`` that is classified; ``None`` takes what enters the model's last linear
            layer, whose place the new head then takes beside it.
    """

    classes: int
    value: str | None = None

    def __call__(self, model: ModelProto, width: int) -> str:
        """Changes *model* in place.

        Args:
            model: the model; its weights may be external.
            width: D, the size of the value's last axis.

        Returns:
            The name of the new output, :data:`LOGITS`.

        Raises:
            ModelError: there is no such value, or the model has a head of these names already.
        """
        graph = model.graph
        value = self.value or default_value(model)
        known = set(producers(graph.node))
        if value not in known:
            raise ModelError(f"the model computes no value {value!r} to put a head on.{near(value, known)}")
        names = {tensor.name for tensor in graph.initializer} | known
        if taken := names & {WEIGHT, BIAS, LOGITS}:
            raise ModelError(
                f"the model already has {sorted(taken)[0]!r}: it has a head; train that one with --train '{PREFIX}.*'."
            )
        kind = _element_type(model, value)
        graph.initializer.append(make_tensor(WEIGHT, np.zeros((width, self.classes)), kind))
        graph.initializer.append(make_tensor(BIAS, np.zeros(self.classes), kind))
        product = f"{PREFIX}.product"
        graph.node.append(helper.make_node("MatMul", [value, WEIGHT], [product], name=f"{PREFIX}.MatMul"))
        graph.node.append(helper.make_node("Add", [product, BIAS], [LOGITS], name=f"{PREFIX}.Add"))
        graph.output.append(helper.make_tensor_value_info(LOGITS, kind, ["N", self.classes]))
        return LOGITS


def _element_type(model: ModelProto, value: str) -> int:
    """Returns the ONNX element type of a value; float32 where nothing tells."""
    name = tensor_types(model)[0].get(value, (None, None))[1]
    return int(getattr(TensorProto, _ELEMENT_TYPES.get(name or "float32", "FLOAT")))


def producers(nodes: Iterable[NodeProto]) -> dict[str, NodeProto]:
    """Returns value name to the node that computes it."""
    return {name: node for node in nodes for name in node.output if name}


def default_value(model: ModelProto) -> str:
    """Returns what enters the last linear layer in front of an output.

    Raises:
        ModelError: no output comes from a linear layer.
    """
    made = producers(model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {name for name, node in made.items() if node.op_type == "Constant"}
    for output in model.graph.output:
        node = made.get(output.name)
        while node is not None and node.op_type in _TAIL and node.domain in _ONNX:
            node = next((made[name] for name in node.input if name in made and name not in weights), None)
        if node is not None and node.op_type in _LINEAR and node.domain in _ONNX and node.input[1] in weights:
            return str(node.input[0])
    names = ", ".join(repr(output.name) for output in model.graph.output)
    raise ModelError(
        f"none of the outputs {names} comes from a linear layer; name the value to classify with --output."
    )


def with_output(model: ModelProto, value: str) -> None:
    """Makes *value* a graph output of *model* as well, in place.

    Raises:
        ModelError: the main graph computes no such value.
    """
    if value in {output.name for output in model.graph.output}:
        return
    known = producers(model.graph.node)
    if value not in known:
        outputs = [output.name for output in model.graph.output]
        raise ModelError(
            f"the model computes no value {value!r}; its outputs are {', '.join(map(repr, outputs))}."
            f"{near(value, [*outputs, *known])}"
        )
    info = next((info for info in model.graph.value_info if info.name == value), None)
    if info is None:
        info = onnx.ValueInfoProto(name=value)
        info.type.tensor_type.elem_type = _element_type(model, value)
    model.graph.output.append(info)
