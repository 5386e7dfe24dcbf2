"""Takes rounding to integers out of a copy of a model, so that two models can be compared on what they mean.

Where activations are rounded to 8 bits, a last bit decides between two integers, and right models differ by whole
quanta. On the copies that :func:`unrounded` makes, quantised activations stay real numbers in units of their step
(clipped as the integers would be), dynamic quantisers keep their scales, and kernels that would round activations by
themselves (``accuracy_level`` of MatMulNBits) are asked not to. Weights stay as they are stored.
"""

from __future__ import annotations

import math
from collections import defaultdict

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from laurel_graph.onnx_model.walk import copy_of, graphs_of
from laurel_graph.opset.schema import DOMAIN, Operator

_MOVE = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Tile")
_PICK = ("MaxPool", "Slice", "Gather", "Concat", "Split", "DepthToSpace", "SpaceToDepth")
_CARRY = frozenset((*_MOVE, *_PICK))
"""Operators that move quantised values without looking at them."""

_RANGES = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
}
_INTEGER_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def rounds_activations(model: ModelProto) -> bool:
    """Whether some activation of *model* is rounded to an integer on its way."""
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        or node.op_type.endswith("_Quantized")
        or any(item.name == "accuracy_level" and item.i > 1 for item in node.attribute)
        for graph in graphs_of(model.graph)
        for node in graph.node
    )


def rounds_inside_kernels(model: ModelProto) -> bool:
    """Whether products alone round activations, by their ``accuracy_level``, and no quantiser does."""
    if not rounds_activations(model):
        return False
    plain = copy_of(model)
    _raise_accuracy(plain)
    return not rounds_activations(plain)


def unrounded(model: ModelProto) -> ModelProto:
    """Returns a copy of *model* in which activations are not rounded to integers, where that can be written.

    Quantisers whose integers reach anything but dequantisers and integer products stay as they are.
    """
    model = _inlined(model)
    _raise_accuracy(model)
    _Rewriter(model).run()
    return model


def _raise_accuracy(model: ModelProto) -> None:
    for graph in graphs_of(model.graph):
        for node in graph.node:
            for item in node.attribute:
                if item.name == "accuracy_level":
                    item.i = 0


def _inlined(model: ModelProto) -> ModelProto:
    """A copy in which the operators on bytes are written out."""
    ours = [
        (function.domain, function.name)
        for function in model.functions
        if function.domain == DOMAIN and (op := Operator.parse(function.name)) is not None and op.quantized
    ]
    if ours:
        from onnx import inliner

        return inliner.inline_selected_functions(model, ours)
    return copy_of(model)


class _Rewriter:
    """Rewrites the quantisers of the main graph, in place."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        self.visible = {value.name for value in model.graph.output}
        for node in model.graph.node:
            self.maker.update((name, node) for name in node.output if name)
            for name in set(node.input):
                self.readers[name].append(node)
            if node.op_type == "Constant":
                self.constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
        for inner in list(graphs_of(model.graph))[1:]:
            self.visible.update(name for node in inner.node for name in node.input)
        self.real: set[str] = set()
        self.count = 0

    def run(self) -> None:
        for node in self.graph.node:
            if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and not node.domain:
                self._follow(node)
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            nodes += self._rewritten(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        if self.real:
            del self.graph.value_info[:]  # types of values have changed

    def _follow(self, node: NodeProto) -> None:
        """Marks what carries the integers of one quantiser, if all that reads them can take real numbers."""
        if node.op_type == "QuantizeLinear" and not self._can_leave(node):
            return
        carried, wanted = {node.output[0]}, [node.output[0]]
        while wanted:
            name = wanted.pop()
            if name in self.visible:
                return
            for reader in self.readers[name]:
                if reader.domain:
                    return
                if reader.op_type in _CARRY and list(reader.input).index(name) == 0:
                    new = [out for out in reader.output if out and out not in carried]
                    carried.update(new)
                    wanted += new
                elif reader.input[0] != name or not self._takes(reader):
                    return
        self.real |= carried

    def _takes(self, node: NodeProto) -> bool:
        """Whether a reader of quantised values can be written for real numbers."""
        if node.op_type == "DequantizeLinear":
            return self._is_number(node.input[1])
        return node.op_type == "MatMulInteger" or (
            node.op_type == "ConvInteger" and (len(node.input) < 4 or self._is_number(node.input[3], 0))
        )

    def _is_number(self, name: str, kind: int = TensorProto.FLOAT) -> bool:
        """Whether a constant has one element, of type *kind* (0: any)."""
        tensor = self.constants.get(name)
        return tensor is not None and math.prod(tensor.dims) == 1 and kind in (0, tensor.data_type)

    def _can_leave(self, node: NodeProto) -> bool:
        """Whether a QuantizeLinear has one step for the whole array, of a type whose range is known."""
        return node.input[0] not in self.constants and self._is_number(node.input[1]) and self._range(node) is not None

    def _range(self, node: NodeProto) -> tuple[int, int] | None:
        if len(node.input) > 2 and node.input[2]:
            zero = self.constants.get(node.input[2])
            return _RANGES.get(zero.data_type) if zero is not None else None
        wanted = next((item.i for item in node.attribute if item.name == "output_dtype" and item.i), TensorProto.UINT8)
        return _RANGES.get(wanted)

    def _fresh(self, word: str) -> str:
        self.count += 1
        return f"__unrounded_{word}_{self.count}"

    def _rewritten(self, node: NodeProto) -> list[NodeProto]:
        if not node.output or node.domain:
            return [node]
        if node.op_type == "QuantizeLinear" and node.output[0] in self.real:
            bounds = self._range(node)
            return self._quantised(node.input[0], node.input[1], [*node.input, ""][2], node.output[0], bounds or (0, 0))
        if node.op_type == "DynamicQuantizeLinear" and node.output[0] in self.real:
            out, integers = node.output[0], self._fresh("bytes")
            node.output[0] = integers
            return [node, *self._quantised(node.input[0], node.output[1], node.output[2], out, (0, 255))]
        if node.op_type == "DequantizeLinear" and node.input[0] in self.real:
            nodes, value = self._centred(node.input[0], [*node.input, ""][2])
            return [*nodes, helper.make_node("Mul", [value, node.input[1]], [node.output[0]])]
        if node.op_type in _INTEGER_PRODUCTS and node.input[0] in self.real:
            return self._product(node)
        return [node]

    def _quantised(self, x: str, scale: str, zero: str, out: str, bounds: tuple[int, int]) -> list[NodeProto]:
        """clip(x / scale + zero, bounds), not rounded."""
        steps = self._fresh("steps")
        nodes = [helper.make_node("Div", [x, scale], [steps])]
        if zero:
            cast, shift = self._cast(zero)
            moved = self._fresh("moved")
            nodes += [cast, helper.make_node("Add", [steps, shift], [moved])]
            steps = moved
        low, high = (self._number(float(bound)) for bound in bounds)
        capped = self._fresh("capped")
        return [
            *nodes,
            helper.make_node("Max", [steps, low], [capped]),
            helper.make_node("Min", [capped, high], [out]),
        ]

    def _centred(self, value: str, zero: str) -> tuple[list[NodeProto], str]:
        if not zero:
            return [], value
        cast, shift = self._cast(zero)
        out = self._fresh("centred")
        return [cast, helper.make_node("Sub", [value, shift], [out])], out

    def _product(self, node: NodeProto) -> list[NodeProto]:
        """MatMulInteger or ConvInteger on an activation of real numbers, its weights as they are."""
        zeros = [*node.input, "", ""][2:4]
        nodes, left = self._centred(node.input[0], zeros[0])
        cast, right = self._cast(node.input[1])
        nodes.append(cast)
        if zeros[1]:
            cast_zero, shift = self._cast(zeros[1])
            centred = self._fresh("centred")
            nodes += [cast_zero, helper.make_node("Sub", [right, shift], [centred])]
            right = centred
        product = helper.make_node(_INTEGER_PRODUCTS[node.op_type], [left, right], [node.output[0]], name=node.name)
        product.attribute.extend(node.attribute)
        return [*nodes, product]

    def _cast(self, name: str) -> tuple[NodeProto, str]:
        out = self._fresh("as_float")
        return helper.make_node("Cast", [name], [out], to=TensorProto.FLOAT), out

    def _number(self, value: float) -> str:
        name = self._fresh("bound")
        self.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
        return name
