"""Raises the opset of a graph: ours are written anew, the rest goes through onnx's converter without its losses.

The converter drops functions, metadata and types, and cannot take a model over 2 GB. So functions of ours are taken out
before and written for the new opset behind it, large weights stay outside, and of what it returns only the nodes and
the small constants are taken over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import ModelProto, TensorProto, defs, helper, version_converter

from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.walk import copy_of, default_opset
from laurel_graph.opset import functions

_SMALL = 256
"""Elements of a constant that the converter may need to see, such as axes that become an input or an attribute."""


def raise_opset(model: ModelProto, opset: int) -> bool:
    """Converts *model* to a newer version of the default domain, in place.

    Args:
        model: the model; of no use any more if this raises.
        opset: the version.

    Returns:
        Whether anything changed: not where the model is of that version.

    Raises:
        RewriteError: the version is older than the model's or unknown to the installed onnx, the model has functions of
            its own, or the converter does not know one of the operators.
    """
    now, newest = default_opset(model), defs.onnx_opset_version()
    if opset == now:
        return False
    if not now < opset <= newest:
        raise RewriteError(f"opset {opset} cannot be written: expected {now}, as the model has, to {newest}.")
    functions.detach(model)
    if model.functions:
        names = ", ".join(sorted({body.name for body in model.functions})[:3])
        raise RewriteError(
            f"the opset cannot be raised: the model has functions of its own ({names}), which onnx's converter drops; "
            "inline them first, with onnx.inliner."
        )
    order = [tensor.name for tensor in model.graph.initializer]
    large = {tensor.name: tensor for tensor in _take_large(model)}
    bare = _with_inputs(model, large)
    try:
        made = version_converter.convert_version(bare, opset)
    except (RuntimeError, ValueError) as error:  # of onnx's own, in C++; protobuf's are ValueErrors
        told = " ".join(str(error).split())
        raise RewriteError(f"the opset cannot be raised to {opset}: onnx.version_converter says {told}") from None
    _keep_notes(model, made)
    held = {**large, **{tensor.name: tensor for tensor in made.graph.initializer}}
    tensors = [held.pop(name) for name in order if name in held]
    for field, items in (("node", made.graph.node), ("initializer", [*tensors, *held.values()])):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(items)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    functions.attach(model)
    return True


def _take_large(model: ModelProto) -> list[TensorProto]:
    """Takes the large weights out of *model* and returns them."""
    taken: list[TensorProto] = []
    for index, tensor in reversed(list(enumerate(model.graph.initializer))):
        if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > _SMALL:
            taken.append(TensorProto())
            taken[-1].CopyFrom(tensor)
            del model.graph.initializer[index]
    return taken


def _with_inputs(model: ModelProto, large: Mapping[str, TensorProto]) -> ModelProto:
    """Returns a copy in which weights that were taken out are inputs."""
    copy = copy_of(model)
    given = {value.name for value in copy.graph.input}
    copy.graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        for name, tensor in large.items()
        if name not in given
    )
    return copy


def _keep_notes(model: ModelProto, made: ModelProto) -> None:
    """Gives the nodes of *made* the doc strings and metadata of those of *model* that make the same values."""
    before = {name: node for node in model.graph.node for name in node.output if name}
    for node in made.graph.node:
        old = before.get(next((name for name in node.output if name), ""))
        if old is None or old.op_type != node.op_type:
            continue
        node.doc_string = old.doc_string
        del node.metadata_props[:]
        node.metadata_props.extend(old.metadata_props)
