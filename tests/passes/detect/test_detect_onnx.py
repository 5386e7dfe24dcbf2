"""Detection on ONNX graphs: fused, quantised, nested and broken ones, and random ones."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from laurel_graph.errors import LaurelError, ModelError
from laurel_graph.onnx_model.shapes import tensor_types
from laurel_graph.passes.detect.paths import MOST_FORKS, Facts
from laurel_graph.passes.detect.reasons import REASONS
from laurel_graph.passes.detect.rule import MOST_OPERANDS, detect
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.tools.benchmarks.detection import deep_model
from laurel_graph.tools.zoo.kinds import without_shapes

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
WEIGHTS = "<float[4,4] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[4] g = {1,1,1,1}>"


def found_in(body, inputs="float[B,S,4] x", output="float[B,S,4] y", weights=WEIGHTS):
    model = parser.parse_model(f"{HEADER} agraph ({inputs}) => ({output}) {weights} {{ {body} }}")
    return detect(view_of(model))


MATCHES = {
    "add": "h = MatMul(x, w) f = Relu(h) y = Add(x, f)",
    "sum": "h = MatMul(x, w) f = Relu(h) y = Sum(f, x)",
    "cast": "c = Cast<to=1>(x) h = MatMul(c, w) y = Add(c, h)",
    "skip norm": "f = MatMul(x, w) y = com.microsoft.SkipLayerNormalization(x, f, g)",
    "skip norm with a bias and the sum": (
        "f = MatMul(x, w) n, , , y = com.microsoft.SkipSimplifiedLayerNormalization(x, f, g, g)"
    ),
    "norm written out": (
        "two = Constant<value = float {2.0}>() q = Pow(x, two) m = ReduceMean<axes=[-1]>(q) s = Sqrt(m) n = Div(x, s) "
        "h = MatMul(n, w) y = Add(n, h)"
    ),
    "quantised weights": (
        "s = Constant<value = float {0.5}>() z = Constant<value = int8 {0}>() q = QuantizeLinear(w, s, z) "
        "d = DequantizeLinear(q, s, z) h = MatMul(x, d) y = Add(x, h)"
    ),
    "integer weights through Cast and Mul": (
        "q = Constant<value = int8[4,4] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>() s = Constant<value = float {0.5}>() "
        "c = Cast<to=1>(q) d = Mul(c, s) h = MatMul(x, d) y = Add(h, x)"
    ),
    "weights in a Constant node": "k = Constant<value = float[2,2] {1,2,3,4}>() e = MatMul(x, w) y = Add(e, x)",
}


@pytest.mark.parametrize("name", MATCHES)
def test_detect_finds_the_join_when_the_graph_is_onnx(name):
    (residual,) = found_in(MATCHES[name]).residuals
    assert (residual.kind, residual.axis, residual.width) == ("identity", -1, 4)
    assert not residual.blocked


def test_detect_rejects_a_position_embedding_when_the_stream_meets_it_again():
    body = "a = Add(x, p) h = MatMul(a, w) b = Add(a, h) c = Add(b, p) k = MatMul(c, w) y = Add(c, k)"
    positions = "<float[4,4] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[1,2,4] p = {1,2,3,4,5,6,7,8}>"
    found = found_in(body, "float[1,2,4] x", "float[1,2,4] y", positions)
    assert [residual.skip for residual in found.residuals] == ["a", "c"]
    assert [(rejected.join, rejected.reason) for rejected in found.rejected] == [("a", "bias"), ("c", "bias")]


LOGITS = {
    "mask, then softmax": "m = Greater(x, zero) s = Where(m, t, zero) y = Softmax(s)",
    "mask, then the places of the largest": "m = Greater(x, zero) s = Where(m, t, zero) v, y = TopK(s, one)",
    "place of the largest": "y = ArgMax(t)",
}


@pytest.mark.parametrize("name", LOGITS)
def test_detect_rejects_logits_when_only_their_order_or_a_softmax_is_read(name):
    weights = WEIGHTS[:-1] + ", float[1] zero = {0}, int64[1] one = {1}>"
    found = found_in(f"h = MatMul(x, w) f = Relu(h) t = Add(x, f) {LOGITS[name]}", weights=weights)
    assert [rejected.reason for rejected in found.rejected] == ["logits-bias"]


def test_detect_names_values_and_keys_when_nodes_have_no_names():
    (residual,) = found_in(MATCHES["skip norm"]).residuals
    assert (residual.skip, residual.branches, residual.joins, residual.site) == ("x", ("f",), ("y",), "res_y")


BLOCKED = {
    "QLinearAdd": (
        "s = Constant<value = float {0.5}>() z = Constant<value = uint8 {0}>() q = QuantizeLinear(x, s, z) "
        "h = DequantizeLinear(q, s, z) f = MatMul(h, w) p = QuantizeLinear(f, s, z) "
        "r = com.microsoft.QLinearAdd(q, s, z, p, s, z, s, z) y = DequantizeLinear(r, s, z)"
    ),
    "Gemm": "f = MatMul(x, w) y = Gemm<beta = 0.5>(f, w, x)",
    "SkipLayerNormalization": "f = MatMul(x, w) y, m = com.microsoft.SkipLayerNormalization(x, f, g)",
    "SkipGroupNorm": "f = MatMul(x, w) y = com.microsoft.SkipGroupNorm(x, g, g, f)",
    "FusedGemm": "f = MatMul(x, w) y = com.microsoft.FusedGemm(f, w, x)",
}


@pytest.mark.parametrize("name", BLOCKED)
def test_detect_says_why_a_join_cannot_be_rewritten_when_it_is_fused(name):
    shape = "float[B,4]" if "Gemm" in name else "float[B,S,4]"
    (residual,) = found_in(BLOCKED[name], f"{shape} x", f"{shape} y").residuals
    assert name in residual.blocked


def test_detect_finds_the_join_when_a_convolution_swallowed_it():
    node = helper.make_node("FusedConv", ["x", "k", "", "x"], ["y"], domain="com.microsoft", activation="Relu")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2, 4, 4]) for name in "xy"]
    kernel = helper.make_tensor("k", TensorProto.FLOAT, [2, 2, 1, 1], [1, 2, 3, 4])
    found = detect(view_of(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], [kernel]))))
    (residual,) = found.residuals
    assert residual.axis == 1
    assert not residual.blocked


def test_detect_reads_the_bias_when_a_simplified_skip_norm_adds_one():
    view = view_of(
        parser.parse_model(
            f"{HEADER} agraph (float[B,S,4] x) => (float[B,S,4] y) {WEIGHTS} "
            "{ f = MatMul(x, w) y = com.microsoft.SkipSimplifiedLayerNormalization(x, f, g, g) }"
        )
    )
    assert [vertex.op for vertex in view.vertices].count("bias") == 1


@pytest.mark.parametrize(("place", "count"), [(0, 0), (2, 1)])
def test_detect_rejects_a_coupling_of_parts_when_shapes_are_unknown(place, count):
    """x[1:] + f(x[0]) broadcasts, which nothing shows without shapes; x[1:] + f(x[2]) could be a part of its branch."""
    body = (
        f"i = Constant<value = int64 {{{place}}}>() one = Constant<value = int64[1] {{1}}>() "
        "end = Constant<value = int64[1] {9223372036854775807}>() zero = Constant<value = int64[1] {0}>() "
        "first = Gather(x, i) rest = Slice(x, one, end, zero) f = MatMul(first, w) y = Add(rest, f)"
    )
    model = parser.parse_model(f"{HEADER} agraph (float[3,S,4] x) => (float[2,S,4] y) {WEIGHTS} {{ {body} }}")
    found = detect(view_of(without_shapes(model)))
    assert len(found.residuals) == count
    assert {rejected.reason for rejected in found.rejected} == (set() if count else {"other-part"})


def test_detect_names_joins_when_they_stand_inside_a_loop():
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["h"]),
            helper.make_node("Add", ["s", "h"], ["t"], name="inner"),
            helper.make_node("Identity", ["c"], ["d"]),
        ],
        "body",
        [helper.make_tensor_value_info(*value) for value in
         (("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("s", TensorProto.FLOAT, [2, 4]))],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", 1, [2, 4])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body)],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 4])],
        [helper.make_tensor_value_info("y", 1, [2, 4])],
        [helper.make_tensor("n", TensorProto.INT64, [], [3]), helper.make_tensor("w", 1, [4, 4], [0.5] * 16)],
    )
    (residual,) = detect(view_of(helper.make_model(graph))).residuals
    assert residual.join == "inner"
    assert (residual.body, residual.fork, residual.blocked) == ("loop[body]/", "loop[body]/s", "")


def test_detect_names_joins_when_they_stand_in_either_body_of_an_if():
    def body(name):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], [f"h{name}"]),
            helper.make_node("Add", ["x", f"h{name}"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, [2, 4])])

    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], name="choice", then_branch=body("t"), else_branch=body("e"))],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 4]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [2, 4])],
        [helper.make_tensor("w", 1, [4, 4], [0.5] * 16)],
    )
    residuals = detect(view_of(helper.make_model(graph))).residuals
    (residual,) = residuals
    assert (residual.body, residual.joins) == ("choice[else_branch]/", ("choice[else_branch]/e",))
    assert [copy.joins for copy in residual.copies] == [("choice[then_branch]/t",)]
    assert residual.to_dict()["skip"] == "x"


@pytest.mark.parametrize("form", ["plain", "no shapes"])
def test_detect_finds_two_joins_a_layer_when_the_net_is_deep(form):
    model = deep_model(520)
    found = detect(view_of(without_shapes(model) if form == "no shapes" else model))
    assert len(found.residuals) == 40
    assert {residual.width for residual in found.residuals} == {8}
    assert len({residual.stream for residual in found.residuals}) == 1
    if form == "plain":
        assert len(found.residuals[-1].previous) == 8


def test_view_refuses_with_advice_when_the_file_is_of_one_machine_or_too_old():
    with pytest.raises(ModelError, match="optimised"):
        found_in("y = com.microsoft.nchwc.Conv(x, w)".replace("com.microsoft.nchwc", "com.microsoft.nchwc"))
    model = deep_model(26)
    model.opset_import[0].version = 8
    with pytest.raises(ModelError, match="version_converter"):
        view_of(model)


def test_view_names_the_cycle_when_values_depend_on_themselves():
    with pytest.raises(ModelError, match="cycle"):
        found_in("a = Add(x, b) b = MatMul(a, w) y = Relu(b)")


def test_detect_notes_it_when_a_producer_is_missing_or_the_graph_is_empty():
    found = found_in("h = MatMul(ghost, w) y = Add(ghost, h)")
    assert len(found.residuals) == 1
    assert any("ghost" in note for note in found.notes)
    assert not detect(view_of(onnx.ModelProto())).residuals


OPS = ["Add", "Add", "Add", "Sum", "MatMul", "Mul", "Relu", "Sub", "Concat", "Slice", "Shape", "LayerNormalization",
       "Reshape", "Softmax", "Dropout", "Nonsense", "Split"]  # fmt: skip


@st.composite
def graphs(draw):
    """Any wiring: later values, missing ones, the value itself, weights, nothing at all."""
    count = draw(st.integers(0, 14))
    names = [f"v{i}" for i in range(count)] + ["x", "w", "ghost", ""]
    ahead = draw(st.booleans())
    nodes = []
    for i in range(count):
        known = names if ahead else [f"v{j}" for j in range(i)] + ["x", "w", "x", "ghost"]
        op = draw(st.sampled_from(OPS))
        inputs = draw(st.lists(st.sampled_from(known), min_size=0 if ahead else 1, max_size=3))
        outputs = [f"v{i}", f"u{i}"] if op == "Split" else [f"v{i}"]
        nodes.append(helper.make_node(op, inputs, outputs))
    shape = draw(st.sampled_from([None, [4, 4], ["n", 4], [None, None]]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(draw(st.sampled_from(names[:-1])), TensorProto.FLOAT, shape)]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.5] * 16)]
    return helper.make_model(helper.make_graph(nodes, "random", inputs, outputs * draw(st.integers(0, 1)), weights))


@given(graphs())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_detect_gives_a_verdict_on_every_add_when_the_graph_is_random(model):
    try:
        found = detect(view_of(model))
    except LaurelError as error:
        assert "cycle" in str(error)
        return
    verdicts = len(found.rejected) + sum(len(residual.joins) for residual in found.residuals)
    assert verdicts == sum(node.op_type in ("Add", "Sum") for node in model.graph.node)
    assert {rejected.reason for rejected in found.rejected} <= set(REASONS)


def test_ranks_are_known_when_sparse_weights_group_norms_and_operators_of_the_runtime_stand_before():
    graph = onnx.parser.parse_graph(
        """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
            a = Add(x, few)
            b = GroupNormalization<num_groups = 2>(a, g, g)
            c = SimplifiedLayerNormalization(b, h)
            y = Relu(c)
        }"""
    )
    few = numpy_helper.from_array(np.array([1.0], np.float32), "few")
    graph.sparse_initializer.append(helper.make_sparse_tensor(few, numpy_helper.from_array(np.array([3])), [4, 1, 1]))
    for name, size in (("g", 4), ("h", 6)):
        graph.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), name))
    types, note = tensor_types(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert {types[name] for name in "abc"} == {(("N", 4, 6, 6), "float32")}
    assert note == ""


def test_detect_gives_a_verdict_when_a_join_states_that_it_is_a_single_number():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    number (float[N, 2] x) => (float y) <float[2, 2] w = {1, 2, 3, 4}> {
      s = Mystery (x)  f = MatMul (s, w)  y = Add (s, f) }"""
    model = parser.parse_model(text)
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")
    found = detect(view_of(model))
    assert len(found.residuals) + len(found.rejected) == 1


def test_detect_says_that_a_sum_is_too_wide_when_it_adds_hundreds_of_values():
    lines = "".join(f"v{i} = Relu (x)  " for i in range(MOST_OPERANDS))
    names = ", ".join(f"v{i}" for i in range(MOST_OPERANDS))
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y)
    {{ {lines} y = Sum (x, {names}) }}"""
    (rejected,) = detect(view_of(parser.parse_model(text))).rejected
    assert (rejected.reason, rejected.detail.split(";")[0]) == ("no-skip", f"it adds {MOST_OPERANDS + 1} values")


def test_facts_are_those_of_the_nearest_forks_when_very_many_are_alive():
    count = 2 * MOST_FORKS
    lines = "".join(f"v{i + 1} = Tanh (v{i})  " for i in range(count))
    ends = "".join(f"y{i} = Add (v{i}, last)  " for i in range(count))
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y0)
    {{ v0 = Identity (x)  {lines}  w = Concat <axis = 0> (v{count}, v0)  last = Tanh (w)  {ends} }}"""
    view = view_of(parser.parse_model(text))
    index = {vertex.value: i for i, vertex in enumerate(view.vertices)}
    for vertex in view.vertices:
        vertex.live = True  # though no output needs most of them
    facts = Facts(view, {index[f"v{i}"]: len(view.vertices) for i in range(count)})
    facts.sweep([index[f"y{i}"] for i in range(count)], lambda add: False)
    known = [i for i in range(count) if facts.between(index[f"v{i}"], index["last"]) is not None]
    assert known == list(range(count - MOST_FORKS, count))
