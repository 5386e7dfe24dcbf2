"""Networks inside If, Loop and Scan, as exporters write them."""

import numpy as np
from models import onnx_text

WEIGHTS = {"w1": (8, 16), "w2": (16, 8), "u1": (8, 16), "u2": (16, 8), "head": (8, 8)}
MERGED = "merged[{}]/"


def layer(x, y, weights="w", add=None):
    """One residual block: y = x + relu(x·w1)·w2."""
    return (
        f"{y}_h = MatMul({x}, {weights}1) {y}_r = Relu({y}_h) {y}_f = MatMul({y}_r, {weights}2) "
        f"{y} = {add or 'Add'}({x}, {y}_f) "
    )


def merged_decoder(tail="", other=None):
    """A decoder without and one with a past in the bodies of one If, as optimum merges them.

    Both hold the same two layers with the weights of the graph around, and give their values the same names.
    """
    layers = layer("start", "a") + layer("a", "b", "u")
    text = f"""(float[n, s, 8] x, float[n, p, 8] past, bool[1] use) => (float[n, t, 8] logits) {{
        logits = If (use) <
          then_branch = with_past () => (float[n, t, 8] out) {{
            start = Concat<axis = 1>(past, x) {other or layers} out = MatMul(b, head) }},
          else_branch = no_past () => (float[n, t, 8] out) {{
            scale = Constant<value = float {{1.0}}>() start = Mul(x, scale) {layers} out = MatMul(b, head) }}
        > {tail} }}"""
    model = onnx_text(text, WEIGHTS)
    model.graph.node[0].name = "merged"
    return model


def merged_feeds(use, seed=0):
    """Inputs of :func:`merged_decoder`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((2, 3, 8)).astype(np.float32),
        "past": rng.standard_normal((2, 4, 8)).astype(np.float32),
        "use": np.array([use]),
    }


def loop_net():
    """A block that a Loop runs n times, behind one that runs once."""
    text = f"""(float[b, 8] x, int64 n) => (float[b, 8] y) {{
        {layer("x", "first", "u")}
        y = Loop (n, , first) <
          body = body (int64 i, bool go, float[b, 8] state) => (bool on, float[b, 8] next) {{
            {layer("state", "next")} on = Identity(go) }}
        > }}"""
    model = onnx_text(text.replace("(n, , first)", '(n, "", first)'), WEIGHTS)
    model.graph.node[-1].name = "loop"
    return model


def scan_net():
    """A block that a Scan runs over the second axis of its input, with a state."""
    text = f"""(float[b, s, 8] x, float[b, 8] start) => (float[b, 8] last, float[b, s, 8] y) {{
        last, y = Scan (start, x) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
          body = body (float[b, 8] state, float[b, 8] item) => (float[b, 8] next, float[b, 8] out) {{
            mixed = Add(state, item) {layer("mixed", "out")} next = Tanh(out) }}
        > }}"""
    model = onnx_text(text, WEIGHTS)
    model.graph.node[-1].name = "scan"
    return model
