"""What does not fit gives an error with text, never a read out of bounds."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.opset.schema import DOMAIN, VERSION
from laurel_graph.runtime import library_path, session_options

pytestmark = pytest.mark.skipif(library_path() is None, reason="the library of kernels is not built")

X = (3, 16)
GOOD = {
    "Laurel_RW_LR": {"x": X, "f": X, "alpha": (), "beta": (16,), "A": (16, 4), "B": (4, 16)},
    "Laurel_LR_PAL2": {"x": X, "f": X, "A": (16, 4), "B": (4, 16), "gamma": (2,), "previous_A": (2, 16, 4),
                       "previous_B": (2, 4, 16), "previous_1": X, "previous_2": X},
    "Laurel_RW_Bias_LayerNorm": {"x": X, "f": X, "alpha": (1,), "beta": (), "bias": (16,), "scale": (16,),
                                 "offset": (16,)},
    "Laurel_LR_2d": {"x": (2, 16, 3, 3), "f": (2, 16, 3, 3), "A": (16, 4), "B": (4, 16)},
}  # fmt: skip
BAD = [
    ("Laurel_RW_LR", "f", (1, 16), "f has shape"),
    ("Laurel_RW_LR", "f", (16,), "f has shape"),
    ("Laurel_RW_LR", "f", (), "f has shape"),
    ("Laurel_RW_LR", "alpha", (15,), "alpha has shape"),
    ("Laurel_RW_LR", "alpha", (1, 1), "alpha has shape"),
    ("Laurel_RW_LR", "beta", (3, 16), "beta has shape"),
    ("Laurel_RW_LR", "beta", (0,), "beta has shape"),
    ("Laurel_RW_LR", "A", (15, 4), "A has shape"),
    ("Laurel_RW_LR", "A", (16,), "A has shape"),
    ("Laurel_RW_LR", "A", (), "A has shape"),
    ("Laurel_RW_LR", "A", (0, 4), "A has shape"),
    ("Laurel_RW_LR", "A", (4, 16), "A has shape"),
    ("Laurel_RW_LR", "B", (5, 16), "B has shape"),
    ("Laurel_RW_LR", "B", (4, 17), "B has shape"),
    ("Laurel_RW_LR", "B", (1, 4, 16), "B has shape"),
    ("Laurel_LR_PAL2", "gamma", (1,), "gamma has shape"),
    ("Laurel_LR_PAL2", "gamma", (), "gamma has shape"),
    ("Laurel_LR_PAL2", "previous_A", (3, 16, 4), "previous_A has shape"),
    ("Laurel_LR_PAL2", "previous_A", (16, 4), "previous_A has shape"),
    ("Laurel_LR_PAL2", "previous_B", (2, 16, 4), "previous_B has shape"),
    ("Laurel_LR_PAL2", "previous_1", (2, 16), "previous_1 has shape"),
    ("Laurel_RW_Bias_LayerNorm", "bias", (1,), "bias has shape"),
    ("Laurel_RW_Bias_LayerNorm", "scale", (8,), "scale has shape"),
    ("Laurel_RW_Bias_LayerNorm", "offset", (16, 1), "offset has shape"),
    ("Laurel_LR_2d", "x", (2, 16, 9), "x has shape"),
    ("Laurel_LR_2d", "A", (3, 4), "A has shape"),
]


def run(name, shapes, constant=()):
    rng = np.random.default_rng(0)
    values = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    # Shapes stay unknown to the graph, so that nothing but the kernel can object.
    inputs = [helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in values if key not in constant]
    initializers = [numpy_helper.from_array(np.asarray(values[key], np.float32), key) for key in constant]
    node = helper.make_node(name, list(values), ["y"], domain=DOMAIN)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "hostile", inputs, [output], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = session_options(threads=1, operators=[name])
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {i.name: np.asarray(values[i.name]) for i in inputs})[0]


@pytest.mark.parametrize("name", GOOD)
def test_result_has_the_shape_of_x_when_the_graph_knows_no_shapes(name):
    assert run(name, GOOD[name]).shape == GOOD[name]["x"]


@pytest.mark.parametrize(("name", "argument", "shape", "text"), BAD)
def test_error_names_the_argument_when_its_shape_does_not_fit(name, argument, shape, text):
    with pytest.raises(Exception, match=text) as error:
        run(name, {**GOOD[name], argument: shape})
    assert name in str(error.value)


@pytest.mark.parametrize(("name", "argument", "shape", "text"), [bad for bad in BAD if bad[1] not in ("x", "f")])
def test_error_names_the_argument_when_it_is_constant(name, argument, shape, text):
    parameters = [key for key in GOOD[name] if key not in ("x", "f", "previous_1", "previous_2")]
    if argument.startswith("previous_") and argument[-1].isdigit():
        parameters = []
    with pytest.raises(Exception, match=r"has shape"):
        run(name, {**GOOD[name], argument: shape}, constant=parameters)


def test_error_says_what_is_expected_when_an_input_is_missing():
    shapes = dict(list(GOOD["Laurel_RW_LR"].items())[:5])
    with pytest.raises(Exception, match=r"Laurel_RW_LR|inputs"):
        run("Laurel_RW_LR", shapes)


def test_error_names_the_type_when_it_is_no_float():
    node = helper.make_node("Laurel_RW", ["x", "x", "a", "a"], ["y"], domain=DOMAIN)
    values = [helper.make_tensor_value_info(n, TensorProto.INT32, s) for n, s in (("x", [3]), ("a", []))]
    output = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    graph = helper.make_graph([node], "hostile", values, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = session_options(threads=1, operators=["Laurel_RW"])
    options.log_severity_level = 4
    with pytest.raises(Exception, match="element type"):
        ort.InferenceSession(model.SerializeToString(), options)
