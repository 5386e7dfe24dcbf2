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
