"""The table of operators that hide an add: held against ONNX Runtime's own schemas and its results."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

import laurel_graph as lg
from laurel_graph.onnx_model.hidden_adds import HIDDEN_ADDS, MICROSOFT

INPUTS = {
    "SkipLayerNormalization": {"addends": ("input", "skip"), "bias": "bias", "scale": "gamma", "offset": "beta"},
    "SkipSimplifiedLayerNormalization": {"addends": ("input", "skip"), "bias": "bias", "scale": "gamma"},
    "SkipGroupNorm": {"addends": ("X", "skip"), "bias": "bias", "scale": "gamma", "offset": "beta"},
    "FusedConv": {"addends": ("Z",), "factors": ("X", "W", "B")},
    "NhwcFusedConv": {"addends": ("Z",), "factors": ("X", "W", "B")},
    "FusedGemm": {"addends": ("C",), "factors": ("A", "B")},
}
SCHEMAS = {s.name: s for s in runtime.get_all_operator_schema() if s.domain == MICROSOFT and s.name in HIDDEN_ADDS}
NORMS = [op for op, form in HIDDEN_ADDS.items() if form.norm]


@pytest.mark.parametrize("op", SCHEMAS)
def test_places_are_those_of_the_runtimes_schema_when_it_is_asked(op):
    form, names = HIDDEN_ADDS[op], [parameter.name for parameter in SCHEMAS[op].inputs]
    for part, expected in INPUTS[op].items():
        places = getattr(form, part)
        found = tuple(names[place] for place in places) if isinstance(places, tuple) else names[places]
        assert found == expected
    outputs = [parameter.name for parameter in SCHEMAS[op].outputs]
    assert [outputs[place] for place in form.statistics] == (["mean", "inv_std_var"] if form.statistics else [])
    assert form.total is None or outputs[form.total] in ("input_skip_bias_sum", "S")


@pytest.mark.parametrize("op", NORMS)
def test_epsilon_is_that_of_the_runtimes_schema_when_a_node_states_none(op):
    default = onnx.AttributeProto.FromString(SCHEMAS[op].attributes["epsilon"]._default_value)
    assert HIDDEN_ADDS[op].epsilon == pytest.approx(default.f)


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("size", [1e-4, 1e-6])
def test_import_and_transform_compute_what_the_runtime_does_when_values_are_as_small_as_epsilon(op, size):
    model = skip_norm(op)
    x = (np.random.default_rng(0).standard_normal((1, 2, 8)) * size).astype(np.float32)
    expected = run(model, x)
    found = lg.import_onnx(model)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    rewritten = lg.transform(model, lg.LaurelConfig(variant="rw")).model
    np.testing.assert_allclose(run(rewritten, x), expected, rtol=1e-4, atol=1e-6)


def skip_norm(op: str) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"]),
        helper.make_node(op, ["x", "f", "g"], ["y"], domain=MICROSOFT),
    ]
    info = [helper.make_tensor_value_info(name, 1, [1, 2, 8]) for name in "xy"]
    stored = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(8, np.float32), "g")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
