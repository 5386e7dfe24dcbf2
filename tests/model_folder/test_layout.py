"""Which graph of a folder commands work on."""

import json

import pytest
from folder_models import write_folder

from laurel_graph.errors import ModelError
from laurel_graph.model_folder import graph_path, layout_of


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_graph_is_the_decoder_of_a_genai_folder(tmp_path):
    folder = write_folder(tmp_path / "m")
    (folder / "model.onnx").rename(folder / "decoder.onnx")
    touched(folder, "vision.onnx")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    layout = layout_of(folder)
    assert (layout.kind, layout.graph) == ("genai", folder / "decoder.onnx")
    assert layout.others == (folder / "vision.onnx",)


@pytest.mark.parametrize(
    ("files", "graph"),
    [
        (["config.json", "model.onnx"], "model.onnx"),
        (["config.json", "onnx/model.onnx"], "onnx/model.onnx"),
        (["config.json", "encoder_model.onnx", "decoder_model_merged.onnx"], "decoder_model_merged.onnx"),
        (["config.json", "encoder_model.onnx", "decoder_model.onnx"], "decoder_model.onnx"),
        (["net.onnx"], "net.onnx"),
    ],
)
def test_graph_is_found_in_folders_without_genai(tmp_path, files, graph):
    assert graph_path(touched(tmp_path, *files)) == tmp_path / graph


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no .onnx file"),
        (["a.onnx", "b.onnx"], "a.onnx, b.onnx: name one"),
        (["config.json", "decoder_model.onnx", "decoder_with_past_model.onnx"], "two graphs"),
    ],
)
def test_folder_is_refused_when_its_graph_cannot_be_told(tmp_path, files, message):
    with pytest.raises(ModelError, match=message):
        graph_path(touched(tmp_path, *files))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"model": 3}', '{"model": {"decoder": []}}', "{", "[" * 100_000),
        *(f'{{"model": {{"decoder": {{"session_options": {options}}}}}}}' for options in ("[1]", '"x"', "3")),
    ],
)
def test_config_is_refused_when_it_is_none(tmp_path, text):
    touched(tmp_path, "model.onnx")
    (tmp_path / "genai_config.json").write_text(text)
    with pytest.raises(ModelError, match="genai_config"):
        graph_path(tmp_path)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "", 3, "gone.onnx", "a" * 5000, "a\0b", "\ud800"])
def test_graph_outside_the_folder_is_refused_when_the_config_names_it(tmp_path, name):
    touched(tmp_path, "model.onnx")
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": name}}}))
    with pytest.raises(ModelError, match=r"filename|names the graph"):
        graph_path(tmp_path)


def test_config_of_any_size_is_not_read(tmp_path):
    touched(tmp_path, "model.onnx")
    with (tmp_path / "genai_config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="bytes: expected what onnxruntime-genai writes"):
        graph_path(tmp_path)


def test_path_of_a_file_is_itself(tmp_path):
    assert graph_path(tmp_path / "x.onnx") == tmp_path / "x.onnx"
