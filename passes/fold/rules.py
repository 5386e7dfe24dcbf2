"""How each ONNX operator passes a scale on, and how its constants take one in.

A :class:`Rule` has two halves. :meth:`Rule.link_scales` tells the :class:`~.system.ScaleSystem` what the
operator demands of the scales around it. Once the scales are known, :meth:`Rule.rescale` changes the operator's
constants so that it reads values stored as v / s(v) and writes its own as v / s(v); where the demands could not all be
met a ``Mul`` on an input makes up for the difference, so the result is right whatever was decided.

Operators without a rule take and give true values. All new constants are computed in float64.

One file, because it is one table: the rules are read and checked beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from laurel_graph.onnx_model.editor import FLOAT_TYPES, GraphEditor, set_attribute
from laurel_graph.onnx_model.hidden_adds import MICROSOFT
from laurel_graph.onnx_model.walk import attribute_of, captured_names

from .channels import carried_axis
from .context import RIGID, Context, Rule, added_rule
from .fused import Attended, fused_rule
from .linear import BatchNorm, Conv, ConvTranspose, Einsum, Gemm, MatMul
from .quantised import Dequantize, DynamicQuantize, Quantize, is_dynamic_step
from .system import same


@dataclass(frozen=True)
class Homogeneous(Rule):
    """f(s·v) = s·f(v): the inputs *data* and all outputs have one scale; constants among them are divided by it.

    Attributes:
        data: the inputs that are scaled; ``None`` means all.
        positive: holds for positive s alone (ReLU, max).
        outputs: how many outputs are scaled; ``None`` means all.
    """

    data: tuple[int, ...] | None = (0,)
    positive: bool = False
    outputs: int | None = 1

    def _data(self, node: onnx.NodeProto) -> list[int]:
        indices = range(len(node.input)) if self.data is None else self.data
        return [i for i in indices if i < len(node.input) and node.input[i]]

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        editor, data = context.editor, self._data(node)
        out = node.output[0]
        for name in node.output[self.outputs :] if self.outputs is not None else ():
            context.system.fix(name)
        for name in node.output[1 : self.outputs]:
            context.link(name, out, axis=context.axes.get(out))
        for i in data:
            name = node.input[i]
            if editor.is_constant(name):
                continue
            axis = context.axes.get(name)
            context.link(out, name, axis=None if axis is None else carried_axis(node, name, axis, editor))
        if self.positive:
            context.system.demand_positive(out)
        for i, name in enumerate(node.input):
            if name and i not in data:
                context.system.fix(name)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        out = node.output[0]
        scale = context.scale(out)
        for i in self._data(node):
            name = node.input[i]
            if not context.editor.is_constant(name):
                context.multiply_input(node, i, context.scale(name) / scale)
            elif not same(scale, 1.0):
                context.scale_constant(node, i, 1 / context.along(scale, out))


class ClipAttributes(Homogeneous):
    """Clip before opset 11, whose bounds are attributes."""

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        super().rescale(node, context)
        scale = context.scale(node.output[0])
        for bound in ("min", "max"):
            value = attribute_of(node, bound)
            if value is not None and not same(scale, 1.0):
                limit = float(np.finfo(np.float32).max)
                set_attribute(node, bound, float(np.clip(value / float(scale), -limit, limit)))


@dataclass(frozen=True)
class Power(Rule):
    """f(s·v) = s**power · f(v) for positive s; ``None`` reads the exponent from the second input."""

    power: float | None = None

    def _power(self, node: onnx.NodeProto, context: Context) -> float | None:
        if self.power is not None:
            return self.power
        value = context.editor.constant(node.input[1])
        return float(value.flat[0]) if value is not None and value.size == 1 else None

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        power = self._power(node, context)
        if not power or context.editor.is_constant(node.input[0]):
            RIGID.link_scales(node, context)
            return
        context.link(node.output[0], node.input[0], power=power)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        power, out = self._power(node, context), context.scale(node.output[0])
        if not power or context.editor.is_constant(node.input[0]):
            RIGID.rescale(node, context)
            return
        context.multiply_input(node, 0, context.scale(node.input[0]) / out ** (1 / power))


@dataclass(frozen=True)
class Product(Rule):
    """a·b or a/b, elementwise.

    A number keeps its value (the constants of a GELU must stay what they are); a constant with one value per channel
    takes any scale, and so does one that multiplies the step of a value quantised as it comes.
    """

    sign: int = 1

    def _constant(self, node: onnx.NodeProto, context: Context) -> int | None:
        return next((i for i in (0, 1) if context.editor.is_constant(node.input[i])), None)

    def _absorbs(self, node: onnx.NodeProto, context: Context, index: int) -> bool:
        value = context.editor.constant(node.input[index])
        other = context.editor.rank(node.input[1 - index])
        dividend = self.sign == -1 and index == 0
        if value is not None and self.sign == 1 and is_dynamic_step(node.input[1 - index], context.editor):
            return True
        return value is not None and value.size > 1 and not dividend and other is not None and value.ndim <= other

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        system, (a, b), out = context.system, node.input[:2], node.output[0]
        index = self._constant(node, context)
        if index is not None:
            value = node.input[1 - index]
            if context.editor.is_constant(value):
                RIGID.link_scales(node, context)
            elif not self._absorbs(node, context, index):
                power = -1.0 if self.sign == -1 and index == 0 else 1.0
                axis = context.axes.get(value)
                carried = None if axis is None else carried_axis(node, value, axis, context.editor)
                context.link(out, value, power=power, axis=carried)
            elif context.axes.get(value) is None or context.axes.get(value) != context.axes.get(out):
                system.demand_uniform(value)
                system.demand_uniform(out)
            return
        context.part(a, b, out, self.sign)
        for name in (a, b):
            if system.together(a, b) or context.axes.get(name) is None or context.axes.get(out) != context.axes[name]:
                system.demand_uniform(name)
        if self.sign == -1 or system.together(a, b):
            system.demand_positive(a)
            system.demand_positive(b)
        system.define(out, a, b, self.sign)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        (a, b), out = node.input[:2], node.output[0]
        index = self._constant(node, context)
        if index is None:
            context.multiply_input(node, 0, context.scale(a) * context.scale(b) ** self.sign / context.scale(out))
            return
        value = node.input[1 - index]
        if context.editor.is_constant(value):
            return
        if not self._absorbs(node, context, index):
            power = -1.0 if self.sign == -1 and index == 0 else 1.0
            context.multiply_input(node, 1 - index, context.scale(value) / context.scale(out) ** power)
            return
        factor = context.along(context.scale(value) / context.scale(out), out)
        context.scale_constant(node, index, factor if self.sign == 1 or index == 0 else 1 / factor)


@dataclass(frozen=True)
class Norm(Rule):
    """A norm over several channels with scale and bias of its own: indifferent to the input's scale but for ε → ε/s².

    Attributes:
        epsilon: the default of the attribute ``epsilon``; ``None`` where there is none.
        channel_axis: the axis of scale and bias, -1 or 1; ``None`` where they are not one per channel, so that they
            take one scale for all.
    """

    epsilon: float | None = 1e-5
    channel_axis: int | None = -1

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        editor, system = context.editor, context.system
        x, out, constants = node.input[0], node.output[0], [n for n in node.input[1:] if n]
        if editor.is_constant(x) or any(node.output[1:]) or not all(map(editor.is_constant, constants)):
            for name in node.input[1:]:
                system.fix(name)
            for name in node.output:
                system.fix(name)
            if editor.is_constant(x) or any(node.output[1:]):
                system.fix(x)
        elif not constants:
            system.fix(out)
        else:
            rank = editor.rank(out)
            if rank is None or self.channel_axis is None or context.axes.get(out) != self.channel_axis % rank:
                system.demand_uniform(out)
        system.demand_uniform(x)
        system.demand_positive(x)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        s_in, s_out = context.scale(node.input[0]), context.scale(node.output[0])
        if self.epsilon is not None and not same(s_in, 1.0):
            set_attribute(node, "epsilon", float(attribute_of(node, "epsilon", self.epsilon) / float(s_in) ** 2))
            context.changed.append(node.output[0])
        for i in range(1, len(node.input)):
            if node.input[i] and not same(s_out, 1.0):
                context.scale_constant(node, i, 1 / s_out)


@dataclass(frozen=True)
class Blind(Rule):
    """What an operator makes does not depend on the scale of its input: shapes, signs, places.

    Attributes:
        positive: holds for positive scales alone.
        uniform: holds for one scale in all channels alone.
    """

    positive: bool = False
    uniform: bool = False

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        for name in (*node.input[1:], *node.output):
            if name:
                context.system.fix(name)
        if self.positive:
            context.system.demand_positive(node.input[0])
        if self.uniform:
            context.system.demand_uniform(node.input[0])

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        for i, name in enumerate(node.input[1:], 1):
            if name:
                context.multiply_input(node, i, context.scale(name))


_ANY_SCALE = (
    "Identity Neg Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather GatherElements GatherND Expand Tile "
    "DepthToSpace SpaceToDepth AveragePool GlobalAveragePool ReduceMean ReduceSum CumSum Trilu"
)
_POSITIVE_SCALE = "PRelu LeakyRelu Relu Abs MaxPool GlobalMaxPool LpPool ReduceMax ReduceMin ReduceL1 ReduceL2"


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = dict.fromkeys(_ANY_SCALE.split(), Homogeneous())
    table |= dict.fromkeys(_POSITIVE_SCALE.split(), Homogeneous(positive=True))
    table |= dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Concat"), Homogeneous(data=None))
    table |= dict.fromkeys(["Max", "Min"], Homogeneous(data=None, positive=True))
    table |= dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), Norm())
    table |= {
        "Split": Homogeneous(outputs=None),
        "Where": Homogeneous(data=(1, 2)),
        "Pad": Homogeneous(data=(0, 2)),
        "Pow": Power(),
        "Sqrt": Power(0.5),
        "Reciprocal": Power(-1.0),
        "ReduceSumSquare": Power(2.0),
        "Mul": Product(),
        "Div": Product(-1),
        "MatMul": MatMul(),
        "Gemm": Gemm(),
        "Conv": Conv(),
        "ConvTranspose": ConvTranspose(),
        "BatchNormalization": BatchNorm(),
        "InstanceNormalization": Norm(channel_axis=1),
        "GroupNormalization": Norm(channel_axis=1),
        "LpNormalization": Norm(epsilon=None, channel_axis=None),
        "QuantizeLinear": Quantize(),
        "DequantizeLinear": Dequantize(),
        "DynamicQuantizeLinear": DynamicQuantize(),
        "Einsum": Einsum(),
        "Attention": Attended(past=(5, 2)),
        "Shape": Blind(),
        "Size": Blind(),
        "ArgMax": Blind(positive=True, uniform=True),
        "ArgMin": Blind(positive=True, uniform=True),
    }
    return table


_RULES = _table()


def rule_for(node: onnx.NodeProto, editor: GraphEditor) -> Rule:
    """Returns the rule of an operator; the ones that depend on an attribute or the opset are decided here."""
    op, opset = node.op_type, editor.opset
    if (added := added_rule(node.domain, op)) is not None:
        return added
    if node.domain == MICROSOFT:
        return fused_rule(op) or RIGID
    if node.domain not in ("", "ai.onnx") or captured_names(node):
        return RIGID
    if op.startswith("Gather") and editor.is_constant(node.input[0]):
        return RIGID  # a lookup table is too large to copy
    if op == "Dropout":
        training = editor.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.asarray(opset < 7)
        return Homogeneous() if training is not None and not training.any() else RIGID
    if op == "Cast":
        floats = attribute_of(node, "to") in FLOAT_TYPES and editor.elem_type(node.input[0]) in FLOAT_TYPES
        return Homogeneous() if floats else RIGID
    if op == "Clip":
        return ClipAttributes(positive=True) if opset < 11 else Homogeneous(data=(0, 1, 2), positive=True)
    if op == "Pad" and opset < 11 and attribute_of(node, "value", 0.0):
        return RIGID
    if op in ("Resize", "Upsample"):
        return Homogeneous() if not attribute_of(node, "extrapolation_value", 0.0) else RIGID
    if op == "GroupNormalization" and opset < 21:
        return Norm(channel_axis=None)
    return _RULES.get(op, RIGID)
