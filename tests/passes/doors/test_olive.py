"""Our passes in Olive's workflows."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from deploy_models import largest_difference
from onnx import numpy_helper, parser

pytest.importorskip("olive", reason="olive-ai is not installed: pip install olive-ai runs our passes in its workflows")

from olive.model import ONNXModelHandler
from olive.package_config import OlivePackageConfig
from olive.passes.olive_pass import create_pass_from_dict
from olive.workflows import run

import laurel_graph as lg
from laurel_graph.errors import ConfigError, LaurelError, NoResidualError
from laurel_graph.passes.doors.for_olive import LaurelPass
from laurel_graph.passes.standard.changing import Insert
from laurel_graph.passes.standard.serving import Fold, Fuse

WHERE = "laurel_graph.passes.doors.for_olive.LaurelPass"
EVERYWHERE = {"supported_accelerators": ["*"]}


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("CI", "1")  # Olive reports nothing from there
    monkeypatch.chdir(tmp_path)  # Olive keeps a cache where it runs


def model():
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        mlp (float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, w)  r = Relu (h)  y = Add (x, r) }"""
    )
    array = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(array, "w"))
    return made


def plain():
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] a) => (float[N] y) { y = Relu (a) }'
    )


def test_olive_workflow_runs_ours_between_others(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx")
    known = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    known["passes"]["LaurelPass"] = {"module_path": WHERE, "supported_providers": ["*"], **EVERYWHERE}
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(tmp_path / "m.onnx")},
            "passes": {
                "opset": {"type": "OnnxOpVersionConversion", "target_opset": 18},
                "laurel": {"type": "LaurelPass", "passes": ["insert:variant=rw+lr", "fold", "fuse", "verify"]},
            },
            "output_dir": str(tmp_path / "out"),
        },
        package_config=known,
    )
    made = onnx.load(next((tmp_path / "out").rglob("*.onnx")))
    assert [node.op_type for node in made.graph.node if node.domain == "ai.laurel"] == ["Laurel_LR"]
    assert next(entry.version for entry in made.opset_import if not entry.domain) == 18
    assert largest_difference(model(), made) < 1e-6


def test_olive_pass_takes_pass_objects_and_finds_weights_in_other_files(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    before = [(tmp_path / name).read_bytes() for name in ("m.onnx", "w.bin")]
    given = ONNXModelHandler(str(tmp_path / "m.onnx"), inference_settings={"execution_provider": ["CPU"]})
    door = LaurelPass.of(Insert(lg.LaurelConfig("rw+lr")), Fold(), Fuse())
    after = door.run(given, str(tmp_path / "out" / "made.onnx"))
    assert door.result.report.counters["fuse.sites"] == 1
    assert after.inference_settings == given.inference_settings
    assert largest_difference(model(), after.load_model()) < 1e-6
    assert [(tmp_path / name).read_bytes() for name in ("m.onnx", "w.bin")] == before


def test_a_refusal_of_ours_comes_through_olive(tmp_path):
    onnx.save(plain(), tmp_path / "m.onnx")
    given = ONNXModelHandler(str(tmp_path / "m.onnx"))
    with pytest.raises(NoResidualError):
        LaurelPass.of(Insert()).run(given, str(tmp_path / "out.onnx"))
    with pytest.raises(LaurelError, match="no pass and no module 'nothing'"):
        create_pass_from_dict(LaurelPass, {"passes": ["nothing"]}).run(given, str(tmp_path / "out.onnx"))
    with pytest.raises(ConfigError, match="takes an ONNX model, found a int"):
        LaurelPass.of(Fold())._run_for_config(1, None, "")
    assert not (tmp_path / "out.onnx").exists()
