"""Copies without rounding to integers compute what the model means."""

import numpy as np
import onnx
import pytest
from models import run_onnx
from onnx import TensorProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph.passes.verify.quantisers import rounds_activations, unrounded
from laurel_graph.tools.benchmarks.models import draw_tensors
from laurel_graph.tools.robustness.changed_constants.networks import networks

RNG = np.random.default_rng(0)


def model(text, weights=(), opset=17):
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_quantised_activations_stay_real_when_unrounded():
    weights = [("s", np.float32(0.5)), ("z", np.uint8(3))]
    rounded = model(
        """g (float[n,4] x) => (float[n,4] y) {
            q = QuantizeLinear(x, s, z)
            t = Reshape(q, shape)
            y = DequantizeLinear(t, s, z)
        }""",
        [*weights, ("shape", np.asarray([-1, 4]))],
    )
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    (plain,) = run_onnx(rounded, {"x": x})
    (real,) = run_onnx(unrounded(rounded), {"x": x})
    assert np.abs(plain - x).max() > 0.1
    np.testing.assert_allclose(real, np.maximum(x, -1.5), atol=1e-6)


def test_integers_that_are_seen_stay_rounded_when_unrounded():
    source = model(
        """g (float[n,4] x) => (uint8[n,4] q, float[n,4] y) {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }""",
        [("s", np.float32(0.5)), ("z", np.uint8(128))],
    )
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    for one, other in zip(run_onnx(source, {"x": x}), run_onnx(unrounded(source), {"x": x}), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dynamic_products_are_real_when_unrounded():
    weights = RNG.integers(-20, 20, (4, 3)).astype(np.int8)
    source = model(
        """g (float[n,4] x) => (float[n,3] y) {
            q, s, z = DynamicQuantizeLinear(x)
            p = MatMulInteger(q, w, z, wz)
            f = Cast <to: int = 1> (p)
            y = Mul(f, s)
        }""",
        [("w", weights), ("wz", np.int8(2))],
    )
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    (real,) = run_onnx(unrounded(source), {"x": x})
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    zero = np.round(-low / step)
    inside = np.clip(x, -zero * step, (255 - zero) * step)  # integers clip what lies beyond the last one
    np.testing.assert_allclose(real, inside @ (weights.astype(np.float32) - 2), rtol=1e-4, atol=1e-4)
    assert rounds_activations(source)


def test_kernels_are_asked_not_to_round_when_they_would():
    node = helper.make_node(
        "MatMulNBits",
        ["x", "q", "s"],
        ["y"],
        domain="com.microsoft",
        K=32,
        N=8,
        bits=4,
        block_size=32,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(RNG.integers(0, 255, (8, 1, 16)).astype(np.uint8), "q"),
            numpy_helper.from_array(RNG.uniform(0.01, 0.02, 8).astype(np.float32), "s"),
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    source = helper.make_model(graph, opset_imports=imports, ir_version=8)
    assert rounds_activations(source)
    levels = [item.i for item in unrounded(source).graph.node[0].attribute if item.name == "accuracy_level"]
    assert levels == [0]
    assert [item.i for item in source.graph.node[0].attribute if item.name == "accuracy_level"] == [4]


@pytest.mark.parametrize("variant", ["rw", "rw+lr", "rw+lr+pa"])
def test_quantised_networks_are_compared_exactly_when_deployed(variant, tmp_path):
    onnx.save(networks()["quantised"](), tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig(variant=variant, rank=4), output=tmp_path / "t.onnx")
    draw_tensors(tmp_path / "t.onnx")
    report = lg.deploy(tmp_path / "t.onnx", tmp_path / "d.onnx").verification
    assert all(item.tolerance == pytest.approx(2e-5) for item in report.sites)
    assert report.equal
