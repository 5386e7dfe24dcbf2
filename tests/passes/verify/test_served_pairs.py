"""A trained file and what was deployed of it, compared later: how it was folded is known again."""

import json

import numpy as np
import onnx
import pytest
from deploy_models import laurel_model, refusing
from onnx import helper, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import ModelError
from laurel_graph.opset.schema import METADATA_DEPLOYED, read_metadata

TEXT = """(float[N,8] x0) => (float[N,8] y)
h = MatMul(x0, W[8,8])
j = ai.laurel.Laurel_RW(x0, h, {names})
g = com.microsoft.DynamicQuantizeMatMul(j, Q[8,8], S[], Z[], b[8])
y = Add(g, j)"""
QUANTISED = {
    "Q": np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8),
    "S": np.float32(0.003),
    "Z": np.uint8(128),
}


def deployed(folder, fails, monkeypatch):
    """A file that quantises values as they come, deployed by the try that stands after *fails* refusals."""
    model = laurel_model(TEXT.format(names="alpha[], beta[]"), weights=QUANTISED)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, folder / "m.onnx")
    with monkeypatch.context() as patch:
        refusing(patch, fails)
        lg.deploy(folder / "m.onnx", folder / "d.onnx")
    return folder / "m.onnx", folder / "d.onnx"


@pytest.mark.parametrize(("fails", "rescale"), [(0, None), (1, "unquantised"), (2, "nothing")])
def test_verify_knows_how_much_was_folded_when_a_file_quantises_values_as_they_come(
    fails, rescale, tmp_path, monkeypatch
):
    trained, served = deployed(tmp_path, fails, monkeypatch)
    assert json.loads(read_metadata(onnx.load(served), METADATA_DEPLOYED)).get("rescale") == rescale
    assert lg.verify(trained, served)


def test_verify_knows_a_served_file_when_a_tool_dropped_its_metadata(tmp_path):
    text = TEXT.replace("Laurel_RW", "Laurel_RW_LR").format(names="alpha[], beta[], A[8,2], B[2,8]")
    text = text.replace("com.microsoft.DynamicQuantizeMatMul(j, Q[8,8], S[], Z[], b[8])", "MatMul(j, V[8,8])")
    text = text.replace("Add(g, j)", "MatMul(g, U[8,8])")
    onnx.save(laurel_model(text), tmp_path / "m.onnx")
    lg.deploy(tmp_path / "m.onnx", tmp_path / "d.onnx")
    served = onnx.load(tmp_path / "d.onnx")
    del served.metadata_props[:]
    onnx.save(served, tmp_path / "d.onnx")
    report = lg.verify(tmp_path / "m.onnx", tmp_path / "d.onnx")
    assert report and report.sites


@pytest.mark.parametrize("value", ["[1]", '{"rescale": 3}', '{"rescale": {"nothing": []}}', "{"])
def test_verify_takes_no_record_at_its_word(value, tmp_path, monkeypatch):
    trained, served = deployed(tmp_path, 0, monkeypatch)
    model = onnx.load(served)
    next(prop for prop in model.metadata_props if prop.key == METADATA_DEPLOYED).value = value
    onnx.save(model, served)
    if value == "{":
        with pytest.raises(ModelError, match=r"the metadata .* is damaged"):
            lg.verify(trained, served)
    else:
        assert lg.verify(trained, served)


def test_verify_says_equal_when_weights_of_an_old_file_are_inputs_too(tmp_path):
    """Before IR version 4 every weight had to be one; deploying makes constants of them."""
    model = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["" : 13]> g (float[N,8] x, float[8,8] W, float[8,8] V) => (float[N,8] y)
        { h = MatMul(x, W)\n r = Relu(h)\n f = MatMul(r, V)\n j = Add(x, f)
          h2 = MatMul(j, V)\n r2 = Relu(h2)\n f2 = MatMul(r2, W)\n j2 = Add(j, f2)\n y = MatMul(j2, W) }"""
    )
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(0, 0.4, (8, 8)).astype(np.float32), name) for name in "WV"
    )
    onnx.save(model, tmp_path / "m.onnx")
    config = lg.LaurelConfig(variant="rw", weights="free", per_channel=True)
    lg.transform(tmp_path / "m.onnx", config, output=tmp_path / "t.onnx")
    trained = onnx.load(tmp_path / "t.onnx")
    for tensor in trained.graph.initializer:
        if tensor.name.startswith("laurel."):
            tensor.CopyFrom(numpy_helper.from_array(rng.uniform(0.4, 0.8, 8).astype(np.float32), tensor.name))
    onnx.save(trained, tmp_path / "u.onnx")
    lg.deploy(tmp_path / "u.onnx", tmp_path / "d.onnx")
    assert lg.verify(tmp_path / "u.onnx", tmp_path / "d.onnx")
