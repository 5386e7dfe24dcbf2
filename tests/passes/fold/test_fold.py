"""α and β vanish exactly, whatever reads the stream."""

import numpy as np
import onnx
import pytest
from deploy_models import DEPLOY_TOLERANCE, copy, largest_difference, laurel_model, operators, refresh

from laurel_graph.errors import RewriteError
from laurel_graph.passes.fold.fold import fold

TOKENS = "(float[N,5,8] x0) => (float[N,5,8] y)"
IMAGE = "(float[N,3,8,8] image) => (float[N,4] y)"


def folded(text, *, tolerance=DEPLOY_TOLERANCE, **options):
    model = laurel_model(text, **options)
    after = copy(model)
    report = fold(after)
    refresh(after)
    for optimize in (False, True):
        assert largest_difference(model, after, optimize) <= tolerance
    return after, report


def assert_folds_away(text, muls=0, **options):
    after, report = folded(text, **options)
    assert {site.result for site in report.sites} == {"Add"}
    assert all(site.alpha == site.beta == "folded" for site in report.sites)
    before = laurel_model(text, **{k: v for k, v in options.items() if k != "tolerance"})
    assert len(after.graph.node) == len(before.graph.node) + muls
    return after, report


PRE_NORM = """
n1 = LayerNormalization(x, g1[8], o1[8])
f1 = MatMul(n1, W1[8,8])
x1 = ai.laurel.Laurel_RW(x, f1, alpha1[{s}], beta1[{s}])
n2 = LayerNormalization(x1, g2[8], o2[8])
h2 = MatMul(n2, W2[8,8])
f2 = Add(h2, c2[8])
x2 = ai.laurel.Laurel_RW(x1, f2, alpha2[{s}], beta2[{s}])
y = LayerNormalization(x2, g3[8], o3[8])
"""


def test_fold_leaves_plain_adds_when_norms_stand_before_the_joins():
    after, report = assert_folds_away(f"{TOKENS}\nx = MatMul(x0, W0[8,8])\n" + PRE_NORM.format(s=""))
    assert report.multiplied == ()
    assert operators(after).count("Add") == 3


def test_fold_leaves_plain_adds_when_the_stream_starts_at_an_input():
    assert_folds_away(f"{TOKENS}\nx = Identity(x0)\n" + PRE_NORM.format(s=""))


def test_fold_leaves_plain_adds_when_norms_stand_behind_the_joins():
    assert_folds_away(
        f"""{TOKENS}
        f1 = MatMul(x0, W1[8,8])
        s1 = ai.laurel.Laurel_RW(x0, f1, alpha1[], beta1[])
        x1 = LayerNormalization(s1, g1[8], o1[8])
        h = Gemm<transB = 1>(r, W2[8,8], c2[8])
        shape = Shape(x1)
        f2 = Reshape(h, shape)
        flat[2] = Identity(x1)
        y = Add(f2, x1)
        """.replace("flat[2] = Identity(x1)\n", "").replace("h = Gemm", "r = Reshape(x1, to[2])\nh = Gemm"),
        weights={"to": np.array([-1, 8])},
    )


def test_fold_takes_alpha_over_beta_alone_when_norms_stand_behind_the_joins():
    text = f"""{TOKENS}
    f1 = MatMul(x0, W1[8,8])
    s1 = ai.laurel.Laurel_RW(x0, f1, alpha1[], beta1[])
    y = LayerNormalization(s1, g1[8], o1[8])
    """
    model = laurel_model(text, weights={"alpha1": np.array(0.6), "beta1": np.array(1.4)})
    after = copy(model)
    fold(after)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    now = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_allclose(now["W1"], before["W1"] * 0.6 / 1.4, rtol=1e-6)
    assert np.array_equal(now["g1"], before["g1"])
    epsilon = next(a.f for n in after.graph.node for a in n.attribute if a.name == "epsilon")
    assert epsilon == pytest.approx(1e-5 / 1.4**2)
    assert not any(name.startswith(("alpha", "beta")) for name in now)


DECOMPOSED = """
m = ReduceMean<axes = [-1]>({x})
c = Sub({x}, m)
p = Pow(c, two[])
q = ReduceMean<axes = [-1]>(p)
e = Add(q, eps[])
d = Sqrt(e)
z = Div(c, d)
w = Mul(z, g[8])
y = Add(w, o[8])
"""
RMS = """
p = Mul({x}, {x})
q = ReduceMean<axes = [-1]>(p)
e = Add(q, eps[])
d = Sqrt(e)
z = Reciprocal(d)
w = Mul({x}, z)
y = Mul(g[8], w)
"""
NUMBERS = {"two": np.array(2.0), "eps": np.array(0.1)}


@pytest.mark.parametrize("norm", [DECOMPOSED, RMS, RMS.replace("Reciprocal(d)", "Div(one[], d)")])
def test_fold_scales_epsilon_when_the_norm_is_spelled_out(norm):
    text = f"{TOKENS}\nf = MatMul(x0, W[8,8])\nx = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])\n{norm.format(x='x')}"
    after, _report = assert_folds_away(text, weights={**NUMBERS, "one": np.array(1.0), "beta": np.array(0.5)})
    epsilon = [onnx.numpy_helper.to_array(t) for t in after.graph.initializer if t.name == "eps"]
    assert epsilon[0] == pytest.approx(0.1 / 0.25)


def test_fold_reaches_an_l2_normalisation_when_it_is_spelled_out():
    assert_folds_away(
        f"""{TOKENS}
        f = MatMul(x0, W[8,8])
        x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
        n = ReduceL2<axes = [-1]>(x)
        k = Clip(n, least[])
        y = Div(x, k)
        """,
        weights={"least": np.array(2.0)},
    )


def test_fold_takes_the_step_when_the_norm_is_an_operator_of_another_kind():
    for norm in ("InstanceNormalization(x, g[4], o[4])", "GroupNormalization<num_groups = 2>(x, g[4], o[4])"):
        text = f"""(float[N,4,6,6] x0) => (float[N,4,6,6] y)
        f = Conv<pads = [1,1,1,1]>(x0, W[4,4,3,3])
        x = ai.laurel.Laurel_RW_2d(x0, f, alpha[], beta[])
        y = {norm}
        """
        assert_folds_away(text, opset=21 if "Group" in norm else 17)


RELU_NET = """
x = Conv<pads = [1,1,1,1]>(image, W0[4,3,3,3], c0[4])
r0 = Relu(x)
h1 = Conv<pads = [1,1,1,1]>(r0, W1[4,4,3,3])
f1 = BatchNormalization(h1, g1[4], o1[4], m1[4], v1[4])
s1 = ai.laurel.Laurel_RW_2d(r0, f1, alpha1[{s}], beta1[{s}])
r1 = {act}
p1 = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r1)
d = Dropout(p1)
k = Conv(d, Ws[6,4,1,1], cs[6])
h2 = Conv<pads = [1,1,1,1]>(d, W2[6,2,3,3], c2[6])
"""
RELU_NET_END = """
s2 = ai.laurel.Laurel_RW_2d(k, f2, alpha2[{s6}], beta2[{s6}])
r2 = Relu(s2)
q = Pad<mode = "constant">(r2, pads[8])
a = AveragePool<kernel_shape = [2,2]>(q)
g = GlobalAveragePool(a)
t = Flatten(g)
y = Gemm<transB = 1>(t, W4[4,6], c4[4])
"""


def relu_net(act="Relu(s1)", scalar=True, group=2):
    h2 = "f2 = Conv<pads = [1,1,1,1], group = 2>(d, W2[6,2,3,3], c2[6])\n"
    body = RELU_NET.replace("h2 = Conv<pads = [1,1,1,1]>(d, W2[6,2,3,3], c2[6])\n", h2)
    return IMAGE + (body + RELU_NET_END).format(act=act, s="" if scalar else "4", s6="" if scalar else "6")


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("act", ["Relu(s1)", "LeakyRelu<alpha = 0.2>(s1)", "PRelu(s1, slope[4,1,1])"])
def test_fold_leaves_plain_adds_when_the_net_has_relus_pools_and_convolutions(act, scalar):
    pads = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    _, report = assert_folds_away(relu_net(act, scalar), weights=pads)
    assert report.multiplied == ()


def test_fold_keeps_a_padding_that_is_not_zero():
    text = relu_net().replace('Pad<mode = "constant">(r2, pads[8])', "Pad(r2, pads[8], fill[])")
    pads = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "fill": np.array(0.7)}
    assert_folds_away(text, weights=pads)


def test_fold_takes_one_scale_per_channel_when_the_stream_ends_in_a_matmul():
    assert_folds_away(
        f"""{TOKENS}
        h = MatMul(x0, W0[8,8])
        f = Add(h, c[8])
        x = ai.laurel.Laurel_RW(x0, f, alpha[8], beta[8])
        y = MatMul(x, W1[8,8])
        """
    )


def test_fold_copies_the_weights_when_two_sites_share_them():
    after, _ = assert_folds_away(
        f"""{TOKENS}
        n1 = LayerNormalization(x0, g[8], o[8])
        f1 = MatMul(n1, W[8,8])
        x1 = ai.laurel.Laurel_RW(x0, f1, alpha1[], beta1[])
        n2 = LayerNormalization(x1, g, o)
        f2 = MatMul(n2, W)
        x2 = ai.laurel.Laurel_RW(x1, f2, alpha2[], beta2[])
        y = LayerNormalization(x2, g, o)
        """
    )
    matrices = [t for t in after.graph.initializer if list(t.dims) == [8, 8]]
    assert len(matrices) == 2
    assert len([t for t in after.graph.initializer if list(t.dims) == [8]]) == 2


def test_fold_hands_the_scale_to_every_reader_when_the_stream_has_several():
    assert_folds_away(
        f"""{TOKENS}
        f = MatMul(x0, W[8,8])
        x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
        a = MatMul(x, Wa[8,8])
        n = LayerNormalization(x, g[8], o[8])
        b = Transpose<perm = [0,2,1]>(x)
        bb = Transpose<perm = [0,2,1]>(b)
        c = MatMul(bb, Wc[8,8])
        ab = Add(a, n)
        y = Add(ab, c)
        """
    )


def test_fold_serves_both_readers_when_a_branch_has_two():
    assert_folds_away(
        f"""{TOKENS}
        f = MatMul(x0, W[8,8])
        x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
        n = LayerNormalization(x, g[8], o[8])
        r = Relu(f)
        b = MatMul(r, Wb[8,8])
        y = Add(n, b)
        """
    )


def test_fold_multiplies_once_when_the_stream_is_an_output_itself():
    after, report = folded("(float[N,5,8] x) => (float[N,5,8] x2)\n" + PRE_NORM.format(s="").rsplit("\n", 2)[0])
    assert [site.result for site in report.sites].count("Add") >= 1
    assert operators(after).count("Mul") + sum(s.beta == "kept" for s in report.sites) == 1


def test_fold_gives_an_inner_value_its_true_scale_when_it_is_an_output_too():
    text = "(float[N,5,8] x0) => (float[N,5,8] y, float[N,5,8] x1)\nx = Identity(x0)\n" + PRE_NORM.format(s="")
    after, report = folded(text)
    assert all(site.alpha == "folded" for site in report.sites)
    assert operators(after).count("Mul") <= 1
    assert [v.name for v in after.graph.output] == ["y", "x1"]


def test_fold_takes_n_ary_joins():
    assert_folds_away(
        f"""{TOKENS}
        n = LayerNormalization(x0, g[8], o[8])
        f1 = MatMul(n, W1[8,8])
        f2 = MatMul(n, W2[8,8])
        i = ai.laurel.Laurel_RW(x0, f1, alpha[], beta[])
        x = ai.laurel.Laurel_RW(i, f2, alpha, one[])
        y = LayerNormalization(x, g, o)
        """,
        weights={"one": np.array(1.0)},
    )


def test_fold_takes_the_steps_when_the_join_is_quantised():
    text = """(float[N,4] x0) => (float[N,4] y)
    xq = QuantizeLinear(x0, s0[], z[])
    x = DequantizeLinear(xq, s0, z)
    x_b = DequantizeLinear(xq, s0, z)
    W = DequantizeLinear(Wq[4,4], sw[], z)
    h = MatMul(x_b, W)
    hq = QuantizeLinear(h, s1[], z)
    f = DequantizeLinear(hq, s1, z)
    j = ai.laurel.Laurel_RW(x, f, alpha[], beta[])
    jq = QuantizeLinear(j, s2[], z)
    y = DequantizeLinear(jq, s2, z)
    """
    weights = {"z": np.array(0, np.int8), "Wq": np.random.default_rng(0).integers(-50, 50, (4, 4)).astype(np.int8)}
    weights |= {"s0": np.array(0.031), "s1": np.array(0.043), "s2": np.array(0.037), "sw": np.array(0.011)}
    after, _ = assert_folds_away(text, weights=weights, tolerance=0.037 * 1.01 / 2)
    assert operators(after).count("Mul") == 0


def test_fold_scales_the_step_of_the_weights_when_they_are_quantised():
    text = f"""{TOKENS}
    W = DequantizeLinear(Wq[8,8], sw[], z[])
    f = MatMul(x0, W)
    j = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    V = DequantizeLinear(Wq, sw, z)
    y = MatMul(j, V)
    """
    weights = {"z": np.array(0, np.int8), "Wq": np.random.default_rng(0).integers(-50, 50, (8, 8)).astype(np.int8)}
    after, _ = assert_folds_away(text, weights={**weights, "sw": np.array(0.01)})
    assert any(t.data_type == onnx.TensorProto.INT8 and list(t.dims) == [8, 8] for t in after.graph.initializer)


@pytest.mark.parametrize("variant", ["RW_LR", "RW_PA1", "RW_LR_PAL1"])
@pytest.mark.parametrize("size", ["", "8"])
def test_fold_takes_alpha_and_beta_out_when_other_parts_stay(variant, size):
    extra = {
        "RW_LR": "A[8,2], B[2,8]",
        "RW_PA1": "gamma[1], x0",
        "RW_LR_PAL1": "A[8,2], B[2,8], gamma[1], pA[1,8,2], pB[1,2,8], x0",
    }[variant]
    text = f"""{TOKENS}
    n1 = LayerNormalization(x0, g[8], o[8])
    f1 = MatMul(n1, W1[8,8])
    x1 = ai.laurel.Laurel_RW(x0, f1, alpha1[{size}], beta1[{size}])
    f2 = MatMul(x1, W2[8,8])
    x2 = ai.laurel.Laurel_{variant}(x1, f2, alpha2[{size}], beta2[{size}], {extra})
    y = MatMul(x2, W3[8,8])
    """
    _, report = folded(text)
    assert [site.result for site in report.sites] == ["Add", f"Laurel_{variant.replace('RW_', '')}"]


# What must not be folded: the twins of the above.


def kept(report):
    return [(site.alpha, site.beta) for site in report.sites]


@pytest.mark.parametrize("op", ["Gelu", "Sigmoid", "Softmax", "Tanh", "Elu", "HardSwish"])
def test_fold_keeps_beta_when_the_stream_passes_a_nonlinearity(op):
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    y = {op}(x)
    """
    _after, report = folded(text, opset=20)
    assert kept(report) == [("folded", "kept")]
    assert "seen" in report.sites[0].reason


def test_fold_keeps_the_constants_of_a_gelu_when_it_is_spelled_out():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    d = Div(x, root[])
    e = Erf(d)
    p = Add(e, one[])
    m = Mul(x, p)
    y = Mul(m, half[])
    """
    numbers = {"root": np.array(2**0.5), "one": np.array(1.0), "half": np.array(0.5)}
    after, report = folded(text, weights=numbers)
    assert kept(report) == [("folded", "kept")]
    values = {t.name: float(onnx.numpy_helper.to_array(t)) for t in after.graph.initializer if not t.dims}
    assert values["root"] == np.float32(2**0.5)
    assert values["half"] == 0.5


def test_fold_keeps_one_scale_per_channel_when_a_layer_norm_reads_the_stream():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    x = ai.laurel.Laurel_RW(x0, f, alpha[8], beta[8])
    y = LayerNormalization(x, g[8], o[8])
    """
    _, report = folded(text)
    assert kept(report) == [("folded", "kept")]


def test_fold_folds_a_uniform_vector_when_a_layer_norm_reads_the_stream():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    x = ai.laurel.Laurel_RW(x0, f, alpha[8], beta[8])
    y = LayerNormalization(x, g[8], o[8])
    """
    assert_folds_away(text, weights={"beta": np.full(8, 0.7)})


@pytest.mark.parametrize("value", [-0.5, 0.0])
def test_fold_keeps_beta_when_it_is_not_positive_and_a_relu_follows(value):
    text = """(float[N,4] x0) => (float[N,4] y)
    f = MatMul(x0, W[4,4])
    x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    r = Relu(x)
    y = MatMul(r, V[4,4])
    """
    _, report = folded(text, weights={"beta": np.array(value)})
    assert report.sites[0].beta == "kept"


def test_fold_takes_a_negative_alpha_into_linear_weights():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    y = LayerNormalization(x, g[8], o[8])
    """
    assert_folds_away(text, weights={"alpha": np.array(-0.8)})


def test_fold_keeps_alpha_when_it_is_zero():
    text = f"""{TOKENS}
    f = MatMul(x0, W[8,8])
    x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    y = LayerNormalization(x, g[8], o[8])
    """
    _, report = folded(text, weights={"alpha": np.array(0.0)})
    assert report.sites[0].alpha == "kept"
    assert "zero" in report.sites[0].reason


def test_fold_keeps_alpha_when_the_branch_ends_in_a_nonlinearity():
    text = f"""{TOKENS}
    h = MatMul(x0, W[8,8])
    f = Sigmoid(h)
    x = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
    y = LayerNormalization(x, g[8], o[8])
    """
    _, report = folded(text)
    assert sorted(kept(report)[0]) == ["folded", "kept"]


def test_fold_leaves_a_lookup_table_alone_when_the_stream_starts_there():
    text = """(int64[N,5] ids) => (float[N,5,8] y)
    x = Gather(table[9,8], ids)
    f = MatMul(x, W[8,8])
    j = ai.laurel.Laurel_RW(x, f, alpha[], beta[])
    n = LayerNormalization(j, g[8], o[8])
    y = MatMul(n, V[8,8])
    """
    model = laurel_model(text)
    after, _ = assert_folds_away(text)
    tables = [[t.raw_data for t in m.graph.initializer if t.name == "table"] for m in (model, after)]
    assert tables[0] == tables[1]


def test_fold_limits_the_scales_when_the_type_is_half():
    joins = "".join(
        f"""
        n{i} = LayerNormalization(x{i - 1}, g[8], o[8])
        f{i} = MatMul(n{i}, W{i}[8,8])
        x{i} = ai.laurel.Laurel_RW(x{i - 1}, f{i}, alpha{i}[], beta{i}[])
        """
        for i in range(1, 9)
    )
    text = f"(float16[N,5,8] x0) => (float16[N,5,8] y){joins}\ny = LayerNormalization(x8, g, o)"
    weights = {f"beta{i}": np.array(0.5) for i in range(1, 9)}
    _, report = folded(text, dtype="float16", weights=weights, tolerance=5e-3)
    assert 1 <= sum(site.beta == "kept" for site in report.sites) <= 2


def test_fold_fails_when_the_model_is_deployed_already():
    text = f"{TOKENS}\nf = MatMul(x0, W[8,8])\ny = ai.laurel.Laurel_LR_LayerNorm(x0, f, A[8,2], B[2,8], g[8], o[8])"
    with pytest.raises(RewriteError, match="deployed already"):
        fold(laurel_model(text))


def test_fold_changes_nothing_when_there_is_nothing_to_fold():
    model = laurel_model(f"{TOKENS}\nf = MatMul(x0, W[8,8])\ny = Add(x0, f)")
    before = model.SerializeToString()
    assert fold(model).sites == ()
    assert model.SerializeToString() == before
