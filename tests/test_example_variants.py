"""A variant of one file goes all the way: detection, ONNX and torch, training, adapters, served and portable files."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from finetune_toy import toy_data, toy_onnx
from models import image_net, onnx_text, run_onnx, token_net
from onnx import numpy_helper
from tolerance import assert_close

import laurel_graph as lg
from laurel_graph.errors import NoResidualError
from laurel_graph.opset.schema import DOMAIN, read_specs
from laurel_graph.passes.pipeline import remove
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune
from laurel_graph.tools.report import write_report
from laurel_graph.variants import TERMS, terms_of
from laurel_graph.variants.check import check_term

EXAMPLES = Path(__file__).parents[1] / "examples"
VARIANTS = {"gated_residual": "gate", "depth_weighted_average": "dwa"}


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """The name of a variant whose one file has been imported, and nothing else."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = dict(TERMS)
    import_module(request.param)
    assert len((EXAMPLES / f"{request.param}.py").read_text().splitlines()) < 100
    yield VARIANTS[request.param]
    TERMS.clear()
    TERMS.update(before)
    terms_of.cache_clear()
    del sys.modules[request.param]


def test_parts_of_the_variant_agree_when_checked(variant):
    assert check_term(variant, opsets=(13,)) < 1e-6
    assert check_term(f"rw+lr+{variant}", opsets=(21,)) < 1e-6


@pytest.fixture
def tuned(variant, tmp_path):
    """The toy network with the variant, trained; ``base.onnx``, ``model.onnx`` and the adapter lie beside it."""
    toy_onnx(tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig(variant=variant), output=tmp_path / "model.onnx")
    data = toy_data()
    np.savez(tmp_path / "train.npz", **data.batch(range(len(data))))
    report = finetune(
        FinetuneOptions(
            model=tmp_path / "model.onnx", data=str(tmp_path / "train.npz"), output="probabilities", lr=0.05,
            tuned=tmp_path / "tuned.onnx", adapter=tmp_path / "a.safetensors", epochs=4, quiet=True, batch_size=16,
            validation=str(tmp_path / "train.npz"),
        )
    )  # fmt: skip
    assert report.new_parameters == sum(s.parameter_count() for s in read_specs(onnx.load(report.tuned)).values())
    before, after = (initializers(tmp_path / f"{name}.onnx") for name in ("model", "tuned"))
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith("laurel.")}
    return tmp_path / "tuned.onnx"


def initializers(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


X = {"x": np.random.default_rng(5).standard_normal((7, 6)).astype(np.float32)}


def test_onnx_file_starts_with_the_same_bits_trains_and_comes_back_when_removed(tuned):
    folder = tuned.parent
    start, base = (run_onnx(onnx.load(folder / f"{name}.onnx"), X) for name in ("model", "base"))
    for one, other in zip(start, base, strict=True):
        np.testing.assert_array_equal(one, other)
    expected = run_onnx(onnx.load(tuned), X)
    assert abs(expected[0] - base[0]).max() > 1e-3
    lg.apply_adapter(folder / "model.onnx", folder / "a.safetensors", folder / "applied.onnx")
    assert (folder / "applied.onnx").read_bytes() == tuned.read_bytes()
    remove(folder / "model.onnx", folder / "removed.onnx")
    assert (folder / "removed.onnx").read_bytes() == (folder / "base.onnx").read_bytes()
    page = write_report(tuned, folder / "page.html").read_text()
    assert "other tensors" in page


def test_deployed_files_give_what_was_trained_when_served_on_onnxruntime_and_openvino(tuned):
    folder, expected = tuned.parent, run_onnx(onnx.load(tuned), X)
    lg.deploy(tuned, folder / "served.onnx")
    assert {n.domain for n in onnx.load(folder / "served.onnx").graph.node} == {"", DOMAIN}
    session = lg.session(folder / "served.onnx")
    for one, other in zip(session.run(None, X), expected, strict=True):
        assert_close(one, other)
    lg.deploy(tuned, folder / "portable.onnx", portable=True)
    portable = onnx.load(folder / "portable.onnx")
    assert not portable.functions and [entry.domain for entry in portable.opset_import] == [""]
    for one, other in zip(run_onnx(portable, X, optimize=True), expected, strict=True):
        assert_close(one, other)
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    compiled = openvino.Core().compile_model(str(folder / "portable.onnx"), "CPU")
    results = compiled(X)
    for port, other in zip(compiled.outputs, expected, strict=True):
        np.testing.assert_allclose(results[port], other, rtol=1e-4, atol=1e-5)


def test_torch_module_starts_with_the_same_bits_learns_and_is_exported_when_transformed(variant, tmp_path):
    toy = import_module("toy")
    try:
        model, x = toy.Classifier().eval(), torch.randn(6, 16)
        module = lg.transform(model, lg.LaurelConfig(variant=variant), torch.zeros(2, 16)).model
        assert torch.equal(module(x), model(x))
        features, label = toy.data(128).tensors
        optimizer = torch.optim.AdamW(lg.parameter_groups(module), lr=3e-2)
        losses = []
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(module(features), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.005
        lg.export_onnx(module, x, tmp_path / "torch.onnx")
        exported = onnx.load(tmp_path / "torch.onnx")
        actual = run_onnx(exported, {exported.graph.input[0].name: x.numpy()})
        assert_close(actual[0], module(x).detach().numpy())
        lg.save_adapter(module, tmp_path / "a.safetensors")
        other = lg.transform(model, lg.LaurelConfig(variant=variant), torch.zeros(2, 16)).model
        lg.load_adapter(other, tmp_path / "a.safetensors")
        assert torch.equal(other(x), module(x))
        imported = lg.import_onnx(tmp_path / "torch.onnx")
        assert len(lg.trainable_parameters(imported)) == len(lg.trainable_parameters(module))
        assert_close(imported(x).detach().numpy(), actual[0])
    finally:
        del sys.modules["toy"]


def test_pixels_start_with_the_same_bits_when_features_lie_on_axis_1(variant):
    model = image_net()
    x = {"x": np.random.default_rng(0).standard_normal((2, 8, 6, 5)).astype(np.float32)}
    transformed = lg.transform(model, lg.LaurelConfig(variant=variant)).model
    np.testing.assert_array_equal(run_onnx(transformed, x)[0], run_onnx(model, x)[0])
    assert_close(lg.import_onnx(transformed)(torch.from_numpy(x["x"])).detach().numpy(), run_onnx(model, x)[0])


def test_average_takes_every_earlier_activation_when_there_are_more_than_pa_takes(variant):
    if variant != "dwa":
        pytest.skip("the gate takes none")
    report = lg.transform(token_net(layers=12), lg.LaurelConfig(variant="dwa")).report
    assert [plan.spec.previous for plan in report.plans] == list(range(12))
    assert report.plans[-1].previous == (*(f"y{i}" for i in range(10, 0, -1)), "x")
    assert report.parameters == sum(range(2, 14))
    pa = lg.transform(token_net(layers=12), lg.LaurelConfig(variant="pa", previous=8)).report
    assert max(plan.spec.previous for plan in pa.plans) == 8


def test_join_of_several_branches_is_left_alone_with_the_reason_when_the_variant_is_for_one(variant):
    text = "(float[n, 8] x) => (float[n, 8] z) { f = MatMul(x, v) g = MatMul(x, w) y = Add(x, f) z = Add(y, g) }"
    model = onnx_text(text, {"v": (8, 8), "w": (8, 8)})
    (residual,) = lg.inspect(model).residuals
    assert len(residual.branches) == 2
    with pytest.raises(NoResidualError, match=f"2 branches, and {variant} is defined for one"):
        lg.transform(model, lg.LaurelConfig(variant=variant))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_element_types_start_with_the_same_bits_when_transformed(variant, dtype):
    model = token_net(dtype=dtype, opset=17)
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(dtype)}
    transformed = lg.transform(model, lg.LaurelConfig(variant=variant)).model
    np.testing.assert_array_equal(run_onnx(transformed, x)[0], run_onnx(model, x)[0])


PLUGIN = """
from laurel_graph.variants import Option, Term, register

@register
class Shift(Term):
    name, tensors, options = "shift", {"v": ("D",)}, {"size": Option(1.0)}

    def formula(self, skip, branch, at):
        return skip, branch + at.options["size"] * at["v"]

    def body(self, nodes, skip, branch, at):
        v = nodes.add("Mul", nodes.along_features(at["v"]), nodes.scalar(at.options["size"]))
        return skip, nodes.add("Add", branch, v)
"""


def laurel(*words, folder):
    """Runs the command in a process of its own, in *folder*."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "laurel_graph.tools.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_fresh_process_knows_the_variant_when_it_is_named_by_plugin_alone(tmp_path):
    onnx.save(token_net(), tmp_path / "m.onnx")
    (tmp_path / "shifts.py").write_text(PLUGIN)
    words = ("transform", "m.onnx", "-o", "shifted.onnx", "--variant", "shift", "--set", "size=0.5", "--json")
    done = laurel("--plugin", "shifts", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sites"][0]["options"] == {"size": 0.5}
    unknown = laurel("deploy", "shifted.onnx", "-o", "out.onnx", folder=tmp_path)  # though shifts.py lies there
    assert unknown.returncode == 2 and "'shift'" in unknown.stderr and "--plugin" in unknown.stderr
    assert not (tmp_path / "out.onnx").exists()
