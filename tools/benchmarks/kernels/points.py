"""The points that bench_kernels measures, and the models of one or two nodes that it measures there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
    from onnx import TensorProto

    return {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]


def model_of(point: Point) -> Any:
    """Returns a ModelProto with the point's operator as its only node; parameters are initializers."""
    from onnx import helper

    op, element = point.operator, element_type(point.dtype)
    inputs, initializers = [], []
    for name, values in _tensors(op, point.shape, point.rank).items():
        if values.shape == point.shape and (name in "xf" or name.startswith("previous_")):
            inputs.append(helper.make_tensor_value_info(name, element, point.shape))
        else:
            initializers.append(helper.make_tensor(name, element, values.shape, values.astype(np.float32).ravel()))
    output = helper.make_tensor_value_info("y", element, point.shape)
    # As deployment writes it where nobody reads the residual before the norm: an output without a name.
    node = helper.make_node(op.name, op.inputs, [name if name == "y" else "" for name in op.outputs], domain=DOMAIN)
    if point.normed:
        node.attribute.append(helper.make_attribute("epsilon", _EPSILON))
    graph = helper.make_graph([node], "point", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=_opsets(), ir_version=8)


def repeated(model: Any, times: int) -> Any:
    """Returns *model* with its nodes *times* over on the same inputs, each time with parameters and outputs of its own,
    as the layers of a model have them."""
    from onnx import numpy_helper

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


def separate_model_of(point: Point) -> Any:
    """Returns the model of a point with a norm as two nodes: the residual, and ONNX Runtime's own norm."""
    from onnx import helper

    residual = "+".join(part for part in point.variant.split("+") if part not in ("layernorm", "rmsnorm"))
    model = model_of(replace(point, variant=residual))
    model.graph.node[0].output[0] = "sum"
    model.graph.node.append(_norm(point, "LayerNormalization", ["sum"], "", axis=-1))
    model.graph.initializer.extend(_norm_weights(point))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", element_type(point.dtype), point.shape))
    return model


def skip_norm_model_of(point: Point) -> Any:
    """Returns ONNX Runtime's fused plain residual and norm, of the kind of the point's norm."""
    from onnx import helper

    element = element_type(point.dtype)
    x, f, y = (helper.make_tensor_value_info(name, element, point.shape) for name in "xfy")
    node = _norm(point, "SkipLayerNormalization", ["x", "f"], "com.microsoft")
    graph = helper.make_graph([node], "skip", [x, f], [y], _norm_weights(point))
    return helper.make_model(graph, opset_imports=_opsets(), ir_version=8)


def _opsets() -> list[Any]:
    from onnx import helper

    versions = {"": _OPSET, DOMAIN: VERSION, "com.microsoft": 1}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _norm(point: Point, op_type: str, inputs: list[str], domain: str, **attributes: Any) -> Any:
    from onnx import helper

    if point.operator.epilogue == "RMSNorm":
        # The name of ONNX Runtime's kernel in every release; ONNX's own is of opset 23.
        op_type, names = op_type.replace("Layer", "SimplifiedLayer"), ["scale"]
    else:
        names = ["scale", "offset"]
    return helper.make_node(op_type, [*inputs, *names], ["y"], domain=domain, epsilon=_EPSILON, **attributes)


def _norm_weights(point: Point) -> list[Any]:
    from onnx import helper

    element = element_type(point.dtype)
    tensors = _tensors(point.operator, point.shape, point.rank)
    return [
        helper.make_tensor(name, element, tensors[name].shape, tensors[name].astype(np.float32))
        for name in ("scale", "offset")
        if name in tensors
    ]


def add_model(point: Point) -> Any:
    """Returns a ModelProto that adds x and f."""
    from onnx import helper

    element = element_type(point.dtype)
    x, f, y = (helper.make_tensor_value_info(name, element, point.shape) for name in "xfy")
    # bfloat16 has no Add on ONNX Runtime's CPU: the nearest thing that it runs.
    cast = point.dtype == "bfloat16"
    nodes = [helper.make_node("Add", ["x", "f"], ["y"])]
    if cast:
        nodes = [
            helper.make_node("Cast", ["x"], ["x32"], to=1),
            helper.make_node("Cast", ["f"], ["f32"], to=1),
            helper.make_node("Add", ["x32", "f32"], ["y32"]),
            helper.make_node("Cast", ["y32"], ["y"], to=element),
        ]
    graph = helper.make_graph(nodes, "add", [x, f], [y])
    return helper.make_model(graph, opset_imports=_opsets(), ir_version=8)
