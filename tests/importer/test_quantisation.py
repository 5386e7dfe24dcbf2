"""Quantised graphs: the forward value is the runtime's, the gradient passes the rounding."""

import numpy as np
import pytest
import torch
from importer_graphs import assert_runs_like_runtime, floats, graph_of
from onnx import helper

from laurel_graph import import_onnx
from laurel_graph.errors import UnsupportedOperatorError


def qdq_layer(axis=1):
    """Returns y = dequantise(quantise(x)) @ dequantise(w), per channel."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    weights = {
        "s": np.float32(0.05), "z": np.array(3, np.int8),
        "w": np.random.default_rng(0).integers(-128, 128, (8, 4)).astype(np.int8),
        "ws": np.abs(floats(4)) / 10 + 0.01, "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    return graph_of(nodes, {"x": floats(3, 8)}, {"y": "float32"}, weights)


def test_import_equals_runtime_when_file_is_qdq():
    assert_runs_like_runtime(qdq_layer(), {"x": floats(3, 8)})


def test_gradient_passes_rounding_and_stops_at_clipping_when_file_is_qdq():
    module = import_onnx(qdq_layer())
    x = torch.tensor([[0.3, 100.0, -100.0, 1.0, 0.0, -1.0, 2.0, 0.1]], requires_grad=True)
    module(x).sum().backward()
    assert (x.grad[0, [1, 2]] == 0).all()
    assert (x.grad[0, [0, 3, 4, 5, 6, 7]] != 0).all()


def test_dynamic_quantisation_has_exact_products_and_a_gradient_when_imported():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).integers(-60, 60, (8, 4)).astype(np.int8)}
    model = graph_of(nodes, {"x": floats(3, 8)}, {"y": "float32"}, weights)
    module = assert_runs_like_runtime(model, {"x": floats(3, 8)})
    x = torch.from_numpy(floats(3, 8)).requires_grad_()
    module(x).sum().backward()
    expected = weights["w"].astype(np.float32).sum(1)
    np.testing.assert_allclose(x.grad[0].numpy(), expected, rtol=0.2)


def test_import_advises_qdq_when_file_has_integer_operators():
    node = helper.make_node("QLinearMatMul", ["a", "s", "z", "b", "s", "z", "s", "z"], ["y"], name="product")
    a = np.ones((2, 2), np.uint8)
    weights = {"b": a, "s": np.float32(1), "z": np.uint8(0)}
    weights = {name: np.asarray(value) for name, value in weights.items()}
    with pytest.raises(UnsupportedOperatorError, match=r"product.*QLinearMatMul, opset 17.*QDQ"):
        import_onnx(graph_of([node], {"a": a}, {"y": "uint8"}, weights))
