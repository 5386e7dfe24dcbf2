"""An output replaces a file of its own kind, and no other."""

import json
import shutil

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from deploy_models import NET, laurel_model
from safetensors.numpy import save_file
from torch_models import PreNorm

import laurel_graph as lg
from laurel_graph.errors import ConfigError, OutputError
from laurel_graph.outputs import write
from laurel_graph.passes.graphsurgeon import to_graph


@pytest.fixture
def folder(tmp_path):
    """A transformed model with its adapter, beside files of other people."""
    onnx.save(laurel_model(NET), tmp_path / "model.onnx")
    lg.transform(tmp_path / "model.onnx", lg.LaurelConfig(variant="rw"), output=tmp_path / "t.onnx")
    lg.save_adapter(tmp_path / "t.onnx", tmp_path / "a.safetensors")
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "base.safetensors", metadata={"format": "pt"})
    torch.save({"w": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "weights.data").write_bytes(np.arange(1000, dtype=np.float32).tobytes())
    (tmp_path / "notes.txt").write_text("what I tried")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "other.onnx")
    return tmp_path


FOREIGN = ["base.safetensors", "pytorch_model.bin", "weights.data", "notes.txt"]
COMMANDS = {
    "save_adapter": lambda folder, to: lg.save_adapter(folder / "t.onnx", to),
    "apply": lambda folder, to: lg.apply_adapter(folder / "t.onnx", folder / "a.safetensors", output=to),
    "transform": lambda folder, to: lg.transform(folder / "model.onnx", lg.LaurelConfig(variant="lr"), output=to),
    "remove": lambda folder, to: lg.remove(folder / "t.onnx", output=to),
    "deploy": lambda folder, to: lg.deploy(folder / "t.onnx", to),
}


@pytest.mark.parametrize("target", [*FOREIGN, "other.onnx"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_another_kind_stays_when_an_output_has_its_name(folder, command, target):
    before = (folder / target).read_bytes()
    if command != "save_adapter" and target == "other.onnx":
        COMMANDS[command](folder, folder / target)
        assert (folder / target).read_bytes() != before or command == "remove"
        return
    with pytest.raises(OutputError, match=r"is there already and holds .*: it is not replaced"):
        COMMANDS[command](folder, folder / target)
    assert (folder / target).read_bytes() == before


def test_save_adapter_leaves_the_weights_of_a_live_model_s_base_alone(folder):
    model = PreNorm(2)
    lg.attach(model, lg.LaurelConfig(variant="rw"), torch.randn(2, 3, 12))
    with pytest.raises(OutputError, match="weights"):
        lg.save_adapter(model, folder / "base.safetensors")
    lg.save_adapter(model, folder / "a.safetensors")  # an adapter of ours, an older one
    lg.save_adapter(model, folder / "new.safetensors")
    with pytest.raises(ConfigError, match="the two are in each other's place"):
        lg.save_adapter(folder / "new.safetensors", model)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_of_the_same_kind_or_an_empty_file_is_replaced(folder, command):
    old = folder / ("old.safetensors" if command == "save_adapter" else "old.model")
    for content in (b"", (folder / ("a.safetensors" if command == "save_adapter" else "model.onnx")).read_bytes()):
        old.write_bytes(content)
        COMMANDS[command](folder, old)
        assert old.stat().st_size > 0


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 7 + b"\x7f{",
        (100).to_bytes(8, "little") + b"{" + b"[" * 99,
        (2).to_bytes(8, "little") + b"{}",
        (24).to_bytes(8, "little") + json.dumps({"__metadata__": [1, 2]}).encode().ljust(24),
        b"\x08\x00",
        b"\0",
    ],
)
def test_an_output_of_unknown_content_is_refused_in_one_sentence(folder, content):
    (folder / "old").write_bytes(content)
    with pytest.raises(OutputError, match="is there already"):
        lg.save_adapter(folder / "t.onnx", folder / "old")
    with pytest.raises(OutputError, match="is there already"):
        write(folder / "old", b"<!doctype html>")


LOADED = {"proto": onnx.load, "graph": lambda path: gs.import_onnx(onnx.load(path))}


@pytest.mark.parametrize("kind", LOADED)
@pytest.mark.parametrize("command", ["transform", "remove", "deploy"])
@pytest.mark.parametrize("name", ["t.onnx", "link.onnx"])
def test_the_file_of_a_model_of_memory_stays_when_it_is_named_as_output(folder, kind, command, name):
    source = folder / ("model.onnx" if command == "transform" else "t.onnx")
    name = source.name if name == "t.onnx" else name
    (folder / "link.onnx").symlink_to(source)
    model, before = LOADED[kind](source), source.read_bytes()
    run = {
        "transform": lambda to: lg.transform(model, lg.LaurelConfig(variant="rw"), output=to),
        "remove": lambda to: lg.remove(model, output=to),
        "deploy": lambda to: lg.deploy(model, to),
    }[command]
    with pytest.raises(OutputError, match="the input is never overwritten"):
        run(folder / name)
    assert source.read_bytes() == before and (folder / "link.onnx").is_symlink()
    for _ in range(2):  # what was made before is replaced
        run(folder / "new.onnx")


@pytest.mark.parametrize("command", ["transform", "deploy"])
def test_the_file_of_a_graph_that_was_edited_by_hand_stays_when_it_is_named_as_output(folder, command):
    source = folder / ("model.onnx" if command == "transform" else "t.onnx")
    before = source.read_bytes()
    graph = to_graph(onnx.load(source))
    graph.outputs[0].name = "renamed"
    with pytest.raises(OutputError, match="the input is never overwritten"):
        if command == "transform":
            lg.transform(graph, lg.LaurelConfig(variant="rw"), output=source)
        else:
            lg.deploy(graph, source)
    assert source.read_bytes() == before
