"""Small sound models of every kind, which :mod:`laurel_graph.tools.robustness.mutants` damages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from laurel_graph.onnx_model.walk import copy_of

MLP = """<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 16] x) => (float[N, 16] y) {
  h0 = MatMul (x, w0)  r0 = Relu (h0)  f0 = MatMul (r0, w1)  y0 = Add (x, f0)
  h1 = MatMul (y0, w2)  r1 = Relu (h1)  f1 = MatMul (r1, w3)  y = Add (y0, f1)
}"""

CONV = """<ir_version: 8, opset_import: ["" : 17]>
conv (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
  c0 = Conv <pads = [1, 1, 1, 1]> (x, k0, b0)  n0 = BatchNormalization (c0, s0, o0, m0, v0)  r0 = Relu (n0)
  c1 = Conv <pads = [1, 1, 1, 1]> (r0, k1, b1)  a0 = Add (c1, x)  y0 = Relu (a0)
  c2 = Conv <pads = [1, 1, 1, 1]> (y0, k2, b2)  r1 = Relu (c2)
  c3 = Conv <pads = [1, 1, 1, 1]> (r1, k3, b3)  a1 = Add (c3, y0)  y = Relu (a1)
}"""

TRANSFORMER = """<ir_version: 8, opset_import: ["" : 17]>
transformer (int64[N, T] ids, float[N, T] mask) => (float[N, T, 16] y) {
  x = Gather (table, ids)
  n = LayerNormalization <epsilon = 0.00001> (x, g0, o0)
  q0 = MatMul (n, w0)  k0 = MatMul (n, w1)  v0 = MatMul (n, w2)
  heads = Constant <value_ints = [0, 0, 4, 4]> ()
  q1 = Reshape (q0, heads)  k1 = Reshape (k0, heads)  v1 = Reshape (v0, heads)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  s0 = MatMul (q, k)  two = Constant <value_float = 0.5> ()  s1 = Mul (s0, two)
  axes = Constant <value_ints = [1, 2]> ()  m = Unsqueeze (mask, axes)
  s2 = Add (s1, m)  p = Softmax <axis = -1> (s2)  a0 = MatMul (p, v)
  a1 = Transpose <perm = [0, 2, 1, 3]> (a0)  flat = Constant <value_ints = [0, 0, 16]> ()  a2 = Reshape (a1, flat)
  a = MatMul (a2, w3)  y0 = Add (x, a)
  n1 = LayerNormalization <epsilon = 0.00001> (y0, g1, o1)
  h0 = MatMul (n1, w4)  h1 = Add (h0, b4)  h2 = Erf (h1)  h3 = Mul (h1, h2)  f = MatMul (h3, w5)  y = Add (y0, f)
}"""

CONTROL = """<ir_version: 8, opset_import: ["" : 17]>
control (float[N, 16] x, bool flag) => (float[N, 16] y, float last) {
  h = MatMul (x, w0)  f = Tanh (h)  y0 = Add (x, f)
  z = If (flag) <
    then_branch = yes () => (float[N, 16] t) { t = Mul (y0, y0) },
    else_branch = no () => (float[N, 16] e) { e0 = MatMul (y0, w1)  e = Add (y0, e0) }>
  count = Constant <value_int = 3> ()  go = Constant <value = bool {1}> ()  start = Constant <value_float = 1.0> ()
  u, last = Loop (count, go, z, start) <
    body = step (int64 i, bool on, float[N, 16] s, float c) => (bool more, float[N, 16] s2, float c2)
    { more = Identity (on)  g = MatMul (s, w1)  s2 = Add (s, g)  c2 = Mul (c, c) }>
  shape = Shape (u)  fill = ConstantOfShape <value = float[1] {0.5}> (shape)  j = Mul (u, fill)  y = Add (u, j)
}"""

FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
functions (float[N, 16] x) => (float[N, 16] y) {
  y0 = own.Block <slope = 0.1> (x, w0)  y = own.Block <slope = 0.2> (y0, w1)
}
<domain: "own", opset_import: ["" : 17, "own" : 1]>
Block <slope> (x, w) => (y) { f = own.Branch <slope : float = @slope> (x, w)  y = Add (x, f) }
<domain: "own", opset_import: ["" : 17]>
Branch <slope> (x, w) => (f) { h = MatMul (x, w)  f = LeakyRelu <alpha : float = @slope> (h) }"""

QUANTISED = """<ir_version: 8, opset_import: ["" : 17]>
quantised (float[N, 16] x) => (float[N, 16] y) {
  xq = QuantizeLinear (x, scale, zero)  xd = DequantizeLinear (xq, scale, zero)
  wd = DequantizeLinear <axis = 1> (wq, wscale, wzero)  h = MatMul (xd, wd)
  hq = QuantizeLinear (h, scale, zero)  hd = DequantizeLinear (hq, scale, zero)
  a = Add (xd, hd)  aq = QuantizeLinear (a, scale, zero)  y = DequantizeLinear (aq, scale, zero)
}"""

_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"w0": (16, 32), "w1": (32, 16), "w2": (16, 32), "w3": (32, 16)},
    "conv": {
        **{f"k{i}": (8, 8, 3, 3) for i in range(4)},
        **dict.fromkeys(("b0", "b1", "b2", "b3", "s0", "o0", "m0", "v0"), (8,)),
    },
    "transformer": {
        "table": (50, 16),
        **{f"w{i}": (16, 16) for i in range(4)},
        "w4": (16, 32),
        "b4": (32,),
        "w5": (32, 16),
        **dict.fromkeys(("g0", "o0", "g1", "o1"), (16,)),
    },
    "control": {"w0": (16, 16), "w1": (16, 16)},
    "functions": {"w0": (16, 16), "w1": (16, 16)},
}
_TEXTS = {"mlp": MLP, "conv": CONV, "transformer": TRANSFORMER, "control": CONTROL, "functions": FUNCTIONS}


def sound_models() -> dict[str, ModelProto]:
    """Returns name to model: an MLP, convolutions, attention, control flow, functions, QDQ, 16 bits, odd weights."""
    models: dict[str, ModelProto] = {}
    for name, text in _TEXTS.items():
        models[name] = parser.parse_model(text)
        rng = np.random.default_rng(0)
        for tensor, shape in _SHAPES[name].items():
            array = (np.abs(rng.standard_normal(shape)) * 0.1 + 0.05).astype(np.float32)
            models[name].graph.initializer.append(numpy_helper.from_array(array, tensor))
    models["quantised"] = parser.parse_model(QUANTISED)
    models["quantised"].graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
            numpy_helper.from_array(np.array(128, np.uint8), "zero"),
            numpy_helper.from_array(np.random.default_rng(0).integers(-99, 99, (16, 16)).astype(np.int8), "wq"),
            numpy_helper.from_array(np.full(16, 0.01, np.float32), "wscale"),
            numpy_helper.from_array(np.zeros(16, np.int8), "wzero"),
        ]
    )
    models["half"] = _half(models["mlp"])
    models["odd"] = _odd(models["mlp"])
    return models


def _half(model: ModelProto) -> ModelProto:
    """The same with 16-bit floats."""
    half = copy_of(model)
    for info in (*half.graph.input, *half.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return half


def _odd(model: ModelProto) -> ModelProto:
    """The same with its weights sparse, in typed fields, in a Constant node and in 4-bit integers."""
    odd = copy_of(model)
    w0, w1, w2, _ = odd.graph.initializer
    values, indices = TensorProto(), TensorProto()
    values.CopyFrom(numpy_helper.from_array(np.array([0.5, 0.25, 1], np.float32), "w0"))
    indices.CopyFrom(numpy_helper.from_array(np.array([1, 40, 500], np.int64), "places"))
    odd.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [16, 32]))
    w1.CopyFrom(helper.make_tensor("w1", TensorProto.FLOAT, w1.dims, numpy_helper.to_array(w1).ravel()))
    constant = helper.make_node("Constant", [], ["w2"], value=w2)
    four = helper.make_tensor("four", TensorProto.INT4, [3], [1, 2, 3])
    text = TensorProto(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"])
    odd.graph.node.insert(0, constant)
    odd.graph.initializer.extend([four, text])
    for tensor in (w2, w0):
        odd.graph.initializer.remove(tensor)
    return odd


def write_models(folder: Path) -> list[Path]:
    """Writes the models, and what laurel-graph makes of them, and returns the files."""
    from laurel_graph.adapters import save_adapter
    from laurel_graph.config import LaurelConfig
    from laurel_graph.passes.deploy.deploy import deploy_file
    from laurel_graph.passes.pipeline import transform

    for name, model in sound_models().items():
        onnx.save(model, folder / f"{name}.onnx")
    for name, variant in (("mlp", "rw+lr+pa"), ("conv", "rw"), ("transformer", "rw+lr"), ("control", "lr")):
        config = LaurelConfig(variant=variant, rank=2, weights="sigmoid" if name == "conv" else "softmax")
        transform(folder / f"{name}.onnx", config, output=folder / f"{name}_laurel.onnx")
    save_adapter(folder / "mlp_laurel.onnx", folder / "mlp.safetensors")
    for name in ("mlp", "conv"):
        deploy_file(folder / f"{name}_laurel.onnx", folder / f"{name}_deployed.onnx")
    _write_data(folder)
    large = onnx.load(folder / "mlp_laurel.onnx")
    onnx.save(large, folder / "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return sorted(folder.glob("*.onnx"))


def _write_data(folder: Path) -> None:
    """Writes training data for each model: its inputs and a target of its output's shape."""
    rng = np.random.default_rng(1)
    inputs: dict[str, dict[str, Any]] = {
        "conv": {"x": rng.standard_normal((4, 8, 6, 6))},
        "transformer": {"ids": rng.integers(0, 50, (4, 5)), "mask": np.zeros((4, 5))},
    }
    targets = {"conv": (4, 8, 6, 6), "transformer": (4, 5, 16)}
    for name in (*sound_models(), "external"):
        given = inputs.get(name, {"x": rng.standard_normal((4, 16))})
        arrays = {key: value.astype(np.float32) if value.dtype.kind == "f" else value for key, value in given.items()}
        target = rng.standard_normal(targets.get(name, (4, 16))).astype(np.float32)
        np.savez(folder / f"{name}.npz", target=target, **arrays)
