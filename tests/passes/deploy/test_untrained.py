"""A file that is still at its start is deployed, and the report says that it gains nothing."""

import numpy as np
import onnx
import pytest
from models import token_net

import laurel_graph as lg
from laurel_graph.onnx_model.tensors import set_tensors, tensor_array
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.passes.deploy.untrained import NOTE, is_untrained

VARIANTS = ["rw", "lr", "pa", "rw+lr+pa"]


@pytest.fixture(params=[(v, h) for v in VARIANTS for h in ("identity", "low-rank") if "pa" in v or h == "identity"])
def transformed(request, tmp_path):
    variant, previous_map = request.param
    onnx.save(token_net(), tmp_path / "m.onnx")
    config = lg.LaurelConfig(variant=variant, previous_map=previous_map)
    return lg.transform(tmp_path / "m.onnx", config, output=tmp_path / "t.onnx").model


def test_deploy_says_so_when_nothing_was_trained(transformed, tmp_path):
    assert NOTE in lg.deploy(transformed, tmp_path / "d.onnx").notes


def test_deploy_says_nothing_when_one_tensor_of_one_site_was_trained(transformed, tmp_path):
    model = onnx.load(transformed)
    *_, spec = read_specs(model).values()
    name = tensor_name(spec.site, next(n for n in ("B", "alpha", "previous_B", "gamma") if n in spec.tensor_shapes()))
    set_tensors(model, {name: np.asarray(tensor_array(model, name) + 0.25, np.float32)})
    assert not is_untrained(model, tmp_path)
    onnx.save(model, tmp_path / "tuned.onnx")
    assert NOTE not in lg.deploy(tmp_path / "tuned.onnx", tmp_path / "d.onnx").notes


def test_a_plain_model_is_not_called_untrained(tmp_path):
    assert not is_untrained(token_net(), tmp_path)
