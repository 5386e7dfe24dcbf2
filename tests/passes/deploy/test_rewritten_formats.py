"""RW leaves the nodes of the original, whatever has been done to the file before: quantised either way, optimised."""

import logging

import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import laurel_graph as lg
from laurel_graph.tools.benchmarks.blocks import network
from laurel_graph.tools.benchmarks.models import draw_tensors
from laurel_graph.tools.benchmarks.routes import census


class Images(CalibrationDataReader):
    """Two random inputs."""

    def __init__(self, name, example):
        self.left = [{name: torch.randn_like(example).numpy()} for _ in range(2)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.manual_seed(0)
    module, (example,) = network("resnet", width=8, blocks=2)
    path = tmp_path_factory.mktemp("net") / "plain.onnx"
    options = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(module, (example,), str(path), dynamic_shapes=({0: "batch"},), input_names=["x"], **options)
    return path, example


def statically(source, target, example):
    quantize_static(source, target, Images("x", example), quant_format=QuantFormat.QDQ)


def dynamically(source, target, _):
    quantize_dynamic(source, target)


def optimised(source, target, _):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("change", [statically, dynamically, optimised])
def test_rw_leaves_the_nodes_of_the_original_when_the_file_was_changed_before(plain, tmp_path, change, monkeypatch):
    monkeypatch.setattr(logging.root.manager, "disable", logging.WARNING)
    source, example = plain
    original, trained, served = (tmp_path / f"{name}.onnx" for name in ("original", "trained", "served"))
    change(source, original, example)
    lg.transform(original, lg.LaurelConfig(variant="rw"), output=trained)
    draw_tensors(trained)
    report = lg.deploy(trained, served)
    assert len(report.fold.sites) == 2 and report.fold.multiplied == ()
    assert {state for site in report.fold.sites for state in (site.alpha, site.beta)} == {"folded"}
    assert census(served) == census(original)
