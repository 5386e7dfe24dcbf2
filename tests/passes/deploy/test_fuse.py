"""Every form of a site is exact, and takes in what stands around it."""

import pytest
from deploy_models import (
    DEPLOY_TOLERANCE,
    copy,
    feeds_of,
    largest_difference,
    laurel_model,
    operators,
    refresh,
)
from models import run_onnx
from onnx.reference import ReferenceEvaluator
from tolerance import relative_difference

from laurel_graph.passes.deploy.choose import FORMS, fuse
from laurel_graph.passes.deploy.costs import CostModel, SiteSizes, default_costs
from laurel_graph.passes.fold.fold import fold

TOKENS = "(float[N,5,8] x0) => (float[N,5,8] y)"
IMAGE = "(float[N,8,6,6] x0) => (float[N,8,6,6] y)"


def fused(text, form, portable=False, **options):
    model = laurel_model(text, **options)
    after = copy(model)
    fold(after)
    sites = fuse(after, CostModel.only(form), portable=portable)
    refresh(after)
    for optimize in (False, True):
        assert largest_difference(model, after, optimize) <= DEPLOY_TOLERANCE
    return after, sites


KEPT = [form for form in FORMS if form not in ("absorbed", "quantized")]
BRANCHES = {
    "matmul": "f = MatMul(h, W[6,8])",
    "matmul with bias": "m = MatMul(h, W[6,8])\nf = Add(m, c[8])",
    "bias first": "m = MatMul(h, W[6,8])\nf = Add(c[8], m)",
}
PARTS = {
    "RW_LR": "alpha[], beta[], A[8,2], B[2,8]",
    "LR": "A[8,2], B[2,8]",
    "RW_PA2": "alpha[], beta[], gamma[2], p, x0",
    "RW_LR_PA2": "alpha[], beta[], A[8,2], B[2,8], gamma[2], p, x0",
    "RW_LR_PAL1": "alpha[], beta[], A[8,2], B[2,8], gamma[1], pA[1,8,2], pB[1,2,8], p",
}


@pytest.mark.parametrize("form", KEPT)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("branch", BRANCHES)
def test_fuse_is_exact_when_a_norm_follows(form, parts, branch):
    text = f"""{TOKENS}
    p = MatMul(x0, Wp[8,8])
    x = MatMul(x0, Wx[8,8])
    h = MatMul(x0, Wh[8,6])
    {BRANCHES[branch]}
    j = ai.laurel.Laurel_{parts}(x, f, {PARTS[parts]})
    y = LayerNormalization<epsilon = 0.01>(j, g[8], o[8])
    """
    after, sites = fused(text, form)
    possible = form if form != "widened" or "LR" in parts.split("_") else "chained"
    assert sites[0].form in (possible, "operator")
    if sites[0].form == "operator":
        bias = "" if branch == "matmul" else "_Bias"
        assert sites[0].operator == f"Laurel_{parts.removeprefix('RW_')}{bias}_LayerNorm"
        assert "LayerNormalization" not in operators(after)
    else:
        assert not any(node.domain for node in after.graph.node)
        assert operators(after).count("Concat") == (form == "widened" and possible == "widened")


CLIPPED = {
    "one": (1, "y = Clip(n, , top[])"),
    "first of two": (
        2,
        """f2 = MatMul(n, W2[8,8])
        j2 = ai.laurel.Laurel_LR(j, f2, A2[8,2], B2[2,8])
        n2 = LayerNormalization(j2, g2[8], o2[8])
        y = Clip(n2, , top[])""",
    ),
}


@pytest.mark.parametrize(("outputs", "behind"), CLIPPED.values(), ids=list(CLIPPED))
def test_fuse_names_no_output_that_is_not_there_when_another_node_has_an_optional_input(outputs, behind):
    text = f"""{TOKENS}
    h = MatMul(x0, Wh[8,6])
    f = MatMul(h, W[6,8])
    j = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])
    n = LayerNormalization(j, g[8], o[8])
    {behind}
    """
    after, sites = fused(text, "operator")
    assert {site.operator for site in sites} == {"Laurel_LR_LayerNorm"}
    assert {len(node.output) for node in after.graph.node if node.domain} == {outputs}
    feeds = feeds_of(after)
    (expected,) = run_onnx(after, feeds)
    (y,) = ReferenceEvaluator(after).run(None, feeds)
    assert relative_difference(y, expected) <= DEPLOY_TOLERANCE


@pytest.mark.parametrize("form", KEPT)
@pytest.mark.parametrize("parts", PARTS)
def test_fuse_is_exact_when_channels_are_on_axis_one(form, parts):
    text = f"""{IMAGE}
    p = Conv(x0, Wp[8,8,1,1])
    x = Conv(x0, Wx[8,8,1,1])
    r = Conv(x0, Wh[6,8,1,1])
    h = Relu(r)
    f = Conv(h, W[8,6,1,1], c[8])
    j = ai.laurel.Laurel_{parts.replace("_PA", "_PA")}_2d(x, f, {PARTS[parts]})
    y = Relu(j)
    """
    after, sites = fused(text, form)
    if sites[0].form == "operator":
        assert sites[0].operator.endswith("_2d_Relu")
        assert operators(after).count("Relu") == 1
    else:
        assert set(operators(after)) <= {"Conv", "Relu", "Add", "Concat"}


def test_fuse_widens_a_gemm_when_its_weights_are_transposed():
    text = """(float[N,8] x0) => (float[N,8] y)
    h = Relu(x0)
    f = Gemm<transB = 1>(h, W[8,8], c[8])
    y = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])
    """
    after, sites = fused(text, "widened")
    assert sites[0].form == "widened"
    assert "Gemm" in operators(after)


@pytest.mark.parametrize(
    "branch",
    [
        "f = Conv<pads = [1,1,1,1]>(h, W[8,8,3,3])",
        "f = Conv<group = 2>(h, W[8,4,1,1])",
        "f = Conv(h, W[8,8,1,1])\nextra = Sigmoid(f)",
        "k = Conv(h, W[8,8,1,1])\nf = Relu(k)",
    ],
)
def test_fuse_does_not_widen_when_the_branch_gives_no_room(branch):
    outputs = ", float[N,8,6,6] extra" if "extra" in branch else ""
    text = f"""(float[N,8,6,6] x0) => (float[N,8,6,6] y{outputs})
    h = Relu(x0)
    {branch}
    y = ai.laurel.Laurel_LR_2d(x0, f, A[8,2], B[2,8])
    """
    _, sites = fused(text, "widened")
    assert sites[0].form != "widened"
    assert "widened" not in sites[0].costs


SKIPS = {
    "convolution": "x = Conv(x0, Ws[8,8,1,1])",
    "wide strided convolution": "x = Conv<pads = [1,1,1,1], strides = [2,2]>(x0, Ws[8,8,3,3], e[8])",
    "convolution and norm": "q = Conv(x0, Ws[8,8,1,1])\nx = BatchNormalization(q, g[8], o[8], u[8], v[8])",
    "biased convolution and norm": "q = Conv(x0, Ws[8,8,1,1], e[8])\nx = BatchNormalization(q, g[8], o[8], u[8], v[8])",
}


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("parts", ["LR", "RW_LR", "RW_LR_PA2"])
@pytest.mark.parametrize("skip", SKIPS)
def test_fuse_absorbs_the_low_rank_part_when_the_skip_ends_in_a_convolution(skip, parts, portable):
    strides = ", strides = [2,2]" if "strided" in skip else ""
    text = f"""(float[N,8,6,6] x0) => (float[N,8,h,w] y)
    p = Conv<pads = [0,0,0,0]{strides}>(x0, Wp[8,8,1,1])
    f = Conv<pads = [0,0,0,0]{strides}>(x0, W[8,8,1,1], c[8])
    {SKIPS[skip]}
    j = ai.laurel.Laurel_{parts}_2d(x, f, {PARTS[parts].replace("p, x0", "p, p") if "PA" in parts else PARTS[parts]})
    y = Relu(j)
    """
    after, sites = fused(text, "absorbed", portable=portable)
    assert sites[0].form == "absorbed"
    assert "_LR" not in sites[0].operator
    assert "BatchNormalization" not in operators(after)
    if "PA" not in parts:
        assert sorted(operators(after)) == ["Add", "Conv", "Conv", "Relu"]


@pytest.mark.parametrize(
    "skip",
    [
        "x = MatMul(x0, Ws[8,8])",
        "m = MatMul(x0, Ws[8,8])\nx = Add(e[8], m)",
        "x = Gemm(x0, Ws[8,8], e[8])",
        "x = Gemm<transB = 1>(x0, Ws[8,8], e[1])",
        "x = Gemm<transB = 1>(x0, Ws[8,8])",
    ],
)
def test_fuse_absorbs_the_low_rank_part_when_the_skip_ends_in_a_linear_layer(skip):
    text = f"""(float[N,8] x0) => (float[N,8] y)
    h = Relu(x0)
    f = MatMul(h, W[8,8])
    {skip}
    y = ai.laurel.Laurel_RW_LR(x, f, alpha[], beta[], A[8,2], B[2,8])
    """
    after, sites = fused(text, "absorbed")
    assert sites[0].form == "absorbed"
    assert not any(node.domain for node in after.graph.node)


@pytest.mark.parametrize(
    "skip",
    [
        "x = Relu(x0)",
        "x = Conv(x0, Ws[8,8,1,1])\ns = Sigmoid(x)",
        "x = Conv<group = 2>(x0, Ws[8,4,1,1])",
        "q = Conv(x0, Ws[8,8,1,1])\nx = BatchNormalization(q, g[8], o[8], u[8], v[8])\ns = Sigmoid(q)",
        "q = Conv(x0, Ws[8,8,1,1])\nx = Relu(q)",
        "x = Conv(x0, x1)",
    ],
)
def test_fuse_absorbs_nothing_when_the_skip_gives_no_room(skip):
    more = ", float[N,8,6,6] s" if "s = " in skip else ""
    text = f"""(float[N,8,6,6] x0, float[8,8,1,1] x1) => (float[N,8,6,6] y{more})
    f = Conv(x0, W[8,8,1,1])
    {skip}
    y = ai.laurel.Laurel_LR_2d(x, f, A[8,2], B[2,8])
    """
    _, sites = fused(text, "absorbed")
    assert sites[0].form != "absorbed"
    assert "absorbed" not in sites[0].costs


def test_fuse_absorbs_nothing_when_the_skip_is_an_earlier_activation_of_another_site():
    text = f"""{TOKENS}
    x = MatMul(x0, Ws[8,8])
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_LR(x, f, A[8,2], B[2,8])
    h = MatMul(j, V[8,8])
    y = ai.laurel.Laurel_PA1(j, h, gamma[1], x)
    """
    _, sites = fused(text, "absorbed")
    assert sites[0].form != "absorbed"


def test_fuse_leaves_shared_weights_alone_when_it_absorbs():
    text = f"""{TOKENS}
    x = MatMul(x0, Ws[8,8])
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_LR(x, f, A[8,2], B[2,8])
    y = MatMul(j, Ws)
    """
    _, sites = fused(text, "absorbed")
    assert sites[0].form == "absorbed"


def test_fuse_keeps_the_sum_when_others_read_it_too():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])
    n = LayerNormalization(j, g[8], o[8])
    k = MatMul(n, V[8,8])
    y = Add(j, k)
    """
    after, sites = fused(text, "operator")
    assert sites[0].operator == "Laurel_LR_LayerNorm"
    node = next(node for node in after.graph.node if node.domain)
    assert list(node.output) == ["n", "j"]


def test_fuse_takes_no_norm_in_when_two_norms_read_the_join():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])
    n = LayerNormalization(j, g[8], o[8])
    m = LayerNormalization(j, o, g)
    y = Add(n, m)
    """
    _, sites = fused(text, "operator")
    assert sites[0].operator == "Laurel_LR"


def test_fuse_takes_no_bias_in_when_others_read_the_branch():
    text = f"""{TOKENS}
    m = MatMul(x0, W[8,8])
    f = Add(m, c[8])
    j = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])
    s = Sigmoid(f)
    y = Add(j, s)
    """
    _, sites = fused(text, "operator")
    assert sites[0].operator == "Laurel_LR"


@pytest.mark.parametrize("square", ["Mul(j, j)", "Pow(j, two[])"])
def test_fuse_takes_a_spelled_out_rms_norm_in(square):
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_RW_LR(x0, f, alpha[], beta[], A[8,2], B[2,8])
    p = {square}
    q = ReduceMean<axes = [-1]>(p)
    e = Add(q, eps[])
    d = Sqrt(e)
    z = Div(one[], d)
    w = Mul(j, z)
    y = Mul(w, g[8])
    """
    numbers = {"two": 2.0, "eps": 0.1, "one": 1.0}
    after, sites = fused(text, "operator", weights=numbers)
    assert sites[0].operator == "Laurel_LR_RMSNorm"
    assert operators(after) == ["MatMul", "Laurel_LR_RMSNorm"]


def test_fuse_takes_a_spelled_out_layer_norm_in():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_RW_LR(x0, f, alpha[], beta[], A[8,2], B[2,8])
    m = ReduceMean<axes = [-1]>(j)
    c = Sub(j, m)
    p = Pow(c, two[])
    q = ReduceMean<axes = [-1]>(p)
    e = Add(q, eps[])
    d = Sqrt(e)
    z = Div(c, d)
    w = Mul(z, g[8])
    y = Add(w, o[8])
    """
    after, sites = fused(text, "operator", opset=13, weights={"two": 2.0, "eps": 0.1})
    assert sites[0].operator == "Laurel_LR_LayerNorm"
    assert operators(after) == ["MatMul", "Laurel_LR_LayerNorm"]


def test_fuse_leaves_a_norm_alone_when_an_inner_value_is_an_output():
    text = """(float[N,5,8] x0) => (float[N,5,8] y, float[N,5,1] q)
    f = MatMul(x0, W[8,8])
    j = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])
    p = Mul(j, j)
    q = ReduceMean<axes = [-1]>(p)
    e = Add(q, eps[])
    d = Sqrt(e)
    z = Div(j, d)
    y = Mul(z, g[8])
    """
    _, sites = fused(text, "operator", weights={"eps": 0.1})
    assert sites[0].operator == "Laurel_LR"


def test_fuse_never_keeps_an_operator_when_the_file_must_be_portable():
    text = f"{TOKENS}\nf = MatMul(x0, W[8,8])\ny = ai.laurel.Laurel_LR(x0, f, A[8,2], B[2,8])"
    after, sites = fused(text, "operator", portable=True)
    assert sites[0].form != "operator"
    assert not any(node.domain for node in after.graph.node)


def test_costs_know_every_form_of_both_layouts():
    for channels in (True, False):
        place = SiteSizes(channels, rows=196, width=512, branch=128, rank=16)
        assert all(default_costs().cost(form, place) < 1e9 for form in KEPT)


def test_costs_survive_a_round_trip():
    costs = default_costs()
    assert CostModel.from_rows(costs.to_rows()).rows == costs.rows
