"""What ``laurel guide`` says can be typed as it stands, and what ``laurel data-template`` writes is trained on."""

import json
import shlex
import sys
import warnings

import numpy as np
import onnx
import pytest
from models import image_net, mlp, token_net

import laurel_graph as lg
from laurel_graph.errors import ConfigError, DataError
from laurel_graph.tools import cli, console
from laurel_graph.tools.finetuning.data_files import read_data
from laurel_graph.tools.guide import guide, write_template


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """Types a command in an empty folder, in this process; gives what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as left, warnings.catch_warnings():
            cli.main()
        out, err = capsys.readouterr()
        assert not left.value.code, err
        return out

    yield run
    console.set_level("info")


@pytest.mark.parametrize("name", ["my model.onnx", "net.onnx"])
def test_every_command_of_the_guide_runs_as_it_is_printed(typed, tmp_path, name):
    onnx.save(mlp(2, 8), tmp_path / name)
    quoted = shlex.quote(name)
    found = json.loads(typed(f"laurel guide {quoted} --json"))
    assert found["state"] == "plain" and found["residuals"] == 2
    assert found["inputs"] == {"x": "float32 (n, 8)"}
    typed(f"laurel data-template {quoted} -o data.npz --samples 10")
    commands = [each["command"] for each in found["commands"]]
    words = [shlex.split(command)[1] for command in commands]
    assert words == ["inspect", "transform", "sweep", "finetune", "report", "deploy", "verify", "bench"]
    for command, word in zip(commands, words, strict=True):
        if word != "sweep":  # it is the same training in processes of its own
            typed(f"{command} --runs 2" if word == "bench" else command)
    stem = name.removesuffix(".onnx")
    states = {stem: "plain", f"{stem}.laurel": "transformed", f"{stem}.served": "deployed"}
    assert {each: guide(f"{each}.onnx").state for each in states} == states


def test_the_guide_goes_on_from_where_the_file_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(token_net(), tmp_path / "net.onnx")
    lg.transform("net.onnx", "rw+lr", output="net.laurel.onnx")
    first = guide("net.laurel.onnx").commands[0][1]
    assert first.startswith("laurel finetune net.laurel.onnx") and "-o net.tuned.onnx" in first
    lg.deploy("net.laurel.onnx", "served.onnx")
    assert [command for _, command in guide("served.onnx").commands] == []  # nothing to hold it against is there
    (tmp_path / "net.laurel.onnx").rename("served.tuned.onnx")
    assert [c for _, c in guide("served.onnx").commands] == ["laurel verify served.tuned.onnx served.onnx"]


def test_a_model_without_residual_connections_is_answered_with_no(typed, tmp_path, monkeypatch, capsys):
    graph = onnx.parser.parse_graph("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    monkeypatch.setattr(sys, "argv", ["laurel", "guide", "m.onnx"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1 and "nothing to rewrite" in capsys.readouterr().err


@pytest.mark.parametrize("make", [token_net, image_net, lambda: mlp(2, 8, batch=4), lambda: mlp(2, 8)])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_template_is_what_finetune_takes(make, loss, tmp_path):
    from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune

    onnx.save(make(), tmp_path / "m.onnx")
    lg.transform(tmp_path / "m.onnx", "rw", output=tmp_path / "t.onnx")
    arrays = write_template(tmp_path / "t.onnx", tmp_path / "d.npz", samples=6, loss=loss)
    assert {len(array) for array in arrays.values()} == {6}
    assert set(read_data(str(tmp_path / "d.npz")).names) == set(arrays)
    options = FinetuneOptions(
        model=tmp_path / "t.onnx", data=str(tmp_path / "d.npz"), loss=loss, epochs=1, lr=1e-4, quiet=True
    )
    try:
        finetune(options)
    except DataError as error:  # what comes out of an image network here are no scores of classes
        assert loss == "cross_entropy" and "one class number per row" in str(error)


def test_a_template_is_the_same_for_the_same_seed_and_refuses_what_it_cannot_write(tmp_path):
    onnx.save(mlp(1, 8), tmp_path / "m.onnx")
    first, second = (write_template(tmp_path / "m.onnx", tmp_path / f"{i}.npz", seed=3) for i in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    with pytest.raises(ConfigError, match="at least 1"):
        write_template(tmp_path / "m.onnx", tmp_path / "d.npz", samples=0)
    with pytest.raises(ConfigError, match="cross_entropy, mse"):
        write_template(tmp_path / "m.onnx", tmp_path / "d.npz", loss="bce")
