import json

import numpy as np
import onnx
import pytest
from models import image_net, onnx_text, run_onnx, token_net
from onnx import TensorProto, helper, numpy_helper
from tolerance import assert_close

from laurel_graph import onnx_file
from laurel_graph.config import VARIANTS, LaurelConfig, SiteSpec
from laurel_graph.detection import Residual, SitePlan
from laurel_graph.errors import ModelError, RewriteError
from laurel_graph.fingerprint.digest import digest
from laurel_graph.formula import residual
from laurel_graph.opset.schema import DOMAIN, read_metadata, read_specs
from laurel_graph.passes.rewrite.onnx import insert
from laurel_graph.passes.rewrite.restore import remove

CONFIG = LaurelConfig()


def plan(skip, branches, joins, variant="rw+lr", site="a.res1", previous=(), after=(), **spec):
    """A plan by hand; *after* are the sites whose skips *previous* names."""
    branches, joins = ([v] if isinstance(v, str) else list(v) for v in (branches, joins))
    low_rank = "lr" in variant or spec.get("previous_map") == "low-rank"
    spec = {"axis": -1, "width": 8, "ndim": 3, "rank": 2 if low_rank else 0, **spec}
    found = Residual(
        site, "identity", skip, tuple(branches), joins[-1], tuple(joins), spec["axis"], spec["width"], None, None,
        previous=tuple(after),
    )  # fmt: skip
    previous = tuple(previous) if "pa" in variant else ()
    return SitePlan(found, SiteSpec(site=site, variant=variant, previous=len(previous), **spec), previous)


def token_plans(variant="rw+lr", layers=3, **spec):
    skips = ["x", *(f"y{i}" for i in range(1, layers))]
    plans = []
    for i, skip in enumerate(skips):
        earlier = tuple(reversed(skips[:i]))[:2]
        own = variant if earlier else variant.replace("+pa", "").replace("pa", "rw")
        plans.append(plan(skip, f"h{i + 1}", f"y{i + 1}", own, f"block{i}.res1", earlier, **spec))
    return plans


def image_plans(variant="rw+lr", **spec):
    skips = ["x", "r1", "r2"]
    plans = []
    for i, skip in enumerate(skips):
        earlier = tuple(reversed(skips[:i]))
        own = variant if earlier else variant.replace("+pa", "").replace("pa", "rw")
        plans.append(plan(skip, f"h{i + 1}", f"y{i + 1}", own, f"b.{i}", earlier, axis=1, ndim=4, **spec))
    return plans


def copy_of(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def transformed(model, plans, **options):
    """A rewritten copy that has been checked for what every rewriting must keep."""
    new = copy_of(model)
    insert(new, plans, CONFIG, **options)
    onnx.checker.check_model(new, full_check=True)
    assert digest(new) == digest(model)
    ours = {node.name for node in new.graph.node if node.domain == DOMAIN}
    joins = {key for p in plans for key in p.residual.joins}
    old_nodes = {node.output[0]: node for node in model.graph.node}
    for node in new.graph.node:
        if not joins & set(node.output) and not node.output[0].startswith("laurel."):
            assert node == old_nodes[node.output[0]]
    assert list(new.graph.initializer)[: len(model.graph.initializer)] == list(model.graph.initializer)
    assert list(new.graph.input)[: len(model.graph.input)] == list(model.graph.input)
    for name in ("output", "value_info", "sparse_initializer"):
        assert list(getattr(new.graph, name)) == list(getattr(model.graph, name))
    assert list(new.opset_import)[: len(model.opset_import)] == list(model.opset_import)
    assert len(ours) == len(set(ours))
    back = copy_of(new)
    remove(back)
    assert back.SerializeToString() == model.SerializeToString()
    return new


def random_parameters(model, seed=0):
    """Puts random values into every LAuReL tensor; returns them by name."""
    rng = np.random.default_rng(seed)
    values = {}
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel.") and not tensor.name.endswith(".one"):
            value = rng.uniform(-1, 1, tuple(tensor.dims))
            onnx_file.set_tensor(model, tensor.name, value)
            values[tensor.name] = np.asarray(onnx_file.tensor_array(model, tensor.name), np.float64)
    return values


def tensors_of(values, site):
    prefix = f"laurel.{site}."
    return {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}


def with_outputs(model, *names):
    model = copy_of(model)
    for name in names:
        model.graph.output.add().name = name
    return model


def feed(model, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    kinds = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}
    held = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.standard_normal([d.dim_value or rows for d in value.type.tensor_type.shape.dim]).astype(
            kinds[value.type.tensor_type.elem_type]
        )
        for value in model.graph.input
        if value.name not in held
    }


def assert_same_start(model, new, feeds=None):
    feeds = feeds or feed(model)
    for one, other in zip(run_onnx(model, feeds), run_onnx(new, feeds), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    for one, other in zip(run_onnx(model, feeds, True), run_onnx(new, feeds, True), strict=True):
        assert_close(other, one, str(one.dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("previous_map", ["identity", "low-rank"])
def test_insert_keeps_the_bits_and_remove_the_model_when_variant_is_any(variant, previous_map):
    for model, plans in (
        (token_net(), token_plans(variant, previous_map=previous_map, per_channel=True)),
        (image_net(), image_plans(variant, previous_map=previous_map, rank=2)),
    ):
        new = transformed(model, plans)
        for rows in (1, 7):
            assert_same_start(model, new, feed(model, rows))
        assert [node.domain for node in new.graph.node].count(DOMAIN) == 3
        assert set(read_specs(new)) == {p.spec.site for p in plans}


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 17, 18, 21, 23])
def test_insert_computes_the_formula_when_parameters_are_random(opset):
    for model, plans, axis in (
        (token_net(opset), token_plans("rw+lr+pa"), -1),
        (image_net(opset), image_plans("rw+lr+pa"), 1),
    ):
        new = transformed(model, plans)
        values = random_parameters(new)
        names = [n for p in plans for n in (p.residual.skip, p.residual.branches[0], p.residual.joins[0])]
        names = list(dict.fromkeys(n for n in names if n != "x"))
        feeds = feed(model)
        for optimize in (False, True):
            got = dict(zip(names, run_onnx(with_outputs(new, *names), feeds, optimize)[1:], strict=True)) | feeds
            for p in plans:
                earlier = [got[name] for name in p.previous]
                tensors = tensors_of(values, p.spec.site)
                expected = residual(got[p.residual.skip], got[p.residual.branches[0]], tensors, earlier, axis)
                assert_close(got[p.residual.joins[0]], expected)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_insert_stores_tensors_in_the_dtype_of_the_site_when_it_is_not_float32(dtype):
    model = token_net(dtype=dtype)
    new = transformed(model, token_plans("rw+lr+pa", dtype=dtype))
    assert {t.data_type for t in new.graph.initializer} == {model.graph.initializer[0].data_type}
    assert_same_start(model, new)


def test_insert_keeps_bfloat16_bits_when_the_model_is_bfloat16():
    text = """(float[n, 8] x) => (float[n, 8] y)
        { xb = Cast <to = 16> (x) h = Relu(x) hb = Cast <to = 16> (h) z = Add(xb, hb) y = Cast <to = 1> (z) }"""
    new = transformed(onnx_text(text), [plan("xb", "hb", "z", "rw+lr", ndim=2, dtype="bfloat16")])
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    from laurel_graph.onnx_model.tensors import round_to_bfloat16

    expected = round_to_bfloat16(round_to_bfloat16(x) + round_to_bfloat16(np.maximum(x, 0)))
    np.testing.assert_array_equal(run_onnx(new, {"x": x})[0], expected)
    assert new.graph.initializer[0].data_type == TensorProto.BFLOAT16


def test_insert_keeps_name_doc_string_and_metadata_of_the_join():
    model = token_net()
    join = model.graph.node[2]
    join.name, join.doc_string = "/block/Add", "the join"
    join.metadata_props.add(key="scope", value="block")
    new = transformed(model, token_plans())
    node = new.graph.node[2]
    assert (node.op_type, node.domain, list(node.output)) == ("Laurel_RW_LR", DOMAIN, ["y1"])
    assert (node.name, node.doc_string, list(node.metadata_props)) == (
        join.name,
        join.doc_string,
        list(join.metadata_props),
    )
    assert not new.graph.node[5].HasField("name")


def test_insert_records_config_sites_and_format_in_the_metadata():
    new = transformed(token_net(), token_plans())
    assert read_metadata(new, "laurel.format") == "1"
    assert LaurelConfig.from_json(read_metadata(new, "laurel.config")) == CONFIG
    assert [s["site"] for s in json.loads(read_metadata(new, "laurel.sites"))] == [
        "block0.res1",
        "block1.res1",
        "block2.res1",
    ]


def test_insert_takes_operands_in_either_order_and_values_used_elsewhere():
    text = """(float[n, s, 8] x) => (float[n, s, 8] y, float[n, s, 8] h, float[n, s, 8] z)
        { m = MatMul(x, w) h = Relu(m) y = Add(h, x) z = Mul(h, y) }"""
    model = onnx_text(text, {"w": (8, 8)})
    new = transformed(model, [plan("x", "h", "y")])
    assert list(new.graph.node[2].input)[:2] == ["x", "h"]
    assert_same_start(model, new)


NARY = {
    "add_add": ("t = Add(x, a) y = Add(t, b)", ["t", "y"]),
    "add_commuted": ("t = Add(a, x) y = Add(b, t)", ["t", "y"]),
    "add_of_branches": ("c = Add(a, b) y = Add(c, x)", ["y"]),
    "side_sum": ("t = Add(x, a) u = Add(b, a) y = Add(t, u)", ["t", "u", "y"]),
    "sum_first": ("y = Sum(x, a, b)", ["y"]),
    "sum_second": ("y = Sum(a, x, b)", ["y"]),
    "sum_last": ("y = Sum(a, b, x)", ["y"]),
    "sum_four": ("y = Sum(a, x, b, a)", ["y"]),
    "sum_two": ("y = Sum(a, x)", ["y"]),
    "sum_of_sum": ("t = Sum(a, x) y = Sum(b, a, t)", ["t", "y"]),
}


@pytest.mark.parametrize("variant", ["rw", "lr", "rw+lr+pa", "pa"])
@pytest.mark.parametrize("form", NARY)
def test_insert_keeps_bits_and_formula_when_the_join_has_several_branches(form, variant):
    nodes, joins = NARY[form]
    text = (
        f"(float[n, s, 8] x, float[n, s, 8] p) => (float[n, s, 8] y) {{ a = MatMul(x, wa) b = MatMul(x, wb) {nodes} }}"
    )
    model = onnx_text(text, {"wa": (8, 8), "wb": (8, 8)})
    one = plan("x", ["a", "b"], joins, variant, previous=["p"], per_channel=True)
    new = transformed(model, [one])
    assert_same_start(model, new)
    values = random_parameters(new)
    feeds = feed(model)
    y, a, b = run_onnx(with_outputs(new, "a", "b"), feeds)
    expected_branches = {"sum_two": [a], "sum_four": [a, b, a], "side_sum": [a, b, a], "sum_of_sum": [a, b, a]}
    branches = expected_branches.get(form, [a, b])
    earlier = [feeds["p"]] if "pa" in variant else []
    assert_close(y, residual(feeds["x"], branches, tensors_of(values, "a.res1"), earlier))


def skip_norm(op, opset, extra):
    inputs, outputs = extra
    named = ", ".join(f"float[n, s, 8] {name}" for name in outputs.replace('"', "").split(", ") if name)
    text = f"""(float[n, s, 8] x) => ({named})
        {{ m = MatMul(x, w) {outputs} = com.microsoft.{op} <epsilon = 0.001> ({inputs}) }}"""
    return onnx_text(text, {"w": (8, 8), "g": (8,), "o": (8,), "bias": (8,)}, opset)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "key"),
    [
        ("SkipLayerNormalization", "x, m, g, o, bias", 'y, "", "", t', "y"),
        ("SkipLayerNormalization", "m, x, g", "y", "y"),
        ("SkipLayerNormalization", 'm, x, g, "", bias', "y", "y"),
        ("SkipLayerNormalization", "m, x, g, o", 'y, "", "", t', "y"),
        ("SkipSimplifiedLayerNormalization", "m, x, g", "y", "y"),
        ("SkipSimplifiedLayerNormalization", "x, m, g, bias", 'y, "", "", t', "y"),
    ],
)
def test_insert_takes_skip_norms_apart_when_the_add_is_hidden_in_them(op, inputs, outputs, key, opset):
    model = skip_norm(op, opset, (inputs, outputs))
    new = copy_of(model)
    insert(new, [plan("x", "m", key, "rw+lr")], CONFIG)
    feeds = feed(model)
    for one, other in zip(run_onnx(model, feeds), run_onnx(new, feeds), strict=True):
        assert_close(other, one)
    assert not any(node.domain == "com.microsoft" for node in new.graph.node)
    back = copy_of(new)
    remove(back)
    assert back.SerializeToString() == model.SerializeToString()
    values = random_parameters(new)
    m = run_onnx(with_outputs(new, "m"), feeds)[-1]
    branch = m + onnx_file.tensor_array(model, "bias") if "bias" in inputs else m  # as before ONNX Runtime fused it
    total = residual(feeds["x"], branch, tensors_of(values, "a.res1"))
    got = run_onnx(new, feeds)
    if len(got) > 1:
        assert_close(got[1], total)
    centred = total if "Simplified" in op else total - total.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.001) * onnx_file.tensor_array(model, "g")
    assert_close(got[0], normed + (onnx_file.tensor_array(model, "o") if " o" in inputs else 0))


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("", []), ("Relu", []), ("Clip", [0.0, 6.0]), ("LeakyRelu", [0.1]), ("HardSigmoid", [0.2, 0.4]), ("Tanh", [1.0])],
)
@pytest.mark.parametrize("skip", ["x", "y"])
def test_insert_takes_fused_convolutions_apart_when_they_add(activation, parameters, opset, skip):
    """*skip* y stands for the convolution itself, which has no name of its own."""
    text = """(float[n, 8, 6, 5] x) => (float[n, 8, 6, 5] y)
        { y = com.microsoft.FusedConv <pads = [1, 1, 1, 1]> (x, w, b, x) }"""
    model = onnx_text(text, {"w": (8, 8, 3, 3), "b": (8,)}, opset)
    if activation:
        model.graph.node[0].attribute.append(helper.make_attribute("activation", activation))
    if parameters:
        model.graph.node[0].attribute.append(helper.make_attribute("activation_params", parameters))
    new = copy_of(model)
    insert(new, [plan(skip, "x" if skip == "y" else "y", "y", axis=1, ndim=4)], CONFIG)
    feeds = feed(model)
    assert_close(run_onnx(new, feeds)[0], run_onnx(model, feeds)[0])
    remove(new)
    assert new.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("Clip", []), ("Clip", [0.0]), ("LeakyRelu", []), ("LeakyRelu", [0.1, 0.2]), ("HardSigmoid", [0.2])],
)
def test_insert_refuses_a_fused_convolution_when_its_activation_lacks_parameters(activation, parameters):
    text = """(float[n, 8, 6, 5] x) => (float[n, 8, 6, 5] y)
        { y = com.microsoft.FusedConv <pads = [1, 1, 1, 1]> (x, w, b, x) }"""
    model = onnx_text(text, {"w": (8, 8, 3, 3), "b": (8,)})
    model.graph.node[0].attribute.append(helper.make_attribute("activation", activation))
    if parameters:
        model.graph.node[0].attribute.append(helper.make_attribute("activation_params", parameters))
    with pytest.raises(RewriteError, match=rf"has {len(parameters)} activation_params; {activation} takes"):
        insert(model, [plan("x", "y", "y", axis=1, ndim=4)], CONFIG)


def test_insert_takes_gemm_apart_when_its_third_input_is_the_skip():
    text = "(float[n, 8] x) => (float[n, 8] y) { h = Relu(x) y = Gemm <alpha = 0.5, transB = 1> (h, w, x) }"
    model = onnx_text(text, {"w": (8, 8)})
    new = transformed(model, [plan("x", "y", "y", ndim=2)])
    assert [node.op_type for node in new.graph.node] == ["Relu", "Gemm", "Laurel_RW_LR"]
    assert_close(run_onnx(new, feed(model))[0], run_onnx(model, feed(model))[0])
    model.graph.node[1].attribute.append(helper.make_attribute("beta", 2.0))
    with pytest.raises(RewriteError, match="expected beta = 1"):
        insert(model, [plan("x", "y", "y", ndim=2)], CONFIG)


def test_insert_links_the_hidden_value_when_an_earlier_skip_had_no_name():
    text = """(float[n, 8, 6, 5] x) => (float[n, 8, 6, 5] z) {
        c = Relu(x) y = com.microsoft.FusedConv <activation = "Relu"> (x, w, b, c) d = Conv(y, w, b) z = Add(y, d) }"""
    model = onnx_text(text, {"w": (8, 8, 1, 1), "b": (8,)})
    shape = {"axis": 1, "ndim": 4}
    first = plan("y", "c", "y", "rw", "one", **shape)
    second = plan("y", "d", "z", "pa", "two", ["y"], after=["one"], **shape)
    new = transformed(model, [first, second])
    assert new.graph.node[-1].input[-1] == "laurel.one.branch"


def test_insert_stands_between_quantise_and_dequantise_when_the_add_does():
    text = """(float[n, 8] x) => (float[n, 8] o) {
        xq = QuantizeLinear(x, s, zp) xd = DequantizeLinear(xq, s, zp) m = MatMul(xd, w)
        mq = QuantizeLinear(m, s, zp) md = DequantizeLinear(mq, s, zp) y = Add(xd, md)
        yq = QuantizeLinear(y, s, zp) o = DequantizeLinear(yq, s, zp) }"""
    model = onnx_text(text, {"w": (8, 8), "s": np.array(0.05)})
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(128), "zp"))
    new = transformed(model, [plan("xd", "md", "y", ndim=2)])
    assert_same_start(model, new)


def test_insert_touches_nothing_when_plans_are_empty():
    model = token_net()
    before = model.SerializeToString()
    assert insert(model, [], CONFIG).sites == ()
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans: plans[1:2] * 2, "in the model already"),
        (lambda plans: [*plans, plan("x", "h1", "y1", site="other")], "no join 'y1' left"),
        (lambda plans: [plans[0], plan("x", "h2", "y2", site="other")], "expected the skip 'x' among them"),
        (lambda plans: [plans[0], plan("x", "h1", "nothing", site="other")], "no join 'nothing'"),
        (lambda plans: [plan("m1", "m1", "h1", site="other")], "'Relu', which is not an add"),
        (lambda plans: [plan("x", "h1", "y1", "rw+pa", previous=["y2"])], "computed after the join"),
        (lambda plans: [plan("x", "h1", "y1", "rw+pa", previous=["none"])], "no value 'none'"),
    ],
)
def test_insert_is_refused_and_changes_nothing_when_a_plan_does_not_fit(change, message):
    model = token_net()
    before = model.SerializeToString()
    with pytest.raises(RewriteError, match=message):
        insert(model, change(token_plans()), CONFIG)
    assert model.SerializeToString() == before


def test_insert_is_refused_when_a_name_is_taken():
    model = token_net()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "laurel.block1.res1.A"))
    with pytest.raises(RewriteError, match=r"a value 'laurel.block1\.res1\.A' already"):
        insert(model, token_plans(), CONFIG)


def test_insert_adds_to_the_first_and_remove_undoes_both_when_called_twice():
    model = token_net()
    model.metadata_props.add(key="author", value="me")
    plans = token_plans("rw+lr+pa")
    new = copy_of(model)
    insert(new, plans[1:2], CONFIG)
    middle = copy_of(new)
    insert(new, [plans[0], plans[2]], LaurelConfig(variant="rw"))
    assert [node.domain for node in new.graph.node].count(DOMAIN) == 3
    assert list(new.graph.node[5].input) == list(middle.graph.node[5].input)
    assert list(read_specs(new)) == ["block1.res1", "block0.res1", "block2.res1"]
    assert_same_start(model, new)
    remove(new)
    assert new.SerializeToString() == model.SerializeToString()
    with pytest.raises(ModelError, match="nothing to remove"):
        remove(new)


def test_remove_keeps_residuals_that_were_there_before_when_others_are_added():
    model = token_net()
    insert(model, token_plans()[:1], CONFIG)
    del model.metadata_props[-1]  # as a file exported from torch: sites, but no record of an insertion
    before = model.SerializeToString()
    with pytest.raises(ModelError, match="came with the export from torch"):
        remove(copy_of(model))
    insert(model, token_plans()[1:], LaurelConfig(variant="rw"))
    assert len(read_specs(model)) == 3
    remove(model)
    assert model.SerializeToString() == before


def test_remove_says_so_when_the_model_was_changed_since():
    model = token_net()
    insert(model, token_plans(), CONFIG)
    del model.graph.node[2]
    with pytest.raises(ModelError, match=r"3 LAuReL residuals, and 1 of them .* are no nodes of ai\.laurel any more"):
        remove(model)


def test_insert_declares_tensors_as_inputs_with_defaults_when_adapters_are_inputs():
    model = token_net()
    new = transformed(model, token_plans("lr"), adapter_inputs=True)
    assert [value.name for value in new.graph.input[:3]] == ["x", "laurel.block0.res1.A", "laurel.block0.res1.B"]
    assert_same_start(model, new)
    feeds = feed(model)
    changed = run_onnx(new, feeds | {"laurel.block0.res1.B": np.ones((2, 8), np.float32)})
    assert not np.array_equal(changed[0], run_onnx(model, feeds)[0])


def test_insert_works_inside_a_branch_of_if_when_the_plan_says_so():
    text = """(float[n, 8] x, bool c) => (float[n, 8] o) {
        o = If (c) <
          then_branch = t () => (float[n, 8] y) { m = MatMul(x, w) y = Add(x, m) },
          else_branch = e () => (float[n, 8] z) { z = Identity(x) }
        > }"""
    model = onnx_text(text, {"w": (8, 8)})
    new = transformed_inside(model, [plan("x", "m", "y", ndim=2)])
    x = feed(onnx_text("(float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }"))["x"]
    for flag in (True, False):
        feeds = {"x": x, "c": np.array(flag)}
        np.testing.assert_array_equal(run_onnx(new, feeds)[0], run_onnx(model, feeds)[0])


def transformed_inside(model, plans):
    new = copy_of(model)
    insert(new, plans, CONFIG)
    back = copy_of(new)
    remove(back)
    assert back.SerializeToString() == model.SerializeToString()
    return new


@pytest.mark.parametrize("variant", ["rw", "rw+lr", "rw+lr+pa"])
def test_insert_keeps_the_bits_when_a_float16_stream_is_normalised_at_every_join(variant):
    nodes, last = [], "x"
    for i in (1, 2, 3):
        nodes.append(f"m{i} = MatMul({last}, w{i}) h{i} = Relu(m{i}) y{i} = Add({last}, h{i})")
        nodes.append(f"n{i} = LayerNormalization(y{i}, g, o)")
        last = f"n{i}"
    text = f"(float16[n, s, 8] x) => (float16[n, s, 8] {last}) {{ {' '.join(nodes)} }}"
    weights = {f"w{i}": (8, 8) for i in (1, 2, 3)} | {"g": (8,), "o": (8,)}
    model = onnx_text(text, weights, opset=17, dtype="float16")
    plans = [
        plan("x", "h1", "y1", "rw", "a", dtype="float16"),
        plan("n1", "h2", "y2", variant, "b", ["x"], dtype="float16"),
        plan("n2", "h3", "y3", variant, "c", ["n1", "x"], dtype="float16"),
    ]
    assert_same_start(model, transformed(model, plans), feed(model, 5))


def test_insert_lets_shape_inference_through_when_dims_are_symbolic():
    for model, plans in ((token_net(), token_plans("rw+lr+pa")), (image_net(), image_plans("rw+lr+pa"))):
        new = transformed(model, plans)
        shapes = []
        for one in (model, new):
            graph = onnx.shape_inference.infer_shapes(one, strict_mode=True).graph
            values = {v.name: v.type.tensor_type.shape for v in (*graph.value_info, *graph.output)}
            shapes.append({name: [d.dim_param or d.dim_value for d in s.dim] for name, s in values.items()})
        assert shapes[0] == {name: shapes[1][name] for name in shapes[0]}
        assert any(isinstance(d, str) for shape in shapes[0].values() for d in shape)


def test_insert_is_refused_when_channels_have_four_axes_of_space():
    text = "(float[n, 8, 2, 2, 2, 2] x) => (float[n, 8, 2, 2, 2, 2] y) { h = Relu(x) y = Add(x, h) }"
    with pytest.raises(RewriteError, match="4 axes of space have no operator"):
        insert(onnx_text(text), [plan("x", "h", "y", axis=1, ndim=6)], CONFIG)
