"""Both routes of a torch module to a served file end in the same nodes, and axes are open as asked."""

import onnx
import pytest
import torch
from torch import nn

import laurel_graph as lg
from laurel_graph.errors import ModelError
from laurel_graph.tools.benchmarks.blocks import network
from laurel_graph.tools.benchmarks.routes import census, serve


@pytest.mark.parametrize(
    ("name", "variant"), [("resnet", "rw"), ("preact", "rw+lr"), ("causal", "rw"), ("convnext", "rw+lr")]
)
def test_both_routes_end_in_the_same_nodes_when_deployed(tmp_path, name, variant):
    torch.manual_seed(0)
    module, example = network(name, width=8, blocks=2)
    served = serve(module, example, variant, tmp_path)
    assert census(served.by_torch) == census(served.by_onnx)
    if variant == "rw" and name == "resnet":
        assert census(served.by_torch) == census(served.original)


class Optional(nn.Module):
    """What symbolic tracing cannot follow."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        return x + torch.relu(self.inner(x)) if x.dim() > 1 else x


def first_dim(path):
    dim = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_param or dim.dim_value


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_is_open_when_no_axes_are_named(tmp_path, batch):
    x = torch.randn(batch, 3, 8)
    changed = lg.transform(Optional().eval(), "rw", x).model
    assert first_dim(lg.export_onnx(changed, x, tmp_path / "m.onnx")) == "batch"


def test_fixed_axis_is_told_or_refused_when_the_module_was_captured_for_one_size(tmp_path):
    x = torch.randn(2, 3, 8)
    captured = torch.export.export(Optional().eval(), (x,))
    changed = lg.transform(captured, "rw", x).model
    with pytest.raises(ModelError, match="axis"):
        named = ({0: torch.export.Dim("b")},)
        lg.export_onnx(changed, x, tmp_path / "m.onnx", dynamic_shapes=named)
    assert not (tmp_path / "m.onnx").exists()
    with pytest.warns(UserWarning, match="sizes of the example inputs alone"):
        lg.export_onnx(changed, x, tmp_path / "m.onnx")
    assert first_dim(tmp_path / "m.onnx") == 2
