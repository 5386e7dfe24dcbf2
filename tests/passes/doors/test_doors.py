"""Our passes in the pass managers of torch.fx and onnx_ir."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from deploy_models import largest_difference
from onnx import numpy_helper, parser
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import laurel_graph as lg
from laurel_graph.errors import NoResidualError
from laurel_graph.passes.doors.for_fx import FxPass
from laurel_graph.passes.doors.for_ir import IrPass
from laurel_graph.passes.standard.changing import Insert, Remove
from laurel_graph.passes.standard.finding import Detect
from laurel_graph.passes.standard.serving import Fold, Fuse


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.a(x))


class CountCalls(PassBase):
    """Another one's pass, between ours."""

    def call(self, graph_module):
        self.seen = sum(node.op == "call_module" for node in graph_module.graph.nodes)
        return PassResult(graph_module, False)


def traced():
    from laurel_graph.passes import Facts
    from laurel_graph.passes.facts import Example

    torch.manual_seed(0)
    return torch.fx.symbolic_trace(torch.nn.Sequential(Block(), Block())), Facts(Example((torch.ones(2, 8),)))


def test_fx_pass_manager_runs_ours_between_others():
    module, facts = traced()
    x = torch.randn(3, 8)
    before, expected = str(module.graph), module(x)
    count, insert = CountCalls(), FxPass(Detect(), Insert(lg.LaurelConfig("rw")), facts=facts)
    result = PassManager([insert, count])(module)
    assert result.modified and count.seen == 4
    assert insert.result.report.counters["insert.sites"] == 2
    assert torch.equal(result.graph_module(x), expected)
    back = PassManager([FxPass(Remove())])(result.graph_module)
    assert str(back.graph_module.graph) == before


def model():
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        mlp (float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, w)  r = Relu (h)  y = Add (x, r) }"""
    )
    array = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(array, "w"))
    made.metadata_props.add(key="theirs", value="kept")
    return made


def test_onnx_ir_pass_manager_runs_ours_between_others(tmp_path):
    given = ir.from_proto(model())
    door = IrPass(Insert(lg.LaurelConfig("rw+lr")), Fold(), Fuse())
    result = ir.passes.PassManager([door, ClearMetadataAndDocStringPass()])(given)
    made = ir.to_proto(result.model)
    assert result.modified and door.result.report.counters["fuse.sites"] == 1
    assert [node.op_type for node in made.graph.node if node.domain == "ai.laurel"] == ["Laurel_LR"]
    assert largest_difference(model(), made) < 1e-6
    assert ir.to_proto(given).graph.node[-1].op_type == "Add"  # what was given stays


def test_onnx_ir_pass_keeps_metadata_and_finds_weights_in_other_files(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    made = IrPass(Insert(lg.LaurelConfig("rw")), Fold())(ir.load(tmp_path / "m.onnx")).model
    assert made.metadata_props["theirs"] == "kept"
    weights = made.graph.initializers["w"].const_value.numpy()
    assert np.array_equal(weights, numpy_helper.to_array(model().graph.initializer[0]))


def test_a_refusal_of_ours_comes_through_the_managers_of_others():
    nothing = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] a) => (float[N] y) { y = Relu (a) }'
    )
    with pytest.raises(ir.passes.PassError) as caught:
        ir.passes.Sequential(IrPass(Insert()))(ir.from_proto(nothing))
    assert isinstance(caught.value.__cause__, NoResidualError)
