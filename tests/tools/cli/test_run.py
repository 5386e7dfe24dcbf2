"""``laurel run`` and ``laurel passes`` as a user types them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from folder_models import write_folder
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from laurel_graph.errors import ConfigError, LaurelError, OutputError
from laurel_graph.tools.cli import app

OWN = '''
from dataclasses import dataclass
import onnx
from laurel_graph.passes import Facts, Pass, PassResult, option

def note(model):
    """Says hello."""
    model.doc_string = "hello"

@dataclass(frozen=True)
class Scale(Pass, name="scale"):
    """Multiplies a weight."""
    weight: str = option("", "its name")
    by: float = option(1.0, "the factor")

    def run(self, graph, facts=Facts()):
        for tensor in graph.graph.initializer:
            if tensor.name == self.weight:
                array = onnx.numpy_helper.to_array(tensor) * self.by
                tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype("float32"), tensor.name))
        return PassResult(graph, True)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model and a module of the user's own."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        mlp (float[N, 8] x) => (float[N, 8] y) {
          h = MatMul (x, w0)  r = Relu (h)  first = Add (x, r)  z = MatMul (first, w1)  y = Add (first, z) }"""
    )
    rng = np.random.default_rng(0)
    for name in ("w0", "w1"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, (8, 8)).astype(np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    module = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return module


def laurel(*args):
    """Runs a command in this process; its error comes out as it is."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_any_passes_run_in_a_row_when_named(folder):
    passes = ("insert:variant=rw+lr,rank=2", f"{folder}:note", "fold", "fuse", "verify")
    flags = [word for text in passes for word in ("--pass", text)]
    done = laurel("run", "m.onnx", "-o", "out.onnx", *flags, "--trace", "trace", "--check", "--json")
    report = json.loads(done.stdout)
    assert [step["pass"] for step in report["passes"]] == ["insert", f"{folder}:note", "fold", "fuse", "verify"]
    assert report["counters"]["insert.sites"] == 2 and report["counters"]["fold.folded"] == 2
    written = onnx.load("out.onnx")
    assert written.doc_string == "hello"
    assert [node.op_type for node in written.graph.node if node.domain] == ["Laurel_LR"] * 2
    assert len(list(Path("trace").iterdir())) == 4 * len(passes)


def test_what_was_done_is_told_site_by_site_when_not_asked_for_json(folder):
    lines = laurel("run", "m.onnx", "-o", "out.onnx", "--pass", "insert:variant=rw,overrides=res_y=off").stdout
    assert "res_first: inserted rw" in lines and "res_y: left alone (switched off by an override)" in lines


def test_a_pass_class_of_ones_own_takes_options_when_given(folder):
    laurel("run", "m.onnx", "-o", "out.onnx", "--pass", f"{folder}:Scale:weight=w0,by=2")
    before, after = (numpy_helper.to_array(onnx.load(name).graph.initializer[0]) for name in ("m.onnx", "out.onnx"))
    assert np.array_equal(after, 2 * before)


def test_nothing_is_written_when_a_pass_says_no(folder):
    before = sorted(path.name for path in Path().iterdir() if path.suffix == ".onnx")
    with pytest.raises(LaurelError, match="differs"):
        laurel("run", "m.onnx", "-o", "out.onnx", "--pass", f"{folder}:Scale:weight=w0,by=2", "--pass", "verify")
    with pytest.raises(ConfigError, match="fold"):
        laurel("run", "m.onnx", "-o", "out.onnx", "--pass", "flod")
    assert sorted(path.name for path in Path().iterdir() if path.suffix == ".onnx") == before


def test_files_that_are_read_are_never_written_when_named_as_output(folder):
    np.savez("data.npz", x=np.ones((5, 8), np.float32))
    for output in ("m.onnx", f"{folder}.py", "data.npz"):
        content = Path(output).read_bytes()
        with pytest.raises(OutputError, match="is the input"):
            laurel("run", "m.onnx", "-o", output, "--pass", f"{folder}:note", "--pass", "verify:data=data.npz")
        assert Path(output).read_bytes() == content


def test_passes_lists_every_pass_with_its_options_when_asked(folder):
    listed = {row["pass"]: row for row in json.loads(laurel("passes", "--json").stdout)["passes"]}
    assert {"detect", "select", "insert", "remove", "fold", "fuse", "absorb", "add_head", "verify", "export"} <= set(
        listed
    )
    options = {option["name"]: option for option in listed["insert"]["options"]}
    assert {"variant", "rank", "sites", "overrides", "adapter_inputs"} <= set(options)
    assert all(option["text"] for option in options.values())
    assert "ModelProto" in laurel("passes").stdout


def test_input_is_not_replaced_by_a_trace(folder, tmp_path):
    before = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "01-insert.json").write_bytes(before)
    with pytest.raises(OutputError, match="is the input"):
        laurel("run", "01-insert.json", "-o", "out.onnx", "--pass", "insert", "--trace", ".")
    assert (tmp_path / "01-insert.json").read_bytes() == before


def test_names_do_nothing_to_a_screen_that_shows_a_trace(folder, tmp_path):
    model, hostile = onnx.load("m.onnx"), "N\x1b[31m\u202e\x85"
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = hostile
    model.graph.node[0].attribute.add(name=hostile, type=1, f=1.0)
    model.graph.node[0].doc_string = hostile
    onnx.save(model, "m.onnx")
    laurel("run", "m.onnx", "-o", "out.onnx", "--pass", "insert", "--trace", "trace")
    texts = [path.read_text() for path in (tmp_path / "trace").iterdir()]
    assert len(texts) == 4
    assert all(char.isprintable() or char == "\n" for text in texts for char in text)


def test_folder_becomes_a_folder_and_no_file_of_it_is_written(tmp_path):
    base = write_folder(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    laurel("run", base, "-o", tmp_path / "out", "--pass", "insert:variant=rw")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= set(before)
    (base / "vision.onnx").write_bytes(before["model.onnx"])
    for name, message in (("genai_config.json", "is a file"), ("vision.onnx", "is the input")):
        for command in (["run", base, "--pass", "insert"], ["transform", base]):
            with pytest.raises(OutputError, match=message):
                laurel(*command, "-o", base / name)
    for command in (["report", base], ["inspect", base, "--graph"]):
        arguments = [base / "tokenizer.json"] if command[-1] == "--graph" else ["-o", base / "tokenizer.json"]
        with pytest.raises(OutputError):
            laurel(*command, *arguments)
    assert {name: (base / name).read_bytes() for name in before} == before
