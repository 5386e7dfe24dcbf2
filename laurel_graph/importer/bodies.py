"""The function bodies that ONNX's schemas define for operators, and attributes that refer to those of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, defs

from .builder import Value


def resolve_attributes(proto: NodeProto, references: Mapping[str, AttributeProto] | None) -> list[AttributeProto]:
    """Returns a node's attributes with references to the attributes of its function's call replaced."""
    resolved = []
    for attribute in proto.attribute:
        if not attribute.ref_attr_name:
            resolved.append(attribute)
        elif references is not None and attribute.ref_attr_name in references:
            copy = AttributeProto()
            copy.CopyFrom(references[attribute.ref_attr_name])
            copy.name = attribute.name
            resolved.append(copy)
    return resolved


def schema_body(proto: NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]) -> FunctionProto | None:
    """Returns the function body that an operator's schema defines for this node, or ``None``."""
    try:
        schema: Any = defs.get_schema(proto.op_type, opset, domain)
    except defs.SchemaError:
        return None
    if schema.has_function:
        body = FunctionProto()
        body.ParseFromString(_function_bytes(schema, opset))
    elif schema.has_context_dependent_function and all(v is None or v.elem_type is not None for v in inputs):
        types = [
            b"" if v is None else onnx.helper.make_tensor_type_proto(v.elem_type or 0, v.shape).SerializeToString()
            for v in inputs
        ]
        version = max((v for v in schema.context_dependent_function_opset_versions if v <= opset), default=opset)
        body = FunctionProto()
        text = schema.get_context_dependent_function_with_opset_version(version, proto.SerializeToString(), types)
        body.ParseFromString(text)
        if not body.node:
            return None
    else:
        return None
    for attribute in schema.attributes.values():
        default = attribute.default_value
        if default.name and default.name not in {a.name for a in body.attribute_proto}:
            body.attribute_proto.append(default)
    return body


def _function_bytes(schema: Any, opset: int) -> bytes:
    versions = [v for v in schema.function_opset_versions if v <= opset]
    body = schema.get_function_with_opset_version(max(versions)) if versions else schema.function_body
    return body if isinstance(body, bytes) else bytes(body.SerializeToString())
