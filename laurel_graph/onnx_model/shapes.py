"""Shapes and element types of every value of an ONNX model, as far as they can be known; never fails.

ONNX's own inference runs on a light copy without large weights, in which operators of ONNX Runtime that it does not
know are replaced by standard ones of the same output shape; what it leaves open is asked of weights and schemas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import onnx
from onnx import numpy_helper, shape_inference

from ..graph_view import Shape
from .bodies import Body, as_model
from .order import free_names
from .shape_rules import Types as TypeTable
from .shape_rules import complete, merged
from .walk import graphs_of, subgraphs

Types = Mapping[str, tuple[Shape | None, str | None]]
"""Value name to shape and element type."""

PROPAGATED = 1 << 20
"""Values that inference may write out for one node."""
LARGE = 1024
"""Constants with more elements than this enter inference as shapes, not as values."""

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
}

_ELEMENTS = {name: element for element, name in _DTYPES.items()}

_STAND_INS = {
    "GroupNormalization": ("Identity", 1),
    "FusedConv": ("Conv", 3),
    "FusedGemm": ("Gemm", 3),
    "QuickGelu": ("Identity", 1),
    "FastGelu": ("Identity", 1),
    "Gelu": ("Identity", 1),
    "BiasGelu": ("Identity", 1),
    "SkipLayerNormalization": ("Identity", 1),
    "SkipSimplifiedLayerNormalization": ("Identity", 1),
    "SkipGroupNorm": ("Identity", 1),
    "SimplifiedLayerNormalization": ("Identity", 1),
    "RotaryEmbedding": ("Identity", 1),
    "MultiHeadAttention": ("Identity", 1),
    "GroupQueryAttention": ("Identity", 1),
    "QLinearAdd": ("Identity", 1),
}
"""Operator: (standard operator of the same output shape, how many inputs it takes over).

They are ONNX Runtime's own, which may stand in the default domain, too, and one at which ONNX's inference stops.
"""


def dtype_name(element: int) -> str | None:
    """Returns the name of an ONNX element type (``float32`` ...), ``None`` for one that plays no part here."""
    return _DTYPES.get(element)


def shape_of(value: onnx.TypeProto.Tensor) -> Shape | None:
    """Returns the shape a tensor type states: ints, symbol names, ``None``; ``None`` if it states no rank."""
    if not value.HasField("shape"):
        return None
    return tuple(
        dim.dim_value
        if dim.HasField("dim_value")
        else None
        if dim.dim_param.startswith("unk__")
        else dim.dim_param or None
        for dim in value.shape.dim
    )


def tensor_types(model: onnx.ModelProto) -> tuple[dict[str, tuple[Shape | None, str | None]], str]:
    """Returns value name to (shape, dtype), subgraphs included, and a note for the user ("" if all went well)."""
    note = ""
    light = _light(model)
    for data_prop in (False,) if _makes_much(light) else (True, False):
        try:
            inferred = shape_inference.infer_shapes(light, data_prop=data_prop)
            break
        except Exception as error:  # any failure of inference means: go on with what the file states
            note = f"shape inference stopped ({str(error).strip().splitlines()[0][:160]}); unknown sizes fit anything."
    else:
        inferred = light
    types: TypeTable = {}
    _collect(inferred.graph, types, {})
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for _ in range(_ROUNDS):
        unknown = {name for name, (shape, dtype) in types.items() if shape is None or dtype is None}
        learned = complete(model.graph, types, opset)
        news = {name for name in learned if name in unknown or name not in types}
        if not news or note:
            break
        if not _inferred_again(inferred, types, learned):
            break
    return types, note


def body_types(model: onnx.ModelProto, body: Body, around: Types, node: onnx.NodeProto) -> TypeTable:
    """Returns value name to (shape, dtype) of the values of a body; never fails.

    Args:
        model: the model.
        body: one of its bodies.
        around: what is known of the values that it sees.
        node: the node that holds it.
    """
    inputs = {name: value_info(name, *around[name]) for name in free_names(body.graph) if name in around}
    carried = list(node.input)[2:] if node.op_type == "Loop" else []
    formals = list(body.graph.input)
    for formal, name in zip(formals[len(formals) - len(carried) :], carried, strict=True) if carried else ():
        if not formal.type.HasField("tensor_type") and name in around:  # its size may change from step to step
            inputs[formal.name] = value_info(formal.name, None, around[name][1])
    found, _ = tensor_types(as_model(model, body, inputs, with_weights=False))
    return found


def value_info(name: str, shape: Shape | None, dtype: str | None) -> onnx.ValueInfoProto:
    """Returns what is known of a value as a model states it."""
    if dtype is None:
        return onnx.ValueInfoProto(name=name)
    return onnx.helper.make_tensor_value_info(name, _ELEMENTS[dtype], shape)


_ROUNDS = 3
"""How often inference goes on from what was learned beside it."""


def _inferred_again(inferred: onnx.ModelProto, types: TypeTable, learned: set[str]) -> bool:
    """Tells inference what was *learned* and adds to *types* what it makes of that; whether it makes anything new."""
    graph = inferred.graph
    stated = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in learned]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for name in sorted(learned - stated):
        shape, dtype = types[name]
        if dtype is not None:
            graph.value_info.append(onnx.helper.make_tensor_value_info(name, _ELEMENTS[dtype], shape))
    try:
        again = shape_inference.infer_shapes(inferred)
    except Exception:  # as above: go on with what is known
        return False
    fresh: TypeTable = {}
    _collect(again.graph, fresh, {})
    changed = False
    for name, (shape, dtype) in fresh.items():
        old = types.get(name, (None, None))
        new = merged(old[0], shape), old[1] or dtype
        if new != old:
            types[name], changed = new, True
    return changed


def _makes_much(model: onnx.ModelProto) -> bool:
    """Whether the values of a Range or ConstantOfShape, which inference would write out, are far too many."""
    scopes = [(graph.node, graph.initializer) for graph in graphs_of(model.graph)]
    scopes += [(function.node, ()) for function in model.functions]
    for nodes, initializers in scopes:
        makers = [node for node in nodes if node.op_type in ("Range", "ConstantOfShape")]
        if makers:
            constants = {tensor.name: tensor for tensor in initializers}
            found = ((node.output[0], constant_tensor(node)) for node in nodes if node.op_type == "Constant")
            constants.update((name, tensor) for name, tensor in found if tensor is not None)
            if any(_count(node, constants) > PROPAGATED for node in makers):
                return True
    return False


_COUNTS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.INT16, onnx.TensorProto.FLOAT)


def _count(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> float:
    """How many values a Range or ConstantOfShape of known inputs makes; 0 where they are not known."""
    given = [tensor for name in node.input if (tensor := constants.get(name)) is not None]
    known = [t for t in given if t.data_type in _COUNTS and not t.data_location and prod(t.dims) <= LARGE]
    numbers = [numpy_helper.to_array(tensor).reshape(-1).tolist() for tensor in known]
    if len(numbers) != len(node.input):
        return 0
    if node.op_type == "ConstantOfShape":
        return float(prod(numbers[0]))
    if any(len(number) != 1 for number in numbers) or not numbers[2][0]:
        return 0
    (start,), (limit,), (delta,) = numbers
    return float((limit - start) / delta)


def _collect(
    graph: onnx.GraphProto,
    types: dict[str, tuple[Shape | None, str | None]],
    seen: dict[bytes, tuple[Shape | None, str | None]],
) -> None:
    """Fills *types*; *seen* holds what was read of each type already: a large graph has few."""
    for info in (*graph.value_info, *graph.input, *graph.output):
        stated = info.type
        if stated.HasField("tensor_type"):
            key = stated.SerializeToString()
            if (known := seen.get(key)) is None:
                tensor = stated.tensor_type
                known = seen[key] = shape_of(tensor), dtype_name(tensor.elem_type)
            if known[0] is not None or info.name not in types:
                types[info.name] = known
    for tensor in graph.initializer:
        types[tensor.name] = (tuple(tensor.dims), dtype_name(tensor.data_type))
    for node in graph.node:
        for body in subgraphs(node):
            _collect(body, types, seen)


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Returns the tensor of a Constant node (scalars and lists as tensors), ``None`` for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value":
            value: onnx.TensorProto = attribute.t
            return value
        if attribute.name in ("value_int", "value_ints"):
            ints = [attribute.i] if attribute.name == "value_int" else list(attribute.ints)
            dims = [] if attribute.name == "value_int" else [len(ints)]
            return onnx.helper.make_tensor("", onnx.TensorProto.INT64, dims, ints)
        if attribute.name in ("value_float", "value_floats"):
            floats = [attribute.f] if attribute.name == "value_float" else list(attribute.floats)
            dims = [] if attribute.name == "value_float" else [len(floats)]
            return onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, dims, floats)
    return None


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto(ir_version=max(model.ir_version, 8))
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = source.name or "graph"
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    declared = {info.name for info in source.input}
    for tensor in source.initializer:
        _put_constant(graph, tensor, tensor.name, declared)
    for sparse in source.sparse_initializer:
        values = sparse.values
        graph.input.append(onnx.helper.make_tensor_value_info(values.name, values.data_type, list(sparse.dims)))
    for node in source.node:
        tensor = constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is not None and prod(tensor.dims) > LARGE:
            _put_constant(graph, tensor, node.output[0], declared)
        elif _has_stand_in(node):
            op, count = _STAND_INS[node.op_type]
            graph.node.add(
                op_type=op,
                input=node.input[:count],
                output=[name for name in node.output if name][:1],
                attribute=() if op == "Identity" else _without(node.attribute, ("activation", "activation_params")),
            )
            for name in [name for name in node.output if name][1:]:
                if "Skip" in node.op_type:
                    graph.node.add(op_type="Identity", input=node.input[:1], output=[name])
        else:
            graph.node.append(node)
    return light


def _has_stand_in(node: onnx.NodeProto) -> bool:
    if node.op_type not in _STAND_INS or not any(node.output):
        return False
    ours = node.op_type == "GroupNormalization" or not onnx.defs.has(node.op_type)
    return node.domain == "com.microsoft" or (node.domain in ("", "ai.onnx") and ours)


def _without(attributes: Iterable[onnx.AttributeProto], names: tuple[str, ...]) -> list[onnx.AttributeProto]:
    return [attribute for attribute in attributes if attribute.name not in names]


def _put_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str, declared: set[str]) -> None:
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if not external and prod(tensor.dims) <= LARGE:
        graph.initializer.append(tensor)
        graph.initializer[-1].name = name
    elif name not in declared:
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
