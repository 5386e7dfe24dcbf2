"""What an operator needs: numbers of inputs and outputs, attributes and their kinds, graphs of the right arity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from onnx import AttributeProto, FunctionProto, NodeProto, defs

from ..errors import ModelError
from ..opset.schema import DOMAIN, Operator
from .functions import Functions, plain_domain

_KINDS = dict(AttributeProto.AttributeType.items())
_NAMES = {number: name for name, number in _KINDS.items()}
_FIELDS = {
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}
"""Kinds of attribute whose value is a message: the field that must be there."""

_MICROSOFT = {
    "Attention": 2, "BiasAdd": 3, "BiasGelu": 2, "BiasSoftmax": 2, "BiasSplitGelu": 2, "DequantizeLinear": 2,
    "DynamicQuantizeLSTM": 12, "DynamicQuantizeMatMul": 3, "EmbedLayerNormalization": 7, "FastGelu": 1,
    "FusedConv": 2, "FusedGemm": 2, "FusedMatMul": 2, "GatherND": 2, "Gelu": 1, "GridSample": 2, "GroupNorm": 3,
    "GroupQueryAttention": 7, "MatMulBnb4": 3, "MatMulIntegerToFloat": 4, "MatMulNBits": 3, "MultiHeadAttention": 1,
    "NhwcConv": 2, "NhwcFusedConv": 2, "Pad": 2, "QGemm": 6, "QLinearAdd": 7, "QLinearAveragePool": 4,
    "QLinearConcat": 5, "QLinearConv": 8, "QLinearGlobalAveragePool": 5, "QLinearLeakyRelu": 4, "QLinearMul": 7,
    "QLinearSigmoid": 4, "QLinearSoftmax": 5, "QuantizeLinear": 2, "QuickGelu": 1, "Range": 2, "RotaryEmbedding": 4,
    "SkipGroupNorm": 4, "SkipLayerNormalization": 3, "SkipSimplifiedLayerNormalization": 3, "Trilu": 1, "Unique": 1,
}  # fmt: skip
"""Operators of ONNX Runtime's own domain, which onnx has no schema for: their smallest number of inputs."""
_MICROSOFT_ATTRIBUTES: dict[str, int] = {
    **dict.fromkeys(("epsilon", "alpha", "beta", "scale", "softcap", "mask_filter_value"), AttributeProto.FLOAT),
    **dict.fromkeys(("num_heads", "kv_num_heads", "unidirectional", "is_causal", "do_rotary"), AttributeProto.INT),
    **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB", "axis", "group", "groups"), AttributeProto.INT),
    **dict.fromkeys(("K", "N", "bits", "block_size", "accuracy_level", "local_window_size"), AttributeProto.INT),
    **dict.fromkeys(("pads", "strides", "dilations", "kernel_shape", "qkv_hidden_sizes"), AttributeProto.INTS),
    "activation_params": AttributeProto.FLOATS,
    "auto_pad": AttributeProto.STRING,
}
"""Attributes of those operators to the kind that they have wherever they stand."""
_FURTHER = {
    ("", "SimplifiedLayerNormalization"): 2,
    **{("com.microsoft", name): count for name, count in _MICROSOFT.items()},
    ("com.microsoft.nchwc", "AveragePool"): 1,
    ("com.microsoft.nchwc", "Conv"): 2,
    ("com.microsoft.nchwc", "GlobalAveragePool"): 1,
    ("com.microsoft.nchwc", "GlobalMaxPool"): 1,
    ("com.microsoft.nchwc", "MaxPool"): 1,
    ("com.microsoft.nchwc", "Upsample"): 1,
}


@dataclass(frozen=True)
class Needs:
    """What the nodes of one operator must have.

    Attributes:
        inputs: smallest and largest number of inputs.
        outputs: smallest and largest number of outputs.
        named_inputs: places of the inputs that may not be left out.
        named_outputs: places of the outputs that may not be left out.
        attributes: attribute to the kind it must have; others are not looked at.
        required: the attributes that must be there.
    """

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    named_inputs: tuple[int, ...] = ()
    named_outputs: tuple[int, ...] = ()
    attributes: Mapping[str, int] | None = None
    required: tuple[str, ...] = ()


_ANY = 2**31 - 1


@cache
def needs_of(domain: str, op_type: str, opset: int) -> Needs | None:
    """Returns what an operator needs in a version of its domain, or ``None`` if nothing is known about it."""
    if domain == DOMAIN:
        ours = Operator.parse(op_type)
        if ours is None:
            return None
        count = len(ours.inputs)
        return Needs((count, count), (1, len(ours.outputs)), tuple(range(count)), (0,))
    if (domain, op_type) in _FURTHER:
        least = _FURTHER[domain, op_type]
        kinds = dict(_MICROSOFT_ATTRIBUTES) if domain == "com.microsoft" else {}
        if "Fused" in op_type:  # a number in GroupNorm
            kinds["activation"] = AttributeProto.STRING
        return Needs((least, _ANY), (1, _ANY), (0,), attributes=kinds)
    if domain == "" and opset > defs.onnx_opset_version():
        return None
    try:
        schema = defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return None
    if schema.deprecated:
        return None
    single = defs.OpSchema.FormalParameterOption.Single
    return Needs(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(i for i, parameter in enumerate(schema.inputs) if parameter.option == single),
        tuple(i for i, parameter in enumerate(schema.outputs) if parameter.option == single),
        {name: _KINDS[str(attribute.type).rpartition(".")[2]] for name, attribute in schema.attributes.items()},
        tuple(name for name, attribute in schema.attributes.items() if attribute.required),
    )


def check_node(node: NodeProto, opsets: Mapping[str, int], functions: Functions, body: FunctionProto | None) -> None:
    """Raises ModelError if *node* lacks what its operator needs or has what it cannot have.

    Args:
        node: the node.
        opsets: domain to version.
        functions: the model's own functions.
        body: the function that the node stands in, ``None`` in a graph; only there attributes may refer to others.
    """
    if not node.op_type:
        raise ModelError(f"{label(node)} has no operator type; export the model again.")
    held = _checked_attributes(node, body)
    domain = plain_domain(node.domain)
    function = functions.get((domain, node.op_type, node.overload)) if functions else None
    needs = needs_of(domain, node.op_type, opsets.get(domain, 1))
    if function is not None and domain != DOMAIN:  # the bodies of ours have the inputs of their operators
        needs = Needs((0, len(function.input)), (0, len(function.output)))
    if needs is None:
        return
    _check_places(node, "input", node.input, needs.inputs, needs.named_inputs)
    _check_places(node, "output", node.output, needs.outputs, needs.named_outputs)
    kinds = needs.attributes or {}
    for name, attribute in held.items():
        kind = kinds.get(name, attribute.type)
        if attribute.type != kind:
            raise ModelError(
                f"{label(node)}: its attribute {name!r} must be of kind {_NAMES.get(kind, kind)}, found "
                f"{_NAMES.get(attribute.type, attribute.type)}."
            )
    for name in needs.required:
        if name not in held:
            raise ModelError(f"{label(node)} lacks the attribute {name!r}, which {node.op_type} needs.")
    if domain == "" and function is None and node.op_type in _BODIES:
        _BODIES[node.op_type](node, held, opsets.get("", 1))


def label(node: NodeProto) -> str:
    """Returns how messages name a node."""
    name = node.name or next((output for output in node.output if output), "")
    return f"node {name!r} ({node.op_type})"


def _check_places(
    node: NodeProto, what: str, names: Sequence[str], bounds: tuple[int, int], named: tuple[int, ...]
) -> None:
    low, high = bounds
    names = list(names)  # one step into protobuf instead of many
    if not low <= len(names) <= high:
        expected = str(low) if low == high else f"at least {low}" if high >= _ANY else f"{low} to {high}"
        raise ModelError(f"{label(node)} has {len(names)} {what}s; {node.op_type} takes {expected}.")
    for place in named:
        if place < len(names) and not names[place]:
            raise ModelError(f"{label(node)}: its {what} number {place + 1} has no name, but {node.op_type} needs it.")


def _checked_attributes(node: NodeProto, body: FunctionProto | None) -> dict[str, AttributeProto]:
    """Returns the attributes by name, after making sure that each has one and a value of its kind."""
    held: dict[str, AttributeProto] = {}
    for attribute in node.attribute:
        name, kind = attribute.name, attribute.type
        if not name or name in held:
            raise ModelError(f"{label(node)} has the attribute {name!r} twice, or one without a name.")
        held[name] = attribute
        if attribute.ref_attr_name:
            if body is None:
                raise ModelError(
                    f"{label(node)}: its attribute {name!r} refers to {attribute.ref_attr_name!r}, which "
                    "only nodes of a function may."
                )
            continue
        if not kind or kind not in _NAMES:
            raise ModelError(f"{label(node)}: its attribute {name!r} has no kind; export the model again.")
        field = _FIELDS.get(kind)
        if field is not None and not attribute.HasField(field):
            raise ModelError(f"{label(node)}: its attribute {name!r} holds no {_NAMES[kind]}.")
    return held


def _arity(node: NodeProto, name: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ModelError(f"{label(node)}: its graph {name!r} has {found} {what}s; expected {expected}.")


def _check_if(node: NodeProto, held: Mapping[str, AttributeProto], opset: int) -> None:
    for name in ("then_branch", "else_branch"):
        _arity(node, name, "input", len(held[name].g.input), 0)
        _arity(node, name, "output", len(held[name].g.output), len(node.output))


def _check_loop(node: NodeProto, held: Mapping[str, AttributeProto], opset: int) -> None:
    body = held["body"].g
    _arity(node, "body", "input", len(body.input), max(len(node.input), 2))
    _arity(node, "body", "output", len(body.output), len(node.output) + 1)
    if len(body.output) < len(body.input) - 1:
        raise ModelError(f"{label(node)}: its graph 'body' gives fewer values than it carries.")


def _check_scan(node: NodeProto, held: Mapping[str, AttributeProto], opset: int) -> None:
    body, scanned = held["body"].g, held["num_scan_inputs"].i
    given = len(node.input) - (1 if opset < 9 else 0)
    _arity(node, "body", "input", len(body.input), given)
    _arity(node, "body", "output", len(body.output), len(node.output))
    if not 1 <= scanned <= given or given - scanned > len(node.output):
        raise ModelError(f"{label(node)}: num_scan_inputs = {scanned} does not go with {given} inputs.")


def _check_map(node: NodeProto, held: Mapping[str, AttributeProto], opset: int) -> None:
    body = held["body"].g
    _arity(node, "body", "input", len(body.input), len(node.input))
    _arity(node, "body", "output", len(body.output), len(node.output))


def _check_constant(node: NodeProto, held: Mapping[str, AttributeProto], opset: int) -> None:
    if len(held) != 1:
        raise ModelError(f"{label(node)} has {len(held)} attributes; a Constant has one value.")


_BODIES = {
    "If": _check_if, "Loop": _check_loop, "Scan": _check_scan, "SequenceMap": _check_map, "Constant": _check_constant,
}  # fmt: skip
