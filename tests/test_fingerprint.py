"""Same base, another base, cannot tell: torch modules and what exporters, optimisers and quantisers make of them."""

import contextlib
import copy
import io
import json
import os
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import laurel_graph as lg
from laurel_graph.errors import ModelError
from laurel_graph.fingerprint import Fingerprint, compare
from laurel_graph.fingerprint.from_onnx import of_model
from laurel_graph.fingerprint.from_torch import of_module

INPUTS = {
    "convolutions": (2, 3, 6, 6),
    "tokens": (2, 5, 32),
}


class Convolutions(nn.Module):
    """Two residual blocks whose batch norms scale and shift."""

    def __init__(self, width=24):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)) for _ in range(2)
        )
        for _, norm in self.blocks:
            nn.init.uniform_(norm.weight, 0.3, 1.7)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.3, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))

    def swap(self):
        self.blocks[0], self.blocks[1] = self.blocks[1], self.blocks[0]


class Tokens(nn.Module):
    """Two pre-norm blocks."""

    def __init__(self, width=32):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1, 0.1)

    def forward(self, x):
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return x

    def swap(self):
        self.mlps[0], self.mlps[1] = self.mlps[1], self.mlps[0]


def network(name, seed=0, **sizes):
    torch.manual_seed(seed)
    return {"convolutions": Convolutions, "tokens": Tokens}[name](**sizes).eval()


def exported(module, name, path, **options):
    """An ONNX file of *module* by one of torch's exporters."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(INPUTS[name]),), path, **options)
    return onnx.load(path)


EXPORTERS = {
    "optimised": {"dynamo": True, "optimize": True, "verbose": False},
    "torchscript": {"dynamo": False, "opset_version": 17},
}
EXPORTS = [(name, exporter) for name in INPUTS for exporter in EXPORTERS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(network, exporter) to its ONNX model."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        (name, exporter): exported(network(name), name, folder / f"{name}.{exporter}.onnx", **options)
        for name, exporter in EXPORTS
        for options in (EXPORTERS[exporter],)
    }


def others(name):
    """What is not the same base, by what was done to it."""
    made = {"seed": network(name, 1)}
    made["tuned"] = tuned = network(name)
    made["places"] = swapped = network(name)
    swapped.swap()
    made["layer"] = replaced = network(name)
    (replaced.blocks[1][0] if name == "convolutions" else replaced.mlps[1][0]).reset_parameters()
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(1e-3 * p.abs().mean() * torch.randn_like(p))
    config = lg.LaurelConfig(variant="rw")
    found = {what: of_module(lg.transform(m, config, torch.zeros(INPUTS[name])).model) for what, m in made.items()}
    return {**found, "width": of_module(network(name, width=20))}


def half(model):
    """The float16 version of a model: weights rounded, casts left out."""
    new = copy.deepcopy(model)
    for tensor in new.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return new


def optimised(model, level):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = "optimised.onnx"
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load("optimised.onnx")


def dynamic(model, **options):
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(model, "float.onnx")
    quantize_dynamic("float.onnx", "quantised.onnx", **options)
    return onnx.load("quantised.onnx")


def static(model):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self):
            value = model.graph.input[0]
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            self.left = [{value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}]

        def get_next(self):
            return self.left.pop() if self.left else None

    onnx.save(model, "float.onnx")
    options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "weight_type": QuantType.QInt8}
    quantize_static("float.onnx", "quantised.onnx", Samples(), **options)
    return onnx.load("quantised.onnx")


def four_bits(model):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(copy.deepcopy(model), block_size=32, is_symmetric=False)
    quantizer.process()
    return quantizer.model.model


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_torch_module_and_its_export_are_the_same_base_whichever_exporter_wrote_it(files, name, exporter):
    found = of_model(files[name, exporter])
    module = network(name)
    graph = lg.transform(module, lg.LaurelConfig(variant="rw+lr"), torch.zeros(INPUTS[name])).model
    for torch_side in (of_module(module), of_module(graph)):
        assert compare(torch_side, found).answer == "same"
        assert compare(found, torch_side).answer == "same"
    for what, other in others(name).items():
        assert (what, compare(other, found).answer) == (what, "other")
        assert (what, compare(found, other).answer) == (what, "other")


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_exports_of_one_module_are_the_same_base_when_compared_with_each_other(files, name, exporter):
    for (network_name, _), other in files.items():
        if network_name == name:
            assert compare(of_model(files[name, exporter]), of_model(other)).answer == "same"


VERSIONS = {
    "float16": half,
    "basic": lambda model: optimised(model, "BASIC"),
    "extended": lambda model: optimised(model, "EXTENDED"),
    "dynamic int8": dynamic,
    "dynamic int8 per channel": lambda model: dynamic(model, per_channel=True),
    "QDQ": static,
    "int4": four_bits,
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_version_of_a_file_is_the_same_base_and_another_seed_is_not(files, name, version, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = files[name, "optimised"]
    made = of_model(VERSIONS[version](model))
    for base in (of_model(model), of_module(network(name))):
        assert compare(base, made).answer == "same"
        assert compare(made, base).answer == "same"
    strange = others(name)
    for what in ("seed", "width", "places", "layer", *["tuned"] * (version in ("float16", "basic", "extended"))):
        assert (what, compare(strange[what], made).answer) == (what, "other")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", INPUTS)
def test_cast_module_is_the_same_base_and_a_tuned_one_is_not(name, dtype):
    config, x = lg.LaurelConfig(variant="rw"), torch.zeros(INPUTS[name])
    cast = of_module(lg.transform(network(name), config, x).model.to(dtype))
    assert compare(of_module(network(name)), cast).answer == "same"
    assert compare(cast, of_module(network(name))).answer == "same"
    assert compare(others(name)["tuned"], cast).answer == "other"


def test_weights_in_another_file_are_the_same_base_and_are_read_where_they_lie(files, tmp_path):
    model = files["tokens", "torchscript"]
    path = tmp_path / "external.onnx"
    onnx.save_model(copy.deepcopy(model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = onnx.load(path, load_external_data=False)
    assert compare(of_model(model), of_model(outside, tmp_path)).answer == "same"
    os.truncate(tmp_path / "weights.bin", 64)
    with pytest.raises(ModelError, match=r"external data of tensor .* cannot be read"):
        of_model(outside, tmp_path)


def test_answer_is_unknown_when_the_layout_of_the_weights_is_not(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, blocked = of_model(files["convolutions", "optimised"]), copy.deepcopy(files["convolutions", "optimised"])
    for node in blocked.graph.node:
        if node.op_type == "Conv":
            node.domain = "com.microsoft.nchwc"
    verdict = compare(base, of_model(blocked))
    assert verdict.answer == "unknown"
    assert "% of the elements" in verdict.reason
    bare = helper.make_model(helper.make_graph([], "g", [], []))
    assert compare(base, of_model(bare)).answer == "unknown"
    assert compare(of_model(bare), of_model(bare)).answer == "same"


def test_fingerprint_is_the_same_when_written_and_read(files):
    made = of_model(files["convolutions", "optimised"])
    back = Fingerprint.from_text(made.to_text())
    assert back.to_text() == made.to_text()
    assert compare(made, back).answer == "same"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "{",
        lambda data: "[" * 100_000,
        lambda data: "[]",
        lambda data: json.dumps({**data, "version": 2}),
        lambda data: json.dumps({**data, "unread": -1}),
        lambda data: json.dumps({**data, "weights": 3}),
        lambda data: json.dumps({**data, "weights": [[1]]}),
        lambda data: json.dumps({**data, "weights": [[["8"], *data["weights"][0][1:]]]}),
        lambda data: json.dumps({**data, "weights": [[*data["weights"][0][:5], "AAAA"]]}),
        lambda data: json.dumps({**data, "weights": [[*data["weights"][0][:5], 5]]}),
        lambda data: json.dumps({**data, "weights": [[data["weights"][0][0], "int", *data["weights"][0][2:]]]}),
    ],
)
def test_text_that_is_no_fingerprint_is_a_value_error(files, damage):
    text = of_model(files["tokens", "torchscript"]).to_text()
    with pytest.raises(ValueError, match=r"the fingerprint (is damaged|has version)"):
        Fingerprint.from_text(damage(json.loads(text)))
