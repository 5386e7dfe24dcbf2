"""Function bodies of ``ai.laurel`` in plain ONNX, so that a rewritten file runs on any runtime without our library.

A body uses the model's own opset, from 7 on, and no operator that is younger. Weights are brought into shape by
``Transpose``, ``Reshape`` and ``Gather`` of initializers, which a runtime folds away at load. Channel layouts multiply
by 1x1 convolutions, so that everything stays in the runtime's own convolution layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from ..errors import ModelError
from ..onnx_model.walk import default_opset, graphs_of, value_names
from ..variants.registry import applied
from ..variants.term import Operands
from .calls import callers, cannot_be_seen
from .nodes import ELEMENT_TYPES, NodeList
from .schema import DOMAIN, VERSION, Operator, laurel_nodes, unknown_operator

IR_VERSION = 8
"""The first ONNX IR version with functions in a model."""

MIN_OPSET = 7
"""The first opset whose ``Add`` and ``Mul`` broadcast as the bodies need it."""

_DTYPES = {number: name for name, number in ELEMENT_TYPES.items()}


class _Body(NodeList):
    """The nodes of one function body."""

    def __init__(self, op: Operator, opset: int, dtype: str) -> None:
        super().__init__(opset, dtype, lambda _: f"v{len(self.nodes)}")
        self.op = op

    def input(self, name: str) -> str:
        """An input in the type of the arithmetic: float32 for bfloat16, which few runtimes add, else the model's own.

        float16 stays: runtimes multiply it with float32 accumulators, and ONNX Runtime's CPU provider computes whole
        chains of float16 operators in float32 as long as no cast of ours interrupts them.
        """
        return self.add("Cast", name, to=TensorProto.FLOAT) if self.dtype == "bfloat16" else name

    @property
    def is_narrow(self) -> bool:
        """Whether the arithmetic is in a 16-bit type."""
        return self.dtype == "float16"

    def narrow(self, value: str) -> str:
        """The inverse of :meth:`widen`; fits float32 too where the opset allows."""
        return self.like_x(value) if self.is_narrow else value

    def like_x(self, value: str) -> str:
        """A value in the type of the operator's inputs."""
        if self.opset >= 15:
            return self.add("CastLike", value, "x")
        return self.add("Cast", value, to=ELEMENT_TYPES[self.dtype])

    def write(self, value: str, output: str) -> str:
        """Hands the value of the last node out as *output*, in the type of the inputs; returns its name from now on."""
        if self.dtype == "bfloat16":
            self.like_x(value)
            self.nodes[-1].output[0] = output
            return value
        self.nodes[-1].output[0] = output
        return output

    @property
    def spatial(self) -> int:
        return int(self.op.layout[:1] or 0)

    def along_features(self, vector: str) -> str:
        """A scalar or a (D,) vector in a shape that broadcasts along the feature axis."""
        return self.add("Reshape", vector, self.constant([-1] + [1] * self.spatial)) if self.spatial else vector

    def times(self, x: str, matrix: str) -> str:
        """x times a matrix (in, out) along the feature axis."""
        if not self.spatial:
            return self.add("MatMul", x, matrix)
        if self.dtype == "float64":  # ONNX Runtime has no convolution of doubles
            last = [*range(2, self.spatial + 2)]
            rows = self.add("MatMul", self.add("Transpose", x, perm=[0, *last, 1]), matrix)
            return self.add("Transpose", rows, perm=[0, self.spatial + 1, *range(1, self.spatial + 1)])
        kernel = self.add("Transpose", matrix, perm=[1, 0])
        return self.add("Conv", x, self.add("Reshape", kernel, self.constant([0, 0] + [1] * self.spatial)))

    def low_rank(self, x: str, a: str, b: str) -> str:
        """(xA)B along the feature axis."""
        return self.times(self.times(x, a), b)

    def array(self, name: str) -> str:
        """x or f as floats."""
        if not self.op.quantized:
            return self.input(name)
        return self.add("DequantizeLinear", name, f"{name}_scale", f"{name}_zero_point")

    def residual(self) -> str:
        """α·(f + bias) + β·(x + (xA)B + Σ γ_j·h_j(previous_j))."""
        x, branch = (self.array(name) for name in ("x", "f"))
        skip, terms = x, applied(self.op.terms)
        tensors = _Inputs(self, self.op.tensors)
        at = Operands(x, _Previous(self, self.op.links), tensors, dict(self.op.options))
        for term in (term for term in terms if not term.is_last):
            skip, branch = term.body(self, skip, branch, at)
        if self.op.bias:
            branch = self.add("Add", branch, self.input("bias"))
        for term in (term for term in terms if term.is_last):
            skip, branch = term.body(self, skip, branch, at)
        return self.add("Add", branch, skip)

    def scalar(self, value: float) -> str:
        """A number in the type of the arithmetic."""
        if self.dtype == "float64":
            return self.constant(value, np.float64)
        return self.narrow(self.constant(value, np.float32))

    def element(self, tensor: str, j: int) -> str:
        """Number j of a tensor's first axis."""
        return self.add("Gather", tensor, self.constant(j))


class _Inputs(Mapping[str, str]):
    """Inputs by name, brought into the type of the arithmetic when they are first asked for."""

    def __init__(self, body: _Body, names: Sequence[str]) -> None:
        self.body, self.names = body, names
        self.read: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self.names:
            raise KeyError(name)
        if name not in self.read:
            self.read[name] = self.body.input(name)
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _Previous(Sequence[str]):
    """The earlier activations, likewise."""

    def __init__(self, body: _Body, count: int) -> None:
        self.inputs = _Inputs(body, [f"previous_{j + 1}" for j in range(count)])

    def __getitem__(self, j: Any) -> Any:
        names = list(self.inputs.names)[j]
        return self.inputs[names] if isinstance(names, str) else [self.inputs[name] for name in names]

    def __len__(self) -> int:
        return len(self.inputs)


def function(op: Operator, opset: int, dtype: str = "float32", outputs: int = 2) -> FunctionProto:
    """Returns the function body of *op* for a model of that opset.

    The inputs and outputs are those of :mod:`laurel_graph.opset.schema`, of any shapes that it allows, zero rows and
    symbolic dims included. At the start (α = β = 1, B = 0, γ = 0) the body gives the bits of ``x + f``.

    Args:
        op: the operator.
        opset: the model's version of the default domain.
        dtype: the element type that it will meet. ``bfloat16`` is computed in float32, and so are norms of
            ``float16`` (from opset 15 on these bodies take float32 too); every other body computes in the type of its
            inputs.
        outputs: of how many outputs, at most: ONNX Runtime takes a body only where a node has all outputs of it.

    Raises:
        ModelError: the opset is older than 7.
    """
    if opset < MIN_OPSET:
        raise ModelError(
            f"opset {opset} is too old for {DOMAIN}: expected {MIN_OPSET} or newer; "
            "convert the model with onnx.version_converter first."
        )
    body = _Body(op, opset, dtype)
    value = body.residual()
    if "sum" in op.outputs[:outputs]:
        value = body.write(value, "sum")
    if op.epilogue == "Relu":
        value = body.add("Relu", value)
    elif op.epilogue == "LayerNorm":
        value = body.layer_norm(value, body.input("scale"), body.input("offset"))
    elif op.epilogue == "RMSNorm":
        value = body.rms_norm(value, body.input("scale"))
    if op.quantized:
        value = body.add("QuantizeLinear", value, "y_scale", "y_zero_point")
    body.write(value, "y")
    attributes = ["epsilon"] if "sum" in op.outputs else []
    return helper.make_function(
        DOMAIN,
        op.name,
        op.inputs,
        op.outputs[:outputs],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes,
        doc_string=_formula(op),
    )


def _formula(op: Operator) -> str:
    if op.further:
        told = ((type(term).__doc__ or term.name).strip().partition("\n")[0].rstrip(".") for term in op.terms)
        return f"branch + skip of: {'; '.join(told)}; features {'on axis 1' if op.layout else 'on the last axis'}"
    carried = ["x"] + ["(xA)B"] * op.lr
    for j in range(1, op.previous + 1):
        h = f"(previous_{j} previous_A[{j - 1}]) previous_B[{j - 1}]" if op.low_rank_previous else f"previous_{j}"
        carried.append(f"gamma[{j - 1}] {h}")
    f = "(f + bias)" if op.bias else "f"
    text = f"alpha {f} + beta ({' + '.join(carried)})" if op.rw else " + ".join([f, *carried])
    where = "on axis 1" if op.layout else "on the last axis"
    return f"{op.epilogue}({text}), features {where}" if op.epilogue else f"{text}, features {where}"


def attach(model: ModelProto) -> None:
    """Puts the function bodies of exactly those ``ai.laurel`` operators into *model* that its nodes use.

    Bodies that fit stay where they are, those that no node uses any more go. The domain's opset import is added and
    the IR version raised to 8 where needed. An output that a node leaves out at its end is not named "" (which
    onnx.reference takes for an optional input); where another node of its operator has it, it gets a name, for both run
    one body. Nothing else changes.

    Raises:
        ModelError: a node of the domain is none of its operators, one stands in a function of the model's own, or the
            model's opset is older than 7.
    """
    _check_functions(model)
    nodes = _our_nodes(model)
    _even_out(model, nodes)
    needed = _needed(model, nodes)
    for index, body in reversed(list(enumerate(model.functions))):
        if body.domain == DOMAIN:
            wanted = needed.pop(body.name, None)
            if wanted is None:
                del model.functions[index]
            elif body != wanted:
                body.CopyFrom(wanted)
    model.functions.extend(needed.values())
    if nodes:
        model.ir_version = max(model.ir_version, IR_VERSION)
        if not any(entry.domain == DOMAIN for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def complete(model: ModelProto) -> None:
    """Puts the function bodies back that a tool dropped, such as onnx's version converter; others stay as they are.

    Without a body a file runs nowhere but beside the fused kernels.
    """
    held = {body.name for body in model.functions if body.domain == DOMAIN}
    if any(node.op_type not in held for graph in graphs_of(model.graph) for node in laurel_nodes(graph)):
        with suppress(ModelError):  # of another version, or of an opset that is too old: read all the same
            attach(model)


def detach(model: ModelProto) -> None:
    """Takes the function bodies of ``ai.laurel`` out of *model*, and its opset import when no node uses the domain.

    Raises:
        ModelError: a function of the model's own needs them.
    """
    _check_functions(model)
    for index, body in reversed(list(enumerate(model.functions))):
        if body.domain == DOMAIN:
            del model.functions[index]
    if not _our_nodes(model):
        for index, entry in reversed(list(enumerate(model.opset_import))):
            if entry.domain == DOMAIN:
                del model.opset_import[index]


def _check_functions(model: ModelProto) -> None:
    if inside := callers(model):
        raise cannot_be_seen(inside[0], "its calls are not written out")


def _our_nodes(model: ModelProto) -> list[NodeProto]:
    return [node for graph in graphs_of(model.graph) for node in graph.node if node.domain == DOMAIN]


def _needed(model: ModelProto, nodes: Sequence[NodeProto]) -> dict[str, FunctionProto]:
    """Name to body of every operator that the *nodes* of a model are of, by name."""
    outputs = {node.op_type: len(node.output) for node in nodes}
    dtypes = _dtypes_of(model, nodes)
    opset = default_opset(model) if dtypes else 0
    bodies = {}
    for name in sorted(dtypes):
        op = Operator.parse(name)
        if op is None:
            raise ModelError(unknown_operator(name))
        bodies[name] = function(op, opset, dtypes[name], outputs[name])
    return bodies


def body_dtypes(model: ModelProto) -> dict[str, str]:
    """Returns operator of ``ai.laurel`` to the element type that its one body in *model* is built for."""
    return _dtypes_of(model, _our_nodes(model))


def _dtypes_of(model: ModelProto, nodes: Sequence[NodeProto]) -> dict[str, str]:
    if not nodes:
        return {}
    used: dict[str, set[str]] = {}
    types = _element_types(model)
    for node in nodes:
        found = next((types[name] for name in (*node.input[2:], *node.input[:2]) if name in types), "float32")
        used.setdefault(node.op_type, set()).add(found)
    opset = default_opset(model)
    return {name: _body_dtype(dtypes, opset) for name, dtypes in used.items()}


def _even_out(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Gives all *nodes* of one operator the same number of outputs."""
    wanted: dict[str, int] = {}
    for node in nodes:
        while node.output and not node.output[-1]:
            del node.output[-1]
        wanted[node.op_type] = max(wanted.get(node.op_type, 0), len(node.output))
    short = [node for node in nodes if 0 < len(node.output) < wanted[node.op_type]]
    taken = set(value_names(model)) if short else set()
    for node in short:
        name = f"{node.output[0]}_sum"
        while name in taken:
            name += "_"
        taken.add(name)
        node.output.append(name)


def _body_dtype(dtypes: set[str], opset: int) -> str:
    """The dtype to build the one body for, when nodes of these dtypes share it."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    narrow = sorted(dtypes & {"float16", "bfloat16"})
    return narrow[0] if narrow and opset >= 15 and "float64" not in dtypes else "float32"


def _element_types(model: ModelProto) -> dict[str, str]:
    """Value name to dtype, as far as the model says."""
    types: dict[str, int] = {}
    for graph in graphs_of(model.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            types[info.name] = info.type.tensor_type.elem_type
        for tensor in graph.initializer:
            types[tensor.name] = tensor.data_type
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    types[node.output[0]] = attribute.t.data_type
    return {name: _DTYPES[number] for name, number in types.items() if number in _DTYPES}
