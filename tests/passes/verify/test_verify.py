"""Verification sees every site, on samples that exercise it, within noise measured on the file itself."""

import numpy as np
import onnx
import pytest
from models import token_net
from onnx import numpy_helper

import laurel_graph as lg
from laurel_graph.errors import ModelError, VerificationError
from laurel_graph.passes.deploy.costs import CostModel
from laurel_graph.passes.deploy.deploy import deploy_file, mark
from laurel_graph.passes.standard import serving
from laurel_graph.passes.verify import pair
from laurel_graph.tools.benchmarks.models import draw_tensors
from laurel_graph.tools.robustness.changed_constants.__main__ import mutants_of
from laurel_graph.tools.robustness.changed_constants.networks import FLOAT, TOKENS, D, Network, networks

IN_EVERY_RUN = sorted(networks())


def trained(folder, name, variant="rw+lr"):
    onnx.save(networks()[name](), folder / "base.onnx")
    lg.transform(folder / "base.onnx", lg.LaurelConfig(variant=variant, rank=4), output=folder / "trained.onnx")
    draw_tensors(folder / "trained.onnx")
    return folder / "trained.onnx"


def spoil(path, name, factor):
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), name))
    onnx.save(model, path)


@pytest.mark.parametrize("name", IN_EVERY_RUN)
def test_a_change_of_one_percent_is_caught_when_it_moves_a_site(name, tmp_path):
    found = mutants_of(name, "rw+lr", tmp_path, most=3)
    assert [mutant for mutant in found if mutant.missed] == []
    assert any(mutant.caught for mutant in found)


def test_a_site_is_seen_when_it_is_stored_at_a_scale_and_fused_with_what_follows(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y) {
        a = Conv (x, W0)  b = Relu (a)  f = Conv (b, W1)  s = Add (a, f)  y = Relu (s) }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("W0", "W1"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(8, 8, 1, 1)).astype(np.float32), name))
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8, 8, 1, 1]))
    onnx.save(model, tmp_path / "base.onnx")
    config = lg.LaurelConfig(variant="rw+lr", rank=2)
    lg.transform(tmp_path / "base.onnx", config, output=tmp_path / "trained.onnx")
    draw_tensors(tmp_path / "trained.onnx")
    report = deploy_file(tmp_path / "trained.onnx", tmp_path / "served.onnx", costs=CostModel.only("operator"))
    assert report.fold.renamed == {"y": "y_stored"}
    assert "res_s" in {item.site for item in report.verification.sites}


@pytest.mark.parametrize("name", ["log_front_end", "root_front_end", "log_image"])
def test_samples_are_drawn_positive_when_others_give_nan(name, tmp_path):
    report = lg.deploy(trained(tmp_path, name), tmp_path / "served.onnx").verification
    assert report.style == "positive"
    assert all(item.max_abs < np.inf for item in report.sites)


@pytest.mark.parametrize("name", ["saturated_softmax", "silent_output"])
def test_sites_decide_when_outputs_say_nothing(name, tmp_path):
    source = trained(tmp_path, name)
    lg.deploy(source, tmp_path / "served.onnx")
    model = onnx.load(tmp_path / "served.onnx")
    weights = next(t.name for t in model.graph.initializer if ".B" in t.name)
    spoil(tmp_path / "served.onnx", weights, 1.05)
    report = lg.verify(source, tmp_path / "served.onnx")
    assert not report
    assert report.first_difference.site


def test_a_refusal_names_the_site_that_differs_first(tmp_path, monkeypatch):
    source = trained(tmp_path, "plain")
    sites = [spec["site"] for spec in _sites(source)]

    def wrong(model, *args):
        mark(model, *args)
        tensor = next(t for t in model.graph.initializer if f"{sites[1]}.B" in t.name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))

    monkeypatch.setattr(serving, "mark", wrong)
    with pytest.raises(VerificationError, match=f"site '{sites[1]}'"):
        lg.deploy(source, tmp_path / "served.onnx")


def _sites(path):
    import json

    from laurel_graph.opset.schema import METADATA_SITES, read_metadata

    return json.loads(read_metadata(onnx.load(path), METADATA_SITES))


def test_the_report_is_true_only_when_the_models_are_equal(tmp_path):
    source = trained(tmp_path, "pre_norm")
    assert lg.verify(source, source)
    assert not lg.verify(tmp_path / "base.onnx", source)


def test_samples_without_rows_are_an_error(tmp_path):
    source = trained(tmp_path, "plain")
    with pytest.raises(ModelError, match="at least 1"):
        lg.verify(source, source, batches=(0,))
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 4, D), np.float32))
    with pytest.raises(ModelError, match="no rows"):
        lg.verify(source, source, tmp_path / "none.npz")
    with pytest.raises(ModelError, match="empty"):
        lg.verify(source, source, [])


def test_given_data_replaces_the_draw_when_no_draw_can_run(tmp_path):
    net = Network()
    x = net.op("MatMul", "x", net.weight(D, D))
    picked = net.op("Gather", net.blocks(x), "rows", axis=1)
    net.op("Identity", net.op("Reshape", picked, net.const([-1, 2, D], np.int64)), out="y")
    model = net.model([("x", FLOAT, TOKENS), ("rows", onnx.TensorProto.INT64, ("k",))], "y")
    onnx.save(model, tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig(), output=tmp_path / "trained.onnx")
    rows = np.asarray([0, 3, 1, 2])
    data = [{"x": np.random.default_rng(0).normal(size=(3, 4, D)).astype(np.float32), "rows": rows}]
    assert lg.deploy(tmp_path / "trained.onnx", tmp_path / "served.onnx", data=data).samples == 1


def test_nothing_is_written_when_no_sample_exercises_the_model(tmp_path):
    net = Network()
    x = net.op("MatMul", net.op("Sqrt", net.op("Sub", net.const(-1e6), net.op("Abs", "x"))), net.weight(D, D))
    net.op("Identity", net.blocks(x), out="y")
    onnx.save(net.model([("x", FLOAT, TOKENS)], "y"), tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig(variant="lr"), output=tmp_path / "trained.onnx")
    with pytest.raises(VerificationError, match="--data"):
        lg.deploy(tmp_path / "trained.onnx", tmp_path / "served.onnx")
    assert not (tmp_path / "served.onnx").exists()


def test_a_site_is_fed_numbers_of_its_own_when_no_sample_reaches_it(tmp_path):
    net = Network()
    dead = net.op("Relu", net.op("Sub", net.op("MatMul", "x", net.weight(D, D)), net.const(1e4)))
    net.op("Add", net.op("MatMul", net.blocks(dead, 2, norm=net.norm), net.weight(D, D)), "x", out="y")
    onnx.save(net.model([("x", FLOAT, TOKENS)], "y"), tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig(variant="rw+lr"), output=tmp_path / "trained.onnx")
    draw_tensors(tmp_path / "trained.onnx")
    lg.deploy(tmp_path / "trained.onnx", tmp_path / "served.onnx")
    assert lg.verify(tmp_path / "trained.onnx", tmp_path / "served.onnx")


def test_float16_inside_is_held_to_float16_when_inputs_and_outputs_are_float32(tmp_path):
    source = trained(tmp_path, "half_inside")
    report = lg.deploy(source, tmp_path / "served.onnx").verification
    assert report.outputs[0].dtype == "float32"
    assert report.outputs[0].tolerance >= 5e-3
    assert lg.verify(tmp_path / "base.onnx", tmp_path / "base.onnx")


def test_an_explicit_tolerance_is_meant_as_it_is(tmp_path):
    source = trained(tmp_path, "pre_norm")
    with pytest.raises(VerificationError, match="allowed 1e-12"):
        lg.deploy(source, tmp_path / "served.onnx", tolerance=1e-12)
    assert lg.deploy(source, tmp_path / "served.onnx", tolerance=1.0).allowed == {"y": 1.0}


def test_a_site_counts_once_in_verify_and_in_deploy_when_its_join_has_several_branches(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y) {
        f = MatMul (x, W0)  g = MatMul (x, W1)  t = Add (x, f)  s = Add (t, g)  r = Relu (s)
        h = MatMul (r, W2)  y = Add (r, h) }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("W0", "W1", "W2"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), name))
    onnx.save(model, tmp_path / "base.onnx")
    report = lg.transform(tmp_path / "base.onnx", "rw", output=tmp_path / "trained.onnx").report
    draw_tensors(tmp_path / "trained.onnx")
    deployed = lg.deploy(tmp_path / "trained.onnx", tmp_path / "served.onnx")
    found = lg.verify(tmp_path / "trained.onnx", tmp_path / "served.onnx")
    sites = {plan.spec.site for plan in report.plans}
    assert len(deployed.to_dict()["sites"]) > len(sites)  # one operator a branch
    assert found.counts == deployed.verification.counts == (len(sites), len(sites))
    assert found.summary.startswith(f"{len(sites)} of {len(sites)} sites equal")


def test_the_page_on_verification_names_the_tolerances_that_hold():
    from pathlib import Path

    from laurel_graph.passes.verify.tolerances import DEPLOYED, VERIFIED

    text = (Path(__file__).parents[3] / "docs" / "verification.md").read_text()
    assert DEPLOYED["float32"] == DEPLOYED["float64"] and VERIFIED["float32"] == VERIFIED["float64"]
    said = f"a trained and a deployed file {DEPLOYED['float32']:.0e}, between others {VERIFIED['float32']:.0e}"
    assert said.replace("e-05", "e-5") in text


def test_verify_allows_a_deployed_file_what_deploy_allowed_it(tmp_path):
    base = tmp_path / "base.onnx"
    onnx.save(token_net(), base)
    lg.transform(base, "rw+lr", output=tmp_path / "trained.onnx")
    draw_tensors(tmp_path / "trained.onnx")
    allowed = lg.deploy(tmp_path / "trained.onnx", tmp_path / "served.onnx").allowed
    later = lg.verify(tmp_path / "trained.onnx", tmp_path / "served.onnx")
    assert {item.output: item.tolerance for item in later.outputs} == allowed
    others = lg.verify(tmp_path / "trained.onnx", tmp_path / "trained.onnx")
    assert all(item.tolerance < allowed[item.output] for item in others.outputs)


def test_noise_is_measured_more_often_before_a_large_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pair, "_MANY", 1)
    taken, draws = [], pair.Pair.draws
    monkeypatch.setattr(pair.Pair, "draws", lambda self, result: taken.append(draws(self, result)) or taken[-1])
    path = trained(tmp_path, IN_EVERY_RUN[0])
    assert lg.verify(path, path) and set(taken) == {1}
    other = tmp_path / "other.onnx"
    other.write_bytes(path.read_bytes())
    site = lg.inspect(path).residuals[0].site
    spoil(other, f"laurel.{site}.alpha", 1.01)
    assert not lg.verify(path, other) and set(taken) == {1, 4}
