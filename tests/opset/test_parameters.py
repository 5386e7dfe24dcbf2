"""Parameters are counted wherever exporters and quantisers keep them."""

import numpy as np
import pytest
from models import onnx_text, token_net
from onnx import TensorProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph.config import LaurelConfig
from laurel_graph.opset.parameters import count_parameters
from laurel_graph.passes.pipeline import transform

FLOATS = 3 * 8 * 8


def in_constants(model):
    """Moves every initializer into a Constant node, as paddle2onnx does, and adds a lone number."""
    for tensor in reversed(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["two"], value_float=2.0))
    return model


def as_bytes(model):
    """Keeps every weight as bytes with a scale and a zero point per column, read by DequantizeLinear."""
    for tensor in list(model.graph.initializer):
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(np.ones((8, 8), np.int8), f"{name}.q"))
        model.graph.initializer.append(numpy_helper.from_array(np.full(8, 0.1, "f"), f"{name}.s"))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int8), f"{name}.z"))
        names = [f"{name}.q", f"{name}.s", f"{name}.z"]
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, [name], axis=1))
    return model


def packed():
    """Three joins over MatMulNBits: two numbers in a byte."""
    nodes, tensors, last = [], [], "x"
    for j in range(3):
        tensors.append(numpy_helper.from_array(np.full((32, 1, 16), 0x78, np.uint8), f"q{j}"))
        tensors.append(numpy_helper.from_array(np.full(32, 0.1, "f"), f"s{j}"))
        given = {"domain": "com.microsoft", "K": 32, "N": 32, "bits": 4, "block_size": 32}
        nodes.append(helper.make_node("MatMulNBits", [last, f"q{j}", f"s{j}"], [f"m{j}"], **given))
        nodes += [helper.make_node("Relu", [f"m{j}"], [f"h{j}"]), helper.make_node("Add", [last, f"h{j}"], [f"y{j}"])]
        last = f"y{j}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "s", 32]) for name in ("x", last)]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "packed", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (token_net(), FLOATS),
        (in_constants(token_net()), FLOATS),
        (as_bytes(token_net()), FLOATS),
        (packed(), 3 * 32 * 32),
    ],
    ids=["initializers", "constants", "bytes", "packed"],
)
def test_weights_count_wherever_they_are_kept(model, count):
    assert count_parameters(model) == count
    result = transform(model, LaurelConfig(rank=2))
    assert len(result.report.plans) == 3
    assert result.report.base_parameters == count
    assert count_parameters(result.model) == count  # ours are no parameters of the base


def test_a_quantised_bias_counts_and_an_index_does_not():
    text = "(float[n, 3] x) => (float[n, 8] y) { b = DequantizeLinear(bq, s) g = Gather(x, i) y = Add(g, b) }"
    model = onnx_text(text, {"s": np.array(0.1, "f")})
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int32), "bq"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int32), "i"))
    assert count_parameters(model) == 8


@pytest.mark.parametrize("model", [token_net(), in_constants(token_net()), as_bytes(token_net())])
def test_an_imported_module_knows_how_many_parameters_its_file_has(model):
    result = transform(model, LaurelConfig(rank=2))
    trainable = lg.trainable_parameters(lg.import_onnx(result.model))
    assert trainable.count == result.report.parameters == 3 * (2 + 2 * 2 * 8)
    assert trainable.total == FLOATS + result.report.parameters
