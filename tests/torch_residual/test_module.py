import copy
import io

import numpy as np
import pytest
import torch
from tolerance import assert_close
from torch import nn

from laurel_graph import formula
from laurel_graph.config import VARIANTS, SiteSpec
from laurel_graph.torch_residual import sum as autograd
from laurel_graph.torch_residual.module import (
    LaurelResidual,
    freeze_base,
    laurel_modules,
    parameter_groups,
    trainable_parameters,
)

DTYPES = ("float32", "float16", "bfloat16", "float64")
SHAPES = {-1: (2, 5, 12), 1: (2, 12, 3, 4)}


def make_spec(variant="rw+lr", axis=-1, ndim=None, k=2, **changes):
    """A spec of width 12 on *axis*; rank and k where the variant takes them."""
    low = "lr" in variant or ("pa" in variant and changes.get("previous_map") == "low-rank")
    base = {"rank": 3 if low else 0, "previous": k if "pa" in variant else 0}
    return SiteSpec("block.res1", variant, axis, 12, ndim or len(SHAPES[axis]), **{**base, **changes})


def random_module(spec, seed=0):
    module = LaurelResidual(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return module


def inputs(spec, branches=1, seed=1, shape=None):
    generator = torch.Generator().manual_seed(seed)
    shape = shape or SHAPES[spec.axis]
    count = 1 + branches + spec.previous
    return [torch.randn(shape, generator=generator).to(getattr(torch, spec.dtype)) for _ in range(count)]


def reference(spec, module, values, branches=1):
    """The formula in float64."""
    tensors = {name: t.detach().double().numpy() for name, t in module.resolved().items()}
    x, *rest = [v.detach().double().numpy() for v in values]
    return formula.residual(x, rest[:branches], tensors, rest[branches:], spec.axis)


FORMS = [
    {},
    {"per_channel": True},
    {"weights": "sigmoid"},
    {"weights": "free", "per_channel": True},
    {"previous_map": "low-rank", "per_channel": True},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("branches", [1, 2])
def test_forward_gives_the_formula_when_parameters_are_random(variant, axis, dtype, branches):
    for form in FORMS:
        spec = make_spec(variant, axis, dtype=dtype, **form)
        module, values = random_module(spec), inputs(spec, branches)
        y = module(*values)
        assert y.dtype == getattr(torch, dtype)
        assert_close(y.detach().double().numpy(), reference(spec, module, values, branches), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_gives_the_bits_of_the_adds_at_the_start(variant, axis, dtype):
    for form in FORMS:
        spec = make_spec(variant, axis, dtype=dtype, **form)
        module = LaurelResidual(spec)
        x, a, b, *previous = inputs(spec, branches=2)
        assert torch.equal(module(x, a, *previous), x + a)
        assert torch.equal(module(x, a, b, *previous), x + a + b)
        assert torch.equal(module(module(x, a, *previous), b, outer=True), x + a + b)
        assert torch.equal(module(x, a, *previous, branch_scale=0.3), torch.add(x, a, alpha=0.3))
        assert torch.equal(module(x, a, *previous, skip_scale=0.3), torch.add(a, x, alpha=0.3))
        with torch.no_grad():
            assert torch.equal(module(x, a, *previous), x + a)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scales_multiply_their_side_when_the_join_had_an_alpha(variant):
    spec = make_spec(variant)
    module, (x, f, *previous) = random_module(spec), inputs(spec)
    scaled = module(x, 0.3 * f, *previous)
    assert_close(module(x, f, *previous, branch_scale=0.3).detach(), scaled.detach())
    scaled = module(0.3 * x, f, *(0.3 * p for p in previous))
    assert_close(module(x, f, *previous, skip_scale=0.3).detach(), scaled.detach())


def test_result_has_the_wider_type_when_skip_and_branch_differ():
    module = LaurelResidual(make_spec())
    x, f = torch.randn(2, 5, 12), torch.randn(2, 5, 12).bfloat16()
    assert torch.equal(module(x, f), x + f)
    assert torch.equal(module(f, x), f + x)


@pytest.mark.parametrize(
    ("axis", "order"), [(1, (0, 2, 3, 1)), (1, (0, 3, 2, 1)), (1, (1, 0, 2, 3)), (-1, (0, 2, 1)), (-1, (2, 0, 1))]
)
@pytest.mark.parametrize("mixed", [False, True])
def test_result_has_the_strides_of_the_add_when_dims_are_permuted(axis, order, mixed):
    spec = make_spec("rw+lr+pa", axis, per_channel=True)
    module, values = random_module(spec), inputs(spec)
    inverse = [order.index(d) for d in range(len(order))]
    permuted = [v.permute(order).contiguous().permute(inverse) for v in values]
    if mixed:
        permuted[0] = values[0]
    y = module(*permuted)
    assert_close(y.detach(), module(*values).detach())
    assert y.stride() == (permuted[0] + permuted[1]).stride()


@pytest.mark.parametrize("shape", [(12,), (3, 12), (1, 2, 3, 4, 12)])
def test_last_axis_takes_any_number_of_axes(shape):
    spec = make_spec("rw+lr+pa", ndim=len(shape))
    module, values = random_module(spec), inputs(spec, shape=shape)
    assert_close(module(*values).detach(), reference(spec, module, values))


@pytest.mark.parametrize("shape", [(3, 12), (3, 12, 5), (2, 12, 2, 3, 4), (0, 12, 2, 2)])
def test_channel_axis_takes_any_number_of_spatial_axes(shape):
    spec = make_spec("rw+lr+pa", 1, ndim=len(shape), per_channel=True)
    module, values = random_module(spec), inputs(spec, shape=shape)
    assert_close(module(*values).detach(), reference(spec, module, values))


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree_with_finite_differences(variant, axis):
    for form in FORMS:
        spec = make_spec(variant, axis, dtype="float64", **form)
        module = random_module(spec)
        shape = (2, 12) if axis == -1 else (2, 12, 1, 2)
        values = [v.requires_grad_() for v in inputs(make_spec(variant, axis, dtype="float64", **form), 2, shape=shape)]
        names = [name for name, _ in module.named_parameters()]

        def run(*arguments):
            split = len(names)
            parameters = dict(zip(names, arguments[:split], strict=True))
            return torch.func.functional_call(module, parameters, arguments[split:])

        arguments = (*(p.detach().clone().requires_grad_() for p in module.parameters()), *values)
        assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_relu_inside_gives_values_and_gradients_of_one_behind(variant, axis, dtype):
    for form in FORMS:
        spec = make_spec(variant, axis, dtype=dtype, **form)
        module, values = random_module(spec), [v.requires_grad_() for v in inputs(spec, branches=2)]
        links = values[3:]
        leaves = [*module.parameters(), *values]
        for count, options in ((2, {}), (3, {}), (3, {"branch_scale": 0.3}), (2, {"skip_scale": 0.3})):
            results = []
            for inside in (True, False):
                y = module(*values[:count], *links, **options, relu=inside)
                y = y if inside else y.relu()
                results.append([y, *torch.autograd.grad(y.double().sum(), leaves, allow_unused=True)])
            for one, other in zip(*results, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert one.dtype == other.dtype
                    assert_close(one.detach().double(), other.detach().double(), dtype)


def test_relu_inside_an_outer_add_is_that_of_the_sum():
    module, (x, f, *_) = random_module(make_spec()), inputs(make_spec())
    assert torch.equal(module(x, f, outer=True, relu=True), module(x, f, outer=True).relu())


@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_agree_with_finite_differences_when_a_relu_is_inside(axis):
    spec = make_spec("rw+lr+pa", axis, dtype="float64")
    module, values = random_module(spec), [v.requires_grad_() for v in inputs(spec)]

    def run(*values):
        return module(*values, relu=True)

    assert torch.autograd.gradcheck(run, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_the_same_when_tensors_are_taken_in_pieces(form, axis, dtype, monkeypatch):
    spec = make_spec("rw+lr+pa", axis, dtype=dtype, **form)
    module, values = random_module(spec), [v.requires_grad_() for v in inputs(spec, shape=(5, 12, *(3,) * (axis == 1)))]
    leaves = [*module.parameters(), *values]
    results = []
    for chunk in (12 * 2 * 3, 2**20):  # two rows or samples and a shorter rest; everything
        monkeypatch.setattr(autograd, "CHUNK", chunk)
        y = module(*values)
        results.append([y, *torch.autograd.grad(y.double().square().sum(), leaves)])
    for pieces, whole in zip(*results, strict=True):
        assert pieces.dtype == whole.dtype
        assert_close(pieces.detach().double(), whole.detach().double(), dtype)


@pytest.mark.parametrize("variant", ["rw", "rw+lr", "rw+lr+pa"])
def test_sixteen_bit_gradients_follow_the_float32_ones(variant):
    spec = make_spec(variant, dtype="bfloat16")
    module, values = random_module(spec), [v.requires_grad_() for v in inputs(spec)]
    module(*values).float().square().sum().backward()
    exact = copy.deepcopy(module).float()
    exact_values = [v.detach().float().requires_grad_() for v in values]
    exact.zero_grad()
    exact(*exact_values).square().sum().backward()
    for actual, expected in zip([*module.parameters(), *values], [*exact.parameters(), *exact_values], strict=True):
        assert actual.grad.dtype == torch.bfloat16
        assert_close(actual.grad.float().numpy(), expected.grad.numpy(), "bfloat16")


@pytest.mark.parametrize("axis", [-1, 1])
def test_functorch_sees_through_the_module(axis):
    spec = make_spec("rw+lr+pa", axis)
    module, values = random_module(spec), inputs(spec)
    parameters = dict(module.named_parameters())

    def loss(parameters, *values):
        return torch.func.functional_call(module, parameters, values).square().sum()

    gradients = torch.func.grad(loss)(parameters, *values)
    loss(parameters, *values).backward()
    for name, p in module.named_parameters():
        assert_close(gradients[name].detach(), p.grad)
    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(values)))(
        parameters, *(v.unsqueeze(1) for v in values)
    )
    assert_close(batched["w"].sum(0).detach(), gradients["w"].detach())


class Block(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.linear, self.laurel = nn.Linear(12, 12), random_module(spec)

    def forward(self, x):
        return self.laurel(self.laurel(x, self.linear(x), x.sin()), x, x.sin(), relu=True)


def gradients(model, *values):
    model.zero_grad()
    y = model(*values)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_module_gives_the_same_values_and_gradients(dynamic):
    model, x = Block(make_spec("rw+lr+pa", k=1)), torch.randn(2, 5, 12)
    compiled = torch.compile(model, backend="aot_eager", dynamic=dynamic, fullgraph=True)
    for actual, expected in zip(gradients(compiled, x), gradients(model, x), strict=True):
        assert_close(actual, expected)


def test_checkpointed_module_gives_the_same_gradients():
    model, x = Block(make_spec("rw+lr+pa", k=1)), torch.randn(2, 5, 12, requires_grad=True)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.model, x, use_reentrant=False)

    for actual, expected in zip(gradients(Checkpointed(), x), gradients(model, x), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_module_keeps_parameters_and_dynamic_dims(strict):
    model, batch = Block(make_spec("rw+lr+pa", k=1)), torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 5, 12),), dynamic_shapes=({0: batch},), strict=strict)
    assert set(program.state_dict) == set(model.state_dict())
    x = torch.randn(7, 5, 12)
    assert_close(program.module()(x).detach(), model(x).detach())


def test_symbolic_trace_keeps_the_module_whole():
    model, x = Block(make_spec("rw+lr+pa", k=1)), torch.randn(2, 5, 12)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["linear", "laurel", "laurel"]
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_bits_of_the_add_at_the_start(dtype):
    linear, module, x = nn.Linear(12, 12), LaurelResidual(make_spec()), torch.randn(2, 5, 12)
    with torch.autocast("cpu", dtype):
        f = linear(x)
        y = module(x, f)
        assert f.dtype == dtype
        assert torch.equal(y, x + f)
        y.sum().backward()
    assert module.w.grad.dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_resolved_tensors_are_those_of_the_formula(form):
    spec = make_spec("rw+lr+pa", **form)
    module = random_module(spec)
    expected = formula.resolve(spec, {name: p.detach().numpy() for name, p in module.named_parameters()})
    resolved = module.resolved()
    assert list(resolved) == list(expected)
    for name, shape in spec.tensor_shapes().items():
        assert tuple(resolved[name].shape) == shape
        assert_close(resolved[name].detach().reshape(-1), expected[name].reshape(-1))


def test_parameters_start_as_the_formula_says():
    spec = make_spec("rw+lr+pa", previous_map="low-rank")
    module = LaurelResidual(spec, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == spec.parameter_shapes()
    for name, array in formula.initial_parameters(spec).items():
        p = module.get_parameter(name)
        assert p.dtype == torch.float64
        np.testing.assert_array_equal(p.detach().numpy(), array)


def test_copies_and_pickles_give_the_same_values():
    spec = make_spec("rw+lr+pa")
    module, values = random_module(spec), inputs(spec)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert other.spec == spec
        assert torch.equal(other(*values), module(*values))


def test_forward_fails_with_text_when_a_value_is_missing():
    module = LaurelResidual(make_spec("pa", k=2))
    with pytest.raises(ValueError, match=r"block\.res1.*2 earlier activations"):
        module(torch.zeros(1, 12), torch.zeros(1, 12))


def test_repr_names_variant_and_sizes():
    assert repr(LaurelResidual(make_spec("rw+lr+pa"))) == (
        "LaurelResidual(rw+lr+pa, D=12, axis=-1, r=3, weights=softmax, k=2 identity)"
    )


def test_only_laurel_parameters_train_when_the_base_is_frozen():
    model = nn.Sequential(nn.Linear(12, 12), LaurelResidual(make_spec()))
    freeze_base(model)
    trainable = trainable_parameters(model)
    assert list(trainable) == ["1.w", "1.A", "1.B"]
    assert trainable.count == make_spec().parameter_count() == 74
    assert trainable.summary == "74 of 230 parameters train (32.2 %), in 3 tensors"
    assert list(laurel_modules(model)) == ["block.res1"]


def test_parameter_groups_spare_laurel_parameters_from_weight_decay():
    model = nn.Sequential(nn.Linear(12, 12), LaurelResidual(make_spec()))
    freeze_base(model)
    assert [g["weight_decay"] for g in parameter_groups(model, 0.1)] == [0.0]
    model[0].requires_grad_(True)
    ours, head = parameter_groups(model, 0.1)
    assert (len(ours["params"]), ours["weight_decay"]) == (3, 0.0)
    assert (len(head["params"]), head["weight_decay"]) == (2, 0.1)
    torch.optim.AdamW([ours, head])


@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_flow_when_an_activation_works_on_the_residual_in_place(axis):
    module = LaurelResidual(make_spec("rw+lr", axis))
    x, f = (torch.randn(SHAPES[axis], requires_grad=True) for _ in range(2))
    torch.relu_(module(x, f)).sum().backward()
    assert x.grad is not None and f.grad is not None


@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_are_no_views_when_other_uses_are_to_be_added_in_place(axis):
    module, seen = LaurelResidual(make_spec("rw+lr", axis)), []
    x, f = (torch.randn(SHAPES[axis], requires_grad=True) for _ in range(2))
    for tensor in (x, f):
        tensor.register_hook(lambda gradient: seen.append(gradient._is_view()))
    module(x, f).sum().backward()
    assert seen == [False, False]


@pytest.mark.parametrize("shape", [(2, 12, 3, 4), (1, 12, 3, 4), (2, 12, 1, 4), (2, 12, 1, 1), (2, 12, 2, 3, 2)])
def test_result_is_laid_out_like_the_add_when_channels_are_last(shape):
    layout = autograd.CHANNELS_LAST[len(shape)]
    x, f = (torch.randn(shape).to(memory_format=layout) for _ in range(2))
    module = random_module(make_spec("rw+lr", 1, len(shape)))
    assert module(x, f).stride() == (x + f).stride()
