"""Plain ONNX nodes in the making, for function bodies and for operators that come apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

ELEMENT_TYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}
"""ONNX element type of every dtype that the operators take."""


class NodeList:
    """Collects nodes for one opset and dtype; every method returns the name of the value that it adds.

    Attributes:
        nodes: the nodes so far, in order.
        opset: version of the default domain.
        dtype: element type of the values.
        epsilon: of the norms; ``None`` takes the attribute ``epsilon`` of the function that the nodes are the body of.
    """

    def __init__(self, opset: int, dtype: str, name: Callable[[str], str], epsilon: float | None = None) -> None:
        self.opset, self.dtype, self.epsilon = opset, dtype, epsilon
        self.nodes: list[NodeProto] = []
        self._name = name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One node with one output; *output* is its name, by default a new one."""
        output = output or self._name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: object, dtype: type = np.int64) -> str:
        """A constant."""
        return self.add("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def number(self, value: float) -> str:
        """A scalar in the type of norms that are written out."""
        return self.constant(value, np.float64 if self.dtype == "float64" else np.float32)

    def widen(self, value: str) -> str:
        """A value in the type of norms that are written out, where squares of 16-bit types would overflow."""
        return self.add("Cast", value, to=TensorProto.FLOAT) if self.is_narrow else value

    def narrow(self, value: str) -> str:
        """The inverse of :meth:`widen`."""
        return self.add("Cast", value, to=ELEMENT_TYPES[self.dtype]) if self.is_narrow else value

    @property
    def is_narrow(self) -> bool:
        """Whether the values are of a 16-bit type."""
        return self.dtype in ("float16", "bfloat16")

    def layer_norm(self, value: str, scale: str, offset: str = "") -> str:
        """(value - mean) / sqrt(variance + ε) · scale + offset over the last axis, as one operator from opset 17 on."""
        if self.opset >= 17:
            inputs = [value, scale, offset] if offset else [value, scale]
            normed = self.add("LayerNormalization", *inputs, axis=-1)
            self.nodes[-1].attribute.append(self._epsilon_attribute())
            return normed
        value = self.widen(value)
        normed = self._over_deviation(self.add("Sub", value, self._mean(value)))
        normed = self.add("Mul", normed, self.widen(scale))
        return self.narrow(self.add("Add", normed, self.widen(offset)) if offset else normed)

    def rms_norm(self, value: str, scale: str) -> str:
        """value / sqrt(mean(value²) + ε) · scale over the last axis."""
        return self.narrow(self.add("Mul", self._over_deviation(self.widen(value)), self.widen(scale)))

    def _over_deviation(self, value: str) -> str:
        """value / sqrt(mean(value²) + ε), in the form that runtimes know how to fuse."""
        variance = self._mean(self.add("Pow", value, self.number(2)))
        return self.add("Div", value, self.add("Sqrt", self._plus_epsilon(variance)))

    def _plus_epsilon(self, value: str) -> str:
        if self.epsilon is not None:
            return self.add("Add", value, self.number(self.epsilon))
        if self.opset >= 12:
            epsilon = self.add("Constant")
            self.nodes[-1].attribute.append(_reference("value_float", "epsilon"))
            return self.add("Add", value, self._as_double(epsilon))
        # Before opset 12 no constant can hold an attribute of the function; the slope of LeakyRelu can: -1 gives -ε.
        negative = self.add("LeakyRelu", self.constant(-1, np.float32))
        self.nodes[-1].attribute.append(_reference("alpha", "epsilon"))
        return self.add("Add", value, self._as_double(self.add("Neg", negative)))

    def _epsilon_attribute(self) -> AttributeProto:
        if self.epsilon is None:
            return _reference("epsilon", "epsilon")
        return helper.make_attribute("epsilon", self.epsilon)

    def _as_double(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.DOUBLE) if self.dtype == "float64" else value

    def _mean(self, value: str) -> str:
        if self.opset >= 18:
            return self.add("ReduceMean", value, self.constant([-1]), keepdims=1)
        return self.add("ReduceMean", value, axes=[-1], keepdims=1)


def _reference(name: str, attribute: str) -> AttributeProto:
    """A float attribute *name* of a node that takes the function's attribute *attribute*."""
    return AttributeProto(name=name, type=AttributeProto.FLOAT, ref_attr_name=attribute)
