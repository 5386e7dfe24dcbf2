"""Deployment into a newer opset than the trained file has."""

import numpy as np
import onnx
import pytest
from deploy_models import feeds_of
from models import image_net, run_onnx, token_net
from onnx import helper

import laurel_graph as lg
from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.walk import default_opset
from laurel_graph.tools.compatibility.forms import tune


@pytest.fixture(params=[token_net, image_net], ids=["tokens", "image"])
def trained(request, tmp_path):
    model = request.param(9)
    model.graph.node[0].doc_string = "kept"
    onnx.save(model, tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig("rw+lr+pa", rank=2), output=tmp_path / "start.onnx")
    tune(tmp_path / "start.onnx", tmp_path / "tuned.onnx")
    return tmp_path / "tuned.onnx"


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_deployed_file_of_a_newer_opset_computes_the_same(trained, opset, portable):
    output = trained.with_name("served.onnx")
    report = lg.deploy(trained, output, opset=opset, portable=portable)
    assert report.verification is not None
    model = onnx.load(output)
    assert default_opset(model) == opset and default_opset(onnx.load(trained)) == 9
    assert {entry.version for body in model.functions for entry in body.opset_import} <= {opset}
    assert bool(model.functions) is bool([node for node in model.graph.node if node.domain])
    assert not (portable and model.functions)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[0].doc_string == "kept"
    feeds = feeds_of(model)
    found, wanted = run_onnx(model, feeds)[0], run_onnx(onnx.load(trained), feeds)[0]
    assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_large_and_external_weights_stay_where_they_are(tmp_path):
    onnx.save(token_net(9, width=32), tmp_path / "base.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig("lr", rank=2), output=tmp_path / "start.onnx")
    tune(tmp_path / "start.onnx", tmp_path / "tuned.onnx")
    lg.deploy(tmp_path / "tuned.onnx", tmp_path / "same.onnx")
    lg.deploy(tmp_path / "tuned.onnx", tmp_path / "newer.onnx", opset=17)
    same, newer = (onnx.load(tmp_path / f"{name}.onnx", load_external_data=False) for name in ("same", "newer"))
    places = [{t.name: str(t.external_data) for t in model.graph.initializer} for model in (same, newer)]
    assert places[0] == places[1] and any(places[0].values())


@pytest.mark.parametrize("opset", [8, 999])
def test_an_opset_that_is_older_or_unknown_is_refused(trained, opset):
    with pytest.raises(RewriteError, match=f"opset {opset} cannot be written: expected 9"):
        lg.deploy(trained, trained.with_name("served.onnx"), opset=opset)
    assert not trained.with_name("served.onnx").exists()


def test_functions_of_the_model_itself_are_named(tmp_path):
    model = token_net(15)
    model.functions.append(
        helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                             [helper.make_opsetid("", 15)])
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.ir_version = 8
    model.graph.node.append(helper.make_node("Twice", ["y3"], ["twice"], domain="own"))
    model.graph.output[0].name = "twice"
    onnx.save(model, tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig("lr", rank=2), output=tmp_path / "start.onnx")
    with pytest.raises(RewriteError, match="functions of its own \\(Twice\\)"):
        lg.deploy(tmp_path / "start.onnx", tmp_path / "served.onnx", opset=18)
