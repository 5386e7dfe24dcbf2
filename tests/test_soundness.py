"""The door: what is no sound model is refused in one sentence, and whatever runtimes accept comes in."""

import os
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import laurel_graph as lg
from laurel_graph import onnx_file, soundness
from laurel_graph.errors import ModelError
from laurel_graph.tools.robustness.mutant_models import sound_models

MLP = """<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  r = Relu (h)  y = Add (x, r) }"""
LOOP = """<ir_version: 8, opset_import: ["" : 17]>
loops (float[4] x) => (float[4] y) {
  go = Constant <value = bool {1}> ()  count = Constant <value_int = 3> ()
  y = Loop (count, go, x) <body = step (int64 i, bool on, float[4] s) => (bool more, float[4] t)
    { more = Identity (on)  t = Add (s, x) }>
}"""
FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
calls (float[4] x) => (float[4] y) { y = own.F (x) }
<domain: "own", opset_import: ["" : 17, "own" : 1]> F (a) => (b) { c = own.G (a)  b = Relu (c) }
<domain: "own", opset_import: ["" : 17, "own" : 1]> G (a) => (b) { b = Neg (a) }"""


def mlp():
    model = parser.parse_model(MLP)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return model


def weight(model):
    return model.graph.initializer[0]


def renamed(model, old, new):
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


CASES = {
    "a cycle": (lambda m: renamed(m, "x", "y"), "has a cycle: node 'h'"),
    "a node that reads itself": (lambda m: m.graph.node[1].input.__setitem__(0, "r"), "cycle: node 'r'"),
    "a value computed twice": (lambda m: m.graph.node[1].output.__setitem__(0, "h"), "computes 'h', which anoth"),
    "an output named as an input": (lambda m: m.graph.node[1].output.__setitem__(0, "x"), "'x', which is an input"),
    "an output named as a weight": (lambda m: m.graph.node[1].output.__setitem__(0, "w"), "'w', which is an input or"),
    "two inputs of one name": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs named 'x'"),
    "two weights of one name": (lambda m: m.graph.initializer.append(weight(m)), "two initializers named 'w'"),
    "a name that nothing computes": (lambda m: renamed(m, "h", "q"), r"node 'r' \(Relu\) needs 'q'"),
    "an output that nothing computes": (lambda m: setattr(m.graph.output[0], "name", "q"), "the graph needs 'q'"),
    "no output": (lambda m: m.graph.ClearField("output"), "no output"),
    "no nodes and no graph": (lambda m: m.ClearField("graph"), "holds no graph"),
    "no operator sets": (lambda m: m.ClearField("opset_import"), "imports no opset"),
    "operator set 0": (lambda m: setattr(m.opset_import[0], "version", 0), "operator set 0"),
    "an absurd operator set": (lambda m: setattr(m.opset_import[0], "version", 2**40), "does not exist"),
    "two operator sets": (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 9)), "two versions"),
    "an absurd IR version": (lambda m: setattr(m, "ir_version", 2**40), "IR version"),
    "no operator type": (lambda m: m.graph.node[1].ClearField("op_type"), "node 'r' .* has no operator type"),
    "an input too few": (lambda m: m.graph.node[0].input.pop(), "has 1 inputs; MatMul takes 2"),
    "an input too many": (lambda m: m.graph.node[1].input.append("x"), "has 2 inputs; Relu takes 1"),
    "an input left out": (lambda m: m.graph.node[0].input.__setitem__(0, ""), "its input number 1 has no name"),
    "no outputs": (lambda m: m.graph.node.append(helper.make_node("Relu", ["h"], [])), "has 0 outputs; Relu"),
    "an output left out": (lambda m: m.graph.node.append(helper.make_node("Relu", ["h"], [""])), "output number 1"),
    "an attribute missing": (lambda m: m.graph.node.append(helper.make_node("Cast", ["h"], ["q"])), "lacks .* 'to'"),
    "an attribute of another kind": (
        lambda m: m.graph.node.append(helper.make_node("Softmax", ["h"], ["q"], axis=1.0)), "'axis' must be of kind INT"
    ),
    "an attribute of another kind in an operator of ONNX Runtime": (
        lambda m: m.graph.node.append(helper.make_node(
            "FusedConv", ["h", "W"], ["q"], domain="com.microsoft", activation=3)), "must be of kind STRING"
    ),
    "an epsilon that is no number": (
        lambda m: m.graph.node.append(helper.make_node(
            "SkipLayerNormalization", ["h", "h", "W"], ["q"], domain="com.microsoft", epsilon="a")), "of kind FLOAT"
    ),
    "an attribute twice": (
        lambda m: m.graph.node[1].attribute.extend([helper.make_attribute("a", 1)] * 2), "the attribute 'a' twice"
    ),
    "a reference outside of functions": (
        lambda m: m.graph.node[1].attribute.add(name="a", type=1, ref_attr_name="b"), "only nodes of a function may"
    ),
    "an input without a type": (lambda m: m.graph.input[0].ClearField("type"), "input 'x' has no type"),
    "an unknown type of an input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99), "element type 99"
    ),
    "an input of 10^18 elements": (
        lambda m: [setattr(d, "dim_value", 10**9) for d in m.graph.input[0].type.tensor_type.shape.dim], "no machine"
    ),
    "an unknown type of a weight": (lambda m: setattr(weight(m), "data_type", 10**6), "element type 1000000"),
    "negative dims": (lambda m: weight(m).dims.__setitem__(0, -4), "no machine can hold"),
    "dims of 10^9": (lambda m: weight(m).dims.__setitem__(0, 10**9), r"takes 16000000000 bytes, but 64"),
    "too few bytes": (lambda m: setattr(weight(m), "raw_data", b"1234"), "takes 64 bytes, but 4"),
    "too few values": (
        lambda m: weight(m).CopyFrom(TensorProto(name="w", data_type=1, dims=[4, 4], float_data=[1.0])), "16 values"
    ),
    "segments": (lambda m: setattr(weight(m).segment, "end", 3), "cut into segments"),
    "texts as bytes": (
        lambda m: m.graph.initializer.append(TensorProto(name="t", data_type=8, dims=[2], raw_data=b"ab")), "texts"
    ),
    "half a 4-bit tensor": (
        lambda m: m.graph.initializer.append(TensorProto(name="t", data_type=22, dims=[5], raw_data=b"ab")), "3 bytes"
    ),
    "a vast sparse weight": (lambda m: m.graph.sparse_initializer.append(sparse([10**6, 10**5])), "when dense"),
    "a sparse weight without its places": (
        lambda m: m.graph.sparse_initializer.append(sparse([9], places=(2,))), "indices of shape"
    ),
}  # fmt: skip


def sparse(dims, places=(1,)):
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.ones(places, np.int64), "i"), dims)


@pytest.mark.parametrize("case", CASES)
def test_read_refuses_a_model_in_one_sentence_when_it_is_not_sound(case, tmp_path):
    damage, message = CASES[case]
    model = mlp()
    damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=message) as caught:
        onnx_file.read(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("case", ["a cycle", "too few bytes", "a name that nothing computes"])
def test_entry_points_refuse_a_model_in_memory_when_it_is_not_sound(case):
    damage, message = CASES[case]
    model = mlp()
    damage(model)
    for entry in (lg.inspect, lg.transform, lg.import_onnx, lg.remove):
        with pytest.raises(ModelError, match=message):
            entry(model)


@pytest.mark.parametrize(
    "old", ["MatMul", "stack_trace", "in the doc", "own.domain", "the_value", "N", "key of mine", "axis"]
)
def test_read_refuses_a_model_when_a_text_anywhere_is_no_utf8(old, tmp_path):
    model = mlp()
    model.opset_import.append(helper.make_opsetid("own.domain", 1))
    model.metadata_props.add(key="key of mine", value="the_value")
    model.graph.node[0].metadata_props.add(key="stack_trace", value="x")
    model.graph.node[0].doc_string = "in the doc"
    model.graph.node.append(helper.make_node("Softmax", ["h"], ["unused"], axis=1))
    data = model.SerializeToString()
    soundness.check(model)
    (tmp_path / "m.onnx").write_bytes(data.replace(old.encode(), b"\xff" * len(old)))
    with pytest.raises(ModelError, match="not valid UTF-8"):
        onnx_file.read(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda loop: loop.attribute[0].g.output.pop(), "graph 'body' has 1 outputs; expected 2"),
        (lambda loop: loop.attribute[0].g.input.pop(), "graph 'body' has 2 inputs; expected 3"),
        (lambda loop: loop.attribute[0].g.node[1].input.__setitem__(1, "nowhere"), "needs 'nowhere'"),
        (lambda loop: loop.attribute[0].g.node[1].input.__setitem__(1, "y"), "the graph has a cycle: node 'y'"),
        (lambda loop: loop.attribute[0].ClearField("g"), "holds no GRAPH"),
    ],
)
def test_check_refuses_a_loop_when_its_body_does_not_fit(damage, message):
    model = parser.parse_model(LOOP)
    soundness.check(model)
    damage(model.graph.node[-1])
    with pytest.raises(ModelError, match=message):
        soundness.check(model)


def test_check_refuses_functions_when_they_call_each_other_in_a_ring_or_expand_without_bound():
    model = parser.parse_model(FUNCTIONS)
    soundness.check(model)
    model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "F", "own"
    with pytest.raises(ModelError, match="function 'F' of domain 'own' calls itself"):
        soundness.check(model)
    model = parser.parse_model(FUNCTIONS)
    del model.functions[:]
    for i in range(40):
        nodes = [helper.make_node(f"F{i + 1}", [a], [b], domain="own") for a, b in (("a", "m"), ("m", "b"))]
        last = [helper.make_node("Relu", ["a"], ["b"])]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], nodes if i < 39 else last, imports))
    model.graph.node[0].op_type = "F0"
    with pytest.raises(ModelError, match=r"functions expand to 1\.\d+e\+12 nodes"):
        soundness.check(model)


def test_check_refuses_graphs_when_they_lie_too_deep_in_each_other():
    model = mlp()
    graph = model.graph
    for _ in range(500):
        node = graph.node.add(op_type="If", input=["x"], output=["q"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    with pytest.raises(ModelError, match="deep in each other"):
        soundness.check(model)


def test_read_refuses_a_file_at_once_when_a_number_has_no_end(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08" + b"\xff" * 1_000_000)
    with pytest.raises(ModelError, match="not an ONNX file"):
        onnx_file.read(tmp_path / "m.onnx")


def external(folder, location, offset=None, length=None):
    """Writes the MLP with its weight in another file; the file itself is ``weights.bin``."""
    folder.mkdir(exist_ok=True)
    model = mlp()
    raw = weight(model).raw_data
    (folder / "weights.bin").write_bytes(raw)
    weight(model).ClearField("raw_data")
    weight(model).data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            weight(model).external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("location", "offset", "length", "message"),
    [
        ("weights.bin", "abc", None, "states the offset 'abc'"),
        ("weights.bin", "-4", "64", "states the offset '-4'"),
        ("weights.bin", "1_0", "64", "states the offset '1_0'"),
        ("weights.bin", "4", "64", "is truncated: tensor 'w' ends at byte 68, the file has 64"),
        ("weights.bin", "4", None, "is truncated"),
        ("weights.bin", "9" * 30, None, "states the offset"),
        ("weights.bin", "0", "60", "takes 64 bytes, but 60 are stated"),
        ("../weights.bin", None, None, "outside the model's folder"),
        ("a/../../weights.bin", None, None, "outside the model's folder"),
        ("/etc/passwd", None, None, "outside the model's folder"),
        ("C:\\weights.bin", None, None, "outside the model's folder"),
        ("link.bin", None, None, "leads outside the model's folder"),
        ("folder", None, None, "is no regular file"),
        ("pipe", None, None, "is no regular file"),
        ("none.bin", None, None, "is not in"),
        ("ring.bin", None, None, "the file 'ring.bin', which"),
        ("a" * 300, None, None, "cannot be opened"),
        ("a\0b", None, None, "outside the model's folder"),
        ("", None, None, "outside the model's folder"),
    ],
)
def test_read_refuses_external_weights_when_runtimes_would(location, offset, length, message, tmp_path):
    path = external(tmp_path / "m", location, offset, length)
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "weights.bin")
    (tmp_path / "m" / "ring.bin").symlink_to(tmp_path / "m" / "ring.bin")
    (tmp_path / "m" / "folder").mkdir()
    os.mkfifo(tmp_path / "m" / "pipe")
    with pytest.raises(ModelError, match=re.escape(message) if "'" not in message else message):
        onnx_file.read(path)


@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "sub/../weights.bin", "inside.bin"])
def test_read_takes_external_weights_when_they_lie_in_the_models_folder(location, tmp_path):
    path = external(tmp_path / "m", location, "0", "64")
    (tmp_path / "m" / "sub").mkdir()
    (tmp_path / "m" / "inside.bin").symlink_to("weights.bin")
    array = onnx_file.tensor_array(onnx_file.read(path), "w", path.parent)
    np.testing.assert_array_equal(array, np.eye(4))


def test_read_takes_external_weights_when_model_and_weights_are_links_into_one_folder(tmp_path):
    external(tmp_path / "blobs", "weights.bin")
    (tmp_path / "snapshot").mkdir()
    for name in ("m.onnx", "weights.bin"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    path = tmp_path / "snapshot" / "m.onnx"
    np.testing.assert_array_equal(onnx_file.tensor_array(onnx_file.read(path), "w", path.parent), np.eye(4))
    lg.import_onnx(path)


def test_check_takes_a_model_when_it_is_unusual_but_sound():
    model = mlp()
    last = model.graph.node.pop(2)
    model.graph.node.insert(0, last)  # not in order
    model.graph.node.append(helper.make_node("Mystery", ["y", ""], ["z", ""], domain="somebody.else", size=3))
    model.graph.output.append(model.graph.input[0])
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [-1, 4]))
    model.opset_import.append(helper.make_opsetid("somebody.else", 1))
    model.ClearField("ir_version")
    before = model.SerializeToString()
    soundness.check(model)
    assert model.SerializeToString() == before


def test_check_takes_the_models_that_mutants_are_made_of():
    for name, model in sound_models().items():
        onnx.checker.check_model(model, full_check=name != "odd")  # shape inference knows no sparse weights
        soundness.check(model)


@pytest.mark.parametrize(("name", "shape"), [("A", (4,)), ("A", (3, 2)), ("B", ()), ("alpha", (1,)), ("beta", (2, 2))])
def test_check_refuses_a_tensor_of_an_operator_of_ours_when_its_shape_is_another(name, shape):
    model = lg.transform(mlp(), lg.LaurelConfig(rank=2)).model
    tensor = next(t for t in model.graph.initializer if t.name.endswith(f".{name}"))
    tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), tensor.name))
    with pytest.raises(ModelError, match=r"is the tensor 'laurel.res_y\..*' of shape .*; expected floats of shape"):
        soundness.check(model)


@pytest.mark.parametrize("value", ["<value_float = 1.0>", "<value_floats = [1.0, 2.0]>", "<value = float {1.0}>"])
def test_check_refuses_a_tensor_of_an_operator_of_ours_when_a_constant_node_has_another_shape(value):
    text = f"""<ir_version: 8, opset_import: ["" : 17, "ai.laurel" : 1]>
    g (float[N, 4] x, float[2, 4] B) => (float[N, 4] y) {{
      A = Constant {value} ()  f = Relu (x)  y = ai.laurel.Laurel_LR (x, f, A, B) }}"""
    with pytest.raises(ModelError, match="its input A is the tensor 'A' of shape"):
        soundness.check(parser.parse_model(text))


def test_check_refuses_an_operator_of_ours_when_a_function_of_its_name_hides_missing_inputs():
    model = lg.transform(mlp(), lg.LaurelConfig(rank=2)).model
    node = next(node for node in model.graph.node if node.domain == "ai.laurel")
    node.ClearField("input")
    with pytest.raises(ModelError, match="has 0 inputs; Laurel_RW_LR takes 6"):
        soundness.check(model)
