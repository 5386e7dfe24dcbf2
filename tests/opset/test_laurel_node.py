"""A node of ai.laurel read once: operator, inputs by name, site."""

from onnx import helper

from laurel_graph.opset.laurel_node import LaurelNode, known_nodes
from laurel_graph.opset.schema import DOMAIN


def node(op_type: str, *inputs: str, domain: str = DOMAIN):
    return helper.make_node(op_type, inputs, ["y"], domain=domain)


def test_inputs_go_by_the_names_of_the_operator_set_when_read():
    ours = LaurelNode.of(node("Laurel_LR_PA2", "x", "f", "laurel.a.b.A", "laurel.a.b.B", "g", "p", "q"))
    assert ours is not None and ours.is_whole
    assert ours.inputs["B"] == "laurel.a.b.B"
    assert list(ours.tensors) == ["A", "B", "gamma"]
    assert (ours.previous, ours.output, ours.site) == (["p", "q"], "y", "a.b")


def test_site_is_the_output_when_no_tensor_says_it():
    ours = LaurelNode.of(node("Laurel_RW", "x", "f", "alpha", "laurel.alpha"))
    assert ours is not None and ours.site == "y"


def test_nodes_are_left_out_when_they_are_none_of_ours_or_not_whole():
    whole = node("Laurel_RW", "x", "f", "a", "b")
    others = [node("Add", "x", "f", domain=""), node("Laurel_RW", "x", "f"), node("Laurel_New", "x", "f")]
    assert [ours.node for ours in known_nodes([*others, whole])] == [whole]
