"""Small graphs for the importer's tests."""

import numpy as np
import torch
from models import run_onnx
from onnx import TensorProto, helper, numpy_helper
from tolerance import assert_close

from laurel_graph import import_onnx

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
}


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph_of(nodes, inputs, outputs, weights=None, opset=17, domain="com.microsoft"):
    """Returns a model; *inputs* maps names to sample arrays, every axis of which is dynamic."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TYPES[str(a.dtype)], [f"{name}_{i}" for i in range(a.ndim)])
            for name, a in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TYPES[kind], None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def assert_runs_like_runtime(model, feeds, module=None, dtype="float32"):
    """Compares every output of the imported module with ONNX Runtime's; returns the module."""
    module = module or import_onnx(model)
    expected = run_onnx(model, feeds)
    with torch.no_grad():
        actual = module(*(torch.from_numpy(feeds[i.name]) for i in model.graph.input))
    for one, other in zip(actual if isinstance(actual, tuple) else (actual,), expected, strict=True):
        assert_close(one.numpy(), other, dtype)
    return module


def worst_gradient_error(module, feeds, names, count=5, step=1e-4):
    """Returns the largest relative difference of sampled gradients from central differences, both in float64."""
    module = module.double()
    args = [torch.from_numpy(f.astype(np.float64) if f.dtype.kind == "f" else f) for f in feeds.values()]
    rng = np.random.default_rng(0)

    def loss():
        out = module(*args)
        return sum((o * torch.arange(1, o.numel() + 1).reshape(o.shape).sin()).sum() for o in _floats_of(out))

    module.zero_grad()
    loss().backward()
    worst = 0.0
    for name in names:
        parameter = module.get_parameter(name)
        scale = float(parameter.grad.abs().max()) or 1.0
        flat = parameter.data.view(-1)
        for index in rng.choice(flat.numel(), min(count, flat.numel()), replace=False):
            old = float(flat[index])
            with torch.no_grad():
                flat[index] = old + step
                up = float(loss())
                flat[index] = old - step
                down = float(loss())
                flat[index] = old
            difference = abs((up - down) / (2 * step) - float(parameter.grad.view(-1)[index]))
            worst = max(worst, difference / scale)
    return worst


def _floats_of(out):
    return [o for o in (out if isinstance(out, tuple) else (out,)) if o.dtype.is_floating_point]
