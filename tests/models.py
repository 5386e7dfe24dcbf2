"""Small models that several tests share."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}


def run_onnx(model, feeds, optimize=False):
    """Runs an ONNX model (proto) on plain ONNX Runtime, one thread; returns the list of outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def to_tensor(array, name, dtype="float32"):
    """Returns a TensorProto of *dtype* holding *array*, bfloat16 included."""
    return (
        helper.make_tensor(
            name, ONNX_TYPES[dtype], np.shape(array), np.asarray(array, np.float64).ravel().astype(np.float32).tolist()
        )
        if dtype == "bfloat16"
        else numpy_helper.from_array(np.asarray(array, dtype), name)
    )


def operator_model(op, tensors, opset=17, dtype="float32", rank=None, attributes=None, dims=None):
    """Returns a model of one ``ai.laurel`` node with its function body.

    Graph inputs are x, f and previous_*, with symbolic dims (or *dims*); *tensors* are its initializers. Models of
    bfloat16 take and give float32 and cast inside, because NumPy has no such type.
    """
    from laurel_graph.opset.functions import attach
    from laurel_graph.opset.schema import DOMAIN

    rank = rank or (int(op.layout[0]) + 2 if op.layout else 3)
    dims = dims or [f"d{i}" for i in range(rank)]
    outer = TensorProto.FLOAT if dtype == "bfloat16" else ONNX_TYPES[dtype]
    graph_inputs = [name for name in op.inputs if name not in tensors]
    nodes, names = [], {}
    for name in graph_inputs:
        names[name] = name
        if dtype == "bfloat16":
            names[name] = f"{name}.cast"
            nodes.append(helper.make_node("Cast", [name], [names[name]], to=TensorProto.BFLOAT16))
    outputs = list(op.outputs)
    inner = [f"{name}.cast" for name in outputs] if dtype == "bfloat16" else outputs
    inputs = [names.get(name, name) for name in op.inputs]
    nodes.append(helper.make_node(op.name, inputs, inner, domain=DOMAIN, **(attributes or {})))
    if dtype == "bfloat16":
        nodes += [helper.make_node("Cast", [a], [b], to=TensorProto.FLOAT) for a, b in zip(inner, outputs, strict=True)]
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info(name, outer, dims) for name in graph_inputs],
        [helper.make_tensor_value_info(name, outer, dims) for name in outputs],
        [to_tensor(array, name, dtype) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    attach(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_text(text, weights=None, opset=13, ir_version=7, seed=0, dtype="float32"):
    """Returns a model from the body of a graph in ONNX's text form, with random (or given) initializers.

    ``text`` is ``(inputs) => (outputs) { nodes }``; *weights* maps a name to a shape or an array.
    """
    from onnx import parser

    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]> '
    model = parser.parse_model(f"{header} small {text}")
    if "com.microsoft" not in text:
        del model.opset_import[1]
    rng = np.random.default_rng(seed)
    for name, value in (weights or {}).items():
        if isinstance(value, tuple):
            fan_in = int(np.prod(value[1:] if len(value) > 2 else value[:1])) or 1
            value = rng.standard_normal(value) / np.sqrt(fan_in)
        model.graph.initializer.append(to_tensor(value, name, dtype))
    return model


def token_net(opset=13, dtype="float32", layers=3, width=8):
    """x -> x + relu(x W) ..., ``(n, s, width)``; joins ``y1 ... yk``, branches ``h1 ... hk``, symbolic dims."""
    kind = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    nodes, last = [], "x"
    for i in range(1, layers + 1):
        nodes.append(f"m{i} = MatMul({last}, w{i}) h{i} = Relu(m{i}) y{i} = Add({last}, h{i})")
        last = f"y{i}"
    text = f"({kind}[n, s, {width}] x) => ({kind}[n, s, {width}] {last}) {{ {' '.join(nodes)} }}"
    return onnx_text(text, {f"w{i}": (width, width) for i in range(1, layers + 1)}, opset, dtype=dtype)


def image_net(opset=13, layers=3, width=8):
    """x -> relu(conv(x) + x) ..., ``(n, width, 6, 5)``; skips ``x, r1 ...``, joins ``y1 ...``, branches ``h1 ...``."""
    nodes, last = [], "x"
    for i in range(1, layers + 1):
        nodes.append(
            f"h{i} = Conv <pads = [1, 1, 1, 1]> ({last}, w{i}, b{i}) y{i} = Add(h{i}, {last}) r{i} = Relu(y{i})"
        )
        last = f"r{i}"
    weights = {f"w{i}": (width, width, 3, 3) for i in range(1, layers + 1)}
    weights |= {f"b{i}": (width,) for i in range(1, layers + 1)}
    text = f"(float[n, {width}, 6, 5] x) => (float[n, {width}, 6, 5] {last}) {{ {' '.join(nodes)} }}"
    return onnx_text(text, weights, opset)


def mlp(blocks=3, width=16, batch="n", seed=0):
    """A stack of residual MLP blocks x + relu(x W1) W2."""
    rng = np.random.default_rng(seed)
    nodes, tensors, x = [], [], "x"
    for i in range(blocks):
        for j in (1, 2):
            array = rng.standard_normal((width, width)).astype(np.float32) / 4
            tensors.append(numpy_helper.from_array(array, f"w{i}{j}"))
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}1"], [f"h{i}"], name=f"/block.{i}/up/MatMul"),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"], name=f"/block.{i}/Relu"),
            helper.make_node("MatMul", [f"r{i}", f"w{i}2"], [f"f{i}"], name=f"/block.{i}/down/MatMul"),
            helper.make_node("Add", [x, f"f{i}"], [f"y{i}"], name=f"/block.{i}/Add"),
        ]
        x = f"y{i}"
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
