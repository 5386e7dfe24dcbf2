"""``laurel inspect``: what it lists, folds, explains and writes."""

import json

import networkx as nx
import onnx
import pytest

import laurel_graph as lg
from laurel_graph.errors import OutputError, SelectorError
from laurel_graph.tools.benchmarks.detection import deep_model
from laurel_graph.tools.cli import app


def test_inspect_folds_rejections_and_shows_what_is_asked_for(tmp_path, capsys):
    model = tmp_path / "deep.onnx"
    onnx.save(deep_model(60), model)
    found = lg.inspect(model)

    def shown(*options):
        app(["inspect", str(model), *options], standalone_mode=False)
        return capsys.readouterr().out

    plain, rejected, everything = shown(), shown("--only", "rejected"), shown("--all")
    assert "by reason" in plain and found.rejected[3].detail not in plain
    assert found.residuals[0].site in plain and found.residuals[0].site not in rejected
    assert "by reason" not in everything and everything.count("does not depend on the input") > 5
    assert "other joins by reason" not in shown("--only", "residual")
    assert set(json.loads(shown("--json", "--only", "residual"))) == {"model", "residuals", "notes"}


def test_inspect_explains_one_add_and_writes_the_graph_when_asked(tmp_path, capsys):
    model, graph = tmp_path / "deep.onnx", tmp_path / "deep.graphml"
    onnx.save(deep_model(60), model)
    join = lg.inspect(model).residuals[0].join
    app(["inspect", str(model), "--why", join, "--graph", str(graph), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["join"] == join and told["verdict"] == "residual" and len(told["paths"]) == 2
    assert nx.read_graphml(graph).number_of_nodes() > 50
    with pytest.raises(SelectorError, match="Near names"):
        app(["inspect", str(model), "--why", f"{join}x"], standalone_mode=False)
    same = model.rename(tmp_path / "model.dot")
    with pytest.raises(OutputError, match="is the input"):
        app(["inspect", str(same), "--graph", str(same)], standalone_mode=False)
