"""How one ONNX node that adds, openly or hidden in a fused operator, comes apart around its add.

``Add`` and ``Sum`` add openly. ONNX Runtime's ``SkipLayerNormalization`` and ``SkipSimplifiedLayerNormalization`` add,
then normalise; ``FusedConv`` with a fourth input and ``Gemm`` with a C of the output's shape multiply, then add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import NodeProto, TensorProto, helper

from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.hidden_adds import HIDDEN_ADDS, at
from laurel_graph.opset.nodes import NodeList

Fresh = Callable[[str], str]
"""Makes a new value name out of a word for what the value is."""


@dataclass
class Join:
    """One add and what stood in the same node around it.

    Attributes:
        operands: the values that are added, left to right.
        total: name of their sum.
        before: nodes that make operands.
        after: nodes that read the sum.
        hidden: an operand that had no name of its own in the fused node, or "".
        bias: a vector that the node adds beside the operands, or ""; it belongs to the branch, see :meth:`biased`.
    """

    operands: tuple[str, ...]
    total: str
    before: list[NodeProto] = field(default_factory=list)
    after: list[NodeProto] = field(default_factory=list)
    hidden: str = ""
    bias: str = ""

    def biased(self, place: int, fresh: Fresh) -> Join:
        """Returns the join with the bias added to the branch, as it was before ONNX Runtime fused it; itself without.

        Args:
            place: of the skip among the two operands.
            fresh: gives the biased branch its name.
        """
        if not self.bias:
            return self
        branch = fresh("biased")
        add = _make("Add", [self.operands[1 - place], self.bias], [branch])
        operands = (self.operands[0], branch) if place == 0 else (branch, self.operands[1])
        return replace(self, operands=operands, before=[*self.before, add], bias="")


def take_apart(node: NodeProto, opset: int, dtype: str, fresh: Fresh) -> Join:
    """Returns the add inside *node*; *node* stays as it is.

    Args:
        node: an operator of the list above.
        opset: the model's version of the default domain.
        dtype: element type of the values that are added.
        fresh: gives names to values that had none.

    Raises:
        RewriteError: the node adds in no way that is known here.
    """
    part = _PARTS.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
    if part is None:
        raise RewriteError(
            f"join {node.name or node.output[0]!r} is a node of type {node.op_type!r}, which is not an add that can be "
            f"rewritten; expected one of {', '.join(sorted({name for _, name in _PARTS}))}."
        )
    return part(node, opset, dtype, fresh)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Returns attribute name to value."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _make(kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> NodeProto:
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    while outputs and not outputs[-1]:
        outputs = outputs[:-1]
    named = next(name for name in outputs if name)
    return helper.make_node(kind, inputs, outputs, name=named, domain=domain, **attributes)


def _open_add(node: NodeProto, opset: int, dtype: str, fresh: Fresh) -> Join:
    return Join(tuple(node.input), node.output[0])


def _skip_norm(node: NodeProto, opset: int, dtype: str, fresh: Fresh) -> Join:
    """(input + skip) + bias, then the norm."""
    form = HIDDEN_ADDS[node.op_type]
    normed, total, bias = node.output[0], at(node.output, form.total), at(node.input, form.bias)
    if any(at(node.output, place) for place in form.statistics):
        raise RewriteError(
            f"{node.op_type} {node.name or normed!r} gives out its mean or deviation, which only training needs; "
            "expected a node without them."
        )
    total = total or fresh("sum")
    first, second = form.addends
    join = Join((node.input[first], node.input[second]), total, bias=bias)
    if normed:
        norm = NodeList(opset, dtype, fresh, float(attributes_of(node).get("epsilon", form.epsilon)))
        if form.norm == "rms":
            norm.rms_norm(total, node.input[form.scale])
        else:
            norm.layer_norm(total, node.input[form.scale], at(node.input, form.offset))
        norm.nodes[-1].output[0] = normed
        for part in norm.nodes:
            part.name = part.output[0]
        join.after += norm.nodes
    return join


_ACTIVATION_PARAMETERS = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
"""Activations of FusedConv and the attributes that its ``activation_params`` stand for."""


def _fused_conv(node: NodeProto, opset: int, dtype: str, fresh: Fresh) -> Join:
    """Conv, then + the fourth input, then the activation."""
    addend = at(node.input, HIDDEN_ADDS[node.op_type].addends[0])
    if not addend:
        raise RewriteError(f"FusedConv {node.name or node.output[0]!r} has no fourth input, so it adds nothing.")
    attributes = attributes_of(node)
    activation = attributes.pop("activation", b"").decode(errors="replace")
    values = list(attributes.pop("activation_params", []))
    branch, output = fresh("branch"), node.output[0]
    total = fresh("sum") if activation else output
    after = []
    names = ("min", "max") if activation == "Clip" else _ACTIVATION_PARAMETERS.get(activation)
    if activation and names is None:
        raise RewriteError(f"FusedConv {node.name or output!r} has the unknown activation {activation!r}.")
    if names and len(values) != len(names):
        raise RewriteError(
            f"FusedConv {node.name or output!r} has {len(values)} activation_params; {activation} takes {len(names)}."
        )
    if activation == "Clip":
        after = _clip(total, output, values, opset, fresh)
    elif names is not None:  # one without parameters does not look at any
        after = [_make(activation, [total], [output], **dict(zip(names, values, strict=False)))]
    conv = _make("Conv", list(node.input[:3]), [branch], **attributes)
    return Join((branch, addend), total, [conv], after, hidden=branch)


def _clip(value: str, output: str, bounds: list[float], opset: int, fresh: Fresh) -> list[NodeProto]:
    if opset < 11:
        return [_make("Clip", [value], [output], min=bounds[0], max=bounds[1])]
    limits = [fresh("min"), fresh("max")]
    nodes = [
        helper.make_node(
            "Constant", [], [name], name=name, value=helper.make_tensor(name, TensorProto.FLOAT, [], [bound])
        )
        for name, bound in zip(limits, bounds, strict=True)
    ]
    return [*nodes, _make("Clip", [value, *limits], [output])]


def _gemm(node: NodeProto, opset: int, dtype: str, fresh: Fresh) -> Join:
    """alpha·A·B + beta·C, with beta = 1 and a C of the output's shape."""
    attributes = attributes_of(node)
    addend = at(node.input, HIDDEN_ADDS[node.op_type].addends[0])
    if not addend or attributes.pop("beta", 1.0) != 1.0:
        raise RewriteError(
            f"Gemm {node.name or node.output[0]!r} scales its third input or has none; expected beta = 1."
        )
    if opset < 11:
        raise RewriteError(
            f"Gemm {node.name or node.output[0]!r} needs its third input before opset 11; expected opset 11."
        )
    branch = fresh("branch")
    product = _make("Gemm", list(node.input[:2]), [branch], **attributes)
    return Join((branch, addend), node.output[0], [product], hidden=branch)


_HIDDEN = {"Gemm": _gemm, "FusedConv": _fused_conv}
_PARTS: dict[tuple[str, str], Callable[[NodeProto, int, str, Fresh], Join]] = {
    ("", "Add"): _open_add,
    ("", "Sum"): _open_add,
    **{(form.domain, op): _HIDDEN.get(op, _skip_norm) for op, form in HIDDEN_ADDS.items() if form.comes_apart},
}
