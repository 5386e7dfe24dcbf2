"""Sites are named after the module of their own, also where the add hides in another operator."""

import pytest
from folder_models import write_folder
from onnx import parser

import laurel_graph as lg
from laurel_graph.errors import SelectorError
from laurel_graph.passes.detect.explain import explain
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.passes.select import select

NAMES = [f"model.layers.{layer}.res{place}" for layer in (0, 1) for place in (1, 2)]
FORMER = [
    "model.layers.0.post_attention_layernorm.res1",
    "model.layers.1.input_layernorm.res1",
    "model.layers.1.post_attention_layernorm.res1",
    "model.layers.2.final_norm_layernorm.res1",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return lg.inspect(write_folder(tmp_path_factory.mktemp("decoder") / "base"))


def test_a_join_in_a_norm_belongs_to_the_block_of_its_branch(found):
    assert [residual.site for residual in found.residuals] == NAMES
    assert [residual.former for residual in found.residuals] == FORMER
    assert found.to_dict()["residuals"][1]["former"] == FORMER[1]


@pytest.mark.parametrize(
    ("globs", "chosen"),
    [
        ([FORMER[1]], [1]),
        (["*input_layernorm.res1"], [1]),
        (
            ["*.layers.1.*", FORMER[0]],
            [0, 2, 3],
        ),  # today's names go first
        ([NAMES[3]], [3]),
    ],
)
def test_former_names_are_taken_where_sites_are_chosen(found, globs, chosen):
    selection = select(found, lg.LaurelConfig(sites=globs))
    assert [plan.spec.site for plan in selection.plans] == [NAMES[i] for i in chosen]
    assert explain(found, FORMER[chosen[0]]).join == found.residuals[chosen[0]].join


def test_former_names_are_taken_in_overrides_in_their_order(found):
    overrides = {NAMES[0]: {"rank": 2}, "*": {"rank": 3}, FORMER[0]: {"rank": 4}, "*final_norm*": {"off": True}}
    selection = select(found, lg.LaurelConfig(variant="lr", rank=1, overrides=overrides))
    assert [(plan.spec.site, plan.spec.rank) for plan in selection.plans] == [
        (NAMES[0], 4),
        (NAMES[1], 3),
        (NAMES[2], 3),
    ]
    with pytest.raises(SelectorError, match="gone"):
        select(found, lg.LaurelConfig(overrides={"*gone*": {"off": True}}))


BODY = "f = MatMul(x, w) h = Relu(f) g = MatMul(h, w) y = com.microsoft.SkipLayerNormalization(x, g, s)"


@pytest.mark.parametrize(
    ("nodes", "site", "former"),
    [
        (("/net/b.0/up/MatMul", "/net/b.0/act/Relu", "/net/b.0/down/MatMul", "/net/b.1/norm/Skip"),
         "net.b.0.res1", "net.b.1.norm.res1"),
        (("/net/b.0/up/MatMul", "act", "/net/b.0/down/MatMul", "/net/norm/Skip"), "net.b.0.res1", "net.norm.res1"),
        (("/one/up/MatMul", "/two/Relu", "/two/down/MatMul", "/norm/Skip"), "norm.res1", ""),  # nothing in common
        (("/net/b.0/up/MatMul", "r", "m", "Skip_0"), "res_Skip_0", ""),  # a join without a module keeps its own name
    ],
)  # fmt: skip
def test_a_block_is_what_holds_the_whole_branch(nodes, site, former):
    header = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'
    weights = "<float[4,4] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[4] s = {1,1,1,1}>"
    model = parser.parse_model(f"{header} agraph (float[B,S,4] x) => (float[B,S,4] y) {weights} {{ {BODY} }}")
    for node, name in zip(model.graph.node, nodes, strict=True):
        node.name = name
    (residual,) = detect(view_of(model)).residuals
    assert (residual.site, residual.former) == (site, former)
