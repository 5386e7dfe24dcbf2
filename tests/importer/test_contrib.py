"""ONNX Runtime's own operators against ONNX Runtime."""

import numpy as np
import pytest
from importer_graphs import assert_runs_like_runtime, floats, graph_of
from onnx import helper

D = "com.microsoft"


def node(op, inputs, outputs=("y",), domain=D, **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=op, domain=domain, **attributes)


X, SKIP = floats(2, 5, 8), floats(2, 5, 8, seed=1)
VECTOR = {name: floats(8, seed=i) for i, name in enumerate(("gamma", "beta", "bias"), 2)}
QKV = {"q": floats(2, 5, 8), "k": floats(2, 6, 8, seed=1), "v": floats(2, 6, 8, seed=2)}
IDS = np.array([[1, 2, 3], [4, 5, 0]], np.int32)
ROTARY = {"cos": np.cos(floats(16, 2)), "sin": np.sin(floats(16, 2))}
KEY_MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]], np.int32)

CASES = {
    "skip_norm": (
        node("SkipLayerNormalization", ["x", "skip", "gamma", "beta", "bias"], ["y", "", "", "s"], epsilon=1e-5),
        {"x": X, "skip": SKIP},
        VECTOR,
    ),
    "skip_rms": (
        node("SkipSimplifiedLayerNormalization", ["x", "skip", "gamma"], ["y", "", "", "s"], epsilon=1e-5),
        {"x": X, "skip": SKIP},
        {"gamma": VECTOR["gamma"]},
    ),
    "rms": (
        node("SimplifiedLayerNormalization", ["x", "gamma"], domain="", epsilon=1e-5),
        {"x": X},
        {"gamma": VECTOR["gamma"]},
    ),
    "bias_gelu": (node("BiasGelu", ["x", "bias"]), {"x": X}, {"bias": VECTOR["bias"]}),
    "fast_gelu": (node("FastGelu", ["x", "bias"]), {"x": X}, {"bias": VECTOR["bias"]}),
    "quick_gelu": (node("QuickGelu", ["x"], alpha=1.5), {"x": X}, {}),
    "gelu": (node("Gelu", ["x"]), {"x": X}, {}),
    "fused_matmul": (
        node("FusedMatMul", ["x", "w"], transB=1, alpha=0.5),
        {"x": X},
        {"w": floats(4, 8)},
    ),
    "fused_conv": (
        node("FusedConv", ["x", "w", "b"], activation="Clip", activation_params=[0.0, 0.5], pads=[1, 1, 1, 1]),
        {"x": floats(2, 3, 6, 6)},
        {"w": floats(4, 3, 3, 3), "b": floats(4)},
    ),
    "attention": (
        node("Attention", ["x", "w", "b", "mask"], num_heads=2),
        {"x": X, "mask": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], np.int32)},
        {"w": floats(8, 24) / 3, "b": floats(24)},
    ),
    "attention_causal": (
        node("Attention", ["x", "w", "b"], num_heads=2, unidirectional=1),
        {"x": X},
        {"w": floats(8, 24) / 3, "b": floats(24)},
    ),
    "multi_head": (
        node("MultiHeadAttention", ["q", "k", "v", "b", "mask"], num_heads=2),
        {**QKV, "mask": KEY_MASK},
        {"b": floats(24)},
    ),
    "multi_head_bias": (
        node("MultiHeadAttention", ["q", "k", "v", "", "", "extra"], num_heads=2, scale=0.3),
        {**QKV, "extra": floats(1, 2, 5, 6)},
        {},
    ),
    "embed": (
        node("EmbedLayerNormalization", ["ids", "kinds", "w", "p", "s", "gamma", "beta", "mask"], ["y", "m"]),
        {"ids": IDS, "kinds": IDS % 2, "mask": (IDS > 0).astype(np.int32)},
        {"w": floats(10, 8), "p": floats(6, 8), "s": floats(2, 8), "gamma": VECTOR["gamma"], "beta": VECTOR["beta"]},
    ),
    "rotary": (
        node("RotaryEmbedding", ["x", "at", "cos", "sin"], num_heads=2, rotary_embedding_dim=0),
        {"x": X, "at": np.arange(10).reshape(2, 5)},
        ROTARY,
    ),
    "grouped_query": (
        node(
            "GroupQueryAttention", ["q", "k", "v", "", "", "last", "total", "cos", "sin"], ["y", "pk", "pv"],
            num_heads=2, kv_num_heads=1, do_rotary=1,
        ),
        {"q": floats(2, 5, 32), "k": floats(2, 5, 16, seed=1), "v": floats(2, 5, 16, seed=2)},
        {"last": np.array([4, 4], np.int32), "total": np.array(5, np.int32),
         "cos": np.cos(floats(16, 8)), "sin": np.sin(floats(16, 8))},
    ),
    "matmul_nbits": (
        node("MatMulNBits", ["x", "b", "scales", "zeros"], K=32, N=4, bits=4, block_size=16),
        {"x": floats(2, 3, 32)},
        {"b": np.random.default_rng(0).integers(0, 255, (4, 2, 8)).astype(np.uint8),
         "scales": np.abs(floats(8)) / 10, "zeros": np.full(4, 0x88, np.uint8)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_contrib_operator_equals_runtime_when_run_alone(name):
    one, inputs, weights = CASES[name]
    outputs = {out: "int32" if out == "m" else "float32" for out in one.output if out}
    assert_runs_like_runtime(graph_of([one], inputs, outputs, weights), inputs)
