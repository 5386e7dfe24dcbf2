"""Deployment stays exact, or keeps a plain form and says why, where graphs and weights are out of the ordinary."""

import json

import numpy as np
import onnx
import pytest
from deploy_models import DEPLOY_TOLERANCE, copy, feeds_of, largest_difference, laurel_model, operators, refresh
from models import run_onnx
from onnx import helper, numpy_helper
from tolerance import relative_difference

from laurel_graph.passes.deploy.costs import CostModel
from laurel_graph.passes.deploy.deploy import deploy

TOKENS = "(float[N,5,8] x0) => (float[N,5,8] y)"
IMAGE = "(float[N,8,6,6] x0) => (float[N,8,6,6] y)"
FORMS = ("operator", "widened", "chained", "absorbed")


def deployed(model, *, form=None, portable=False, tolerance=DEPLOY_TOLERANCE):
    """Returns the deployed model and the report, after comparing the outputs with and without optimisation."""
    after = copy(model)
    report = deploy(after, portable=portable, costs=CostModel.only(form) if form else None)
    onnx.checker.check_model(after)
    for optimize in (False, True):
        assert largest_difference(model, after, optimize) <= tolerance
    return after, report


def with_outputs(model, *names):
    """Returns a copy of *model* that gives these values, too."""
    seen = copy(model)
    known = {value.name for value in seen.graph.output}
    free = [None] * len(seen.graph.output[0].type.tensor_type.shape.dim)
    new = [name for name in names if name not in known]
    seen.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, free) for name in new)
    return seen


def either(kind, yes, no):
    """Returns the attributes of an If, as text."""
    return f"then_branch = a () => ({kind} t) {{ t = {yes} }}, else_branch = b () => ({kind} u) {{ u = {no} }}"


LAYER_NORM = """
m = ReduceMean<axes = [-1]>(s)
c = Sub(s, m)
q = Mul(c, c)
v = ReduceMean<axes = [-1]>(q)
e = Add(v, eps[])
d = Sqrt(e)
z = Div(c, d)
w = Mul(z, g[{size}])
n = Add(w, o[8])
"""
SITE = "s = ai.laurel.Laurel_RW_LR(x, f, alpha[], beta[], A[8,2], B[2,8])"
EPS = {"eps": np.array(1e-2)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("portable", [False, True])
def test_deploy_plans_the_outer_site_anew_when_an_inner_one_took_the_norm_between_them(form, portable):
    text = f"""{TOKENS}
    x = MatMul(x0, W0[8,8])
    f = MatMul(x, W1[8,8])
    {SITE}
    {LAYER_NORM.format(size=8)}
    y = ai.laurel.Laurel_RW_LR(x0, n, alpha2[], beta2[], A2[8,2], B2[2,8])
    """
    after, report = deployed(laurel_model(text, weights=EPS), form=form, portable=portable)
    if form == "operator" and not portable:
        assert [site.operator for site in report.forms] == ["Laurel_LR_LayerNorm", "Laurel_LR"]
    assert portable is False or not any(node.domain for node in after.graph.node)


HARD = {
    "a zero channel": np.array([0, 1.3, 1, 0.7, 1, 1, 2, 1]),
    "all zero": np.zeros(8),
    "negative": np.array([-1.0, 0.5, -2, 1, 1, 1, 1, 1]),
    "far apart": np.array([1e4, 1e-4, 1, 1, 1, 1e4, 1, 1]),
    "subnormal": np.array([1e-40, 1, 1, 1, 1, 1, 1, 1]),
    "huge": np.array([1e30, 1, 1, 1, 1, 1, 1, 1]),
}
PARTS = {
    "RW_LR": "A[8,2], B[2,8]",
    "RW_PA1": "gamma[1], x0",
    "RW_PAL1": "gamma[1], pA[1,8,2], pB[1,2,8], x0",
    "RW_LR_PA1": "A[8,2], B[2,8], gamma[1], x0",
}


@pytest.mark.parametrize("role", ["alpha", "beta"])
@pytest.mark.parametrize("value", HARD)
@pytest.mark.parametrize("parts", PARTS)
def test_deploy_is_exact_when_weights_are_extreme(role, value, parts):
    text = f"""{TOKENS}
    x = MatMul(x0, W0[8,8])
    h = MatMul(x, W1[8,8])
    r = Relu(h)
    f = MatMul(r, W2[8,8])
    s = ai.laurel.Laurel_{parts}(x, f, alpha[8], beta[8], {PARTS[parts]})
    y = MatMul(s, W3[8,8])
    """
    after, report = deployed(laurel_model(text, weights={role: HARD[value]}))
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in after.graph.initializer)
    if not HARD[value].all():
        assert getattr(report.fold.sites[0], role) == "kept"
        assert f"{role} is zero" in report.fold.sites[0].reason


def listed(model, *names):
    """Makes weights inputs, so that a run may be given others."""
    for name in names:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return model


OVERRIDABLE = f"""{TOKENS}
x = MatMul(x0, W0[8,8])
h = MatMul(x, W1[8,6])
r = Relu(h)
m = MatMul(r, W2[6,8])
f = Add(m, c[8])
{SITE}
y = LayerNormalization<epsilon = 0.01>(s, g[8], o[8])
"""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("portable", [False, True])
def test_deploy_answers_right_when_a_run_is_given_other_weights(form, portable):
    names = ("W0", "W2", "c", "g", "o")
    model = listed(laurel_model(OVERRIDABLE), *names)
    after = copy(model)
    report = deploy(after, portable=portable, costs=CostModel.only(form))
    assert {value.name for value in after.graph.input} == {"x0", *names}
    rng = np.random.default_rng(3)
    feeds = {"x0": rng.normal(size=(3, 5, 8)).astype(np.float32)}
    given = {
        k: rng.normal(size=[t.dims[i] for i in range(len(t.dims))]).astype(np.float32)
        for t in model.graph.initializer
        for k in [t.name]
        if k in names
    }
    for extra in ({}, given, {"W2": given["W2"]}):
        for optimize in (False, True):
            before, now = (run_onnx(m, feeds | extra, optimize)[0] for m in (model, after))
            assert relative_difference(now, before) <= DEPLOY_TOLERANCE
    site = report.to_dict()["sites"][0]
    assert site["alpha"] == "kept" and "is a graph input too" in site["reason"]


def test_deploy_keeps_an_input_that_no_node_reads_when_a_run_may_give_it():
    model = listed(laurel_model(OVERRIDABLE), "W0")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "idle"))
    listed(model, "idle")
    deploy(model)
    assert {value.name for value in model.graph.input} == {"x0", "W0", "idle"}


def test_deploy_folds_when_an_old_file_lists_all_weights_and_none_can_be_given():
    names = [t.name for t in laurel_model(OVERRIDABLE).graph.initializer]
    model = listed(laurel_model(OVERRIDABLE), *names)
    record = {"ir_version": 3, "domain": True, **{part: [] for part in ("metadata", "nodes", "tensors", "inputs")}}
    model.metadata_props.add(key="laurel.undo", value=json.dumps(record))
    report = deploy(model)
    assert [value.name for value in model.graph.input] == ["x0"]
    assert report.fold.sites[0].alpha == "folded"


def test_deploy_keeps_the_norm_when_its_scale_is_one_number():
    text = (
        f"{TOKENS}\nx = MatMul(x0, W0[8,8])\nf = MatMul(x, W1[8,8])\n{SITE}\n{LAYER_NORM.format(size=1)}\ny = Relu(n)"
    )
    after, report = deployed(laurel_model(text, weights=EPS), form="operator")
    assert report.forms[0].operator == "Laurel_LR"
    assert "not known to have one value for each of 8" in report.forms[0].reason
    assert "Sqrt" in operators(after)


@pytest.mark.parametrize("inner", ["m", "c", "v", "d", "z"])
def test_deploy_keeps_the_norm_when_a_value_inside_it_is_an_output(inner):
    text = (
        f"{TOKENS}\nx = MatMul(x0, W0[8,8])\nf = MatMul(x, W1[8,8])\n{SITE}\n{LAYER_NORM.format(size=8)}\ny = Relu(n)"
    )
    _after, report = deployed(with_outputs(laurel_model(text, weights=EPS), inner), form="operator")
    assert report.forms[0].operator == "Laurel_LR"
    if inner in "mc":  # the others cannot be told from the end of a norm that is none
        assert f"value {inner!r} inside the norm" in report.forms[0].reason


def test_deploy_keeps_the_norm_when_a_subgraph_reads_a_value_inside_it():
    text = f"""(float[N,5,8] x0, bool yes) => (float[N,5,8] y, float[N,5,1] k)
    x = MatMul(x0, W0[8,8])
    f = MatMul(x, W1[8,8])
    {SITE}
    {LAYER_NORM.format(size=8)}
    y = Relu(n)
    k = If (yes) <{either("float[N,5,1]", "Neg(m)", "Exp(m)")}>
    """
    model = laurel_model(text, weights=EPS)
    after = copy(model)
    report = deploy(after, costs=CostModel.only("operator"))
    assert "value 'm' inside the norm" in report.forms[0].reason
    feeds = {"x0": feeds_of(model)["x0"], "yes": np.array(True)}
    for a, b in zip(run_onnx(after, feeds), run_onnx(model, feeds), strict=True):
        assert relative_difference(a, b) <= DEPLOY_TOLERANCE


def test_deploy_takes_one_scale_for_all_channels_when_pooled_features_are_reshaped_in_groups():
    text = """(float[N,8,6,6] x0) => (float[M,3] y)
    x = Conv(x0, W0[8,8,1,1])
    f = Conv<pads = [1,1,1,1]>(x, W1[8,8,3,3])
    s = ai.laurel.Laurel_RW_2d(x, f, alpha[8], beta[8])
    p = GlobalAveragePool(s)
    q = Reshape(p, to[2])
    y = MatMul(q, W2[4,3])
    """
    deployed(laurel_model(text, weights={"to": np.array([-1, 4])}))


@pytest.mark.parametrize("form", FORMS)
def test_deploy_leaves_the_bias_when_it_widens_a_branch_of_one_feature(form):
    text = f"""{TOKENS}
    x = MatMul(x0, W0[8,8])
    one = MatMul(x, W1[8,1])
    f = Add(one, c[8])
    {SITE}
    y = Relu(s)
    """
    _after, report = deployed(laurel_model(text), form=form)
    assert report.forms[0].form in ("operator", "chained", "absorbed")
    assert "Bias" not in report.forms[0].operator


@pytest.mark.parametrize("form", FORMS)
def test_deploy_leaves_the_skip_when_its_map_makes_one_feature(form):
    text = f"""{TOKENS}
    one = MatMul(x0, W0[8,1])
    x = Add(one, c[8])
    f = MatMul(x0, W1[8,8])
    {SITE}
    y = Relu(s)
    """
    deployed(laurel_model(text), form=form)


def test_deploy_is_exact_when_a_sparse_constant_stands_on_the_stream():
    text = f"""{TOKENS}
    x = MatMul(x0, W0[8,8])
    f = MatMul(x, W1[8,8])
    t = ai.laurel.Laurel_RW(x, f, alpha[], beta[])
    s = Add(t, few[8])
    y = MatMul(s, W2[8,8])
    """
    model = laurel_model(text)
    value = next(t for t in model.graph.initializer if t.name == "few")
    model.graph.initializer.remove(value)
    few = numpy_helper.from_array(np.array([1, -2], np.float32), "few")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(few, numpy_helper.from_array(np.array([1, 6])), [8])
    )
    deployed(model)


def test_deploy_copies_a_weight_when_the_main_graph_and_a_subgraph_read_it():
    text = f"""(float[N,5,8] x0, bool yes) => (float[N,5,8] y, float[N,5,8] k)
    x = MatMul(x0, W[8,8])
    f = MatMul(x, W1[8,8])
    {SITE}
    y = MatMul(s, W)
    k = If (yes) <{either("float[N,5,8]", "MatMul(s, W)", "MatMul(x, W)")}>
    """
    model = laurel_model(text)
    after = copy(model)
    deploy(after)
    for yes in (True, False):
        feeds = {"x0": feeds_of(model)["x0"], "yes": np.array(yes)}
        for a, b in zip(run_onnx(after, feeds), run_onnx(model, feeds), strict=True):
            assert relative_difference(a, b) <= DEPLOY_TOLERANCE


def test_deploy_says_that_a_site_is_kept_when_it_stands_in_a_subgraph():
    text = f"""(float[N,5,8] x0, bool yes) => (float[N,5,8] y)
    f = MatMul(x0, W[8,8])
    x = Identity(x0)
    {SITE}
    y = If (yes) <{either("float[N,5,8]", "ai.laurel.Laurel_RW(s, f, alpha, beta)", "Neg(s)")}>
    """
    model = laurel_model(text)
    report = deploy(model)
    inner = report.to_dict()["sites"][1]
    assert (inner["node"], inner["alpha"], inner["form"], inner["deployed"]) == (
        "y[then_branch]/t", "kept", "operator", "Laurel_RW",
    )  # fmt: skip
    assert "subgraph" in inner["reason"]


@pytest.mark.parametrize("reader", [
    "y = Add(s, c[1,1])", "b = Relu(s)\ny = Max(b, c[])", "y = Clip(s, low[], high[])", "y = Where(mask, s, c[])",
    "t = Cast<to = 6>(s)\ny = Cast<to = 1>(t)", "y = CumSum(s, axis)", "y = Mul(s, c[5,1])", "y = Softmax(s)",
    "y = Pad(s, pads, c[])", "t = Split<axis = 2>(s, parts)\ny = Relu(t)", "y = Add(s, k)",
])  # fmt: skip
@pytest.mark.parametrize("size", ["", "8"])
def test_deploy_is_exact_when_constants_meet_the_stream(reader, size):
    reader = reader.replace("t = Split", "t, t2 = Split")
    extra = "k0 = Cast<to = 1>(three)\nk = Expand(k0, shape)\nmask = Greater(x0, zero[])"
    text = f"""(float[N,5,8] x0) => (float y)
    {extra}
    x = MatMul(x0, W0[8,8])
    f = MatMul(x, W1[8,8])
    s = ai.laurel.Laurel_RW(x, f, alpha[{size}], beta[{size}])
    {reader}
    """
    model = laurel_model(text, opset=18, weights={"low": np.array(-0.3), "high": np.array(0.9), "zero": np.array(0.0)})
    whole = {
        "three": np.array(3),
        "shape": np.array([5, 8]),
        "axis": np.array(1),
        "pads": np.array([0, 0, 1, 0, 0, 2]),
        "parts": np.array([3, 5]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in whole.items())
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    after = copy(model)
    deploy(after)
    for a, b in zip(run_onnx(after, feeds_of(model)), run_onnx(model, feeds_of(model)), strict=True):
        assert relative_difference(a, b) <= DEPLOY_TOLERANCE


HALF = """(float16[N,5,8] x0) => (float16[N,5,8] y)
x = MatMul(x0, W0[8,8])
h = MatMul(x, W1[8,8])
r = Relu(h)
f = MatMul(r, W2[8,8])
s = ai.laurel.Laurel_RW(x, f, alpha[], beta[])
g = MatMul(s, W3[8,8])
t = ai.laurel.Laurel_RW(s, g, alpha2[], beta2[])
y = MatMul(t, W4[8,8])
"""


@pytest.mark.parametrize("beta", [0.25, 1.9])
def test_deploy_stores_no_16_bit_value_larger_than_it_is_when_it_folds(beta):
    weights = {"beta": np.array(beta), "beta2": np.array(beta)}
    model = laurel_model(HALF, dtype="float16", weights=weights)
    _after, report = deployed(model, tolerance=5e-3)
    assert report.fold.scales
    assert all((np.abs(scale) >= 1 - 1e-9).all() for scale in report.fold.scales.values())


def test_deploy_keeps_a_16_bit_weight_when_its_scale_would_make_it_overflow():
    big = np.full((8, 8), 30000.0)
    weights = {"beta": np.array(2.0), "beta2": np.array(2.0), "alpha": np.array(4.0), "W4": big}
    model = laurel_model(HALF, dtype="float16", weights=weights)
    after = copy(model)
    report = deploy(after)
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in after.graph.initializer)
    assert np.array_equal(
        next(numpy_helper.to_array(t) for t in after.graph.initializer if t.name == "W4"), big.astype(np.float16)
    )
    assert any("overflow or lose digits" in site.reason for site in report.fold.sites)
    feeds = {"x0": (feeds_of(model)["x0"] * 0.01).astype(np.float16)}
    assert relative_difference(run_onnx(after, feeds)[0], run_onnx(model, feeds)[0]) <= 5e-3


def test_deploy_says_at_which_scale_values_are_stored_when_it_folds():
    text = f"""{IMAGE}
    x = Conv(x0, W0[8,8,1,1])
    f = Conv<pads = [1,1,1,1]>(x, W1[8,8,3,3])
    s = ai.laurel.Laurel_RW_2d(x, f, alpha[8], beta[8])
    r = Relu(s)
    y = Conv(r, W2[8,8,1,1])
    """
    model = with_outputs(laurel_model(text), "r")
    after, report = deployed(model)
    assert {name for name, scale in report.fold.scales.items() if scale.shape == (8, 1, 1)} > {"f"}
    names = [*report.fold.scales, *(v.name for v in after.graph.output)]
    feeds = feeds_of(model)
    now = dict(zip([*names], run_onnx(with_only(after, names), feeds), strict=True))
    shared = [name for name in names if any(name in node.output for node in model.graph.node)]
    before = dict(zip(shared, run_onnx(with_only(model, shared), feeds), strict=True))
    for name in shared:
        scale = report.fold.scales.get(name, np.ones(()))
        assert relative_difference(now[name] * scale, before[name]) <= DEPLOY_TOLERANCE


def with_only(model, names):
    """Returns a copy of *model* that gives these values alone."""
    seen = copy(model)
    del seen.graph.output[:]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return seen


@pytest.mark.parametrize("portable", [False, True])
def test_deploy_writes_what_cpus_run_when_joins_are_bfloat16(portable):
    text = f"""{TOKENS}
    a = MatMul(x0, W0[8,8])
    b = MatMul(a, W1[8,8])
    x = Cast<to = 16>(a)
    f = Cast<to = 16>(b)
    s = ai.laurel.Laurel_RW_LR(x, f, alpha, beta, A, B)
    t = Cast<to = 1>(s)
    y = MatMul(t, W2[8,8])
    """
    model = laurel_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("alpha", ()), ("beta", ()), ("A", (8, 2)), ("B", (2, 8))):
        value = np.abs(rng.normal(size=shape)).ravel()
        model.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.BFLOAT16, shape, value))
    refresh(model)
    after = copy(model)
    deploy(after, portable=portable)
    assert portable is False or not any(node.domain for node in after.graph.node)
    feeds = feeds_of(model)
    assert relative_difference(run_onnx(after, feeds)[0], run_onnx(model, feeds)[0]) <= 4e-2
