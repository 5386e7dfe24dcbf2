"""Files are deployed exactly or not at all."""

import json
from hashlib import sha256

import numpy as np
import onnx
import pytest
from deploy_models import DEPLOY_TOLERANCE, copy, largest_difference, laurel_model, operators
from onnx import TensorProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import OutputError, RewriteError, VerificationError
from laurel_graph.onnx_model.weight_file import move_weights_out
from laurel_graph.opset.schema import METADATA_DEPLOYED, read_metadata, tensor_name
from laurel_graph.passes.deploy.deploy import deploy, deploy_file, mark
from laurel_graph.passes.pipeline import transform
from laurel_graph.passes.standard import serving
from laurel_graph.tools.benchmarks.models import draw_tensors

VARIANTS = ("rw", "lr", "rw+lr", "rw+pa", "rw+lr+pa")


def transformer(path, layers=3, post_norm=False, opset=17):
    """Writes a little transformer without attention, as an exporter would."""
    rng, nodes, tensors = np.random.default_rng(0), [], []

    def weight(name, *shape):
        tensors.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name))
        return name

    def add(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def norm(x, name):
        return add("LayerNormalization", [x, weight(f"{name}.g", 16), weight(f"{name}.o", 16)], f"{name}.out")

    x = add("MatMul", ["tokens", weight("embed", 8, 16)], "x0")
    for i in range(layers):
        name = f"layers.{i}"
        h = x if post_norm else norm(x, f"{name}.norm")
        h = add("Relu", [add("MatMul", [h, weight(f"{name}.up", 16, 32)], f"{name}.up.out")], f"{name}.relu.out")
        h = add("MatMul", [h, weight(f"{name}.down", 32, 16)], f"{name}.down.out")
        h = add("Add", [h, weight(f"{name}.bias", 16)], f"{name}.bias.out")
        x = add("Add", [x, h], f"{name}.add.out")
        x = norm(x, f"{name}.norm") if post_norm else x
    add("MatMul", [x if post_norm else norm(x, "last"), weight("head", 16, 4)], "scores")
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", "length", 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "length", 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def trained(folder, variant, **options):
    path = folder / "trained.onnx"
    transform(transformer(folder / "base.onnx", **options), lg.LaurelConfig(variant=variant), output=path)
    draw_tensors(path)
    return path


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_deploy_writes_an_exact_file_for_every_variant(tmp_path, variant, post_norm, portable):
    source = trained(tmp_path, variant, post_norm=post_norm)
    before = source.read_bytes()
    report = deploy_file(source, tmp_path / "served.onnx", portable=portable)
    served = onnx.load(tmp_path / "served.onnx")
    onnx.checker.check_model(served)
    assert source.read_bytes() == before
    assert largest_difference(onnx.load(source), served, optimize=True) <= DEPLOY_TOLERANCE
    assert all(relative <= DEPLOY_TOLERANCE for _, relative in report.differences.values())
    assert not any("_RW" in node.op_type for node in served.graph.node)
    if portable:
        assert not served.functions
        assert {entry.domain for entry in served.opset_import} <= {"", "ai.onnx"}
        assert not any(node.domain for node in served.graph.node)
    if variant == "rw":
        base = onnx.load(tmp_path / "base.onnx")
        assert operators(served) == operators(base)
        assert {t.name for t in served.graph.initializer} >= {"layers.0.down", "head"}


def test_deploy_leaves_no_more_nodes_than_the_original_after_ort_optimised_both(tmp_path):
    from laurel_graph.tools.benchmarks.latency import executed_nodes

    deploy_file(trained(tmp_path, "rw", post_norm=True), tmp_path / "served.onnx")
    feeds = {"tokens": np.ones((2, 3, 8), np.float32)}
    counts = [executed_nodes(tmp_path / name, feeds) for name in ("base.onnx", "served.onnx")]
    assert counts[0] == counts[1]
    assert counts[0]["SkipLayerNormalization"] == 3


def test_deploy_says_so_in_the_file_and_takes_training_data_out(tmp_path):
    deploy_file(trained(tmp_path, "rw+lr"), tmp_path / "served.onnx")
    served = onnx.load(tmp_path / "served.onnx")
    assert [prop.key for prop in served.metadata_props] == [METADATA_DEPLOYED]
    assert json.loads(read_metadata(served, METADATA_DEPLOYED)) == {"format": 1, "target": "cpu", "portable": False}


def test_deploy_reports_every_site_as_json(tmp_path):
    report = deploy_file(trained(tmp_path, "rw+lr"), tmp_path / "served.onnx").to_dict()
    report = json.loads(json.dumps(report))
    assert len({site["site"] for site in report["sites"]}) == 3
    assert all(site["alpha"] == site["beta"] == "folded" for site in report["sites"])
    assert all(site["form"] in ("operator", "widened", "chained") for site in report["sites"])
    assert report["rescaled"]
    assert report["outputs"][0]["output"] == "scores"


def test_deploy_refuses_to_write_when_the_result_differs(tmp_path, monkeypatch):
    source = trained(tmp_path, "rw")

    def spoil(model, *args):
        mark(model, *args)
        tensor = next(t for t in model.graph.initializer if t.name == "head")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), "head"))

    monkeypatch.setattr(serving, "mark", spoil)
    with pytest.raises(VerificationError, match="Nothing was written"):
        deploy_file(source, tmp_path / "served.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.onnx", "trained.onnx"]


def test_deploy_verifies_on_given_data_alone_when_there_is_any(tmp_path):
    source = trained(tmp_path, "rw")
    tokens = np.random.default_rng(0).normal(size=(5, 2, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", tokens=tokens)
    report = deploy_file(source, tmp_path / "served.onnx", data=tmp_path / "data.npz")
    assert report.samples == 1
    assert report.verification.outputs[0].shape == (5, 2, 4)


def test_deploy_fails_when_there_is_nothing_to_deploy(tmp_path):
    with pytest.raises(RewriteError, match="no LAuReL"):
        deploy_file(transformer(tmp_path / "base.onnx"), tmp_path / "served.onnx")


def test_deploy_fails_when_the_file_is_deployed_already(tmp_path):
    deploy_file(trained(tmp_path, "rw+lr"), tmp_path / "served.onnx")
    with pytest.raises(RewriteError, match="already"):
        deploy_file(tmp_path / "served.onnx", tmp_path / "again.onnx")


def test_deploy_fails_when_the_output_is_the_input(tmp_path):
    source = trained(tmp_path, "rw")
    with pytest.raises(OutputError):
        deploy_file(source, source)


def test_deploy_fails_when_the_target_is_unknown(tmp_path):
    with pytest.raises(RewriteError, match="cpu"):
        deploy_file(trained(tmp_path, "rw"), tmp_path / "served.onnx", target="abacus")


@pytest.mark.parametrize("external", [False, True])
def test_deploy_compares_models_that_draw_random_numbers(tmp_path, external):
    text = """(float[N,5,8] x0) => (float[N,5,8] y)
    noise = RandomNormalLike(x0)
    x = Add(x0, noise)
    f = MatMul(x, W[8,8])
    j = ai.laurel.Laurel_RW_LR(x, f, alpha[], beta[], A[8,2], B[2,8])
    more = RandomUniformLike<low = -1.0, high = 1.0>(j)
    s = Add(j, more)
    y = MatMul(s, V[8,8])
    """
    source, served = tmp_path / "trained.onnx", tmp_path / "served.onnx"
    onnx.save(laurel_model(text), source, save_as_external_data=external, location="t.bin", size_threshold=0)
    before = source.read_bytes()
    report = deploy_file(source, served)
    assert max(relative for _, relative in report.differences.values()) <= DEPLOY_TOLERANCE
    assert source.read_bytes() == before
    drawn = [node for node in onnx.load(served).graph.node if node.op_type.startswith("Random")]
    assert len(drawn) == 2
    assert not any(item.name == "seed" for node in drawn for item in node.attribute)


@pytest.mark.parametrize("variant", ["rw", "rw+lr"])
def test_deploy_reads_weights_from_external_files(tmp_path, variant):
    source = trained(tmp_path, variant)
    model = onnx.load(source)
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(copy(model), folder / "t.onnx", save_as_external_data=True, location="t.bin", size_threshold=0)
    before = (folder / "t.bin").read_bytes()
    for output in (folder / "served.onnx", tmp_path / "served.onnx"):
        deploy_file(folder / "t.onnx", output)
        assert largest_difference(model, onnx.load(output)) <= DEPLOY_TOLERANCE
    assert (folder / "t.bin").read_bytes() == before


def test_deploy_reports_the_form_of_a_site_when_its_join_is_an_output():
    model = laurel_model("""(float[N,8] x0) => (float[N,8] y)
    f = MatMul(x0, W[8,8])
    y = ai.laurel.Laurel_RW_LR(x0, f, alpha[], beta[], A[8,2], B[2,8])
    """)
    after = copy(model)
    report = deploy(after)
    assert report.to_dict()["sites"][0]["form"] in ("operator", "chained", "widened")
    assert largest_difference(model, after) <= DEPLOY_TOLERANCE


def test_deploy_writes_changed_weights_to_a_file_of_their_own_when_the_source_keeps_them_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(move_weights_out, "__defaults__", (0,))  # these weights are small
    model = onnx.load(trained(tmp_path, "rw"))
    source, served = tmp_path / "external.onnx", tmp_path / "served.onnx"
    onnx.save(copy(model), source, save_as_external_data=True, location="t.bin", size_threshold=0)
    (tmp_path / "served.onnx.data").write_bytes(b"of an older file")
    deploy_file(source, served)
    kept = onnx.load(served, load_external_data=False)
    locations = {entry.value for t in kept.graph.initializer for entry in t.external_data if entry.key == "location"}
    own = next(iter(locations - {"t.bin"}))
    assert locations == {"t.bin", own}
    assert own == f"served.onnx.{sha256((tmp_path / own).read_bytes()).hexdigest()[:12]}.data"
    assert (tmp_path / "served.onnx.data").read_bytes() == b"of an older file"
    assert not any(t.raw_data for t in kept.graph.initializer)
    assert largest_difference(model, onnx.load(served)) <= DEPLOY_TOLERANCE
    assert not list(tmp_path.glob(".*"))


def test_deploy_leaves_no_weight_file_behind_when_it_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(move_weights_out, "__defaults__", (0,))
    source = tmp_path / "external.onnx"
    model = onnx.load(trained(tmp_path, "rw"))
    onnx.save(model, source, save_as_external_data=True, location="t.bin", size_threshold=0)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(VerificationError):
        deploy_file(source, tmp_path / "served.onnx", tolerance=0.0)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("portable", [False, True])
def test_deploy_keeps_what_lies_in_a_subgraph_right(portable):
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["j", "W2"], ["f2"]),
            helper.make_node("Laurel_RW", ["j", "f2", "a2", "b2"], ["yt"], domain="ai.laurel"),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("yt", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["j"], ["ye"])],
        "else",
        [],
        [helper.make_tensor_value_info("ye", TensorProto.FLOAT, None)],
    )
    model = laurel_model(
        """(float[N,8] x0) => (float[N,8] y)
        f = MatMul(x0, W[8,8])
        j = ai.laurel.Laurel_RW(x0, f, alpha[], beta[])
        k = MatMul(j, W2[8,8])
        u = Add(k, a2[])
        v = Add(u, b2[])
        y = Identity(v)
        """
    )
    del model.graph.node[-4:]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other))
    after = copy(model)
    deploy(after, portable=portable)
    assert largest_difference(model, after) <= DEPLOY_TOLERANCE
    if portable:
        assert not after.functions
        assert b"ai.laurel" not in after.SerializeToString()


def test_deploy_closes_tensors_that_could_be_overridden(tmp_path):
    source = tmp_path / "trained.onnx"
    transform(transformer(tmp_path / "base.onnx"), lg.LaurelConfig(variant="rw+lr"), output=source, adapter_inputs=True)
    draw_tensors(source)
    deploy_file(source, tmp_path / "served.onnx")
    assert [value.name for value in onnx.load(tmp_path / "served.onnx").graph.input] == ["tokens"]


def test_deploy_closes_all_weights_when_the_file_is_older_than_overridable_ones(tmp_path):
    model = onnx.load(transformer(tmp_path / "base.onnx", opset=17))
    model.ir_version = 3
    listed = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer]
    model.graph.input.extend(listed)
    onnx.save(model, tmp_path / "old.onnx")
    transform(tmp_path / "old.onnx", lg.LaurelConfig(variant="rw+lr"), output=tmp_path / "trained.onnx")
    deploy_file(tmp_path / "trained.onnx", tmp_path / "served.onnx")
    assert [value.name for value in onnx.load(tmp_path / "served.onnx").graph.input] == ["tokens"]


def test_deploy_keeps_the_low_rank_tensors_under_their_names_when_nothing_scales_them(tmp_path):
    source = trained(tmp_path, "lr")
    deploy_file(source, tmp_path / "served.onnx")
    names = {tensor.name for tensor in onnx.load(tmp_path / "served.onnx").graph.initializer}
    sites = [name for name in names if name.startswith("laurel.") and name.endswith(".A")]
    assert all(name == tensor_name(name[7:-2], "A") for name in sites)
