import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from models import run_onnx
from tolerance import assert_close
from torch import nn
from torch_models import leaves, randomise, rewritten

import laurel_graph as lg
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import ModelError, OutputError
from laurel_graph.fingerprint.digest import file_digests, module_digests
from laurel_graph.onnx_model.weight_file import weight_locations
from laurel_graph.opset.schema import laurel_nodes, read_metadata, read_specs, tensor_name
from laurel_graph.passes.read_fx import capture
from laurel_graph.passes.rewrite import export as export_pass
from laurel_graph.passes.rewrite.export import export_onnx, notes_of_file
from laurel_graph.torch_residual.module import laurel_modules


def dynamic(inputs):
    return tuple({0: "batch"} for _ in inputs)


def check(module, path, build):
    """Compares file and module at two batch sizes; returns the file's model."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 7):
        _, inputs, _ = build(batch)
        feeds = {i.name: x.numpy() for i, x in zip(model.graph.input, inputs, strict=True)}
        for actual, expected in zip(run_onnx(model, feeds), leaves(module(*inputs)), strict=True):
            assert_close(actual, expected.detach())
    return model


@pytest.mark.parametrize(
    ("name", "variant", "options"),
    [
        ("prenorm", "rw+lr+pa", {"previous_map": "low-rank"}),
        ("parallel", "rw+pa", {"per_channel": True}),
        ("weighted", "rw+lr+pa", {}),
        ("resnet", "rw+lr+pa", {"per_channel": True}),
        ("bert", "rw+lr", {"export": "dynamic"}),
    ],
)
def test_exported_file_agrees_with_the_module_and_keeps_names_and_dims(tmp_path, name, variant, options):
    module, inputs, plans = rewritten(name, variant, **options)
    randomise(module).train()
    kept = list(module.state_dict())
    path = export_onnx(module, inputs, tmp_path / "m.onnx", dynamic_shapes=dynamic(inputs))
    assert all(m.training for m in module.modules())
    assert list(module.state_dict()) == kept
    model = check(module.eval(), path, lambda batch: rewritten(name, variant, batch, **options))
    held = [t.name for t in model.graph.initializer]
    assert len(held) == len(set(held))
    assert {tensor_name(p.spec.site, n) for p in plans for n in p.spec.tensor_shapes()} <= set(held)
    assert {n for n, _ in module.named_parameters() if not n.startswith("laurel.")} <= set(held)
    assert {i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input} == {"batch"}
    assert all(not node.attribute and node.name.startswith("laurel.") for node in laurel_nodes(model.graph))
    assert read_specs(model) == {p.spec.site: p.spec for p in plans}
    assert {f.name for f in model.functions} == {n.op_type for n in laurel_nodes(model.graph)}


def test_equal_tensors_stay_apart_when_nothing_is_trained_yet(tmp_path):
    module, inputs, plans = rewritten("prenorm", "rw+lr")
    model = onnx.load(export_onnx(module, inputs, tmp_path / "m.onnx", opset=17))
    assert {o.domain: o.version for o in model.opset_import} == {"": 17, "ai.laurel": 1}
    held = {t.name for t in model.graph.initializer}
    assert {tensor_name(p.spec.site, n) for p in plans for n in p.spec.tensor_shapes()} <= held
    assert_close(run_onnx(model, {"x": inputs[0].numpy()})[0], module(*inputs).detach())


def test_relu_that_is_part_of_a_residual_is_a_node_of_its_own(tmp_path):
    module, inputs, plans = rewritten("resnet", "rw+lr")
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("laurel."):
            node.kwargs = {**node.kwargs, "relu": True}
    module.recompile()
    path = export_onnx(randomise(module), inputs, tmp_path / "m.onnx", dynamic_shapes=dynamic(inputs))
    model = check(module, path, lambda batch: rewritten("resnet", "rw+lr", batch))
    readers = {name: node.op_type for node in model.graph.node for name in node.input}
    assert len(plans) > 0
    assert {readers[node.output[0]] for node in laurel_nodes(model.graph)} == {"Relu"}


def test_module_of_torch_export_agrees(tmp_path):
    module, inputs, _ = rewritten("resnet", "rw+lr", export=True)
    randomise(module)
    model = onnx.load(export_onnx(module, inputs, tmp_path / "m.onnx"))
    assert_close(run_onnx(model, {model.graph.input[0].name: inputs[0].numpy()})[0], module(*inputs).detach())


def test_wrapped_module_keeps_the_names_of_its_residuals(tmp_path):
    inner, inputs, plans = rewritten("prenorm", "rw")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = inner, nn.Linear(12, 2)

        def forward(self, *, x):
            return self.head(self.body(x))

    module = Wrapped()
    model = onnx.load(export_onnx(module, (), tmp_path / "m.onnx", kwargs={"x": inputs[0]}))
    held = {t.name for t in model.graph.initializer}
    assert {tensor_name(p.spec.site, n) for p in plans for n in ("alpha", "beta")} <= held
    assert "head.weight" in held and not any(name.startswith("body.laurel") for name in held)
    assert LaurelConfig.from_json(read_metadata(model, "laurel.config")).variant == "rw"
    assert json.loads(read_metadata(model, "laurel.base")) == module_digests(module)
    assert set(file_digests(model, tmp_path)) == {"torch", "onnx"}
    assert set(laurel_modules(module)) == {p.spec.site for p in plans}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_module_is_written_in_its_own_type(tmp_path, dtype):
    module, inputs, plans = rewritten("prenorm", "rw+lr")
    randomise(module)
    module.to(getattr(torch, dtype))
    x = inputs[0].to(getattr(torch, dtype))
    model = onnx.load(export_onnx(module, x, tmp_path / "m.onnx"))
    kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert {types[tensor_name(p.spec.site, n)] for p in plans for n in p.spec.tensor_shapes()} == {kind}
    assert {spec.dtype for spec in read_specs(model).values()} == {dtype}
    if dtype == "float16":
        assert_close(run_onnx(model, {"x": x.numpy()})[0].astype(np.float32), module(x).detach().float(), dtype)


def test_export_fails_with_one_line_and_writes_nothing_when_the_module_cannot_be_traced(tmp_path):
    class Bad(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="Bad cannot be exported to ONNX"):
        export_onnx(Bad(), torch.ones(2), tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="does not exist"):
        export_onnx(Bad(), torch.ones(2), tmp_path / "gone" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_to_a_file_of_their_own_and_the_old_one_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(export_pass, "IN_MEMORY", 0)
    (tmp_path / "m.onnx.data").write_bytes(b"foreign")
    for variant in ("rw", "lr"):
        module, inputs, _ = rewritten("prenorm", variant)
        randomise(module)
        path = export_onnx(module, inputs, tmp_path / "m.onnx")
        (weights,) = weight_locations(onnx.load(path, load_external_data=False))
        assert weights.startswith("m.onnx.") and weights.endswith(".data")
        assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data", weights}
        model = onnx.load(path)
        assert_close(run_onnx(model, {model.graph.input[0].name: inputs[0].numpy()})[0], module(*inputs).detach())
    assert (tmp_path / "m.onnx.data").read_bytes() == b"foreign"


def test_nothing_is_left_when_the_module_cannot_be_exported(tmp_path):
    module, inputs, _ = rewritten("prenorm", "rw")
    with pytest.raises(ModelError):
        export_onnx(module, (inputs[0][0, 0, 0], 3, 4), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_notes_of_a_file_say_nothing_twice_and_nothing_that_concerns_no_file(tmp_path):
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(8, 8)

        def forward(self, x):
            if x.shape[1] == 8:  # torch.export has to look
                x = x.reshape(2, 8)
            return x + torch.relu(self.a(x))

    inputs = torch.ones(2, 8)
    result = lg.transform(Fixed(), "rw", inputs)
    assert capture.FIXED_NOTE in result.report.notes and capture.FROZEN_NOTE in result.report.notes
    with pytest.warns(UserWarning, match="sizes of the example inputs alone") as warned:
        export_onnx(result.model, inputs, tmp_path / "m.onnx")
    notes = notes_of_file(result.report.notes, [str(each.message) for each in warned])
    assert sum("sizes of the example inputs" in note for note in notes) == 1
    assert len(set(notes)) == len(notes) and capture.FROZEN_NOTE not in notes


def test_export_leaves_nothing_of_the_exporter_on_stderr(tmp_path):
    script = (
        "import torch, laurel_graph as lg\n"
        "class Block(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        return x + self.a(x)\n"
        "made = lg.transform(Block(), 'rw', torch.ones(2, 8))\n"
        f"lg.export_onnx(made.model, torch.ones(2, 8), {str(tmp_path / 'm.onnx')!r})\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "-W", "ignore", tmp_path / "script.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
