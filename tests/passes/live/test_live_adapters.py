import pytest
import torch
from live_models import Stack, inputs
from torch import nn

import laurel_graph as lg


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Stack(2), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.body(x))


def model_of(seed=0):
    torch.manual_seed(seed)
    return Headed().eval()


def noise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=generator)


def run(model, x):
    with torch.no_grad():
        return model(x)


def test_fresh_base_becomes_the_tuned_model_when_an_adapter_with_a_head_is_loaded(tmp_path):
    model, x = model_of(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), x, modules_to_save=["head"])
    assert {"head.weight", "head.bias"} < set(lg.trainable_parameters(model))
    noise(model, 1)
    path = lg.save_adapter(model, tmp_path / "a.safetensors")
    fresh = model_of()
    lg.load_adapter(fresh, path, x)
    assert torch.equal(run(fresh, x), run(model, x))
    assert set(lg.trainable_parameters(fresh)) == set(lg.trainable_parameters(model))


def test_base_is_left_alone_when_the_adapter_belongs_to_another(tmp_path):
    model, x = model_of(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw"), x)
    noise(model, 1)
    path = lg.save_adapter(model, tmp_path / "a.safetensors")
    other = model_of(seed=5)
    before, names = run(other, x), list(other.state_dict())
    with pytest.raises(lg.LaurelError, match="trained on another base"):
        lg.load_adapter(other, path, x)
    assert torch.equal(run(other, x), before) and list(other.state_dict()) == names
    assert all(p.requires_grad for p in other.parameters())
    with pytest.raises(lg.LaurelError, match="give example inputs"):
        lg.load_adapter(model_of(), path)


def test_each_adapter_is_itself_when_several_are_held_by_name(tmp_path):
    x, files, expected = inputs(), {}, {}
    for name, config in (("a", lg.LaurelConfig(variant="rw")), ("b", lg.LaurelConfig(variant="lr+pa", rank=2))):
        model = model_of()
        lg.attach(model, config, x, modules_to_save=["head"] if name == "b" else ())
        noise(model, ord(name))
        files[name], expected[name] = lg.save_adapter(model, tmp_path / f"{name}.safetensors"), run(model, x)
    model = model_of().requires_grad_(False)
    base, names = run(model, x), list(model.state_dict())
    for name, path in files.items():
        lg.load_adapter(model, path, x, adapter=name)
        torch.testing.assert_close(run(model, x), expected[name])
    for name in ("a", "b", "a"):
        lg.set_adapter(model, name)
        torch.testing.assert_close(run(model, x), expected[name], msg=name)
    with pytest.raises(lg.LaurelError, match="no adapter 'c'"):
        lg.set_adapter(model, "c")
    lg.detach(model)
    assert list(model.state_dict()) == names
    assert base.shape == run(model, x).shape


def test_one_line_says_what_trains_when_printed(capsys):
    model = model_of()
    lg.attach(model, lg.LaurelConfig(variant="rw"), inputs())
    lg.print_trainable_parameters(model)
    assert capsys.readouterr().out.startswith("8 of ")
