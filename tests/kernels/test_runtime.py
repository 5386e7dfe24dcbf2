"""Sessions with and without the library of kernels."""

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerance import assert_close

from laurel_graph import runtime
from laurel_graph.errors import ModelError
from laurel_graph.opset import functions
from laurel_graph.opset.schema import DOMAIN, VERSION

needs_library = pytest.mark.skipif(runtime.library_path() is None, reason="the library of kernels is not built")


@pytest.fixture
def model(tmp_path):
    """A file with two operators of ours, one of them inside an If, with function bodies."""
    rng = np.random.default_rng(0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    node = helper.make_node("Laurel_LR", ["x", "h", "A", "B"], ["out"], domain=DOMAIN, doc_string="2 of them")
    then = helper.make_graph([node], "then", [], [out])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["out"])], "else", [], [out])
    nodes = [
        helper.make_node("Laurel_RW", ["x", "x", "alpha", "alpha"], ["h"], domain=DOMAIN),
        helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    values = {
        "A": rng.standard_normal((8, 2)).astype(np.float32),
        "B": rng.standard_normal((2, 8)).astype(np.float32),
        "alpha": np.array(0.5, np.float32),
        "yes": np.array(True),
    }
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(v, k) for k, v in values.items()])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    functions.attach(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    feeds = {"x": rng.standard_normal((5, 8)).astype(np.float32)}
    return tmp_path / "model.onnx", feeds, feeds["x"] + feeds["x"] @ values["A"] @ values["B"] + feeds["x"]


def test_operators_of_a_file_are_found_when_they_stand_in_subgraphs(model):
    assert {"Laurel_RW", "Laurel_LR"} <= set(runtime.used_operators(model[0]))
    assert runtime.used_operators(onnx.load(model[0])) == ("Laurel_LR", "Laurel_RW")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x3a\xff\xff\xff\xff\x0f"])
def test_no_operators_are_found_when_the_file_is_no_model(tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    assert runtime.used_operators(tmp_path / "bad.onnx") == ()
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        runtime.session(tmp_path / "bad.onnx")


def test_error_names_the_path_when_there_is_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"missing\.onnx"):
        runtime.session(tmp_path / "missing.onnx")


@needs_library
def test_session_computes_with_kernels_when_the_library_is_there(model):
    path, feeds, _ = model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(runtime.session(path, threads=1).run(None, feeds)[0], model[2])
        assert_close(runtime.session(path, threads=1, optimize=False).run(None, feeds)[0], model[2])


def test_session_warns_and_runs_bodies_when_the_library_is_missing(model, monkeypatch):
    monkeypatch.setattr(runtime, "kernel_library", lambda: None)
    with pytest.warns(RuntimeWarning, match="without its fused kernels"):
        session = runtime.session(model[0], threads=1)
    assert_close(session.run(None, model[1])[0], model[2])
    assert runtime.isa() is None
    assert runtime.available_isas() == ()


@needs_library
def test_multiply_adds_count_operations_when_the_library_is_there():
    assert runtime.multiply_adds(10) > 0


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (
            np.zeros((2, 5), np.float32),
            r"takes 'x' as \(n, 3\), so axis 1 must be 3, found 5; give it inputs of that shape",
        ),
        (np.zeros(3, np.float32), r"takes 'x' as \(n, 3\), expected 2 axes, found 1"),
        (np.zeros((2, 3)), r"takes 'x' as float32, found float64; convert it first\.$"),
    ],
)
def test_inputs_that_do_not_fit_are_told_by_axis_and_size(array, told):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(ModelError, match=told):
        runtime.run(session, {"x": array}, ["y"], "m.onnx")
    assert runtime.run(session, {"x": np.ones((2, 3), np.float32)}, ["y"], "m.onnx")[0].shape == (2, 3)
