import copy
import io
import operator

import pytest
import torch
from torch import fx, nn
from torch_models import leaves, make, randomise, rewritten, small_models

from laurel_graph.config import VARIANTS, LaurelConfig, SiteSpec
from laurel_graph.detection import Residual, SitePlan
from laurel_graph.errors import ModelError, NoResidualError, RewriteError
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.rewrite.fx import insert, remove
from laurel_graph.passes.select import select
from laurel_graph.torch_residual.module import LaurelResidual, freeze_base, laurel_modules, trainable_parameters

TORCH_MODELS = sorted(small_models())


def dump(module):
    return [(n.name, n.op, n.target, str(n.args), str(n.kwargs), sorted(n.meta)) for n in module.graph.nodes]


def plan_of(skip, branch, join, site="res1", previous=(), variant="rw", **spec):
    joins = (join,) if isinstance(join, str) else join
    residual = Residual(site, "identity", skip, (branch,), joins[-1], joins, -1, 12, (2, 12), "float32")
    spec = SiteSpec(site, variant, -1, 12, 2, previous=len(previous), **spec)
    return SitePlan(residual, spec, tuple(previous))


@pytest.mark.parametrize("name", TORCH_MODELS)
@pytest.mark.parametrize("export", [False, True])
def test_rewritten_model_gives_the_same_bits_at_the_start(name, export):
    all_variants = not export and name in ("prenorm", "resnet", "parallel")
    for variant in VARIANTS if all_variants else ("rw+lr+pa",):
        for batch in (1, 7):
            module, inputs, plans = rewritten(name, variant, batch, export)
            assert plans and set(laurel_modules(module)) == {plan.spec.site for plan in plans}
            model, _ = make(name, batch)
            with torch.no_grad():
                for actual, expected in zip(leaves(module(*inputs)), leaves(model(*inputs)), strict=True):
                    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["prenorm", "parallel", "resnet"])
def test_rewritten_model_gives_the_same_bits_when_it_is_of_sixteen_bits(name, dtype):
    model, inputs = make(name)
    model, inputs = model.to(dtype), [x.to(dtype) for x in inputs]
    captured = capture(model, inputs)
    insert(captured.module, select(detect(captured.view), LaurelConfig(variant="rw+lr+pa")).plans)
    assert {p.dtype for p in captured.module.parameters()} == {dtype}
    assert torch.equal(captured.module(*inputs), model(*inputs))


@pytest.mark.parametrize("name", TORCH_MODELS)
@pytest.mark.parametrize("export", [False, True])
def test_only_laurel_parameters_get_gradients_when_the_base_is_frozen(name, export):
    module, inputs, plans = rewritten(name, "rw+lr+pa", export=export)
    freeze_base(module)
    randomise(module)
    sum(out.float().square().mean() for out in leaves(module(*inputs))).backward()
    named = {n for n, p in module.named_parameters() if p.grad is not None}
    assert named == set(trainable_parameters(module))
    assert named == {f"laurel.{p.spec.site}.{n}" for p in plans for n in p.spec.parameter_shapes()}
    assert all(module.get_parameter(n).grad.abs().max() > 0 for n in named)


@pytest.mark.parametrize("name", TORCH_MODELS)
@pytest.mark.parametrize("export", [False, True])
def test_remove_gives_the_same_nodes_back(name, export):
    model, inputs = make(name)
    captured = capture(torch.export.export(model, inputs) if export else model, inputs)
    module, before, code = captured.module, dump(captured.module), captured.module.code
    state, trainable = list(module.state_dict()), {n for n, p in module.named_parameters() if p.requires_grad}
    plans = select(detect(captured.view), LaurelConfig(variant="rw+lr+pa")).plans
    insert(module, plans)
    freeze_base(module)
    copied = copy.deepcopy(module)
    names = [node.name for node in module.graph.nodes]
    assert names == [entry[0] for entry in before]
    for rewritten_module in (module, copied):
        assert remove(rewritten_module) is rewritten_module
        assert dump(rewritten_module) == before
        assert rewritten_module.code == code
        assert list(rewritten_module.state_dict()) == state
        assert {n for n, p in rewritten_module.named_parameters() if p.requires_grad} == trainable
    with pytest.raises(ModelError, match="nothing to remove"):
        remove(module)


@pytest.mark.parametrize("name", ["prenorm", "resnet", "parallel", "weighted"])
def test_pickled_module_gives_the_same_values_and_can_be_taken_apart(name):
    module, inputs, _ = rewritten(name)
    model, _ = make(name)
    randomise(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert torch.equal(other(*inputs), module(*inputs))
    assert torch.equal(remove(other)(*inputs), model(*inputs))
    fresh, _, _ = rewritten(name)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(*inputs), module(*inputs))


@pytest.mark.parametrize("name", ["prenorm", "resnet", "parallel"])
def test_running_twice_changes_nothing(name):
    module, inputs, plans = rewritten(name)
    before = dump(module)
    report = insert(module, plans)
    assert report.sites == () and report.unchanged == tuple(plan.spec.site for plan in plans)
    assert dump(module) == before
    captured = capture(module, inputs)
    assert {r.kind for r in detect(captured.view).residuals} == {"laurel"}
    with pytest.raises(NoResidualError):
        select(detect(captured.view), LaurelConfig())


def test_join_keeps_its_name_and_metadata():
    module, _, plans = rewritten("prenorm")
    node = next(n for n in module.graph.nodes if n.name == plans[0].residual.join)
    assert (node.op, node.target) == ("call_module", f"laurel.{plans[0].spec.site}")
    assert {"val", "stack_trace"} <= set(node.meta)


def test_modes_reach_layers_and_residuals_when_the_model_was_traced_symbolically():
    module, inputs, _ = rewritten("prenorm")
    module.train()
    assert all(m.training for m in module.modules())
    assert not torch.equal(module(*inputs), module(*inputs))
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))


@pytest.mark.parametrize("export", [False, True])
def test_compiled_checkpointed_and_exported_models_agree(export):
    module, inputs, _ = rewritten("prenorm", "rw+lr+pa", export=export)
    freeze_base(module)
    randomise(module)
    expected = module(*inputs)
    assert torch.allclose(torch.compile(module, backend="aot_eager")(*inputs), expected, atol=1e-6)
    again = torch.utils.checkpoint.checkpoint(module, *inputs, use_reentrant=False)
    assert torch.equal(again, expected)
    program = torch.export.export(module, inputs, dynamic_shapes=None if export else ({0: torch.export.Dim("n")},))
    assert torch.allclose(program.module()(*inputs), expected, atol=1e-6)
    assert set(program.state_dict) == set(module.state_dict())


class InPlace(nn.Module):
    """Adds in place by statement: later reads of x see the sums."""

    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.body = nn.Linear(12, 12), nn.Linear(12, 12), body

    def forward(self, x):
        return self.body(self, x * 1)


def in_place_statements(net, x):
    x.add_(net.a(x).relu())
    x.add_(net.b(x).relu())
    return x.relu()


def in_place_kept(net, x):
    first = x
    x = x + net.a(x).relu()
    first.mul_(2)
    return x + net.b(x).relu()


def in_place_view(net, x):
    flat = x.view(-1)
    x.add_(net.a(x).relu())
    return x, flat


@pytest.mark.parametrize("variant", ["rw", "rw+pa"])
@pytest.mark.parametrize("body", [in_place_statements, in_place_kept])
def test_in_place_operators_give_the_same_bits(body, variant):
    model, x = InPlace(body), torch.randn(2, 12)
    captured = capture(model, (x,))
    module, before = captured.module, dump(captured.module)
    plans = select(detect(captured.view), LaurelConfig(variant=variant)).plans
    assert len(plans) == 2
    for chosen in (plans, plans[1:]):
        insert(module, chosen)
        assert torch.equal(module(x), model(x))
        if variant == "rw+pa":  # the earlier activation is the first skip before anything overwrote it
            laurel = laurel_modules(module)[plans[1].spec.site]
            with torch.no_grad():
                laurel.gamma.fill_(1.0)
            expected = model(x)
            x1 = x + model.a(x).relu()
            expected = x1 + model.b(x1).relu() + x
            expected = expected.relu() if body is in_place_statements else expected
            assert torch.allclose(module(x), expected, atol=1e-6)
        remove(module)
        assert dump(module) == before


def test_in_place_add_is_refused_when_its_memory_is_read_under_another_name():
    tracer = fx.symbolic_trace(InPlace(in_place_view))
    join = next(n for n in tracer.graph.nodes if n.target == "add_")
    before = dump(tracer)
    with pytest.raises(RewriteError, match=r"in place into memory that 'output' reads afterwards as 'view'"):
        insert(tracer, [plan_of(join.args[0].name, join.args[1].name, join.name)])
    assert dump(tracer) == before


def linear_net(add):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12, 12)

        def forward(self, x):
            return add(x, self.a(x))

    return Net()


@pytest.mark.parametrize(
    "add",
    [
        lambda x, f: x + f,
        lambda x, f: f + x,
        lambda x, f: operator.iadd(f, x),
        lambda x, f: torch.add(x, f),
        lambda x, f: torch.add(input=f, other=x),
        lambda x, f: torch.add(f, other=x, alpha=0.3),
        lambda x, f: x.add(f, alpha=0.3),
        lambda x, f: f.add_(x, alpha=0.3),
        lambda x, f: f.__add__(x),
        lambda x, f: torch.ops.aten.add.Tensor(x, f, alpha=0.3),
    ],
)
def test_every_spelling_of_an_add_gives_the_same_bits(add):
    model, x = linear_net(add), torch.randn(2, 12)
    module = fx.symbolic_trace(model)
    before = dump(module)
    *_, join, _ = module.graph.nodes
    insert(module, [plan_of("x", "a", join.name)])
    assert isinstance(module.laurel.res1, LaurelResidual)
    assert torch.equal(module(x), model(x))
    with torch.no_grad():
        module.laurel.res1.w.copy_(torch.tensor([0.5, -0.2]))
    alpha, beta = module.laurel.res1.resolved().values()
    assert torch.allclose(module(x), add(beta * x, alpha * model.a(x)), atol=1e-6)
    remove(module)
    assert dump(module) == before


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of("x", "a", "gone"), r"site 'res1': the graph has no node 'gone'"),
        (plan_of("x", "a", "a"), r"'a' .* is no add that can be rewritten"),
        (plan_of("a_1", "a", "add"), r"no node 'a_1'"),
        (plan_of("mul", "a", "add"), r"none of its joins add adds the skip 'mul'"),
        (plan_of("x", "a", "add", previous=("add",), variant="pa"), r"earlier activation 'add' is computed after"),
    ],
)
def test_plan_that_does_not_fit_is_refused_and_leaves_the_module_alone(plan, message):
    module = fx.symbolic_trace(linear_net(lambda x, f: (x + f) * 2))
    before = dump(module)
    with pytest.raises(RewriteError, match=message):
        insert(module, [plan])
    assert dump(module) == before
    assert not hasattr(module, "laurel")


def test_sum_of_more_than_two_or_a_number_is_refused():
    module = fx.symbolic_trace(linear_net(lambda x, f: (x + f) + 1))
    with pytest.raises(RewriteError, match="no add of two values"):
        insert(module, [plan_of("add", "a", "add_1")])


@pytest.mark.parametrize("clash", ["module", "parameter", "root"])
def test_residual_finds_another_place_when_its_name_is_taken(clash):
    model = linear_net(lambda x, f: x + f)
    module = fx.symbolic_trace(model)
    if clash == "module":
        module.add_submodule("laurel.res1", nn.Linear(2, 2))
    elif clash == "parameter":
        module.add_submodule("laurel", nn.Linear(2, 2))
        module.laurel.res1 = nn.Parameter(torch.zeros(2))
    else:
        module.laurel = nn.Parameter(torch.zeros(2))
    before = dump(module), list(module.state_dict())
    insert(module, [plan_of("x", "a", "add")])
    assert list(laurel_modules(module)) == ["res1"]
    assert torch.equal(module(torch.ones(2, 12)), model(torch.ones(2, 12)))
    remove(module)
    assert (dump(module), list(module.state_dict())) == before


def test_sites_inside_one_another_keep_their_tensors_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            x = x + self.a(x)
            return x + self.b(x)

    module, x = fx.symbolic_trace(Net()), torch.randn(2, 12)
    before = dump(module)
    insert(module, [plan_of("x", "a", "add", "res1"), plan_of("add", "b", "add_1", "res1.res1")])
    assert set(laurel_modules(module)) == {"res1", "res1.res1"}
    randomise(module)
    assert {n for n in module.state_dict() if "laurel" in n} == {"laurel.res1.w", "laurel.res1.res1.w"}
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    remove(module)
    assert dump(module) == before and not hasattr(module, "laurel")


def test_parameters_take_the_dtype_of_the_model_when_shapes_are_unknown():
    module = fx.symbolic_trace(linear_net(lambda x, f: x + f).bfloat16())
    insert(module, [plan_of("x", "a", "add")])
    assert module.laurel.res1.w.dtype == torch.bfloat16
    assert module.laurel.res1.spec.dtype == "bfloat16"
