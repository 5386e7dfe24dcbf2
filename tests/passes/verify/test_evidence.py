"""A yes needs evidence: what was compared held numbers that differ from each other, and tells two models apart."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import VerificationError
from laurel_graph.passes.verify.check import Check
from laurel_graph.passes.verify.compare import Comparison

HEAD = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>'
WEIGHTS = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


def file(folder, text, **weights):
    model = onnx.parser.parse_model(f"{HEAD}\ng (float[b,4] x) => {text}")
    held = {"W": WEIGHTS} | {name: np.asarray(value) for name, value in weights.items()}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in held.items() if name in read)
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(model, path)
    return path


def with_map(folder, weights):
    """A classifier as scikit-learn's exporter writes it: one map of label to score for each row."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"])]
    nodes.append(helper.make_node("ZipMap", ["h"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]))
    kind = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    value = helper.make_tensor_value_info("x", 1, ["b", 4])
    graph = helper.make_graph(nodes, "g", [value], [output], [numpy_helper.from_array(weights, "W")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_verify_says_nothing_when_the_data_exercises_no_output(tmp_path, value):
    first = file(tmp_path, "(float[b,4] y) { y = MatMul(x, W) }")
    other = file(tmp_path, "(float[b,4] y) { y = MatMul(x, W) }", W=WEIGHTS * 3)
    with pytest.raises(VerificationError, match="the data does not exercise the model"):
        lg.verify(first, other, [{"x": np.full((2, 4), value, np.float32)}])
    assert not lg.verify(first, other, [{"x": np.full((2, 4), v, np.float32)} for v in (value, 1.0)])


def test_verify_names_an_output_that_no_sample_exercises(tmp_path):
    text = """(float[b,n] y, bool[b,4] z, float[b,4] h, float[b,4] m)
    { y = Slice(x, s, s, a)\n h = MatMul(x, W)\n z = Greater(h, c)\n m = Where(q, h, i) }"""
    mask = np.eye(1, 4).astype(bool)  # one number of four is finite
    weights = {"s": [2], "a": [1], "c": np.float32(1e9), "q": mask, "i": np.float32(-np.inf)}
    report = lg.verify(path := file(tmp_path, text, **weights), path)
    assert report and {item.output for item in report.outputs if item.idle} == {"y", "z"}
    assert [note for note in report.notes if "nothing is proven" in note] == [
        f"{name}: nothing is proven at this output: on every sample it is empty, not finite, or the same everywhere"
        for name in "yz"
    ]


def test_verify_compares_scores_in_maps_as_numbers(tmp_path):
    first = with_map(tmp_path, WEIGHTS)
    assert not lg.verify(first, with_map(tmp_path, WEIGHTS * 2))
    assert not lg.verify(first, with_map(tmp_path, WEIGHTS * np.float32(1.001)))
    assert lg.verify(first, with_map(tmp_path, WEIGHTS * np.float32(1 + 2e-7)))


def test_verify_tells_sequences_apart_when_they_are_cut_in_other_places(tmp_path):
    whole = "(seq(float[b,4]) y) { h = MatMul(x, W)\n t = Concat<axis = 0>(h, h)\n y = SequenceConstruct(t) }"
    halves = file(tmp_path, "(seq(float[b,4]) y) { h = MatMul(x, W)\n y = SequenceConstruct(h, h) }")
    assert lg.verify(halves, halves)
    assert not lg.verify(halves, file(tmp_path, whole))


ROUNDED = "(int64[b,4] y) { h = MatMul(x, W)\n s = Mul(h, c)\n y = Cast<to = 7>(s) }"


def test_verify_tells_integers_apart_when_noise_moves_most_of_them(tmp_path):
    first = file(tmp_path, ROUNDED, c=np.float32(1e7))
    assert lg.verify(first, file(tmp_path, ROUNDED, c=np.float32(1e7 * (1 + 1e-7))))
    assert not lg.verify(first, file(tmp_path, ROUNDED, c=np.float32(1e7), W=WEIGHTS * 2))


@pytest.mark.parametrize("dtype", [bool, object])
def test_what_cannot_be_far_apart_is_not_equal_when_noise_changes_all_and_all_differ(dtype):
    array = np.asarray([True, False] * 50).astype(dtype)
    comparison = Comparison()
    comparison.add_noise(array, np.roll(array, 1))
    comparison.add(array, np.roll(array, 1))
    assert not comparison.verdict(0.0).equal


@pytest.mark.parametrize("variant", ["rw", "rw+lr", "rw+pa"])
@pytest.mark.parametrize("sites", [("two",), ("one", "two")])
def test_residuals_whose_weights_are_all_zero_are_compared_although_no_sample_moves_them(tmp_path, variant, sites):
    """α and β of both residuals, or of the second alone, are zero: so is their sum, in either file."""
    text = """(float[b,4] z) { f = MatMul(x, W) one = Add(x, f) r = Relu(one) g = MatMul(r, W) two = Add(one, g)
      h = MatMul(two, W) z = Add(h, c) }"""
    path = file(tmp_path, text, c=np.arange(4, dtype=np.float32))
    model = lg.transform(path, lg.LaurelConfig(variant=variant, rank=2, weights="free"), run=False).model
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel."):
            off = tensor.name.split(".")[-1] in ("alpha", "beta") and any(f"{site}." in tensor.name for site in sites)
            tensor.raw_data = bytes(len(tensor.raw_data)) if off else np.full(tensor.dims, 0.5, np.float32).tobytes()
    onnx.save(model, tmp_path / "t.onnx")
    report = lg.deploy(tmp_path / "t.onnx", tmp_path / "d.onnx")
    assert report.verification and {"res_one", "res_two"} <= {item.site for item in report.verification.sites}
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".alpha"):
            tensor.raw_data = np.float32(0.1).tobytes()
    onnx.save(model, tmp_path / "other.onnx")
    assert not lg.verify(tmp_path / "other.onnx", tmp_path / "d.onnx")
    assert not lg.verify(tmp_path / "t.onnx", tmp_path / "other.onnx")


@pytest.mark.parametrize("share", [2.5e-5, 1e-9])
def test_a_pair_is_run_once_when_no_noise_could_make_it_right(tmp_path, share, monkeypatch):
    """Twice the tolerance apart, and noise is a tenth of it: it is not measured again before the pair is refused."""
    once, calls = Check._once, []
    monkeypatch.setattr(Check, "_once", lambda check, choose: calls.append(check) or once(check, choose))
    text = "(float[b,4] y) { y = MatMul(x, W) }"
    report = lg.verify(file(tmp_path, text), file(tmp_path, text, W=WEIGHTS * np.float32(1 + share)))
    assert bool(report) == (share < 1e-5) and len(calls) == 1
