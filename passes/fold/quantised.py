"""Quantisers: their steps take the scale, the integers stay what they are."""

from __future__ import annotations

import onnx

from laurel_graph.onnx_model.editor import GraphEditor

from .context import RIGID, Context, Rule


class Quantize(Rule):
    """QuantizeLinear: the step takes the scale; the integers stay what they are."""

    def _takes(self, node: onnx.NodeProto, context: Context) -> bool:
        return context.editor.is_constant(node.input[1]) and not context.editor.is_constant(node.input[0])

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        if not self._takes(node, context):
            RIGID.link_scales(node, context)
            return
        context.system.fix(node.output[0])
        context.system.demand_uniform(node.input[0])
        context.system.demand_positive(node.input[0])

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        if not self._takes(node, context):
            RIGID.rescale(node, context)
            return
        context.scale_constant(node, 1, 1 / context.scale(node.input[0]))


class Dequantize(Rule):
    """DequantizeLinear: the step takes the scale."""

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        context.system.fix(node.input[0])
        if all(map(context.editor.is_constant, node.input)) or not context.editor.is_constant(node.input[1]):
            context.system.fix(node.output[0])
        context.system.demand_uniform(node.output[0])
        context.system.demand_positive(node.output[0])

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        context.scale_constant(node, 1, 1 / context.scale(node.output[0]))


class DynamicQuantize(Rule):
    """DynamicQuantizeLinear: the step that it makes has the scale of its input."""

    def link_scales(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.link_scales`."""
        value, step = node.input[0], node.output[1]
        for name in (node.output[0], *node.output[2:]):
            context.system.fix(name)
        context.quantise_as_it_comes(value)
        context.link(step, value)

    def rescale(self, node: onnx.NodeProto, context: Context) -> None:
        """See :meth:`Rule.rescale`."""
        context.multiply_input(node, 0, context.scale(node.input[0]) / context.scale(node.output[1]))


def is_dynamic_step(name: str, editor: GraphEditor) -> bool:
    """Whether a value is the step of a value that is quantised as it comes."""
    maker = editor.producer.get(name)
    if maker is None or maker.domain:
        return False
    return maker.op_type == "DynamicQuantizeLinear" and name == maker.output[1]
