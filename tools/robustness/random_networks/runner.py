"""Runs a model on ONNX Runtime and shows every value of its main graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.onnx_model.shapes import tensor_types
from laurel_graph.onnx_model.walk import copy_of, graphs_of
from laurel_graph.opset.schema import DOMAIN
from laurel_graph.runtime import session_options

Array = NDArray[Any]


class Runner:
    """A session whose outputs are all values of the model's main graph; bfloat16 ones are cast to float32.

    Args:
        model: the model; it stays as it is.
        optimize: whether ONNX Runtime optimises the graph.
    """

    def __init__(self, model: onnx.ModelProto, optimize: bool) -> None:
        import onnxruntime

        seen, self._outputs = _seen(model)
        used = {n.op_type for g in graphs_of(model.graph) for n in g.node if n.domain == DOMAIN}
        options = session_options(1, optimize, operators=sorted(used))
        options.log_severity_level = 4
        data = seen.SerializeToString()
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns every value by name."""
        return dict(zip(self._outputs, self._session.run(list(self._outputs.values()), dict(feeds)), strict=True))


def rounded_anew(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Returns a copy in which each float weight is a unit in the last place off, but for whole numbers."""
    other = copy_of(model)
    for tensor in other.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and np.any(value != np.round(value)):  # no exponents, no sizes
            ends = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
            moved = np.where(value == 0, value, np.nextafter(value, ends))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(moved, value.dtype), tensor.name))
    return other


def _seen(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Returns a copy that gives all values, and value name to the output that shows it."""
    seen = copy_of(model)
    graph, types = seen.graph, tensor_types(seen)[0]
    names = [value.name for value in graph.output] + [name for node in graph.node for name in node.output if name]
    outputs: dict[str, str] = {}
    for name in dict.fromkeys(names):
        outputs[name] = name
        if types.get(name, (None, None))[1] == "bfloat16":
            outputs[name] = f"{name}:seen"
            graph.node.append(helper.make_node("Cast", [name], [outputs[name]], to=TensorProto.FLOAT))
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values())
    return seen, outputs
