"""Graph files: what networkx reads back is what detection said; no name of a model means anything to a viewer."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import onnx
import pytest
from hostile import NAMES, executed
from onnx import helper, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import ModelError, OutputError
from laurel_graph.foreign_names import printable
from laurel_graph.outputs.graphs import write_graph


def model() -> onnx.ModelProto:
    """Two residual blocks with biases, the second one's ReLU read twice."""
    nodes, x = [], "x"
    for i in range(2):
        parts = [("MatMul", [x, "w"], "a"), ("Relu", ["a"], "r"), ("MatMul", ["r", "v"], "f"), ("Add", ["f", "c"], "s")]
        for op, inputs, output in (*parts, ("Add", [x, "s"], "t")):
            named = [name if name in (x, "w", "v", "c") else f"{name}{i}" for name in inputs]
            nodes.append(helper.make_node(op, named, [f"{output}{i}"], name=f"{output}{i}"))
        x = f"t{i}"
    sizes = {"w": (8, 8), "v": (8, 8), "c": (8,)}
    stored = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items()]
    ends = [helper.make_tensor_value_info(name, 1, ["n", 8]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "two blocks", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_value(graph):
    return {held["value"]: (index, held) for index, held in graph.nodes(data=True)}


def test_graph_holds_roles_shapes_streams_and_verdicts_when_detection_is_asked():
    graph = lg.inspect(model()).to_networkx()
    held = by_value(graph)
    assert held["w"][1]["role"] == "constant" and held["r0"][1]["role"] == "activation"
    assert held["f1"][1]["shape"] == ("n", 8) and held["f1"][1]["weighted"] and held["f1"][1]["weight"] == "v"
    assert [held[name][1]["site"] for name in ("t0", "t1")] == ["res_t0", "res_t1"]
    assert [held[name][1]["index"] for name in ("t0", "t1")] == [0, 1]
    assert {held[name][1]["stream"] for name in ("x", "t0", "t1")} == {0} and "stream" not in held["s0"][1]
    assert held["s0"][1]["verdict"] == "rejected" and held["s0"][1]["reason"] == "bias"
    join = held["t1"][0]
    assert graph.edges[held["t0"][0], join]["part"] == "skip" and graph.edges[held["s1"][0], join]["part"] == "branch"
    assert nx.is_directed_acyclic_graph(graph) and nx.immediate_dominators(graph, held["x"][0])[join] == held["t0"][0]


def test_graphml_reads_back_as_it_was_when_written(tmp_path):
    graph = lg.inspect(model()).to_networkx()
    path = write_graph(graph, tmp_path / "g.graphml")
    read = nx.read_graphml(path)
    assert set(read.edges) == {(f"n{a}", f"n{b}") for a, b in graph.edges}
    assert by_value(read)["t1"][1]["site"] == "res_t1" and by_value(read)["t1"][1]["shape"] == "n, 8"


@pytest.mark.parametrize("ending", [".graphml", ".dot"])
def test_names_stay_names_when_they_are_hostile(ending, tmp_path):
    graph = lg.inspect(model()).to_networkx()
    for place, name in enumerate(NAMES, 100):
        texts = dict.fromkeys(("value", "node", "op", "dtype", "scope", "source", "weight", "site", "kind"), name)
        graph.add_node(
            place, role="add", shape=(name, 8), weighted=True, output=False, stream=0, verdict="residual", **texts
        )
        graph.add_edge(place - 1 if place > 100 else 0, place, part="skip")
    graph.graph["name"] = NAMES[0]
    text = write_graph(graph, tmp_path / f"g{ending}").read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in text)
    if ending == ".graphml":
        read = nx.read_graphml(tmp_path / "g.graphml")
        assert [read.nodes[f"n{i}"]["value"] for i in range(100, 100 + len(NAMES))] == [printable(n) for n in NAMES]
    else:
        string = r'"((?:[^"\\]|\\.)*)"'
        statement = rf"digraph {string} {{|  node \[.*\];|  n\d+ \[(\w+=({string}|\d+)(, )?)+\];|  n\d+ -> n\d+.*;|}}"
        assert all(re.fullmatch(statement, line) for line in text.splitlines())
        lines = [line for line in text.splitlines() if re.match(r"  n[12]\d\d \[", line)]
        labels = [re.findall(r"\\.|[^\\]", re.search(f"label={string}", line)[1]) for line in lines]
        shown = ["".join(c[-1] for c in label[: label.index("\\n")]) for label in labels]
        assert shown == [printable(name) for name in NAMES]
    assert not executed()


def test_graph_file_is_refused_when_its_ending_is_unknown_or_it_is_the_input(tmp_path):
    graph = lg.inspect(model()).to_networkx()
    with pytest.raises(OutputError, match=r"\.graphml, \.dot"):
        write_graph(graph, tmp_path / "g.png")
    source = tmp_path / "g.dot"
    source.write_text("mine")
    with pytest.raises(OutputError, match="input"):
        write_graph(graph, source, [source])
    assert source.read_text() == "mine"


def test_to_networkx_says_so_when_there_is_no_graph():
    with pytest.raises(ModelError, match="holds no graph"):
        lg.Detection("m", (), ()).to_networkx()
