"""Sites inside functions of a model's own: written out when a file is read, refused where they cannot be."""

import numpy as np
import onnx
import onnxruntime
import pytest
from deploy_models import NET, feeds_of, laurel_model
from onnx import helper, numpy_helper
from tolerance import assert_close

import laurel_graph as lg
from laurel_graph import onnx_file
from laurel_graph.errors import ModelError
from laurel_graph.opset.functions import attach, detach
from laurel_graph.opset.schema import DOMAIN, laurel_nodes

RESIDUAL = NET.replace("j = Add(x0, f)", "j = ai.laurel.Laurel_RW(x0, f, laurel_res_alpha[], laurel_res_beta[])")


def outlined(opset=17, depth=1):
    """A model whose site stands in a function, which *depth* - 1 others call."""
    model = laurel_model(RESIDUAL)
    site = next(node for node in model.graph.node if node.domain == DOMAIN)
    for role in ("alpha", "beta"):
        old, new = f"laurel_res_{role}", f"laurel.res_j.{role}"
        value = np.float32(0.7 if role == "alpha" else 1.3)
        del model.graph.initializer[[t.name for t in model.graph.initializer].index(old)]
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), new))
        site.input[list(site.input).index(old)] = new
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("mine", 1)]
    model.opset_import.append(helper.make_opsetid("mine", 1))
    for level in range(depth):
        inner = onnx.NodeProto()
        inner.CopyFrom(site)
        values = list(site.input), list(site.output)
        model.functions.append(helper.make_function("mine", f"Block{level}", *values, [inner], imports))
        site.CopyFrom(helper.make_node(f"Block{level}", *values, domain="mine"))
    return model


def plain_run(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # it holds no records
@pytest.mark.parametrize("portable", [True, False])
def test_deploy_folds_a_site_when_it_stands_in_a_function_of_the_model(tmp_path, depth, portable):
    trained, served = tmp_path / "trained.onnx", tmp_path / "served.onnx"
    onnx.save(outlined(depth=depth), trained)
    report = lg.deploy(trained, served, portable=portable)
    assert [(site.site, site.result) for site in report.fold.sites] == [("res_j", "Add")]
    assert "res_j" in [item.site for item in report.verification.sites]
    assert {node.domain for node in onnx.load(served).graph.node} == {""}
    feeds = feeds_of(onnx.load(trained))
    assert_close(plain_run(served, feeds), plain_run(trained, feeds))


def test_read_refuses_a_site_in_a_function_when_its_call_cannot_be_written_out(tmp_path):
    onnx.save(outlined(opset=18), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"its function 'Block0' of domain 'mine' holds LAuReL residuals"):
        onnx_file.read(tmp_path / "other.onnx")


def test_read_refuses_a_call_that_leaves_out_what_a_site_needs(tmp_path):
    model = outlined()
    call = next(node for node in model.graph.node if node.domain == "mine")
    call.input[0] = ""
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="its input number 1 has no name, but Laurel_RW needs it"):
        onnx_file.read(tmp_path / "m.onnx")


def test_read_leaves_functions_as_they_are_when_no_site_stands_in_them(tmp_path):
    model = laurel_model(RESIDUAL)
    onnx.save(model, tmp_path / "plain.onnx")
    assert onnx_file.read(tmp_path / "plain.onnx") == model
    onnx.save(outlined(), tmp_path / "outlined.onnx")
    assert len(laurel_nodes(onnx_file.read(tmp_path / "outlined.onnx").graph)) == 1


@pytest.mark.parametrize("change", [attach, detach])
def test_bodies_stay_when_a_function_of_the_model_calls_them(change):
    model = outlined()
    bodies = [function.name for function in model.functions]
    with pytest.raises(ModelError, match="inline the function first"):
        change(model)
    assert [function.name for function in model.functions] == bodies
