"""Files that other tools changed: names with a prefix, tensors that sites share, sites that were written out."""

import numpy as np
import onnx
import pytest
from deploy_models import feeds_of
from models import run_onnx, token_net
from onnx import compose, inliner, numpy_helper, version_converter

import laurel_graph as lg
from laurel_graph import onnx_file
from laurel_graph.errors import LaurelError
from laurel_graph.opset.changed import mend, sites_gone
from laurel_graph.opset.laurel_node import known_nodes
from laurel_graph.opset.schema import read_specs, tensor_name


@pytest.fixture
def files(tmp_path):
    """The original, a file at its start, the same one trained, its adapter, and a file deployed from it."""
    onnx.save(token_net(17), tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig("rw+lr+pa", rank=2), output=tmp_path / "start.onnx")
    module = lg.import_onnx(tmp_path / "start.onnx")
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lg.trainable_parameters(module).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    lg.save_adapter(module, tmp_path / "a.safetensors")
    lg.apply_adapter(tmp_path / "start.onnx", tmp_path / "a.safetensors", output=tmp_path / "tuned.onnx")
    lg.deploy(tmp_path / "tuned.onnx", tmp_path / "deployed.onnx")
    return tmp_path


def outputs(path, like=None):
    model = onnx.load(path)
    feeds = feeds_of(onnx.load(like or path))
    return run_onnx(model, dict(zip([v.name for v in model.graph.input], feeds.values(), strict=True)))[0]


def with_prefix(path, output):
    onnx.save(compose.add_prefix(onnx.load(path), "second/"), output)
    return output


def shared(path, output):
    """Writes a model at its start as tools do that look for equal constants: each is there once."""
    model = onnx.load(path)
    first, names = {}, {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        names[tensor.name] = first.setdefault((array.shape, array.tobytes()), tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    kept = [tensor for tensor in model.graph.initializer if names[tensor.name] == tensor.name]
    assert len(kept) < len(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, output)
    return output


def test_names_with_a_prefix_are_read_without_and_every_command_works(files):
    changed = with_prefix(files / "start.onnx", files / "changed.onnx")
    with pytest.warns(UserWarning, match="put 'second/' before its names"):
        found = lg.inspect(changed)
    assert [residual.kind for residual in found.residuals] == ["laurel"] * 3
    with pytest.warns(UserWarning, match="second/"):
        lg.remove(changed, files / "removed.onnx")
    assert np.array_equal(outputs(files / "removed.onnx", files / "base.onnx"), outputs(files / "base.onnx"))
    with pytest.warns(UserWarning, match="second/"):
        lg.apply_adapter(changed, files / "a.safetensors", output=files / "applied.onnx")
    assert np.array_equal(outputs(files / "applied.onnx", files / "tuned.onnx"), outputs(files / "tuned.onnx"))
    with pytest.warns(UserWarning, match="second/"):
        report = lg.deploy(with_prefix(files / "tuned.onnx", files / "changed-tuned.onnx"), files / "served.onnx")
    assert {site.site for site in report.verification.sites} >= set(read_specs(onnx.load(files / "tuned.onnx")))


def test_a_prefix_that_hides_names_of_another_model_stays(files):
    model = compose.add_prefix(onnx.load(files / "start.onnx"), "second/")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), "laurel.res_y1.alpha"))
    before = [tensor.name for tensor in model.graph.initializer]
    assert "'second/'" in mend(model)[0]
    assert [tensor.name for tensor in model.graph.initializer] == before


def test_a_deployed_file_with_a_prefix_says_that_it_is_deployed(files):
    changed = with_prefix(files / "deployed.onnx", files / "changed.onnx")
    for command in (lg.remove, lg.deploy):
        with pytest.raises(LaurelError, match="deployed"):
            command(changed, files / "output.onnx")


def test_shared_tensors_become_each_sites_own(files):
    changed = shared(files / "start.onnx", files / "changed.onnx")
    model = onnx_file.read_with_records(changed)
    own = onnx.load(files / "start.onnx")
    assert {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer} == {
        t.name: numpy_helper.to_array(t).tolist() for t in own.graph.initializer
    }
    assert model.graph.node == own.graph.node
    names = sorted(lg.trainable_parameters(lg.import_onnx(changed)))
    assert names == sorted(lg.trainable_parameters(lg.import_onnx(files / "start.onnx")))
    lg.apply_adapter(changed, files / "a.safetensors", output=files / "applied.onnx")
    assert np.array_equal(outputs(files / "applied.onnx"), outputs(files / "tuned.onnx"))
    lg.remove(changed, files / "removed.onnx")
    assert np.array_equal(outputs(files / "removed.onnx"), outputs(files / "base.onnx"))


def test_tensors_of_other_names_that_are_not_shared_are_left_alone(files):
    model = onnx.load(files / "tuned.onnx")
    first, second = known_nodes(model.graph.node)[:2]
    a, b = (list(node.operator.inputs).index("A") for node in (first, second))
    first.node.input[a], second.node.input[b] = second.node.input[b], first.node.input[a]
    held = next(t for t in model.graph.initializer if t.name == tensor_name(second.site, "gamma"))
    model.graph.initializer.remove(held)
    before = model.SerializeToString(deterministic=True)
    mend(model)
    assert model.SerializeToString(deterministic=True) == before


def test_sites_that_a_tool_wrote_out_are_named_by_every_command(files):
    changed = files / "changed.onnx"
    model = inliner.inline_local_functions(onnx.load(files / "tuned.onnx"))
    onnx.save(model, changed)
    assert sites_gone(model) == list(read_specs(model))
    with pytest.warns(UserWarning, match="no nodes of ai.laurel any more"):
        lg.inspect(changed)
    data = {"x": np.ones((2, 3, 8), np.float32), "target": np.ones((2, 3, 8), np.float32)}
    commands = (
        lambda: lg.remove(changed, files / "output.onnx"),
        lambda: lg.deploy(changed, files / "output.onnx"),
        lambda: lg.apply_adapter(changed, files / "a.safetensors", output=files / "output.onnx"),
        lambda: lg.finetune(changed, data, files / "output.onnx", loss="mse", epochs=1),
    )
    for command in commands:
        with pytest.raises(LaurelError, match="a tool inlined, fused or quantised them"):
            command()
    assert not (files / "output.onnx").exists()


def test_commands_say_that_a_deployed_file_is_one(files):
    data = {"x": np.ones((2, 3, 8), np.float32), "target": np.ones((2, 3, 8), np.float32)}
    commands = (
        lambda: lg.remove(files / "deployed.onnx", files / "output.onnx"),
        lambda: lg.apply_adapter(files / "deployed.onnx", files / "a.safetensors", output=files / "output.onnx"),
        lambda: lg.finetune(files / "deployed.onnx", data, files / "output.onnx", loss="mse", epochs=1),
    )
    for command in commands:
        with pytest.raises(LaurelError, match="is deployed: its weights are folded; train and remove in the file"):
            command()


def test_function_bodies_that_a_tool_dropped_are_written_again_by_inline(files):
    onnx.save(version_converter.convert_version(onnx.load(files / "tuned.onnx"), 21), files / "changed.onnx")
    assert not onnx.load(files / "changed.onnx").functions
    lg.inline(files / "changed.onnx", files / "inlined.onnx")
    assert np.allclose(outputs(files / "inlined.onnx"), outputs(files / "tuned.onnx"), atol=1e-6)
