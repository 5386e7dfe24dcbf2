"""Linear maps with constant weights: they end the reach of a scale, because their weights take any factor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.onnx_model.hidden_adds import MICROSOFT
from laurel_graph.onnx_model.walk import attribute_of

from .context import RIGID, Context, Rule
from .system import same

Array = NDArray[Any]


class Linear(Rule, ABC):
    """A linear map whose weights are constants (or dequantised constants): no link at all between in and out.

    Subclasses say on which axis they take one scale per channel, and how it enters the weights.
    """

    bias = 2
    weights: int | None = None
    """Which input takes the scale; ``None`` for the one of the first two that is not the value."""
    fixed: tuple[int, ...] = ()
    """Inputs that must be what they are, whoever makes them."""

    @abstractmethod
    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """Returns the channel axis of the input that the weights can scale along."""

    @abstractmethod
    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """Returns the channel axis of the output that the weights can scale along."""

    @abstractmethod
    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """Returns what the weights of *shape* are multiplied by."""

    def value_index(self, node: onnx.NodeProto, context: Context) -> int:
        """Returns the index of the input that is no weight."""
        return 0

    def weight_index(self, node: onnx.NodeProto, context: Context) -> int:
        """Returns the index of the input that takes the scale."""
        return 1 - self.value_index(node, context) if self.weights is None else self.weights

    @staticmethod
    def _has(node: onnx.NodeProto, index: int) -> bool:
        return index < len(node.input) and bool(node.input[index])

    def _dequantised(self, name: str, context: Context) -> bool:
        maker = context.editor.producer.get(name)
        return (
            maker is not None
            and maker.op_type == "DequantizeLinear"
            and maker.domain in ("", MICROSOFT)
            and all(map(context.editor.is_constant, maker.input))
        )

    def takes(self, node: onnx.NodeProto, context: Context) -> bool:
        """Whether the weights and the bias can take a scale."""
        value = self.value_index(node, context)
        names = [node.input[i] for i in (self.weight_index(node, context), self.bias) if self._has(node, i)]
        ready = all(context.editor.is_constant(n) or self._dequantised(n, context) for n in names)
        return ready and not context.editor.is_constant(node.input[value])

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not self.takes(node, context):
            self.link_other_scales(node, context)
            return
        value, out = node.input[self.value_index(node, context)], node.output[0]
        for index in self.fixed:
            if self._has(node, index):
                context.system.fix(node.input[index])
        quantised = any(self._dequantised(name, context) for name in node.input)
        if quantised or context.axes.get(value) is None or context.axes[value] != self.in_axis(node, context):
            context.system.demand_uniform(value)
        if quantised or context.axes.get(out) is None or context.axes[out] != self.out_axis(node, context):
            context.system.demand_uniform(out)

    def link_other_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """What is demanded where the weights are no constants."""
        RIGID.link_scales(node, context)

    def rescale_other(self, node: onnx.NodeProto, context: Context) -> None:
        """What is done where the weights are no constants."""
        RIGID.rescale(node, context)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not self.takes(node, context):
            self.rescale_other(node, context)
            return
        index = self.value_index(node, context)
        s_in, s_out = context.scale(node.input[index]), context.scale(node.output[0])
        if same(s_in, 1.0) and same(s_out, 1.0):
            return
        weights = self.weight_index(node, context)
        self._multiply(node, weights, lambda shape: self.factor(node, context, shape, s_in, s_out), context)
        if self._has(node, self.bias):
            self._multiply(node, self.bias, lambda shape: 1 / s_out, context)

    def _multiply(
        self, node: onnx.NodeProto, index: int, factor: Callable[[tuple[int, ...]], Array], context: Context
    ) -> None:
        editor, name = context.editor, node.input[index]
        value = editor.constant(name)
        if value is not None:
            context.scale_constant(node, index, factor(value.shape))
            return
        maker = editor.producer[name]
        by = factor(())
        if same(by, 1.0):
            return
        scaled = editor.derived(maker.input[1], ("·", by.tobytes()), lambda v: v * by)
        inputs = [maker.input[0], scaled, *maker.input[2:]]
        output = editor.add_node("DequantizeLinear", inputs, like=name, domain=maker.domain)
        editor.producer[output].attribute.extend(maker.attribute)
        editor.take_type(output, name)
        editor.set_input(node, index, output)
        context.changed.append(node.output[0])


class Conv(Linear):
    """Conv: weights (M, C/group, ...)."""

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """Channels."""
        return 1

    out_axis = in_axis

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        if s_in.ndim == 0 and s_out.ndim == 0:
            return np.asarray(s_in / s_out)
        group = attribute_of(node, "group", 1)
        tail = (1,) * (len(shape) - 2)
        rows = np.broadcast_to(1 / s_out, shape[0]).reshape(shape[0], 1, *tail)
        if s_in.ndim == 0:
            return rows * s_in
        per_group = s_in.reshape(group, shape[1])
        return np.asarray(rows * np.repeat(per_group, shape[0] // group, axis=0).reshape(shape[0], shape[1], *tail))


class ConvTranspose(Linear):
    """ConvTranspose: weights (C, M/group, ...)."""

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """Channels."""
        return 1

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """Channels, without groups."""
        return 1 if attribute_of(node, "group", 1) == 1 else None

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        if s_in.ndim == 0 and s_out.ndim == 0:
            return np.asarray(s_in / s_out)
        tail = (1,) * (len(shape) - 2)
        rows = np.broadcast_to(s_in, shape[0]).reshape(shape[0], 1, *tail)
        return np.asarray(rows / np.broadcast_to(s_out, shape[1]).reshape(1, shape[1], *tail))


class MatMul(Linear):
    """MatMul with one constant operand; without one it is a product."""

    def value_index(self, node: onnx.NodeProto, context: Context) -> int:
        """The side that is no constant."""
        first = node.input[0]
        return 1 if context.editor.is_constant(first) or self._dequantised(first, context) else 0

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis, where the weights stand on the right."""
        index = self.value_index(node, context)
        rank = context.editor.rank(node.input[index])
        return rank - 1 if index == 0 and rank is not None else None

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis, where the weights are a matrix on the right."""
        weights = context.editor.constant(node.input[1]) if self.value_index(node, context) == 0 else None
        rank = context.editor.rank(node.output[0])
        return rank - 1 if weights is not None and weights.ndim >= 2 and rank is not None else None

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        if s_in.ndim == 0 and s_out.ndim == 0:
            return np.asarray(s_in / s_out)
        if len(shape) == 1:
            return s_in / s_out
        return np.asarray(np.broadcast_to(s_in, shape[-2])[:, None] / np.broadcast_to(s_out, shape[-1]))

    def link_other_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """Two variable operands: their scales multiply."""
        _link_product(node, context)

    def rescale_other(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        _rescale_product(node, context)


class Gemm(Linear):
    """Gemm with constant weights on the right; C is the bias."""

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis, unless the input is transposed."""
        return None if attribute_of(node, "transA", 0) else 1

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis."""
        bias = context.editor.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return 1 if bias is None or bias.ndim < 2 or bias.shape[1] > 1 else None

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        if s_in.ndim == 0 and s_out.ndim == 0:
            return np.asarray(s_in / s_out)
        transposed = attribute_of(node, "transB", 0)
        rows, columns = shape[::-1] if transposed else shape
        factor = np.broadcast_to(s_in, rows)[:, None] / np.broadcast_to(s_out, columns)
        return np.asarray(factor.T if transposed else factor)


class Einsum(Linear):
    """Einsum of a value and constant weights; of values alone it is a product."""

    bias = 2  # none: it has two operands

    def _terms(self, node: onnx.NodeProto) -> tuple[list[str], str] | None:
        """Returns the letters of the operands and of the output, ``None`` where they are not all spelled out."""
        left, arrow, right = str(attribute_of(node, "equation", "")).replace(" ", "").partition("->")
        terms = left.split(",")
        plain = arrow and "." not in left + right and len(terms) == len(node.input)
        return (terms, right) if plain else None

    def takes(self, node: onnx.NodeProto, context: Context) -> bool:
        """See :meth:`Linear.takes`."""
        return len(node.input) == 2 and super().takes(node, context)

    def value_index(self, node: onnx.NodeProto, context: Context) -> int:
        """The side that is no constant."""
        return 1 if context.editor.is_constant(node.input[0]) else 0

    def _axis(self, node: onnx.NodeProto, context: Context, name: str, term: str) -> int | None:
        """Returns the channel axis of a value where the weights have it, too."""
        terms, axis = self._terms(node), context.axes.get(name)
        if terms is None or axis is None or axis >= len(term):
            return None
        held = terms[0][1 - self.value_index(node, context)]
        letter = term[axis]
        return axis if held.count(letter) == 1 and term.count(letter) == 1 else None

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The channels, where the weights have them, too."""
        terms, index = self._terms(node), self.value_index(node, context)
        return None if terms is None else self._axis(node, context, node.input[index], terms[0][index])

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """Likewise."""
        terms = self._terms(node)
        return None if terms is None else self._axis(node, context, node.output[0], terms[1])

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        terms, index = self._terms(node), self.value_index(node, context)
        if terms is None or (s_in.ndim == 0 and s_out.ndim == 0):
            return np.asarray(s_in / s_out)
        held = terms[0][1 - index]
        value, out = node.input[index], node.output[0]

        def along(scale: Array, name: str, term: str) -> Array:
            if scale.ndim == 0:
                return scale
            place = held.index(term[context.axes[name]])
            return scale.reshape([-1 if i == place else 1 for i in range(len(held))])

        return along(s_in, value, terms[0][index]) / along(s_out, out, terms[1])

    def link_other_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """One value passes one scale; two hand the product of theirs on."""
        if len(node.input) == 1:
            context.link(node.output[0], node.input[0])
        elif len(node.input) == 2:
            _link_product(node, context)
        else:
            RIGID.link_scales(node, context)

    def rescale_other(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if len(node.input) == 1:
            context.multiply_input(node, 0, context.scale(node.input[0]) / context.scale(node.output[0]))
        elif len(node.input) == 2:
            _rescale_product(node, context)
        else:
            RIGID.rescale(node, context)


def _link_product(node: onnx.NodeProto, context: Context) -> None:
    """Two variable operands of a bilinear map: their scales multiply."""
    (a, b), system = node.input[:2], context.system
    if context.editor.is_constant(a) or context.editor.is_constant(b):
        RIGID.link_scales(node, context)
        return
    system.demand_uniform(a)
    system.demand_uniform(b)
    context.part(a, b, node.output[0], 1)
    if system.together(a, b):
        system.demand_positive(a)
        system.demand_positive(b)
    system.define(node.output[0], a, b, 1)


def _rescale_product(node: onnx.NodeProto, context: Context) -> None:
    if any(map(context.editor.is_constant, node.input)):
        RIGID.rescale(node, context)
        return
    factor = context.scale(node.input[0]) * context.scale(node.input[1]) / context.scale(node.output[0])
    context.multiply_input(node, 0, factor)


class BatchNorm(Rule):
    """BatchNormalization at inference: scale·(x - mean)/sqrt(var + eps) + bias, a diagonal linear map."""

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not context.editor.is_inference_norm(node):
            RIGID.link_scales(node, context)
            return
        plain = context.editor.rank(node.input[1]) == 1  # before opset 9 there is one value per activation, too
        for name in (node.input[0], node.output[0]):
            if not plain or context.axes.get(name) != 1:
                context.system.demand_uniform(name)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not context.editor.is_inference_norm(node):
            RIGID.rescale(node, context)
            return
        s_in, s_out = context.scale(node.input[0]), context.scale(node.output[0])
        context.scale_constant(node, 1, s_in / s_out)
        context.scale_constant(node, 2, 1 / s_out)
        context.scale_constant(node, 3, 1 / s_in)
