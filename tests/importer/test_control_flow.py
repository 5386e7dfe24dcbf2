"""Subgraphs, functions, dropout and shapes at run time."""

import numpy as np
import pytest
import torch
from importer_graphs import assert_runs_like_runtime, floats, graph_of
from onnx import TensorProto, helper

from laurel_graph import import_onnx


def subgraph(nodes, inputs, outputs):
    infos = [
        [helper.make_tensor_value_info(n, t, *(shape or [None])) for n, t, *shape in some] for some in (inputs, outputs)
    ]
    return helper.make_graph(nodes, "body", *infos)


FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


@pytest.mark.parametrize("condition", [True, False])
def test_if_takes_the_branch_at_run_time_when_condition_is_an_input(condition):
    then = subgraph([helper.make_node("MatMul", ["x", "w"], ["t"])], [], [("t", FLOAT)])
    other = subgraph([helper.make_node("Neg", ["x"], ["e"])], [], [("e", FLOAT)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    feeds = {"x": floats(2, 3), "c": np.array(condition)}
    assert_runs_like_runtime(graph_of([node], feeds, {"y": "float32"}, {"w": floats(3, 3)}), feeds)


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop_carries_values_and_gradients_when_trip_count_is_an_input(trips):
    body = subgraph(
        [
            helper.make_node("MatMul", ["s", "w"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        [("i", INT, []), ("go", BOOL, []), ("s", FLOAT)],
        [("on", BOOL), ("next", FLOAT)],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    feeds = {"x": floats(2, 3), "n": np.array(trips)}
    model = graph_of([node], feeds, {"y": "float32"}, {"w": floats(3, 3)})
    assert_runs_like_runtime(model, feeds)
    module = import_onnx(model, trainable="w")
    module(torch.from_numpy(feeds["x"]), torch.tensor(trips)).sum().backward() if trips else None
    assert trips == 0 or module.get_parameter("w").grad.abs().sum() > 0


def test_shapes_follow_the_input_when_reshape_is_computed():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "minus"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "minus": np.array([-1])}
    model = graph_of(nodes, {"x": floats(2, 3, 4)}, {"y": "float32"}, weights)
    module = import_onnx(model)
    for shape in ((2, 3, 4), (5, 2, 1)):
        assert_runs_like_runtime(model, {"x": floats(*shape)}, module)


def test_dropout_is_active_only_in_training_mode_when_asked_for():
    node = helper.make_node("Dropout", ["x"], ["y"])
    model = graph_of([node], {"x": floats(2, 3)}, {"y": "float32"})
    x = torch.ones(50, 50)
    assert torch.equal(import_onnx(model).train()(x), x)
    module = import_onnx(model, dropout=True)
    assert torch.equal(module.eval()(x), x)
    assert (module.train()(x) == 0).any()


def test_nodes_are_sorted_when_file_has_another_order():
    nodes = [helper.make_node("Neg", ["h"], ["y"]), helper.make_node("Exp", ["x"], ["h"])]
    module = import_onnx(graph_of(nodes, {"x": floats(2, 3)}, {"y": "float32"}))
    x = torch.from_numpy(floats(2, 3))
    assert torch.equal(module(x), -x.exp())
