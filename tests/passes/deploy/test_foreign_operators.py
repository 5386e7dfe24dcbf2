"""Operators of other domains, and functions of a model's own, that have the names of ONNX's and do something else."""

import numpy as np
import onnx
import pytest
from deploy_models import copy, feeds_of, largest_difference, laurel_model, refresh
from models import run_onnx
from onnx import helper

import laurel_graph as lg
from laurel_graph.onnx_model.shape_rules import complete
from laurel_graph.passes.fold.fold import fold

HEAD = """(float[N,5,8] x0) => (float[N,5,8] y)
h = MatMul(x0, W[8,8])
f = MatMul(h, V[8,8])
j = ai.laurel.Laurel_RW_LR(x0, f, alpha[], beta[], A[8,2], B[2,8])
"""
SPELLED = """m = ReduceMean<axes = [-1]>(j)
d = Sub(j, m)
s = Mul(d, d)
v = ReduceMean<axes = [-1]>(s)
e = Add(v, ve[1])
r = Sqrt(e)
n = Div(d, r)
n1 = Mul(n, g[8])
k = Add(n1, o[8])
"""
TAIL = "y = MatMul(k, U[8,8])"
FUNCTIONS = {
    "LayerNormalization": (["a", "g", "o"], "t = Mul(a, g)\n z = Add(t, o)"),
    "RMSNormalization": (["a", "g"], "z = Mul(a, g)"),
    "Sub": (["a", "b"], "z = Add(a, b)"),
    "Div": (["a", "b"], "z = Mul(a, b)"),
    "Mul": (["a", "b"], "t = Add(a, b)\n z = Abs(t)"),
    "Dequantize": (["a", "s"], "c = Cast<to = 1>(a)\n t = Mul(c, s)\n z = Exp(t)"),
}


def with_function(text, name, called="", weights=None):
    """A model in which ``mine.<called>`` is a function that does something of its own."""
    inputs, body = FUNCTIONS[name]
    model = laurel_model(text, weights=weights)
    nodes = onnx.parser.parse_graph(
        f"g ({', '.join(f'float[N] {i}' for i in inputs)}) => (float[N] z) {{ {body} }}"
    ).node
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", called or name, inputs, ["z"], list(nodes), imports))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return model


CASES = {
    "one operator": ("LayerNormalization", "k = mine.LayerNormalization(j, g[8], o[8])\n"),
    "one operator without offset": ("RMSNormalization", "k = mine.RMSNormalization(j, g[8])\n"),
    "difference": ("Sub", SPELLED.replace("= Sub", "= mine.Sub")),
    "quotient": ("Div", SPELLED.replace("= Div", "= mine.Div")),
    "square": ("Mul", SPELLED.replace("s = Mul", "s = mine.Mul")),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # it holds no records
@pytest.mark.parametrize("case", CASES)
def test_deploy_takes_no_norm_in_when_its_operator_is_somebody_else_s(case, tmp_path):
    name, norm = CASES[case]
    model = with_function(HEAD + norm + TAIL, name)
    onnx.save(model, tmp_path / "m.onnx")
    report = lg.deploy(tmp_path / "m.onnx", tmp_path / "d.onnx")
    assert all("Norm" not in form.operator for form in report.forms)
    feeds = feeds_of(model)
    difference = run_onnx(onnx.load(tmp_path / "d.onnx"), feeds)[0] - run_onnx(model, feeds)[0]
    assert np.abs(difference).max() < 1e-4


JOIN = """(float[N,8] x0) => (float[N,8] y)
w = {dequantize}
f = MatMul(x0, w)
x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
y = MatMul(x, U[8,8])"""


def test_fold_scales_the_steps_of_weights_when_their_dequantiser_is_of_onnx_runtime():
    """It takes 16 bits, which ONNX's own of that opset does not."""
    weights = {
        "Q": np.random.default_rng(0).integers(-3000, 3000, (8, 8), np.int16),
        "S": np.float32(1e-4),
        "Z": np.int16(0),
    }
    model = laurel_model(JOIN.format(dequantize="com.microsoft.DequantizeLinear(Q[8,8], S[], Z[])"), weights=weights)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after = copy(model)
    report = fold(after)
    assert report.sites[0].alpha == "folded" and report.rescaled
    refresh(after)
    assert largest_difference(model, after) < 2e-5


def test_fold_leaves_weights_alone_when_a_function_of_the_model_makes_them():
    weights = {"Q": np.random.default_rng(0).integers(-9, 9, (8, 8), np.int8), "S": np.float32(0.1)}
    text = JOIN.format(dequantize="mine.DequantizeLinear(Q[8,8], S[])")
    model = with_function(text, "Dequantize", "DequantizeLinear", weights)
    after = copy(model)
    fold(after)
    refresh(after)
    assert largest_difference(model, after) < 2e-5


def test_shapes_are_not_told_by_operators_of_unknown_domains():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> g (float[N,8] x) => (float[N] y) '
        "{ a = mine.Relu(x)\n b = mine.Add(x, x)\n c = Relu(x)\n y = mine.Gather(a, b, c) }"
    )
    types = {"x": (("N", 8), "float32")}
    assert complete(model.graph, types, 17) == {"c"}
