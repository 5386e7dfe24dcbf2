"""Small graphs with ``ai.laurel`` nodes, written as text, for the tests of deployment."""

import re

import numpy as np
import onnx
from models import run_onnx
from onnx import helper, numpy_helper
from tolerance import relative_difference

from laurel_graph.errors import VerificationError
from laurel_graph.opset.functions import attach, detach
from laurel_graph.passes.standard.comparing import Verify

DEPLOY_TOLERANCE = 2e-5


NET = """(float[batch,8] x0) => (float[batch,4] y)
h = MatMul(x0, W1[8,16])
r = Relu(h)
f = MatMul(r, W2[16,8])
j = Add(x0, f)
y = MatMul(j, W3[8,4])
"""
"""One residual connection between matrix products, as text."""


def laurel_model(text, opset=17, seed=0, dtype="float32", weights=None):
    """Returns a model from lines of ``out = Op <attributes> (inputs)``.

    The first line is ``(type[dims] name, ...) => (type[dims] name, ...)``. Every other value that no line makes is a
    weight, written as ``name[dims]`` where it is first read: ``alpha*`` and ``beta*`` are drawn from [0.5, 1.5],
    ``v*`` (variances) from [0.5, 1.5], others from a normal whose size keeps products at 1. *weights* overrides.
    """
    rng, given, initializers = np.random.default_rng(seed), weights or {}, {}

    def weight(match):
        name, dims = match[1], tuple(int(d) for d in match[2].split(",") if d)
        if name in given:
            value = np.asarray(given[name])
        elif re.match(r"(alpha|beta|v)", name):
            value = rng.uniform(0.5, 1.5, dims)
        elif len(dims) >= 2:
            fan = dims[0] if len(dims) == 2 else int(np.prod(dims[1:]))
            value = rng.normal(0, 1 / np.sqrt(fan), dims)
        else:
            value = rng.normal(0, 0.5, dims)
        value = np.asarray(value)
        initializers[name] = value.astype(dtype) if value.dtype.kind == "f" else value
        return name

    head, *lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    body = [
        re.sub(r"(\w+)\[([\d,]*)\](?!\s*>)", weight, line) if "[" in line.split(">")[-1] else line for line in lines
    ]
    graph = onnx.parser.parse_graph(f"g {head} {{\n" + "\n".join(body) + "\n}")
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in initializers.items())
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.laurel", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    attach(model)
    return model


def copy(model):
    """Returns a copy of a model."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    return new


def feeds_of(model, batch=3, seed=1):
    """Returns normal inputs for a model whose symbolic dims are all batches."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        shape = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        draw = rng.normal(size=shape) if np.dtype(dtype).kind == "f" else rng.integers(0, 4, shape)
        feeds[value.name] = draw.astype(dtype)
    return feeds


def refresh(model):
    """Gives a model the functions that its nodes need now."""
    detach(model)
    if any(node.domain == "ai.laurel" for node in model.graph.node):
        attach(model)
    onnx.checker.check_model(model)


def largest_difference(before, after, optimize=False):
    """Returns the largest relative difference of any output of two models, on a few rows."""
    feeds = feeds_of(before)
    pairs = zip(run_onnx(after, feeds, optimize), run_onnx(before, feeds), strict=True)
    return max(relative_difference(a, b) for a, b in pairs)


def refusing(patch, times):
    """Makes the verification of deployments refuse the first *times*; returns the list of what it was given."""
    honest, given = Verify.run, []

    def strict(self, graph, facts):
        given.append(graph)
        if len(given) <= times:
            raise VerificationError("an integer has moved")
        return honest(self, graph, facts)

    patch.setattr(Verify, "run", strict)
    return given


def operators(model):
    """Returns the operator types of the main graph, in order."""
    return [node.op_type for node in model.graph.node]
