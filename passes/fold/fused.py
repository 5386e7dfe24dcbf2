"""The operators of ONNX Runtime's own domain ``com.microsoft`` that a scale passes: what its optimiser writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.onnx_model.editor import set_attribute
from laurel_graph.onnx_model.hidden_adds import SKIP_NORM_EPSILON
from laurel_graph.onnx_model.walk import attribute_of

from .context import RIGID, Context, Rule
from .linear import Conv, Gemm, Linear, MatMul
from .quantised import Dequantize, Quantize
from .system import same

Array = NDArray[Any]

_PASSING = ("Relu", "LeakyRelu")
"""Activations that hand a positive scale on."""


class FusedMatMul(MatMul):
    """FusedMatMul: MatMul with operands that may be transposed; its factor ``alpha`` stays."""

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis, unless the input is transposed."""
        turned = any(attribute_of(node, name, 0) for name in ("transA", "transBatchA", "transBatchB"))
        return None if turned else super().in_axis(node, context)

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis, unless the batches are transposed."""
        turned = any(attribute_of(node, name, 0) for name in ("transBatchA", "transBatchB"))
        return None if turned else super().out_axis(node, context)

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        if attribute_of(node, "transB", 0) and len(shape) > 1 and self.value_index(node, context) == 0:
            factor = super().factor(node, context, (*shape[:-2], shape[-1], shape[-2]), s_in, s_out)
            return factor.T if factor.ndim else factor
        return super().factor(node, context, shape, s_in, s_out)


class _Activated(Rule):
    """A linear map with an activation at its end: its output keeps its scale, unless the activation hands one on."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear

    def _hands_on(self, node: onnx.NodeProto) -> bool:
        return attribute_of(node, "activation", "") in ("", *_PASSING)

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not self.linear.takes(node, context):
            RIGID.link_scales(node, context)
            return
        out = node.output[0]
        for name in node.output[1:]:
            context.system.fix(name)
        self.linear.link_scales(node, context)
        if not self._hands_on(node):
            context.system.fix(out)
        elif attribute_of(node, "activation", ""):
            context.system.demand_positive(out)
        summand = node.input[3] if len(node.input) > 3 else ""  # FusedConv adds it before the activation
        if summand and not context.editor.is_constant(summand):
            context.link(out, summand, axis=context.axes.get(summand))

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not self.linear.takes(node, context):
            RIGID.rescale(node, context)
            return
        self.linear.rescale(node, context)
        if len(node.input) > 3 and (summand := node.input[3]):
            scale = context.scale(node.output[0])
            if context.editor.is_constant(summand):
                context.scale_constant(node, 3, 1 / context.along(scale, node.output[0]))
            else:
                context.multiply_input(node, 3, context.scale(summand) / scale)


class _LastAxis(Linear):
    """A matrix on the right whose columns have steps of their own, so that those take the scales."""

    step = 1

    def in_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """None: one step serves many rows."""
        return None

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis, where there is a step for each column."""
        steps = context.editor.constant(node.input[self.step])
        rank = context.editor.rank(node.output[0])
        return rank - 1 if steps is not None and steps.size > 1 and rank is not None else None

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        return np.asarray(s_in / s_out)


class MatMulNBits(_LastAxis):
    """MatMulNBits: steps (N, blocks) or in one row; zero points count in steps and stay."""

    bias, weights, step, fixed = 5, 2, 2, (1, 3, 4)

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        super().link_scales(node, context)
        context.quantise_as_it_comes(node.input[0])  # with accuracy_level 4; it takes one scale in any case

    def out_axis(self, node: onnx.NodeProto, context: Context) -> int | None:
        """The last axis."""
        rank = context.editor.rank(node.output[0])
        return rank - 1 if rank is not None else None

    def factor(
        self, node: onnx.NodeProto, context: Context, shape: tuple[int, ...], s_in: Array, s_out: Array
    ) -> Array:
        """See :meth:`Linear.factor`."""
        if s_out.ndim == 0:
            return np.asarray(s_in / s_out)
        columns = int(attribute_of(node, "N"))
        by_block = np.broadcast_to((s_in / s_out)[:, None], (columns, int(np.prod(shape)) // columns))
        return by_block.reshape(shape)


class DynamicQuantizeMatMul(_LastAxis):
    """DynamicQuantizeMatMul: the input is quantised as it comes, which a positive scale does not change."""

    bias, weights, step, fixed = 4, 2, 2, (1, 3)

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        super().link_scales(node, context)
        context.quantise_as_it_comes(node.input[0])


class MatMulIntegerToFloat(_LastAxis):
    """MatMulIntegerToFloat: the step of its input is the value that has a scale."""

    bias, weights, step, fixed = 6, 3, 3, (0, 1, 4, 5)

    def value_index(self, node: onnx.NodeProto, context: Context) -> int:
        """The step of the input."""
        return 2


@dataclass(frozen=True)
class SkipNorm(Rule):
    """A norm of a sum: (x, skip, scale, shift, bias) or without the shift, and its sum as a fourth output."""

    shift: bool = True

    def _constants(self, node: onnx.NodeProto) -> tuple[list[int], list[int]]:
        """Returns the inputs that stand behind the norm and the one that stands before it, as far as there are any."""
        behind, before = ([2, 3], [4]) if self.shift else ([2], [3])
        own = [i for i in range(len(node.input)) if node.input[i]]
        return [i for i in behind if i in own], [i for i in before if i in own]

    def _takes(self, node: onnx.NodeProto, context: Context) -> bool:
        behind, before = self._constants(node)
        data = any(map(context.editor.is_constant, node.input[:2]))
        return not data and all(context.editor.is_constant(node.input[i]) for i in (*behind, *before))

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not self._takes(node, context) or any(node.output[1:3]):
            RIGID.link_scales(node, context)
            return
        x, skip, out, system = node.input[0], node.input[1], node.output[0], context.system
        rank = context.editor.rank(out)
        if rank is None or context.axes.get(out) != rank - 1:
            system.demand_uniform(out)
        system.demand_uniform(x)
        system.demand_positive(x)
        for other in (skip, *node.output[3:4]):
            if other:
                system.demand_uniform(other)
                system.link(other, x)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not self._takes(node, context) or any(node.output[1:3]):
            RIGID.rescale(node, context)
            return
        s_out = context.scale(node.output[0])
        total = node.output[3] if len(node.output) > 3 else ""
        s_sum = context.scale(total or node.input[0])
        for i in (0, 1):
            context.multiply_input(node, i, context.scale(node.input[i]) / s_sum)
        if not same(s_sum, 1.0):
            set_attribute(node, "epsilon", float(attribute_of(node, "epsilon", SKIP_NORM_EPSILON) / float(s_sum) ** 2))
            context.changed.append(node.output[0])
        behind, before = self._constants(node)
        for i in behind:
            context.scale_constant(node, i, 1 / s_out)
        for i in before:
            context.scale_constant(node, i, 1 / s_sum)


class Attention(Rule):
    """Attention: queries, keys and values by one matrix; what comes out is a mean of values, channel by channel."""

    def _takes(self, node: onnx.NodeProto, context: Context) -> bool:
        past = len(node.input) > 4 and node.input[4]
        constants = [name for name in node.input[1:3] if name]
        plain = not past and not any(node.output[1:]) and not context.editor.is_constant(node.input[0])
        return plain and all(map(context.editor.is_constant, constants))

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not self._takes(node, context):
            RIGID.link_scales(node, context)
            return
        for name in node.input[3:]:
            if name:
                context.system.fix(name)
        for name in (node.input[0], node.output[0]):
            if context.axes.get(name) != 2:
                context.system.demand_uniform(name)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not self._takes(node, context):
            RIGID.rescale(node, context)
            return
        for i, name in enumerate(node.input[3:], 3):
            if name and not context.editor.is_constant(name):
                context.multiply_input(node, i, context.scale(name))
        s_in, s_out = context.scale(node.input[0]), context.scale(node.output[0])
        rows, columns = context.editor.shape(node.input[1]) or (0, 0)
        sizes = attribute_of(node, "qkv_hidden_sizes", ()) or (int(columns or 0) // 3,) * 3
        behind = np.ones(sum(sizes))
        behind[sizes[0] + sizes[1] :] = 1 / s_out
        context.scale_constant(node, 1, np.broadcast_to(s_in, int(rows or 0))[:, None] * behind)
        if len(node.input) > 2 and node.input[2]:
            context.scale_constant(node, 2, behind)


@dataclass(frozen=True)
class Attended(Rule):
    """Attention over queries, keys and values of their own: the output has the scale of the values.

    Attributes:
        past: the input and the output that hold the values of earlier steps: while they are in use nothing passes.
        bias: the input with the biases of queries, keys and values in a row, or ``None``.
        channelwise: channel i of the output is a mean of channel i of the values.
    """

    past: tuple[int, int]
    bias: int | None = None
    channelwise: bool = False

    def _takes(self, node: onnx.NodeProto, context: Context) -> bool:
        editor, (given, made) = context.editor, self.past
        if len(node.input) < 3 or not all(node.input[:3]) or editor.is_constant(node.input[2]):
            return False  # packed together
        if editor.rank(node.input[1]) == 5 or (len(node.input) > given and node.input[given]):
            return False
        cache = node.output[made] if len(node.output) > made else ""
        if cache and (editor.is_visible(cache) or editor.consumers(cache)):
            return False
        bias = node.input[self.bias] if self.bias is not None and len(node.input) > self.bias else ""
        return not bias or (editor.is_constant(bias) and self._width(node, context) > 0)

    def _width(self, node: onnx.NodeProto, context: Context) -> int:
        """Returns how many channels the values (N, S, D) have, 0 where that is unknown."""
        shape = context.editor.shape(node.input[2])
        return shape[2] if shape is not None and len(shape) == 3 and isinstance(shape[2], int) else 0

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not self._takes(node, context):
            RIGID.link_scales(node, context)
            return
        value, out = node.input[2], node.output[0]
        for name in (*node.input[:2], *node.input[3:], *node.output[1:]):
            if name:
                context.system.fix(name)
        last = context.editor.rank(value) == 3 and context.axes.get(value) == 2
        context.link(out, value, axis=2 if self.channelwise and last else None)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not self._takes(node, context):
            RIGID.rescale(node, context)
            return
        for i, name in enumerate(node.input):
            if name and i != 2 and not context.editor.is_constant(name):
                context.multiply_input(node, i, context.scale(name))
        s_out = context.scale(node.output[0])
        context.multiply_input(node, 2, context.scale(node.input[2]) / s_out)
        if self.bias is not None and len(node.input) > self.bias and node.input[self.bias]:
            width = self._width(node, context)
            factor = np.ones(int((context.editor.shape(node.input[self.bias]) or (0,))[0] or 0))
            factor[len(factor) - width :] = 1 / s_out
            context.scale_constant(node, self.bias, factor)


_FUSED: dict[str, Rule] = {
    "FusedMatMul": FusedMatMul(),
    "FusedConv": _Activated(Conv()),
    "FusedGemm": _Activated(Gemm()),
    "MatMulNBits": MatMulNBits(),
    "DynamicQuantizeMatMul": DynamicQuantizeMatMul(),
    "MatMulIntegerToFloat": MatMulIntegerToFloat(),
    "SkipLayerNormalization": SkipNorm(),
    "SkipSimplifiedLayerNormalization": SkipNorm(shift=False),
    "Attention": Attention(),
    "MultiHeadAttention": Attended(past=(7, 2), bias=3, channelwise=True),
    "GroupQueryAttention": Attended(past=(4, 2)),
    "QuantizeLinear": Quantize(),
    "DequantizeLinear": Dequantize(),
}


def fused_rule(operator: str) -> Rule | None:
    """Returns the rule of an operator of ``com.microsoft``, ``None`` where it has none."""
    return _FUSED.get(operator)
