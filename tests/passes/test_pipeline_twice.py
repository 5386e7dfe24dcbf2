"""What is transformed already is seen as such, and stays as it is."""

import pytest
import torch
from models import image_net, onnx_text, token_net
from torch import nn

from laurel_graph.config import VARIANTS, LaurelConfig
from laurel_graph.errors import NoResidualError
from laurel_graph.passes.pipeline import inspect, transform

IMAGES = "(float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y)"
DEEP = "a0 = MatMul(x, w0) a = Relu(a0) b0 = MatMul(x, w1) b = Relu(b0)"
STREAM = "p0 = MatMul(i, w3) p1 = Relu(p0) x = Add(i, p1)"
WEIGHTS = {f"w{i}": (8, 8) for i in range(4)}
FEEDS_X = "(float[n, s, 8] i) => (float[n, s, 8] y)"
ONNX = {
    "tokens": token_net(opset=17),
    "images": image_net(opset=17),
    "two branches": onnx_text(f"{FEEDS_X} {{ {STREAM} {DEEP} s = Add(x, a) y = Add(s, b) }}", WEIGHTS, 17),
    "a short second branch": onnx_text(
        f"{FEEDS_X} {{ {STREAM} {DEEP} c = MatMul(x, w2) s = Add(x, a) y = Add(s, c) }}", WEIGHTS, 17
    ),
    "sum": onnx_text(f"{FEEDS_X} {{ {STREAM} {DEEP} y = Sum(x, a, b) }}", WEIGHTS, 17),
    "sum with the skip last": onnx_text(f"{FEEDS_X} {{ {STREAM} {DEEP} y = Sum(a, b, x) }}", WEIGHTS, 17),
    "sum with a short branch": onnx_text(
        f"{FEEDS_X} {{ {STREAM} {DEEP} c = MatMul(x, w2) y = Sum(c, a, x) }}", WEIGHTS, 17
    ),
    "fused convolutions": onnx_text(
        f"{IMAGES} {{ a = Relu(x) b = com.microsoft.FusedConv<pads = [1, 1, 1, 1]>(a, k, , x) c = Relu(b) "
        "y = com.microsoft.FusedConv<pads = [1, 1, 1, 1]>(c, k, , b) }",
        {"k": (8, 8, 3, 3)},
        17,
    ),
}


class Layer(nn.Module):
    """(x + f(x)) + g(x) with a short g, then y + h(y)."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.up, self.down, self.side = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        if self.form == "two branches":
            x = x + self.down(torch.relu(self.up(x))) + self.side(x)
        return x + self.down(torch.relu(self.up(x)))


def layers(form):
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(form) for _ in range(3))).eval()


def rewritten_sites(result):
    return sorted(plan.spec.site for plan in result.report.plans)


def listed(detection):
    return [(residual.site, residual.kind) for residual in detection.residuals]


@pytest.mark.parametrize("adapter_inputs", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ONNX)
def test_transform_finds_nothing_left_when_the_onnx_model_is_transformed(name, variant, adapter_inputs):
    config = LaurelConfig(variant=variant, rank=2)
    first = transform(ONNX[name], config, adapter_inputs=adapter_inputs)
    before = first.model.SerializeToString()
    found = inspect(first.model)
    assert sorted(r.site for r in found.residuals if r.kind == "laurel") == rewritten_sites(first)
    assert len(found.residuals) == len(inspect(ONNX[name]).residuals)
    with pytest.raises(NoResidualError, match="already"):
        transform(first.model, config)
    assert first.model.SerializeToString() == before


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["one branch", "two branches"])
def test_transform_finds_nothing_left_when_the_torch_module_is_transformed(form, variant):
    config, args = LaurelConfig(variant=variant, rank=2), torch.randn(2, 4, 8)
    first = transform(layers(form), config, args)
    before = first.model.code, sorted(first.model.state_dict())
    for given in ((), args):
        found = inspect(first.model, given)
        assert sorted(r.site for r in found.residuals if r.kind == "laurel") == rewritten_sites(first)
        with pytest.raises(NoResidualError, match="already"):
            transform(first.model, config, given)
    assert (first.model.code, sorted(first.model.state_dict())) == before


@pytest.mark.parametrize("name", ONNX)
def test_transform_takes_the_rest_when_some_sites_are_there_already(name):
    whole = inspect(ONNX[name])
    sites = [residual.site for residual in whole.residuals]
    first = transform(ONNX[name], LaurelConfig(sites=sites[:1], rank=2))
    assert listed(inspect(first.model)) == [(sites[0], "laurel"), *listed(whole)[1:]]
    with pytest.raises(NoResidualError, match="already"):
        transform(first.model, LaurelConfig(sites=sites[:1], rank=2))
    second = transform(first.model, LaurelConfig(rank=2))
    assert rewritten_sites(second) == sorted(sites[1:])
    assert all(residual.kind == "laurel" for residual in inspect(second.model).residuals)


def test_transform_takes_a_long_skip_for_none_when_the_joins_below_it_are_rewritten():
    model = onnx_text(
        f"{IMAGES} {{ d = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, k) a = Conv<pads = [1, 1, 1, 1]>(d, k) "
        "e = Add(d, a) u = Resize(e, , s) c = Conv<pads = [1, 1, 1, 1]>(u, k) y = Add(x, c) }",
        {"k": (8, 8, 3, 3)},
        17,
    )
    model.graph.initializer.add(name="s", data_type=1, dims=[4], float_data=[1, 1, 2, 2])
    assert [residual.site for residual in inspect(model).residuals] == ["res_e"]
    assert listed(inspect(transform(model, LaurelConfig(rank=2)).model)) == [("res_e", "laurel")]


class Block(nn.Module):
    """silu(p(x) + f(x)), with a projection p or without."""

    def __init__(self, projects):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
        self.side = nn.Linear(8, 8) if projects else nn.Identity()

    def forward(self, x):
        return nn.functional.silu(self.side(x) + self.down(torch.relu(self.up(x))))


@pytest.mark.parametrize("parts", [slice(0, 2), slice(2, None), slice(1, 3)])
@pytest.mark.parametrize("variant", ["pa", "rw+lr+pa"])
def test_stages_make_the_same_graph_when_the_module_is_transformed_part_by_part(variant, parts):
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Block(i == 2) for i in range(5))).eval(), torch.randn(2, 3, 8)

    def calls(module):
        return str({node.name: (node.target, node.args) for node in module.graph.nodes})

    def rewritten(model, *sites):
        return transform(model, LaurelConfig(variant=variant, rank=2, sites=sites or ("*",)), x)

    once = rewritten(model)
    sites = rewritten_sites(once)
    first = sites[parts]
    staged = rewritten(rewritten(model, *first).model, *(site for site in sites if site not in first))
    assert calls(staged.model) == calls(once.model)
    assert sorted(staged.report.plans, key=str) == sorted(
        (plan for plan in once.report.plans if plan.spec.site not in first), key=str
    )


class _Block(nn.Module):
    """Two convolutions and a skip, with a 1×1 convolution on it where the channels change."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.a, self.b = (nn.Conv2d(n, outputs, 3, padding=1) for n in (inputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


@pytest.mark.parametrize("variant", ["rw", "rw+pa"])
def test_streams_stay_the_same_when_projections_on_them_are_rewritten(variant):
    model = nn.Sequential(*(_Block(*sizes) for sizes in ((8, 8), (8, 16), (16, 16), (16, 8)))).eval()
    x = torch.randn(1, 8, 6, 6)
    before = [(r.site, r.stream, r.index, r.fork) for r in inspect(model, x).residuals]
    changed = transform(model, LaurelConfig(variant=variant), x).model
    after = inspect(changed, x).residuals
    assert [(r.site, r.stream, r.index, r.fork) for r in after] == before
    assert {r.stream for r in after} == {0} and {r.kind for r in after} == {"laurel"}
