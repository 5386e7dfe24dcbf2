"""Attributes, subgraphs and order, read by one function each."""

import onnx
import pytest
from onnx import helper, parser

from laurel_graph.onnx_model.order import in_order
from laurel_graph.onnx_model.walk import attribute_of, captured_names, inner_names, subgraphs
from laurel_graph.samples import Sampler


def test_attribute_is_read_and_text_decoded_whatever_its_bytes():
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="VALID", strides=[2, 2])
    assert (attribute_of(node, "auto_pad"), list(attribute_of(node, "strides"))) == ("VALID", [2, 2])
    assert attribute_of(node, "group", 1) == 1
    node.attribute[0].s = b"\xff"
    assert attribute_of(node, "auto_pad") == "\N{REPLACEMENT CHARACTER}"


def test_sample_is_drawn_when_padding_is_no_text():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 3, 8, 8] x) => (float y) <float[4, 3, 3, 3] w> { y = Conv <auto_pad = "VALID"> (x, w) }"""
    )
    next(item for item in model.graph.node[0].attribute if item.name == "auto_pad").s = b"\xff"
    sampler = Sampler(model)
    assert sampler.draw(sampler.situation(sampler.kinds[0], 1))["x"].shape == (1, 3, 8, 8)


@pytest.fixture
def branching():
    """An If whose body holds a weight that is called as the value ``h`` outside."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (bool yes, float[2] x) => (float[2] y) {
          y = If (yes) <
            then_branch = t () => (float[2] a) <float[2] h = {1.0, 2.0}> { a = Add (h, x) },
            else_branch = e () => (float[2] b) { b = Identity (x) }>
          h = Relu (y)
        }"""
    )
    return model.graph


def test_names_of_bodies_are_told_apart(branching):
    node = branching.node[0]
    assert [body.name for body in subgraphs(node)] == ["t", "e"]
    assert captured_names(node) == {"a", "h", "x", "b"} and inner_names(node) == {"a", "h", "b"}


def test_a_weight_inside_a_body_is_no_value_from_outside_when_nodes_are_put_in_order(branching):
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in branching.node]
    assert [node.op_type for node in in_order(nodes[::-1], "m")] == ["If", "Relu"]
