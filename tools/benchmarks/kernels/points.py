"""The points that bench_kernels measures, and the models of one or two nodes that it measures there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.opset.schema import DOMAIN, VERSION, Operator

RESNET50_JOINS = ((3136, 256, 3), (784, 512, 4), (196, 1024, 6), (49, 2048, 3))
"""(positions, channels, how many) of the joins of ResNet-50 at 224 x 224."""

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_OPSET = 17
_EPSILON = 1e-5


@dataclass(frozen=True)
class Point:
    """One point of the grid; *rows* are positions in the channel layouts."""

    rows: int
    D: int
    rank: int
    variant: str
    layout: str
    dtype: str

    @property
    def operator(self) -> Operator:
        """The operator: the variant's parts (``rw``, ``lr``, ``pa<k>``, ``pal<k>``, ``bias``) and an epilogue."""
        parts = self.variant.split("+")
        fields: dict[str, Any] = {"rw": "rw" in parts, "lr": "lr" in parts, "bias": "bias" in parts}
        for part in parts:
            if part.startswith("pa"):
                fields.update(previous=int(part.lstrip("pal")), low_rank_previous=part.startswith("pal"))
            epilogue = {"relu": "Relu", "layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}.get(part)
            if epilogue:
                fields["epilogue"] = epilogue
        return Operator(**fields, layout="" if self.layout == "tokens" else self.layout)

    @property
    def normed(self) -> bool:
        """A norm follows the residual in the same operator."""
        return self.operator.epilogue in ("LayerNorm", "RMSNorm")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x: (rows, D), or (1, D, ...) with *rows* positions as near a cube as divisors allow."""
        if self.layout == "tokens":
            return (self.rows, self.D)
        sizes, left = [], self.rows
        for axes in range(int(self.layout[0]), 0, -1):
            size = max(s for s in range(1, left + 1) if left % s == 0 and s**axes <= left)
            sizes.append(size)
            left //= size
        return (1, self.D, *sizes[:-1], sizes[-1] * left)

    def floor(self, bytes_per_us: float, flops_per_us: float) -> float:
        """The time in µs below which no implementation can come."""
        op = self.operator
        arrays = 3 + op.previous
        products = op.lr + op.previous * op.low_rank_previous
        elements = self.rows * self.D
        flops = elements * 4 * self.rank * products
        return max(elements * arrays * BYTES[self.dtype] / bytes_per_us, flops / flops_per_us)


def _tensors(op: Operator, shape: tuple[int, ...], rank: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    d, k = shape[op.axis], op.previous
    shapes = {
        "alpha": (), "beta": (), "A": (d, rank), "B": (rank, d), "gamma": (k,), "previous_A": (k, d, rank),
        "previous_B": (k, rank, d), "bias": (d,), "scale": (d,), "offset": (d,),
    }  # fmt: skip
    scales = {"A": d**-0.5, "B": max(1, rank) ** -0.5, "previous_A": d**-0.5, "previous_B": max(1, rank) ** -0.5}
    return {name: rng.standard_normal(shapes.get(name, shape)) * scales.get(name, 1) for name in op.inputs}


def element_type(dtype: str) -> int:
    """Returns the element type in ONNX's numbers."""
    return {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]


def _dtype(point: Point) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(element_type(point.dtype)))


def _value(point: Point, name: str) -> gs.Variable:
    return gs.Variable(name, _dtype(point), point.shape)


def _inputs(point: Point, names: Iterable[str]) -> list[gs.Tensor]:
    """The inputs of those names: activations are values, the others weights."""
    arrays = _tensors(point.operator, point.shape, point.rank)
    activations = {name for name in arrays if name in "xf" or name.startswith("previous_")}
    return [
        _value(point, name)
        if name in activations and arrays[name].shape == point.shape
        else gs.Constant(name, np.asarray(arrays[name], np.float32).astype(_dtype(point)))
        for name in names
    ]


def _node(op_type: str, inputs: Sequence[gs.Tensor], output: gs.Tensor, domain: str = "", **attributes: Any) -> gs.Node:
    return gs.Node(op_type, inputs=list(inputs), outputs=[output], domain=domain, attrs=attributes)


def _residual(point: Point, output: gs.Variable) -> gs.Node:
    op = point.operator
    attributes = {"epsilon": _EPSILON} if point.normed else {}
    node = _node(op.name, _inputs(point, op.inputs), output, DOMAIN, **attributes)
    # As deployment writes it where nobody reads the residual before the norm: an output without a name.
    node.outputs = [output if name == "y" else gs.Variable.empty() for name in op.outputs]
    return node


def _norm(point: Point, op_type: str, inputs: Sequence[gs.Tensor], domain: str, **attributes: Any) -> gs.Node:
    names = ["scale", "offset"]
    if point.operator.epilogue == "RMSNorm":
        # The name of ONNX Runtime's kernel in every release; ONNX's own is of opset 23.
        op_type, names = op_type.replace("Layer", "SimplifiedLayer"), ["scale"]
    weights = _inputs(point, names)
    return _node(op_type, [*inputs, *weights], _value(point, "y"), domain, epsilon=_EPSILON, **attributes)


def _model(*nodes: gs.Node) -> onnx.ModelProto:
    """Returns a model of nodes in order: values that none of them makes go in, what the last one makes comes out."""
    values = {value.name: value for node in nodes for value in node.inputs}
    given = [value for value in values.values() if not value.inputs and isinstance(value, gs.Variable)]
    versions = {"": _OPSET, DOMAIN: VERSION, "com.microsoft": 1}
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    graph = gs.Graph(
        nodes, given, nodes[-1].outputs[:1], name="point", opset=_OPSET, import_domains=imports, ir_version=8
    )
    with gs.logger.G_LOGGER.suppress():  # it prints to stdout, where results go
        model: onnx.ModelProto = gs.export_onnx(graph)
    return model


def model_of(point: Point) -> onnx.ModelProto:
    """Returns a model with the point's operator as its only node; parameters are initializers."""
    return _model(_residual(point, _value(point, "y")))


def separate_model_of(point: Point) -> onnx.ModelProto:
    """Returns the model of a point with a norm as two nodes: the residual, and ONNX Runtime's own norm."""
    residual = "+".join(part for part in point.variant.split("+") if part not in ("layernorm", "rmsnorm"))
    total = _value(point, "sum")
    nodes = _residual(replace(point, variant=residual), total), _norm(point, "LayerNormalization", [total], "", axis=-1)
    return _model(*nodes)


def skip_norm_model_of(point: Point) -> onnx.ModelProto:
    """Returns ONNX Runtime's fused plain residual and norm, of the kind of the point's norm."""
    return _model(_norm(point, "SkipLayerNormalization", _inputs(point, "xf"), "com.microsoft"))


def add_model(point: Point) -> onnx.ModelProto:
    """Returns a model that adds x and f."""
    operands, output = _inputs(point, "xf"), _value(point, "y")
    if point.dtype != "bfloat16":
        return _model(_node("Add", operands, output))
    # bfloat16 has no Add on ONNX Runtime's CPU: the nearest thing that it runs.
    wide = [gs.Variable(f"{name}32", np.float32) for name in "xfy"]
    casts = [_node("Cast", [operand], value, to=1) for operand, value in zip(operands, wide, strict=False)]
    return _model(*casts, _node("Add", wide[:2], wide[2]), _node("Cast", wide[2:], output, to=element_type("bfloat16")))


def repeated(model: Any, times: int) -> Any:
    """Returns *model* with its nodes *times* over on the same inputs, each time with parameters and outputs of its own,
    as the layers of a model have them."""
    result = copy_of(model)
    given = {value.name for value in model.graph.input} | {""}
    for i in range(1, times):
        for node in model.graph.node:
            added = result.graph.node.add()
            added.CopyFrom(node)
            for names in (added.input, added.output):
                names[:] = [name if name in given else f"{name}_{i}" for name in names]
        for value in model.graph.initializer:
            added = result.graph.initializer.add()
            added.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(value), i), f"{value.name}_{i}"))
        for value in model.graph.output:
            added = result.graph.output.add()
            added.CopyFrom(value)
            added.name = f"{value.name}_{i}"
    return result
