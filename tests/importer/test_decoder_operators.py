"""Attention with a cache and packed weights, as decoders for ONNX Runtime GenAI have them, against ONNX Runtime."""

import numpy as np
import pytest
import torch
from importer_graphs import assert_runs_like_runtime, floats, graph_of, run_onnx
from onnx import helper

from laurel_graph.importer import import_onnx
from laurel_graph.importer.operators.contrib import unpack_weights

FLOATS = {"y": "float32", "pk": "float32", "pv": "float32"}


def node(op, inputs, outputs=("y",), domain="com.microsoft", **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=op, domain=domain, **attributes)


def grouped(**attributes):
    return node(
        "GroupQueryAttention",
        ["q", "k", "v", "past_k", "past_v", "last", "total", "cos", "sin", *attributes.pop("more", ())],
        ["y", "pk", "pv"], num_heads=4, kv_num_heads=2, do_rotary=1, **attributes,
    )  # fmt: skip


@pytest.mark.parametrize("attributes", [{}, {"local_window_size": 4}, {"softcap": 2.0}, {"smooth_softmax": 1}], ids=str)
@pytest.mark.parametrize(
    ("steps", "held", "last"),
    [(5, 0, [4, 4]), (5, 0, [4, 2]), (1, 7, [7, 7]), (1, 7, [7, 4]), (1, 12, [7, 3])],
    ids=["prompt", "padded-prompt", "step", "padded-step", "shared-buffer"],
)
def test_attention_with_a_cache_equals_runtime(steps, held, last, attributes):
    inputs = cache_inputs(steps, held)
    weights = {"last": np.array(last, np.int32), "total": np.array(max(last) + 1, np.int32), **tables()}
    rows = (np.array(last)[:, None] >= np.arange(steps)) if held == 0 else np.ones((2, steps), bool)
    compare_rows(graph_of([grouped(**attributes)], inputs, FLOATS, weights), inputs, rows)


def test_attention_with_a_sink_equals_runtime():
    inputs = cache_inputs(5, 0)
    weights = {"last": np.array([4, 4], np.int32), "total": np.array(5, np.int32), **tables(), "sink": floats(4)}
    model = graph_of([grouped(more=("", "", "sink"))], inputs, FLOATS, weights)
    compare_rows(model, inputs, np.ones((2, 5), bool))


@pytest.mark.parametrize(("steps", "met"), [(10, 0), (30, 0), (1, 9), (1, 15), (1, 16), (1, 24)])
def test_attention_with_a_rolling_cache_equals_runtime(steps, met):
    inputs = cache_inputs(steps, 16)
    last = met + steps - 1
    weights = {"last": np.array([last, last], np.int32), "total": np.array(last + 1, np.int32), **tables(64)}
    model = graph_of([grouped(local_window_size=16, sliding_window_cache=1)], inputs, FLOATS, weights)
    places = min(last + 1, 16)
    compare_rows(model, inputs, np.ones((2, steps), bool), places)


def cache_inputs(steps, held):
    return {"q": floats(2, steps, 64), "k": floats(2, steps, 32, seed=1), "v": floats(2, steps, 32, seed=2),
            "past_k": floats(2, 2, held, 16, seed=3), "past_v": floats(2, 2, held, 16, seed=4)}  # fmt: skip


def tables(places=32):
    angles = np.outer(np.arange(places), 0.7 ** np.arange(8))
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


def compare_rows(model, inputs, rows, places=None):
    """Holds the module against ONNX Runtime at *rows* of the result and at the first *places* of the caches."""
    expected = run_onnx(model, inputs)
    found = [value.numpy() for value in import_onnx(model)(*map(torch.from_numpy, inputs.values()))]
    np.testing.assert_allclose(found[0][rows], expected[0][rows], rtol=1e-5, atol=1e-5)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one[:, :, :places], other[:, :, :places], rtol=1e-5, atol=1e-5)


def test_packed_weights_stay_packed_and_pass_the_gradient():
    one = node("MatMulNBits", ["x", "b", "scales", "zeros"], K=32, N=4, bits=4, block_size=16)
    inputs = {"x": floats(2, 3, 32)}
    weights = {"b": np.random.default_rng(0).integers(0, 255, (4, 2, 8)).astype(np.uint8),
               "scales": np.abs(floats(8)) / 10, "zeros": np.full(4, 0x88, np.uint8)}  # fmt: skip
    module = import_onnx(graph_of([one], inputs, {"y": "float32"}, weights))
    assert {buffer.dtype for buffer in module.buffers()} == {torch.uint8, torch.float32}
    assert sum(buffer.numel() for buffer in module.buffers() if buffer.is_floating_point()) == 8  # the scales
    x = torch.from_numpy(inputs["x"]).requires_grad_()
    module(x).square().sum().backward()
    dense = unpack_weights(*(torch.from_numpy(weights[n]) for n in ("b", "scales", "zeros")), 4, 32, 4, 16)
    wanted = torch.from_numpy(inputs["x"]).requires_grad_()
    (wanted @ dense.T).square().sum().backward()
    torch.testing.assert_close(x.grad, wanted.grad)


def test_gemm_is_imported_where_only_its_weights_have_a_known_type():
    norm = node("SimplifiedLayerNormalization", ["x", "g"], ["n"], "", axis=-1)
    gemm = node("Gemm", ["n", "w", "b"], domain="", alpha=0.7)
    inputs = {"x": floats(3, 8)}
    weights = {"g": floats(8), "w": floats(8, 8, seed=1), "b": floats(8, seed=2)}
    assert_runs_like_runtime(graph_of([norm, gemm], inputs, {"y": "float32"}, weights), inputs)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_quantised_table_equals_runtime(bits, zeros):
    random = np.random.default_rng(0)
    weights = {
        "table": random.integers(0, 255, (9, 32 * bits // 8)).astype(np.uint8),
        "scales": np.abs(floats(9, 2)) / 10,
        **({"zeros": random.integers(0, 255, (9, 2 * bits // 8)).astype(np.uint8)} if zeros else {}),
    }
    one = node("GatherBlockQuantized", ["table", "ids", "scales", *(["zeros"] if zeros else [])],
               bits=bits, block_size=16, gather_axis=0, quantize_axis=1)  # fmt: skip
    inputs = {"ids": np.array([[0, 3], [8, 3]], np.int64)}
    module = assert_runs_like_runtime(graph_of([one], inputs, {"y": "float32"}, weights), inputs)
    assert not [b for b in module.buffers() if b.is_floating_point() and b.numel() > 18]


@pytest.mark.parametrize(
    "attributes",
    [
        {"activation_type": "relu"},
        {"activation_type": "silu", "normalize_routing_weights": 1},
        {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.7, "activation_beta": 1.0,
         "swiglu_limit": 0.5, "normalize_routing_weights": 1},
    ],
    ids=lambda attributes: attributes["activation_type"],
)  # fmt: skip
def test_mixture_of_experts_equals_runtime(attributes):
    inner = 32 if attributes["activation_type"] == "swiglu" else 16
    inputs = {"x": floats(2, 5, 8), "router": floats(10, 4, seed=1)}
    weights = {"w1": floats(4, inner, 8, seed=2), "b1": floats(4, inner, seed=3),
               "w2": floats(4, 8, 16, seed=4), "b2": floats(4, 8, seed=5)}  # fmt: skip
    one = node("MoE", ["x", "router", "w1", "b1", "w2", "b2"], k=2, **attributes)
    assert_runs_like_runtime(graph_of([one], inputs, {"y": "float32"}, weights), inputs)
