"""Decomposed layers come back as one call, and only where they are the same function."""

import numpy as np
import pytest
import torch
from importer_graphs import assert_runs_like_runtime, floats, graph_of
from onnx import helper
from torch.nn import functional as F

from laurel_graph.importer.fusion import affine, attend, normalise


def n(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], **attributes)


GELU = [
    n("Div", "x root", "a"), n("Erf", "a", "e"), n("Add", "e one", "p"), n("Mul", "x p", "xp"),
    n("Mul", "xp half", "y"),
]  # fmt: skip
NORM = [
    n("ReduceMean", "x", "mean", axes=[-1]), n("Sub", "x mean", "d"), n("Pow", "d two", "sq"),
    n("ReduceMean", "sq", "var", axes=[-1]), n("Add", "var eps", "v"), n("Sqrt", "v", "s"), n("Div", "d s", "r"),
    n("Mul", "r w", "rw"), n("Add", "rw b", "y"),
]  # fmt: skip
ATTENTION = [
    n("Transpose", "k", "kt", perm=[0, 1, 3, 2]), n("MatMul", "q kt", "qk"), n("Mul", "qk half", "s"),
    n("Add", "s mask", "sm"), n("Softmax", "sm", "p"), n("MatMul", "p v", "y"),
]  # fmt: skip
LINEAR = [n("MatMul", "x m", "h"), n("Add", "b h", "y")]
CONSTANTS = {
    "root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5), "two": np.float32(2),
    "eps": np.float32(1e-5), "w": floats(8), "b": floats(8, seed=1), "m": floats(8, 8),
}  # fmt: skip
X = {"x": floats(2, 5, 8)}
QKV = {name: floats(2, 3, 5, 8, seed=i) for i, name in enumerate("qkv")} | {"mask": floats(2, 1, 1, 5)}


def model_of(nodes, inputs, outputs=("y",)):
    used = {name for node in nodes for name in node.input}
    weights = {name: np.asarray(value) for name, value in CONSTANTS.items() if name in used}
    return graph_of(nodes, inputs, dict.fromkeys(outputs, "float32"), weights)


@pytest.mark.parametrize(
    ("nodes", "inputs", "function"),
    [(GELU, X, F.gelu), (NORM, X, normalise), (ATTENTION, QKV, attend), (LINEAR, X, affine)],
    ids=["gelu", "layer_norm", "attention", "linear"],
)
def test_layer_is_one_call_with_equal_values_when_pattern_is_whole(nodes, inputs, function):
    module = assert_runs_like_runtime(model_of(nodes, inputs), inputs)
    assert function in {node.target for node in module.graph.nodes}


@pytest.mark.parametrize(
    ("nodes", "inputs", "inner"),
    [(GELU, X, "e"), (NORM, X, "s"), (ATTENTION, QKV, "p"), (LINEAR, X, "h")],
    ids=["gelu", "layer_norm", "attention", "linear"],
)
def test_layer_stays_as_it_is_when_an_inner_value_is_an_output(nodes, inputs, inner):
    module = assert_runs_like_runtime(model_of(nodes, inputs, ("y", inner)), inputs)
    assert not {F.gelu, normalise, attend, affine} & {node.target for node in module.graph.nodes}


def test_gelu_stays_as_it_is_when_its_constant_is_another():
    nodes = [n("Div", "x two", "a"), *GELU[1:]]
    module = assert_runs_like_runtime(model_of(nodes, X), X)
    assert torch.erf in {node.target for node in module.graph.nodes}
