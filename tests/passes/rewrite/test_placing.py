"""What is put in fits what is there, and what was made runs before it becomes visible."""

import base64
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from folder_models import write_folder
from models import onnx_text, token_net
from onnx import TensorProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import NoResidualError, VerificationError
from laurel_graph.opset.schema import DOMAIN
from laurel_graph.passes.pipeline import inspect, transform
from laurel_graph.passes.rewrite import placing, trial
from laurel_graph.runtime import session_options

PA = LaurelConfig(variant="rw+lr+pa", rank=2)


def run(model, feeds, kernels):
    options = session_options(1) if kernels else onnxruntime.SessionOptions()
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def int64(model, name, values):
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return model


def of_unknown_rank(dims, known):
    """Joins behind an operator at which inference stops; only with *known* a convolution tells the rank."""
    text = "(float[n, 8] i, int64[k] s) => (float[] y) { r = Reshape(i, s) x = Relu(r) "
    text += 'c = Conv<auto_pad = "SAME_UPPER">(x, w) y = Add(x, c) }' if known else "c = Softmax(x) y = Add(x, c) }"
    return onnx_text(text, {"w": (8, 8, *[3] * dims)} if known else {}, 17)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_operator_has_the_rank_of_the_kernel_when_shapes_are_computed(dims, kernels):
    model = of_unknown_rank(dims, known=True)
    feeds = {
        "i": np.random.default_rng(0).standard_normal((6 * 6**dims, 8)).astype("f"),
        "s": np.array([6, 8, *[6] * dims]),
    }
    result = transform(model, LaurelConfig(rank=2))
    assert [node.op_type for node in result.model.graph.node if node.domain] == [f"Laurel_RW_LR_{dims}d"]
    for a, b in zip(run(model, feeds, kernels), run(result.model, feeds, kernels), strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def without_inference(monkeypatch):
    """Lets inference know nothing, as behind an operator that nobody describes."""
    monkeypatch.setattr("laurel_graph.passes.read_onnx.view.tensor_types", lambda model: ({}, ""))


def test_a_run_tells_rank_width_and_type_when_nothing_else_does(monkeypatch):
    model = token_net(layers=3)
    without_inference(monkeypatch)
    assert all(residual.shape is None for residual in inspect(model).residuals)
    result = transform(model, PA)
    assert [(p.spec.width, p.spec.ndim, p.spec.dtype) for p in result.report.plans] == [(8, 3, "float32")] * 3
    assert [p.spec.previous for p in result.report.plans] == [0, 1, 2]


def test_a_site_is_left_alone_with_a_reason_when_its_rank_stays_unknown(monkeypatch):
    without_inference(monkeypatch)
    with pytest.raises(NoResidualError, match="how many axes it has is unknown"):
        transform(token_net(), LaurelConfig(rank=2), run=False)


def test_a_run_overrules_what_a_file_states():
    text = """(float[n, 8, t] i) => (float[n, 12, t] y) {
        sh = Shape(i) f = Cast<to = 1>(sh) a = Abs(f) s = Cast<to = 7>(a)
        x = Reshape(i, s) c = Conv<pads = [1, 1]>(i, w) d = Reshape(c, s) y = Add(x, d) }"""
    model = onnx_text(text, {"w": (8, 8, 3)}, 17)
    for name in ("x", "d"):  # as the output does, it says 12 channels; there are 8
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 12, "t"]))
    config = LaurelConfig(variant="rw")
    with pytest.raises(NoResidualError, match="feature axis"):
        transform(model, config, run=False)
    (plan,) = transform(model, config).report.plans
    assert (plan.spec.axis, plan.spec.width) == (1, 8)


def test_the_width_is_that_of_the_part_when_a_gated_unit_is_cut_in_two():
    text = """(float[n, 8] x) => (float[n, 8] y) {
        sh = Shape(x) d = Gather(sh, one) two = Add(d, d)
        m = MatMul(x, w0) r = Relu(m) g = MatMul(r, w1)
        a = Slice(g, zero, d, one) b = Slice(g, d, two, one) s = Sigmoid(b) f = Mul(a, s) y = Add(x, f) }"""
    model = onnx_text(text, {"w0": (8, 8), "w1": (8, 16)}, 17)
    int64(int64(model, "one", [1]), "zero", [0])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "h"
    (plan,) = transform(model, LaurelConfig(rank=2)).report.plans
    assert plan.spec.width == 8


def spoilt(monkeypatch):
    """Makes insertion put in matrices that are too wide, as a fault of ours would."""

    def insert(model, plans, config, **options):
        rewrite(model, plans, config, **options)
        for tensor in model.graph.initializer:
            if (shape := {"A": (12, 2), "B": (2, 12)}.get(tensor.name.rpartition(".")[2])) is not None:
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, "f"), tensor.name))

    from laurel_graph.passes.rewrite import onnx as module

    rewrite = module.insert
    monkeypatch.setattr(module, "insert", insert)


@pytest.mark.parametrize("on_disk", [False, True])
def test_nothing_becomes_visible_when_what_was_made_does_not_run(monkeypatch, tmp_path, on_disk):
    spoilt(monkeypatch)
    source, output = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(token_net(), source)
    with pytest.raises(VerificationError, match=r"does not run with the function bodies.*Nothing was written"):
        transform(source if on_disk else token_net(), LaurelConfig(rank=2), output=output if on_disk else None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_the_file_is_written_unseen_when_it_is_not_to_be_run(monkeypatch, tmp_path):
    spoilt(monkeypatch)
    onnx.save(token_net(), tmp_path / "a.onnx")
    transform(tmp_path / "a.onnx", LaurelConfig(rank=2), output=tmp_path / "b.onnx", run=False)
    assert (tmp_path / "b.onnx").is_file()


def test_outputs_that_differ_are_refused_when_the_result_runs(monkeypatch):
    def insert(model, plans, config, **options):
        rewrite(model, plans, config, **options)
        for tensor in model.graph.initializer:
            if tensor.name.endswith(".beta"):
                tensor.CopyFrom(numpy_helper.from_array(np.array(1.01, "f"), tensor.name))

    from laurel_graph.passes.rewrite import onnx as module

    rewrite = module.insert
    monkeypatch.setattr(module, "insert", insert)
    with pytest.raises(VerificationError, match="differs from that of the model as it was"):
        transform(token_net(), LaurelConfig(rank=2))


def test_a_model_that_does_not_run_itself_is_a_note_and_no_error():
    model = token_net()
    model.graph.node.insert(0, helper.make_node("Unheard", ["x"], ["u"], domain="some.one"))
    model.opset_import.append(helper.make_opsetid("some.one", 1))
    (note,) = [n for n in transform(model, LaurelConfig(rank=2)).report.notes if "does not open" in n]
    assert "some.one" in note and "nothing was run" in note


def test_a_sample_that_does_not_fit_is_a_note_and_the_result_is_opened_all_the_same(monkeypatch):
    model = of_unknown_rank(1, known=True)
    result = transform(model, LaurelConfig(rank=2))
    assert any("does not run on a drawn sample" in note for note in result.report.notes)
    spoilt(monkeypatch)
    monkeypatch.setattr(trial, "opened", lambda *_, **__: pytest.fail("opened"))  # proves that it is called
    with pytest.raises(pytest.fail.Exception):
        transform(model, LaurelConfig(rank=2))


def test_three_sessions_and_runs_are_made_when_nothing_is_doubtful(monkeypatch):
    opened, ran = [], []
    open_, run_ = trial.opened, trial.run_on
    monkeypatch.setattr(trial, "opened", lambda *a, **k: opened.append(k) or open_(*a, **k))
    monkeypatch.setattr(trial, "run_on", lambda *a: ran.append(1) or run_(*a))
    transform(token_net(), LaurelConfig(rank=2))
    assert len(opened) == len(ran) == 3
    assert [k["kernels"] for k in opened[1:]] == [False, True]


SILU = "{0}s = Sigmoid({0}) {0}a = Mul({0}, {0}s) "
GELU = "{0}d = Div({0}, q) {0}e = Erf({0}d) {0}p = Add({0}e, u) {0}m = Mul({0}, {0}p) {0}a = Mul({0}m, h) "
SWISH = "{0}p = Add({0}, three) {0}c = Clip({0}p, lo, six) {0}m = Mul({0}, {0}c) {0}a = Div({0}m, six) "
GATE = "{0}g = MatMul({0}, v) {0}s = Sigmoid({0}g) {0}a = Mul({0}, {0}s) "


@pytest.mark.parametrize(
    ("activation", "previous"), [(SILU, [0, 1, 2]), (GELU, [0, 1, 2]), (SWISH, [0, 1, 2]), (GATE, [0, 0, 0])]
)
def test_a_stream_goes_on_behind_an_activation_that_is_written_out(activation, previous):
    text, last = "(float[n, s, 8] i) => (float[n, s, 8] y) { x0a = Relu(i) ", "x0a"
    for j in range(1, 4):
        text += f"m{j} = MatMul({last}, w{j}) r{j} = Relu(m{j}) f{j} = MatMul(r{j}, w{j}) x{j} = Add({last}, f{j}) "
        text, last = text + activation.format(f"x{j}"), f"x{j}a"
    numbers = {"q": 2**0.5, "u": 1.0, "h": 0.5, "three": 3.0, "lo": 0.0, "six": 6.0}
    weights = {f"w{j}": (8, 8) for j in range(1, 4)} | {k: np.array(v, "f") for k, v in numbers.items()}
    model = onnx_text(f"{text} y = Identity({last}) }}", {**weights, "v": (8, 8)}, 17)
    report = transform(model, PA).report
    assert [plan.spec.previous for plan in report.plans] == previous
    assert [note for note in report.notes if note.startswith("PA is left out at")]


def test_sizes_of_several_names_are_one_size_when_nothing_between_changes_a_shape():
    model = token_net(layers=3)
    for dim, name in zip(model.graph.output[0].type.tensor_type.shape.dim, ("rows", "places"), strict=False):
        dim.dim_param = name
    assert [plan.spec.previous for plan in transform(model, PA).report.plans] == [0, 1, 2]


def test_every_site_without_earlier_activations_says_why():
    report = transform(token_net(layers=3), PA).report
    first = report.plans[0].spec.site
    assert report.notes == (f"PA is left out at 1 of the sites, as they are the first of their stream: {first}.",)
    assert transform(token_net(layers=3), LaurelConfig(rank=2)).report.notes == ()


CONV = "com.microsoft.FusedConv<pads = [1, 1, 1, 1]>"
FUSED = onnx_text(
    f"(float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {{ a = Relu(x) b = {CONV}(a, k, , x) c = Relu(b) "
    "d = Conv<pads = [1, 1, 1, 1]>(c, k) y = Add(b, d) }",
    {"k": (8, 8, 3, 3)},
    17,
)


def test_a_hidden_add_stays_whole_when_fused_nodes_are_kept():
    report = transform(FUSED, LaurelConfig(rank=2), keep_fused=True).report
    assert [plan.residual.join for plan in report.plans] == ["y"]
    assert report.skipped == (("res_b", "its add is hidden in FusedConv, which is to be kept"),)
    assert report.notes == ()


def test_the_report_tells_the_files_own_noise_when_an_operator_comes_apart():
    (note,) = transform(FUSED, LaurelConfig(rank=2)).report.notes
    assert note.startswith("1 operators that hid an add came apart") and "own noise" in note


def test_a_model_that_does_not_run_is_rewritten_and_the_report_says_so_when_an_operator_comes_apart():
    model = onnx_text(
        "(float[n, 4, 8] x) => (float[n, 4, 8] y, float[m] z) { f = MatMul(x, w) "
        "y = com.microsoft.SkipLayerNormalization(x, f, g) z = Reshape(x, seven) }",
        {"w": (8, 8), "g": np.ones(8, np.float32)},
        17,
    )
    report = transform(int64(model, "seven", [7]), LaurelConfig(rank=2)).report
    (note,) = report.notes
    assert "the model itself does not run on a drawn sample" in note and len(report.plans) == 1


def test_the_report_tells_both_noises_when_products_round_activations(tmp_path):
    base = write_folder(tmp_path / "base", int4=True, accuracy=4)
    (note,) = lg.transform(base, LaurelConfig(rank=2), output=tmp_path / "t").report.notes
    figures = [
        re.search(rf"{words} (\d\S*\d)", note) for words in ("within", "moves, is", "original itself by", "file is")
    ]
    assert all(0 < float(figure[1]) < 1e-4 for figure in figures) and "(accuracy_level)" in note


@pytest.mark.parametrize("variant", ["pa", "rw+lr+pa"])
def test_stages_make_the_same_network_when_sites_are_rewritten_one_after_another(variant):
    model, config = token_net(layers=4), LaurelConfig(variant=variant, rank=2)
    once = transform(model, config)
    for order in (1, -1):
        staged = model
        for plan in once.report.plans[::order]:
            staged = transform(staged, LaurelConfig(variant=variant, rank=2, sites=(plan.spec.site,))).model
        assert sorted(map(str, staged.graph.node)) == sorted(map(str, once.model.graph.node))


def test_a_sum_of_branches_is_no_site_of_its_own_when_it_was_written_by_an_insertion():
    text = """(float[n, 4, 8] i) => (float[n, 4, 8] y) { a = MatMul(i, w0) n = LpNormalization<axis = -1>(a)
        u = MatMul(n, w1) r = Relu(u) f = MatMul(r, w2) g = MatMul(n, w3) s = Sum(f, g, a) y = Relu(s) }"""
    first = transform(onnx_text(text, {f"w{j}": (8, 8) for j in range(4)}, 17), LaurelConfig(variant="rw")).model
    del first.metadata_props[:]  # what it was before is not known any more
    assert [(r.site, r.kind) for r in inspect(first).residuals] == [("res_s", "laurel")]


def test_the_graph_of_today_counts_when_the_model_was_changed_since():
    model = transform(token_net(layers=2), LaurelConfig(rank=2)).model
    ours = next(node for node in model.graph.node if node.domain == DOMAIN)
    ours.output[0] = "renamed"
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == "y1" else name for name in node.input]
    assert placing._as_it_was(model) is None
    assert {r.kind for r in inspect(model).residuals} == {"laurel"}


def test_a_record_that_holds_an_unsound_node_is_not_believed():
    model = transform(token_net(layers=2), LaurelConfig(rank=2)).model
    record = next(prop for prop in model.metadata_props if prop.key == "laurel.undo")
    undo = json.loads(record.value)
    bad = helper.make_node("Add", ["x", "nowhere"], [undo["nodes"][0]["new"][0]])
    undo["nodes"][0]["old"] = base64.b64encode(bad.SerializeToString()).decode()
    record.value = json.dumps(undo)
    assert placing._as_it_was(model) is None
    assert {r.kind for r in inspect(model).residuals} == {"laurel"}
