import copy

import pytest
import torch
from live_models import Base, Plain, Shared, Stack, inputs
from torch import nn

import laurel_graph as lg
from laurel_graph.errors import ConfigError, ModelError, RewriteError


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Conv1d(5, 5, 3, padding=1)

    def forward(self, x):
        return x + self.f(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.head = nn.Linear(12, 12), nn.Linear(12, 12)
        self.head.weight = self.f.weight

    def forward(self, x):
        return self.head(x + self.f(x))


class Activated(Base):
    def forward(self, x):
        return x + torch.relu(self.f(x))


class Moved(Base):
    def forward(self, x):
        return x + self.f(x).transpose(1, 2).transpose(1, 2)


def attached(make, **options):
    torch.manual_seed(0)
    model = make().eval()
    lg.attach(model, lg.LaurelConfig(**{"variant": "rw+lr", "rank": 3, **options}), inputs())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def values(model):
    with torch.no_grad():
        return model(inputs())


@pytest.mark.parametrize("options", [{}, {"variant": "rw", "per_channel": True}, {"variant": "rw+lr+pa"}])
@pytest.mark.parametrize("make", [Plain, Stack])
def test_alpha_is_in_the_weights_when_merged(make, options):
    model = attached(make, **options)
    before = values(model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if "laurel" not in name}
    report = lg.merge(model)
    assert len(report.folded) == {Plain: 2, Stack: 8}[make]
    for name, weight in weights.items():
        took = name in report.folded.values() or name.replace("bias", "weight") in report.folded.values()
        assert torch.equal(weight, model.get_parameter(name)) != took, name
    torch.testing.assert_close(values(model), before, rtol=1e-5, atol=1e-5)
    alphas = [p for name, p in model.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == len(report.folded) and all((p == 1).all() for p in alphas)
    assert torch.allclose(values(copy.deepcopy(model)), before, atol=1e-5)


def test_residual_of_a_convolution_is_scaled_by_channel_when_merged():
    model = attached(Convolved, variant="rw", per_channel=True)
    before = values(model)
    report = lg.merge(model)
    torch.testing.assert_close(values(model), before, rtol=1e-5, atol=1e-5)
    assert len(report.folded) + len(report.remains) >= 1


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (Tied, {}, "more than once"),
        (Shared, {}, "several connections"),
        (Activated, {}, "relu"),
        (Moved, {"variant": "rw", "per_channel": True}, "another axis"),
    ],
)
def test_weights_stay_and_the_reason_is_said_when_folding_is_not_exact(make, options, why):
    model = attached(make, **options)
    before = copy.deepcopy(model.state_dict())
    report = lg.merge(model)
    assert not report.folded
    assert all(why in text for text in report.remains.values()) and report.remains, report
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scalar_alpha_is_folded_when_axes_move_in_between():
    model = attached(Moved, variant="rw")
    before = values(model)
    assert len(lg.merge(model).folded) == 1
    torch.testing.assert_close(values(model), before, rtol=1e-5, atol=1e-5)


def test_model_is_plain_again_when_nothing_remains():
    torch.manual_seed(0)
    model = Plain().eval()
    names, before = list(model.state_dict()), values(model)
    lg.attach(model, lg.LaurelConfig(variant="rw", weights="free"), inputs())
    with torch.no_grad():
        model.laurel_0.alpha.fill_(1.5)
    moved = values(model)
    assert not torch.allclose(moved, before)
    report = lg.merge(model, inputs())
    assert len(report.gone) == 2 and len(report.folded) == 1 and not report.remains
    torch.testing.assert_close(values(model), moved, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names and type(model) is Plain
    with pytest.raises(ModelError, match="nothing to detach"):
        lg.detach(model)


def test_everything_is_as_it_was_when_the_merged_values_would_differ(monkeypatch):
    model = attached(Plain)
    before, state = values(model), copy.deepcopy(model.state_dict())
    monkeypatch.setattr("laurel_graph.passes.live.merge.TOLERANCE", -1.0)
    with pytest.raises(RewriteError, match="as it was"):
        lg.merge(model)
    assert torch.equal(values(model), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_merge_is_refused_when_weights_would_be_rounded():
    model = attached(Plain).bfloat16()
    with pytest.raises(ModelError, match="16 bits"):
        lg.merge(model)


def test_a_merged_model_is_neither_base_nor_adapter_when_asked_for_one(tmp_path):
    model = attached(Plain)
    lg.save_adapter(model, tmp_path / "good.safetensors")
    assert lg.merge(model, inputs()).folded
    merged = values(model)
    with pytest.raises(ModelError, match="was merged"):
        lg.save_adapter(model, tmp_path / "after.safetensors")
    with pytest.raises(ModelError, match="was merged"):
        lg.load_adapter(model, tmp_path / "good.safetensors")
    with pytest.raises(ModelError, match="was merged"):
        lg.detach(model)
    with pytest.raises(ModelError, match="was merged"), lg.disabled(model):
        pass
    assert torch.equal(values(model), merged) and not (tmp_path / "after.safetensors").exists()


def test_a_merged_model_is_a_base_of_its_own_when_nothing_was_left_and_it_is_attached_to_again(tmp_path):
    torch.manual_seed(0)
    model = Plain().eval()
    config = lg.LaurelConfig(variant="rw", weights="free")
    lg.attach(model, config, inputs())
    with torch.no_grad():
        model.laurel_0.alpha.fill_(1.5)
    lg.save_adapter(model, tmp_path / "a.safetensors")
    assert not lg.merge(model, inputs()).remains
    with pytest.raises(ModelError, match="was merged"):
        lg.load_adapter(model, tmp_path / "a.safetensors", inputs())
    lg.attach(model, config, inputs())
    lg.save_adapter(model, tmp_path / "b.safetensors")
    lg.detach(model)


@pytest.mark.parametrize("config", ["rw+lr", {"variant": "rw+lr"}])
def test_attach_takes_what_transform_takes_for_a_config(config):
    assert {plan.spec.variant for plan in lg.attach(Plain().eval(), config, inputs()).plans} == {"rw+lr"}
    with pytest.raises(ConfigError, match="config"):
        lg.attach(Plain().eval(), inputs(), config)
