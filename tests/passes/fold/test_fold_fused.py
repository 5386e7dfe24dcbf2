"""Scales pass what exporters and ONNX Runtime's optimiser write: fused products, quantised ones, attention."""

import numpy as np
import onnx
import pytest
from deploy_models import DEPLOY_TOLERANCE, copy, largest_difference, laurel_model, operators, refresh, refusing

from laurel_graph.errors import RewriteError
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.fold.fold import fold
from laurel_graph.passes.standard.serving import Fold

TOKENS = "(float[N,5,8] x0) => (float[N,5,8] y)"
ROWS = "(float[N,8] x0) => (float[N,8] y)"
IMAGE = "(float[N,4,6,6] x0) => (float[N,4,6,6] y)"


def folded(text, *, tolerance=DEPLOY_TOLERANCE, **options):
    """Folds a graph with operators of ONNX Runtime's own and compares it with itself before."""
    model = laurel_model(text, **options)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    after = copy(model)
    report = fold(after)
    refresh(after)
    for optimize in (False, True):
        assert largest_difference(model, after, optimize) <= tolerance
    return model, after, report


def assert_folds_away(text, **options):
    model, after, report = folded(text, **options)
    assert all(site.alpha == site.beta == "folded" and site.result == "Add" for site in report.sites), report.sites
    assert report.multiplied == ()
    assert len(after.graph.node) == len(model.graph.node)
    return after


def assert_stays(text, **options):
    """Something of α and β is left, and all outputs are right."""
    model, after, report = folded(text, **options)
    kept = any("kept" in (site.alpha, site.beta) for site in report.sites)
    assert kept or len(after.graph.node) > len(model.graph.node)
    return report


def join(branch, tail="y = MatMul(x, Wy[8,8])", head=TOKENS, size=""):
    return f"{head}\n{branch}\nx = ai.laurel.Laurel_RW(x0, f, alpha[{size}], beta[{size}])\n{tail}"


LINEAR = {
    "FusedMatMul": "com.microsoft.FusedMatMul<alpha = 0.5>({x}, W[8,8])",
    "FusedMatMul-transB": "com.microsoft.FusedMatMul<alpha = 2.0, transB = 1>({x}, W[8,8])",
    "Einsum": 'Einsum<equation = "nth,oh->nto">({x}, W[8,8])',
    "Einsum-left": 'Einsum<equation = "oh,nth->nto">(W[8,8], {x})',
}


@pytest.mark.parametrize("size", ["", "8"])
@pytest.mark.parametrize("kind", LINEAR)
def test_fold_leaves_a_plain_add_when_products_are_fused(kind, size):
    tail = "y = " + LINEAR[kind].format(x="x").replace("W[8,8]", "V[8,8]")
    assert_folds_away(join("f = " + LINEAR[kind].format(x="x0"), tail, size=size))


def test_fold_splits_a_product_of_two_values_when_it_is_fused():
    tail = """q = com.microsoft.FusedMatMul<alpha = 0.3, transB = 1>(x, x)
    p = Softmax<axis = -1>(q)
    y = MatMul(p, x0)"""
    assert_stays(join("f = MatMul(x0, W[8,8])", tail))


@pytest.mark.parametrize("activation", ['activation = "Relu"', 'activation = "LeakyRelu", activation_alpha = 0.1'])
def test_fold_leaves_a_plain_add_when_a_gemm_has_its_activation(activation):
    branch = f"f = com.microsoft.FusedGemm<{activation}, transB = 1>(x0, W[8,8], b[8])"
    tail = f"y = com.microsoft.FusedGemm<{activation}, alpha = 0.7, beta = 0.4>(x, V[8,8], c[8])"
    for size in ("", "8"):
        assert_folds_away(join(branch, tail, head=ROWS, size=size))


@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid"])
def test_fold_keeps_alpha_when_the_activation_of_a_gemm_does_not_pass_it(activation):
    branch = f'f = com.microsoft.FusedGemm<activation = "{activation}">(x0, W[8,8], b[8])'
    report = assert_stays(join(branch, head=ROWS))
    assert report.sites[0].alpha == "kept"
    tail = f'y = com.microsoft.FusedGemm<activation = "{activation}">(x, V[8,8], c[8])'
    assert_folds_away(join("f = Gemm(x0, W[8,8], b[8])", tail, head=ROWS))


CONVS = """{head}
f = com.microsoft.FusedConv<pads = [1,1,1,1], activation = "{one}">(x0, W[4,4,3,3], b[4])
x = ai.laurel.Laurel_RW_2d(x0, f, alpha[{s}], beta[{s}])
h = com.microsoft.FusedConv<activation = "Relu">(x, V[4,4,1,1], c[4])
g = com.microsoft.FusedConv<pads = [1,1,1,1], activation = "Relu">(h, U[4,4,3,3], d[4]{z})
y = com.microsoft.FusedConv<activation = "{two}">(g, T[4,4,1,1], e[4])
"""


@pytest.mark.parametrize("z", ["", ", h"])
@pytest.mark.parametrize("size", ["", "4"])
def test_fold_leaves_a_plain_add_when_convolutions_have_their_activations(size, z):
    assert_folds_away(CONVS.format(head=IMAGE, one="Relu", two="Sigmoid", s=size, z=z))


def test_fold_keeps_alpha_when_the_activation_of_a_convolution_does_not_pass_it():
    assert_stays(CONVS.format(head=IMAGE, one="Tanh", two="Relu", s="", z=""))


def test_fold_keeps_a_negative_alpha_when_the_activation_passes_positive_scales_alone():
    text = CONVS.format(head=IMAGE, one="Relu", two="Relu", s="", z="")
    assert_stays(text, weights={"alpha": np.array(-0.7)})


def packed(columns, rows, block, bits=4, seed=0):
    """Returns packed weights, steps and zero points of a MatMulNBits."""
    rng, blocks = np.random.default_rng(seed), rows // block
    return {
        "B": rng.integers(0, 256, (columns, blocks, block * bits // 8), np.uint8),
        "S": rng.uniform(0.01, 0.02, (columns, blocks)).astype(np.float32),
        "Z": rng.integers(0, 256, (columns, (blocks * bits + 7) // 8), np.uint8),
    }


WIDE = "(float[N,5,32] x0) => (float[N,5,32] y)"
NBITS = "com.microsoft.MatMulNBits<K = 32, N = 32, bits = 4, block_size = 16>({x}, B{i}[1], S{i}[1], Z{i}[1])"


@pytest.mark.parametrize("size", ["", "32"])
def test_fold_scales_the_steps_when_the_weights_have_four_bits(size):
    weights = {f"{k}{i}": v for i in (1, 2) for k, v in packed(32, 32, 16, seed=i).items()}
    branch, tail = "f = " + NBITS.format(x="x0", i=1), "y = MatMul(x, Wy[32,32])"
    after = assert_folds_away(join(branch, tail, head=WIDE, size=size), weights=weights)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    assert np.array_equal(held["Z1"], weights["Z1"]) and np.array_equal(held["B1"], weights["B1"])
    if not size:
        tail = "y = " + NBITS.format(x="x", i=2)
        assert_folds_away(join(branch, tail, head=WIDE), weights=weights)
    else:
        assert_stays(join(branch, "y = " + NBITS.format(x="x", i=2), head=WIDE, size=size), weights=weights)


DYNAMIC = "{out} = com.microsoft.DynamicQuantizeMatMul({x}, W{i}[8,8], s{i}[{n}], z{i}[{n}], b{i}[8])\n"
CHAIN = """q{i}, e{i}, o{i} = DynamicQuantizeLinear({x})
m{i} = MatMulInteger(q{i}, W{i}[8,8], o{i}, z{i}[{n}])
k{i} = Cast<to = 1>(m{i})
t{i} = Mul(e{i}, s{i}[{n}])
{out} = Mul(k{i}, t{i})
"""
FLOAT = """q{i}, e{i}, o{i} = DynamicQuantizeLinear({x})
{out} = com.microsoft.MatMulIntegerToFloat(q{i}, W{i}[8,8], e{i}, s{i}[{n}], o{i}, z{i}[{n}], b{i}[8])
"""


def eight_bits(n):
    rng = np.random.default_rng(3)
    shape = (n,) if n else ()
    weights = {f"W{i}": rng.integers(0, 256, (8, 8), np.uint8) for i in (1, 2)}
    weights |= {f"s{i}": rng.uniform(0.002, 0.004, shape) for i in (1, 2)}
    return weights | {f"z{i}": np.full(shape, 128, np.uint8) for i in (1, 2)}


@pytest.mark.parametrize("n", ["", "8"])
@pytest.mark.parametrize("form", [DYNAMIC, CHAIN, FLOAT])
def test_fold_scales_the_steps_of_the_weights_when_values_are_quantised_as_they_come(form, n):
    text = join(form.format(x="x0", out="f", i=1, n=n), form.format(x="x", out="y", i=2, n=n))
    after = assert_folds_away(text, weights=eight_bits(8 if n else 0))
    assert [t.name for t in after.graph.initializer if t.data_type == onnx.TensorProto.UINT8] == [
        "W1",
        "z1",
        "W2",
        "z2",
    ]


def test_fold_keeps_beta_when_it_is_negative_and_the_value_is_quantised_as_it_comes():
    text = join("f = MatMul(x0, V[8,8])", DYNAMIC.format(x="x", out="y", i=2, n=""))
    assert_stays(text, weights={**eight_bits(0), "beta": np.array(-0.8)})


def test_fold_takes_no_scale_from_a_shape():
    tail = """w = Shape(x)
    t = Reshape(x, w)
    y = MatMul(t, Wy[8,8])"""
    assert_folds_away(join("f = MatMul(x0, W[8,8])", tail))
    assert_folds_away(
        join("f = MatMul(x0, W[8,8])", "n = Size(x)\nm = Cast<to = 1>(n)\nh = MatMul(x, Wy[8,8])\ny = Mul(h, m)")
    )


def test_fold_takes_the_place_of_the_largest_when_all_channels_have_one_scale():
    tail = "i = ArgMax<axis = -1>(x)\nj = Cast<to = 1>(i)\nh = MatMul(x, Wy[8,8])\ny = Add(h, j)"
    assert_folds_away(join("f = MatMul(x0, W[8,8])", tail))
    assert_stays(join("f = MatMul(x0, W[8,8])", tail, size="8"))
    assert_stays(join("f = MatMul(x0, W[8,8])", tail), weights={"beta": np.array(-0.8)})


@pytest.mark.parametrize(
    "gelu", ["BiasGelu({h}, b[8])", "FastGelu({h}, b[8])", "QuickGelu<alpha = 1.7>({h})", "Gelu({h})"]
)
def test_fold_stops_before_a_gelu_and_not_behind_it(gelu):
    gelu = "com.microsoft." + gelu
    branch = f"h = MatMul(x0, W[8,8])\ng = {gelu.format(h='h')}\nf = MatMul(g, W2[8,8])"
    tail = f"k = MatMul(x, V[8,8])\nl = {gelu.format(h='k').replace('b[8]', 'c[8]')}\ny = MatMul(l, V2[8,8])"
    after = assert_folds_away(join(branch, tail))
    held = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in laurel_model(join(branch, tail)).graph.initializer}
    assert all(np.array_equal(held[name], before[name]) for name in ("b", "c", "W") if name in held)
    report = assert_stays(join(f"f = {gelu.format(h='x0')}", tail))
    assert report.sites[0].alpha == "kept"


ATTENTION = "com.microsoft.Attention<num_heads = 2>({x}, W{i}[8,24], b{i}[24])"


@pytest.mark.parametrize("size", ["", "8"])
def test_fold_scales_the_values_alone_when_attention_is_one_operator(size):
    after = assert_folds_away(
        join("f = " + ATTENTION.format(x="x0", i=1), "y = " + ATTENTION.format(x="x", i=2), size=size)
    )
    held = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    model = laurel_model(join("f = " + ATTENTION.format(x="x0", i=1), "y = " + ATTENTION.format(x="x", i=2), size=size))
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(held["b1"][:16], before["b1"][:16]) and not np.array_equal(held["b1"][16:], before["b1"][16:])


def test_fold_keeps_the_values_when_attention_hands_them_on():
    head = "(float[N,5,8] x0, float[2,N,2,3,4] old) => (float[N,5,8] y, float[2,N,2,8,4] new)"
    branch = "f, new = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(x0, W[8,24], b[24], , old)"
    assert_stays(join(branch, head=head))


def three(attention, x, i, wide=8):
    return f"""q{i} = MatMul({x}, Wq{i}[{wide},{wide}])
    k{i} = MatMul({x}, Wk{i}[{wide},8])
    v{i} = MatMul({x}, Wv{i}[{wide},8])
    """ + attention.format(q=f"q{i}", k=f"k{i}", v=f"v{i}", b=f"b{i}")


MULTI = "com.microsoft.MultiHeadAttention<num_heads = 2>({q}, {k}, {v}, {b}[24])"


@pytest.mark.parametrize("size", ["", "8"])
def test_fold_scales_the_values_when_attention_has_three_inputs(size):
    branch = three("f = " + MULTI, "x0", 1)
    assert_folds_away(join(branch, three("y = " + MULTI, "x", 2), size=size))


def test_fold_keeps_the_values_when_somebody_reads_the_cache():
    head = "(float[N,5,8] x0) => (float[N,5,8] y, float[N,2,5,4] pk, float[N,2,5,4] pv)"
    branch = three("f, pk, pv = " + MULTI, "x0", 1)
    assert_stays(join(branch, head=head))


GROUPED = "com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 1>({q}, {k}, {v}, , , last[1], total[])"
HEADS = {"last": np.array([4], np.int32), "total": np.array(5, np.int32)}


def test_fold_scales_the_values_when_heads_share_them():
    head = "(float[1,5,16] x0) => (float[1,5,16] y)"
    branch, end = three("f, pk1, pv1 = " + GROUPED, "x0", 1, 16), "y = MatMul(x, Wy[16,16])"
    assert_folds_away(join(branch, three("y, pk2, pv2 = " + GROUPED, "x", 2, 16), head=head), weights=HEADS)
    assert_stays(join(branch, end, head=head, size="16"), weights=HEADS)
    seen = "(float[1,5,16] x0) => (float[1,5,16] y, float[1,1,5,8] pv1)"
    assert_stays(join(branch, end, head=seen), weights=HEADS)


def test_fold_scales_the_step_when_a_norm_holds_the_sum():
    tail = """f2 = MatMul(x, W2[8,8])
    n, , , s = com.microsoft.SkipLayerNormalization<epsilon = 0.1>(x, f2, g[8], o[8], b[8])
    t = MatMul(s, V[8,8])
    y = Add(n, t)"""
    assert_folds_away(join("f = MatMul(x0, W[8,8])", tail))
    assert_stays(join("f = MatMul(x0, W[8,8])", tail, size="8"))
    tail = (
        "f2 = MatMul(x, W2[8,8])\ny = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.1>(x, f2, g[8], b[8])"
    )
    assert_folds_away(join("f = MatMul(x0, W[8,8])", tail))


@pytest.mark.parametrize("kind, inputs", [("SkipLayerNormalization", "g[8], o[8], b[8]"), ("SkipSimplified", "g[8]")])
def test_fold_takes_the_operator_s_own_epsilon_when_a_norm_that_holds_the_sum_states_none(kind, inputs):
    kind = kind if kind.endswith("Normalization") else f"{kind}LayerNormalization"
    tail = f"f2 = MatMul(x, W2[8,8])\ny = com.microsoft.{kind}(x, f2, {inputs})"
    small = {"alpha": np.asarray(1e-3), "beta": np.asarray(2e-3), "b": np.zeros(8)}
    assert_folds_away(join("f = MatMul(x0, W[8,8])", tail), weights=small)


def test_fold_takes_alpha_when_a_branch_ends_in_a_norm():
    for norm, opset in [
        ("InstanceNormalization(h, g[4], o[4])", 17),
        ("GroupNormalization<num_groups = 2>(h, g[4], o[4])", 21),
    ]:
        text = f"""{IMAGE}
        h = Relu(x0)
        f = {norm}
        x = ai.laurel.Laurel_RW_2d(x0, f, alpha[], beta[])
        y = Conv(x, V[4,4,1,1])"""
        assert_folds_away(text, opset=opset)
    assert_folds_away(join("h = Tanh(x0)\nf = LayerNormalization(h, g[8], o[8])", size="8"))


BRANCHES = {
    "FusedMatMul": ("f = com.microsoft.FusedMatMul(x0, W[8,8])", "W", {}),
    "Einsum": ('f = Einsum<equation = "nth,ho->nto">(x0, W[8,8])', "W", {}),
    "Attention": ("f = com.microsoft.Attention<num_heads = 2>(x0, W[8,24], b[24])", "W", {}),
    "DynamicQuantizeMatMul": (DYNAMIC.format(x="x0", out="f", i=1, n=""), "s1", eight_bits(0)),
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_fold_keeps_alpha_when_a_run_may_be_given_other_weights(kind):
    branch, weight, weights = BRANCHES[kind]
    model = laurel_model(join(branch), weights=weights)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight, tensor.data_type, list(tensor.dims)))
    after = copy(model)
    report = fold(after)
    assert report.sites[0].alpha == "kept" or report.multiplied
    held = {t.name: t for t in after.graph.initializer}
    assert held[weight] == tensor


@pytest.mark.parametrize("kind", BRANCHES)
def test_fold_gives_every_reader_its_true_value_when_a_branch_has_two_or_is_an_output(kind):
    branch, _, weights = BRANCHES[kind]
    tail = "t = Tanh(f)\nh = MatMul(x, Wy[8,8])\ny = Add(h, t)"
    assert_stays(join(branch, tail), weights=weights)
    head = "(float[N,5,8] x0) => (float[N,5,8] y, float[N,5,8] f)"
    assert_stays(join(branch, head=head), weights=weights)


def test_fold_keeps_what_float_zero_points_mean_when_the_weights_have_four_bits():
    weights = {f"{k}1": v for k, v in packed(32, 32, 16).items()}
    weights["Z1"] = np.random.default_rng(5).uniform(6, 9, (32, 2))
    assert_folds_away(join("f = " + NBITS.format(x="x0", i=1), "y = MatMul(x, Wy[32,32])", head=WIDE), weights=weights)


@pytest.mark.parametrize("kind", BRANCHES)
def test_fold_copies_weights_when_two_layers_share_them(kind):
    branch, weight, weights = BRANCHES[kind]
    other = branch.replace("[8,8]", "").replace("[8,24]", "").replace("[24]", "").replace("[8]", "").replace("[]", "")
    other = other.replace("f = ", "u = ")
    tail = f"{other}\nh = MatMul(x, Wy[8,8])\ny = Add(h, u)"
    after = assert_folds_away(join(branch, tail), weights=weights)
    assert weight in {name for node in after.graph.node for name in node.input}


def test_fold_stays_in_range_when_the_type_is_half():
    text = join("f = com.microsoft.FusedMatMul(x0, W[8,8])").replace("float[", "float16[")
    _, after, report = folded(
        text, dtype="float16", tolerance=4e-3, weights={"alpha": np.array(1.3), "beta": np.array(1e-4)}
    )
    assert report.sites[0].beta == "kept" or report.multiplied
    assert operators(after)


@pytest.mark.parametrize("form", [DYNAMIC, CHAIN, FLOAT])
def test_fold_keeps_beta_when_values_that_are_quantised_as_they_come_must_stay(form):
    text = join("f = MatMul(x0, V[8,8])", form.format(x="x", out="y", i=2, n=""))
    model = laurel_model(text, weights=eight_bits(0))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert fold(copy(model)).sites[0].beta == "folded"
    after = copy(model)
    report = fold(after, rescale="unquantised")
    assert "kept" in (report.sites[0].alpha, report.sites[0].beta)
    refresh(after)
    assert largest_difference(model, after) <= DEPLOY_TOLERANCE


@pytest.mark.parametrize(("fails", "note"), [(1, "quantised as they come keep"), (2, "nothing is folded")])
def test_deploy_folds_less_when_a_value_that_is_quantised_as_it_comes_was_rounded_otherwise(
    fails, note, tmp_path, monkeypatch
):
    text = join("f = MatMul(x0, V[8,8])", DYNAMIC.format(x="x", out="y", i=2, n=""))
    model = laurel_model(text, weights=eight_bits(0))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    calls = refusing(monkeypatch, fails)
    report = deploy_file(tmp_path / "m.onnx", tmp_path / "d.onnx")
    assert len(calls) == fails + 1 and note in report.notes[-1]
    assert report.notes[-1].endswith("It was: an integer has moved")
    assert "kept" in (report.fold.sites[0].alpha, report.fold.sites[0].beta)


def test_fold_scales_the_values_when_attention_is_onnx_own():
    attention = "Attention<q_num_heads = 2, kv_num_heads = 2>({q}, {k}, {v})"
    branch = three("f = " + attention, "x0", 1)
    assert_folds_away(join(branch, three("y = " + attention, "x", 2)), opset=23)
    report = assert_stays(join(branch, size="8"), opset=23)
    assert report.sites[0].alpha == "kept"


def test_fold_is_refused_when_what_it_may_rescale_is_no_choice():
    with pytest.raises(RewriteError, match="rescale='some' is not known: expected one of all, unquantised, nothing"):
        Fold("some")
