"""The measuring programs run and report what they say; no figure is held against a bound."""

import json

import numpy as np
import onnx
import pytest
from deploy_models import NET, laurel_model
from typer.testing import CliRunner

import laurel_graph as lg
from laurel_graph.errors import ModelError
from laurel_graph.onnx_model.tensors import tensor_array
from laurel_graph.opset.schema import read_specs, tensor_name
from laurel_graph.passes.pipeline import transform
from laurel_graph.tools.benchmarks import forms as bench_forms
from laurel_graph.tools.benchmarks import models as bench_models
from laurel_graph.tools.benchmarks.latency import bench, executed_nodes


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    model = laurel_model(NET)
    del model.opset_import[1:]
    onnx.save(model, path)
    return path


def test_bench_compares_with_the_original_when_there_is_one(net):
    first, second = bench([net], net, threads=1, runs=3, fresh=1)
    assert first.ratio == 1.0
    assert second.model == str(net)
    assert second.runs == 3
    assert second.load_ratio > 0
    assert second.memory_ratio > 0
    assert json.loads(json.dumps(second.to_dict()))["quartiles_ms"][0] <= second.median_ms


def test_bench_leaves_ratios_out_when_there_is_nothing_to_compare_with(net, tmp_path):
    np.savez(tmp_path / "data.npz", x0=np.ones((5, 8), np.float32))
    (row,) = bench([net], runs=2, fresh=0, data=tmp_path / "data.npz")
    assert row.ratio is row.load_ms is row.peak_mb is None


def test_bench_fails_when_a_number_is_below_one(net):
    with pytest.raises(ModelError, match="at least 1"):
        bench([net], runs=0)


def test_executed_nodes_counts_what_is_left_after_optimisation(net):
    counts = executed_nodes(net, {"x0": np.ones((2, 8), np.float32)})
    assert counts.total() <= 5
    assert sum(count for op, count in counts.items() if "MatMul" in op or "Gemm" in op) == 3


def test_draw_tensors_moves_every_tensor_away_from_its_start(net, tmp_path):
    path = tmp_path / "t.onnx"
    transform(net, lg.LaurelConfig(variant="rw+lr"), output=path)
    bench_models.draw_tensors(path)
    model = onnx.load(path)
    (site,) = read_specs(model)
    values = {name: tensor_array(model, tensor_name(site, name)) for name in ("alpha", "beta", "A", "B")}
    assert 0.5 <= values["alpha"] <= 1.5
    assert values["alpha"] != 1
    assert 0.2 < values["B"].std() / np.sqrt((values["A"] ** 2).mean()) < 5


def test_bench_models_prints_one_row_per_variant_as_json(net):
    import typer

    app = typer.Typer()
    app.command()(bench_models.main)
    options = ["--variant", "rw", "--variant", "rw+lr", "--batch", "2", "--runs", "2", "--fresh", "0", "--json"]
    result = CliRunner().invoke(app, [str(net), *options])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["variant"] for row in rows] == ["rw", "rw+lr"]
    assert rows[0]["nodes_deployed"] == rows[0]["nodes_original"]
    assert all(row["max_rel_diff"] <= 2e-5 for row in rows)
    assert set(rows[0]) == {
        "model", "variant", "batch", "original_ms", "plain_ratio", "deployed_ratio", "portable_ratio",
        "max_rel_diff", "nodes_original", "nodes_deployed", "load_ratio", "memory_ratio",
    }  # fmt: skip


@pytest.mark.parametrize("place", [p for p in bench_forms.places() if p.rows * p.width < 20000][:4])
def test_every_form_is_measured_where_it_is_possible(place):
    costs = bench_forms.measure(place, runs=1)
    assert {"operator", "chained"} <= set(costs)
    assert ("widened" in costs) == (place.rank > 0)


def renamed(net, path, *, extra=False):
    """The same network with other names of its inputs, or with one input more."""
    model = onnx.load(net)
    old = model.graph.input[0].name
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == old else name for name in node.input]
    if extra:
        model.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("mask", 1, ["N", 3]))
    onnx.save(model, path)
    return path


def test_bench_takes_ratios_to_the_first_of_several_when_nothing_else_is_named(net, tmp_path):
    other = renamed(net, tmp_path / "other.onnx")
    first, second = bench([net, other], runs=2, fresh=0)
    assert (first.model, first.ratio, second.model) == (str(net), 1.0, str(other))
    assert second.ratio is not None
    assert [row.model for row in bench([other, net], net, runs=2, fresh=0)] == [str(net), str(other)]  # once each


def test_bench_says_which_inputs_do_not_match_when_models_take_other_ones(net, tmp_path):
    other = renamed(net, tmp_path / "other.onnx", extra=True)
    with pytest.raises(ModelError, match=r"other.onnx takes the inputs pixels, mask, but .*net.onnx takes x0"):
        bench([net, other], runs=2, fresh=0)


def test_bench_fits_80_columns_and_names_no_column_twice(net, tmp_path, monkeypatch):
    from laurel_graph.tools.cli import app

    monkeypatch.setenv("COLUMNS", "80")
    other = renamed(net, tmp_path / "a_served_model_of_mine.onnx")
    result = CliRunner().invoke(app, ["bench", str(net), str(other), "--runs", "2"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if "┃" in line and line.startswith("model")]
    assert len(heads) == 2
    for head in heads:
        names = [name.strip() for name in head.split("┃")]
        assert len(set(names)) == len(names)
    assert sum("a_served_model_of_mine.onnx" in line for line in lines) >= 2  # in one piece
