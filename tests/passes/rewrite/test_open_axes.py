"""An open batch takes a batch of one wherever the module does, and axes are open exactly as they were asked for."""

import warnings
from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

import laurel_graph as lg
from laurel_graph.errors import ModelError
from laurel_graph.passes.read_fx.guards import pins


class Untraceable(nn.Module):
    """What symbolic tracing cannot follow, around a residual connection."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        if x.shape[-1] != 8:
            raise ValueError("eight channels")
        return self.end(x + torch.relu(self.inner(x)))

    def end(self, x):
        return x


class Attention(Untraceable):
    """torch's own attention asks whether the batch is 1, and then does the same."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def end(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


class OtherWay(Untraceable):
    """The same for a batch of 1, by other operators."""

    def end(self, x):
        return x.sum(1, keepdim=True) if x.shape[0] == 1 else torch.mean(x, 1, keepdim=True) * x.shape[1]


class OtherThing(Untraceable):
    """Something else for a batch of 1."""

    def end(self, x):
        return x - 1 if x.shape[0] == 1 else x + 1


class Halves(Untraceable):
    """Needs a batch of two."""

    def end(self, x):
        first, second = x.chunk(2)
        return first - second


class Normed(Untraceable):
    """Batch norm, which in training mode takes no single row."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def end(self, x):
        return self.norm(x[:, 0])


def first_dim(path):
    dim = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_param or dim.dim_value


@pytest.mark.parametrize(("kind", "batch"), [(Attention, 1), (OtherWay, 3)])
def test_open_batch_takes_one_when_the_module_does_the_same_for_it(tmp_path, kind, batch):
    module = kind().eval()
    result = lg.transform(module, "rw", torch.randn(batch, 3, 8))
    path = lg.export_onnx(result.model, torch.randn(batch, 3, 8), tmp_path / "m.onnx")
    session = lg.session(path)
    for rows in (1, 2, 5):
        x = torch.randn(rows, 3, 8)
        expected = module(x).detach()
        torch.testing.assert_close(result.model(x), expected)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected)


def test_training_with_a_last_batch_of_one_runs_when_the_batch_is_open():
    model = lg.transform(Attention().eval(), "rw+lr", torch.randn(4, 3, 8)).model
    optimizer = torch.optim.SGD(lg.parameter_groups(model), lr=0.1)
    for rows in (4, 1):
        model(torch.randn(rows, 3, 8)).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_range_that_holds_one_is_kept_when_axes_are_named():
    module = Attention().eval()
    for rows in (2, 1):
        model = lg.transform(module, "rw", torch.randn(rows, 3, 8), dynamic_shapes=({0: Dim("n", min=1, max=6)},)).model
        for other in (1, 6):
            x = torch.randn(other, 3, 8)
            torch.testing.assert_close(model(x), module(x))
        with pytest.raises(ModelError, match="<= 6"):
            model(torch.randn(7, 3, 8))


def test_batch_of_one_is_refused_in_words_when_the_module_does_something_else_for_it(tmp_path):
    module = OtherThing().eval()
    result = lg.transform(module, "rw", torch.randn(3, 3, 8))
    assert any("every size but 1" in note for note in result.report.detection.notes)
    x = torch.randn(5, 3, 8)
    torch.testing.assert_close(result.model(x), module(x))
    named = lg.transform(module, "rw", torch.randn(3, 3, 8), dynamic_shapes=({0: Dim("n")},))
    for model in (result.model, named.model):
        with pytest.raises(ModelError, match=r"x\.size\(\)\[0\] != 1 holds"):
            model(x[:1])
    with pytest.warns(UserWarning, match="something else where the size of an open axis is 1"):
        lg.export_onnx(module, x, tmp_path / "m.onnx")


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_norm_in_training_is_named_when_it_shuts_a_batch_of_one_out(batch):
    module = Normed().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = lg.transform(module, "rw", torch.randn(batch, 3, 8))
    assert any("batch norm in training" in note for note in result.report.detection.notes)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    result.model(torch.randn(2, 3, 8))
    with pytest.raises(ModelError, match=r"eval\(\)"):
        result.model(torch.randn(1, 3, 8))


@pytest.mark.parametrize("asked", [{}, None])
def test_module_that_needs_its_batch_keeps_it_when_no_axis_must_be_open(tmp_path, asked):
    module, x = Halves().eval(), torch.randn(2, 3, 8)
    result = lg.transform(module, "rw", x, dynamic_shapes=asked)
    torch.testing.assert_close(result.model(x), module(x))
    with pytest.raises(ModelError, match=r"== 2 holds"):
        result.model(torch.randn(3, 3, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = lg.export_onnx(result.model, x, tmp_path / "m.onnx", dynamic_shapes=asked)
    assert first_dim(path) == 2


def test_axis_that_must_be_open_is_refused_when_the_module_needs_its_size():
    with pytest.raises(ModelError, match=r"torch\.export stopped"):
        lg.transform(Halves().eval(), "rw", torch.randn(2, 3, 8), dynamic_shapes=({0: Dim("n")},))


def test_axis_that_a_captured_program_has_fixed_is_refused_when_it_is_asked_for():
    x = torch.randn(2, 3, 8)
    program = torch.export.export(Attention().eval(), (x,))
    with pytest.raises(ModelError, match=r"axis 0 of input 'x' .* fixed at 2"):
        lg.transform(program, "rw", x, dynamic_shapes=({0: Dim("n")},))
    assert lg.transform(program, "rw", x, dynamic_shapes={}).report.plans


def test_attaching_takes_any_batch_when_it_looked_at_one():
    for rows in (1, 2):
        module = Attention().eval()
        expected = {n: module(torch.ones(n, 3, 8)).detach() for n in (1, 2, 3)}
        lg.attach(module, lg.LaurelConfig(variant="rw"), torch.randn(rows, 3, 8))
        for n, value in expected.items():
            torch.testing.assert_close(module(torch.ones(n, 3, 8)), value)


@pytest.mark.parametrize(
    ("guard", "pinned"),
    [
        ("L['x'].size()[0] == 2", True),
        ("((1 + L['x'].size()[0]) // 2) == (L['x'].size()[0] + (-1)*((1 + L['x'].size()[0]) // 2))", True),
        ("(L['x'].size()[0] % 2) == 0", True),
        ("((8*L['x'].size()[0]) % 4) == 0", False),
        ("L['x'].size()[0] == L['mask'].size()[0]", False),
        ("2*L['x'].size()[0] == L['mask'].size()[0]", True),
        ("Max(1, L['x'].size()[0]) == L['x'].size()[0]", True),
        ("L['x'].size()[0] <= 64", False),
        ("L['x'].size()[0] != 1", False),
    ],
)
def test_guard_pins_a_size_when_it_shuts_another_out(guard, pinned):
    assert pins(SimpleNamespace(_guards_code=[guard])) == pinned
