"""Folders in, folders out: through every command, and into ONNX Runtime GenAI."""

import json
import os

import numpy as np
import onnx
import pytest
from folder_models import write_folder

import laurel_graph as lg
from laurel_graph import onnx_file, runtime
from laurel_graph.errors import LaurelError, ModelError, OutputError
from laurel_graph.model_folder import rewritten
from laurel_graph.onnx_model.tensors import set_tensors
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.outputs.models import write_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("genai") / "base")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A transformed folder whose LAuReL tensors are no longer where they started."""
    place = tmp_path_factory.mktemp("trained")
    start = lg.transform(base, output=place / "start").model
    with rewritten(start, place / "trained") as new:
        model, random = onnx_file.read(new.source), np.random.default_rng(0)
        values = {}
        for site, spec in read_specs(model).items():
            for name, shape in spec.tensor_shapes().items():
                moved = {"alpha": 1.1, "beta": 0.9}.get(name)  # softmax keeps their sum
                value = 0.1 * random.standard_normal(shape) if moved is None else np.full(shape, moved)
                values[tensor_name(site, name)] = value
        set_tensors(model, values)
        write_model(model, new.graph, new.source)
    return place / "trained"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def library_of(folder):
    options = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    return options.get("custom_ops_library")


def test_folder_is_transformed_into_a_folder_when_asked(base, tmp_path):
    before = contents(base)
    result = lg.transform(base, output=tmp_path / "t")
    assert result.model == tmp_path / "t"
    assert len(result.report.plans) == 4
    assert contents(base) == before
    after = contents(tmp_path / "t")
    same = {"tokenizer.json", "tokenizer_config.json", "model.onnx.data"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["model.onnx"] != before["model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert lg.verify(base, tmp_path / "t").equal


def test_base_comes_back_when_the_folder_is_cleaned(base, tmp_path):
    lg.transform(base, output=tmp_path / "t")
    lg.remove(tmp_path / "t", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(base)


@pytest.mark.skipif(runtime.library_path() is None, reason="the kernels were not built")
def test_library_lies_in_the_folder_exactly_where_the_graph_needs_it(base, trained, tmp_path):
    lg.deploy(trained, tmp_path / "d")
    lg.deploy(trained, tmp_path / "p", portable=True)
    name = runtime.library_path().name
    assert [library_of(folder) for folder in (base, trained, tmp_path / "d", tmp_path / "p")] == [
        None,
        name,
        name,
        None,
    ]
    assert (tmp_path / "d" / name).read_bytes() == runtime.library_path().read_bytes()
    assert not (tmp_path / "p" / name).exists()
    model = onnx.load(tmp_path / "p" / "model.onnx", load_external_data=False)
    assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}


def test_library_of_someone_else_is_refused_where_ours_is_needed(trained, base, tmp_path):
    def name_other(folder, made):
        with rewritten(folder, made) as new:
            write_model(onnx_file.read(new.source), new.graph, new.source)
        config = json.loads((made / "genai_config.json").read_text())
        config["model"]["decoder"]["session_options"]["custom_ops_library"] = "libother.so"
        (made / "genai_config.json").write_text(json.dumps(config))
        return made

    other = name_other(trained, tmp_path / "other")
    with pytest.raises(ModelError, match=r"libother.*--portable"):
        lg.deploy(other, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    lg.deploy(other, tmp_path / "p", portable=True)
    assert library_of(tmp_path / "p") == "libother.so"


def test_weights_that_nothing_names_stay_away_when_a_folder_is_written(trained, tmp_path):
    lg.deploy(trained, tmp_path / "d")
    with rewritten(tmp_path / "d", tmp_path / "again") as new:
        whole = onnx.load(new.source)
        onnx.save(whole, new.graph)
    assert not [path for path in (tmp_path / "again").iterdir() if path.suffix == ".data"]


@pytest.mark.parametrize("place", ["full", "base", "base/inner", "file", "gone/x"])
def test_output_is_refused_where_something_would_be_lost(base, tmp_path, place):
    source = tmp_path / "base"
    with rewritten(base, source) as new:
        new.graph.write_bytes(new.source.read_bytes())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=r"output|folder"):
        lg.transform(source, output=tmp_path / place)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_empty_folder_is_filled_when_it_is_there(base, tmp_path):
    (tmp_path / "t").mkdir()
    lg.transform(base, output=tmp_path / "t")
    assert (tmp_path / "t" / "genai_config.json").is_file()


def test_nothing_is_left_when_a_pass_fails(base, tmp_path):
    with pytest.raises(LaurelError) as caught:
        lg.transform(base, lg.LaurelConfig(sites=("nothing*",)), output=tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
    assert ".laurel-" not in str(caught.value)


def test_file_is_written_when_the_output_is_one(base, tmp_path):
    lg.transform(base, output=tmp_path / "t.onnx")
    assert (tmp_path / "t.onnx").is_file()


def test_adapter_of_a_folder_goes_into_another_one(base, trained, tmp_path):
    lg.save_adapter(trained, tmp_path / "a.safetensors")
    lg.transform(base, output=tmp_path / "t")
    lg.apply_adapter(tmp_path / "t", tmp_path / "a.safetensors", tmp_path / "applied")
    assert lg.verify(trained, tmp_path / "applied").equal
    assert not lg.verify(trained, tmp_path / "t").equal


def test_genai_generates_the_same_tokens_when_deployed(base, trained, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    lg.deploy(trained, tmp_path / "d")
    lg.deploy(trained, tmp_path / "p", portable=True)
    runs = [generated(genai, folder) for folder in (base, trained, tmp_path / "d", tmp_path / "p")]
    assert runs[0] != runs[1]
    assert runs[1] == runs[2] == runs[3]


def generated(genai, folder, count=24):
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=4 + count, min_length=4 + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([[1, 9, 17, 30]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))


def carried(folder, output):
    """Carries a folder over with its graph as it is; returns the notes."""
    with rewritten(folder, output) as new:
        new.graph.write_bytes(new.source.read_bytes())
    return new.notes


def test_links_out_of_the_folder_are_refused_and_inside_carried_over(tmp_path):
    folder = write_folder(tmp_path / "m")
    (tmp_path / "secret").write_text("a key")
    (folder / "same.json").symlink_to("tokenizer.json")
    carried(folder, tmp_path / "a")
    assert (tmp_path / "a" / "same.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    for target in (tmp_path / "secret", tmp_path):
        (folder / "x").symlink_to(target)
        with pytest.raises(ModelError, match="leads out of the model folder"):
            carried(folder, tmp_path / "b")
        (folder / "x").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "m", "secret"]


def test_blobs_of_a_cache_are_carried_over(tmp_path):
    folder = write_folder(tmp_path / "snapshots" / "0123")
    (tmp_path / "blobs").mkdir()
    (folder / "tokenizer.json").rename(tmp_path / "blobs" / "abc")
    (folder / "tokenizer.json").symlink_to("../../blobs/abc")
    assert carried(folder, tmp_path / "out") == []
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_what_cannot_be_carried_over_is_told(tmp_path):
    folder = write_folder(tmp_path / "m")
    (folder / "gone").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (note,) = carried(folder, tmp_path / "out")
    assert note.endswith("lead nowhere: gone, loop, pipe.")
    assert not {"gone", "loop", "pipe"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_link_is_refused_as_a_folder_to_write(base, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with pytest.raises(OutputError, match="is a link"):
        lg.transform(base, output=tmp_path / "link")
