"""The rule and its exceptions on small torch modules: each match beside its no-match twin."""

import pytest
import torch
from torch import nn

import laurel_graph as lg
from laurel_graph.config import LaurelConfig, SiteOverride
from laurel_graph.errors import ModelError, NoResidualError, SelectorError
from laurel_graph.passes.detect.reasons import REASONS
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.select import select

D = 8


class Net(nn.Module):
    """A module whose forward is the function given, with a few layers at hand."""

    def __init__(self, forward):
        super().__init__()
        self.body = forward
        self.a, self.b, self.c = (nn.Linear(D, D) for _ in range(3))
        self.norm, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.conv, self.conv2, self.conv3 = (nn.Conv2d(D, D, 3, padding=1) for _ in range(3))
        self.one, self.bn = nn.Conv2d(D, D, 1), nn.BatchNorm2d(D)
        self.drop, self.up = nn.Dropout(0.1), nn.ConvTranspose2d(D, D, 2, stride=2)
        self.scale = nn.Parameter(torch.full((D,), 0.1))
        self.table = nn.Parameter(torch.randn(1, 4, D))

    def forward(self, x):
        return self.body(self, x)


TOKENS = torch.randn(2, 4, D)
IMAGE = torch.randn(2, D, 4, 4)


def found_in(forward, x=TOKENS, export=False):
    module = Net(forward).eval()
    source = torch.export.export(module, (x,), strict=False) if export else module
    return detect(capture(source, (x,)).view)


def branch(m, x):
    return m.b(torch.relu(m.a(x)))


MATCHES = {
    "plain": (lambda m, x: x + branch(m, x), TOKENS, "identity"),
    "commuted": (lambda m, x: branch(m, x) + x, TOKENS, "identity"),
    "linear branch": (lambda m, x: x + m.a(x), TOKENS, "identity"),
    "dropout": (lambda m, x: x + m.drop(branch(m, m.norm(x))), TOKENS, "identity"),
    "post-norm": (lambda m, x: m.norm(x + branch(m, x)), TOKENS, "identity"),
    "scaled branch": (lambda m, x: x + m.scale * branch(m, x), TOKENS, "identity"),
    "scalar on the skip": (lambda m, x: x * 0.5 + branch(m, x), TOKENS, "identity"),
    "alpha": (lambda m, x: torch.add(x, branch(m, x), alpha=0.5), TOKENS, "identity"),
    "attention": (lambda m, x: x + torch.softmax(m.a(x) @ m.b(x).mT, -1) @ m.c(x), TOKENS, "identity"),
    "fourier with a norm": (lambda m, x: m.norm(x + torch.fft.fft(x).real), TOKENS, "identity"),
    "channels": (lambda m, x: x + m.conv2(torch.relu(m.conv(x))), IMAGE, "identity"),
    "projection": (lambda m, x: m.bn(m.one(x)) + m.conv2(torch.relu(m.conv(x))), IMAGE, "projection"),
    "slice of a concat": (
        lambda m, x: (t := torch.cat([m.a(x), x], 2))[..., :D] + m.b(torch.relu(t[..., :D] + t[..., D:])), TOKENS,
        "identity",
    ),
    "first token": (lambda m, x: x[:, :1] + branch(m, x)[:, :1], TOKENS, "identity"),
    "learned trunk": (
        lambda m, x: m.table + m.c(torch.softmax(m.a(m.table) @ x.mT, -1) @ m.b(x)), TOKENS[:1], "identity",
    ),
    "windows under one maximum": (
        lambda m, x: m.a(x).view(-1, 2, 2, D).max(2).values + branch(m, x).view(-1, 2, 2, D).mean(2), TOKENS,
        "projection",
    ),
    "pooling": (
        lambda m, x: x + m.scale.view(D, 1, 1) * (nn.functional.avg_pool2d(m.bn(x), 3, 1, 1) - m.bn(x)), IMAGE,
        "identity",
    ),
}  # fmt: skip

REJECTS = {
    "no-weighted-op": lambda m, x: (y := m.a(x)) + 0.04 * y**3,
    "bias": lambda m, x: m.a(x + m.table),
    "gate": lambda m, x: x + x * torch.sigmoid(m.a(x)),
    "same-operand": lambda m, x: m.a(x + x),
    "logits-bias": lambda m, x: torch.softmax(x + m.b(torch.relu(m.a(x))), -1),
    "logits-bias before a mask": lambda m, x: torch.softmax((x + branch(m, x)).masked_fill(x > 1, -9.0), -1),
    "logits-bias before a choice": lambda m, x: torch.where(x > 1, x + branch(m, x), x).topk(3).indices,
    "branch-used-elsewhere": lambda m, x: (y := branch(m, x)) * (x + y),
    "shared-map": lambda m, x: m.c(x) + m.c(branch(m, x)),
    "parallel-maps": lambda m, x: m.a(x) + m.b(x),
    "other-part": lambda m, x: (y := m.a(x))[..., :4].repeat(1, 1, 2) + m.b(y[..., 4:].repeat(1, 1, 2)),
    "no-skip": lambda m, x: branch(m, x) + torch.tanh(m.c(x)),
    "broadcast": lambda m, x: x + branch(m, x).mean(-1, keepdim=True),
    "scaled-skip": lambda m, x: m.c(m.scale * x + branch(m, x)),
    "inside-norm": lambda m, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("name", MATCHES)
@pytest.mark.parametrize("export", [False, True], ids=["symbolic", "export"])
def test_detect_finds_the_join_when_a_branch_with_weights_returns(name, export):
    forward, x, kind = MATCHES[name]
    found = found_in(forward, x, export)
    assert [residual.kind for residual in found.residuals] == [kind], found.rejected
    residual = found.residuals[0]
    assert residual.axis == (1 if x is IMAGE else -1)
    assert residual.width == D
    assert not residual.blocked


@pytest.mark.parametrize("reason", REJECTS)
@pytest.mark.parametrize("export", [False, True], ids=["symbolic", "export"])
def test_detect_names_the_reason_when_an_add_is_no_residual(reason, export):
    found = found_in(REJECTS[reason], TOKENS, export)
    assert not found.residuals
    assert reason.partition(" ")[0] in {rejected.reason for rejected in found.rejected}
    assert all(rejected.reason in REASONS and rejected.detail for rejected in found.rejected)


def test_detect_reports_a_long_skip_when_the_branch_comes_back_from_another_resolution():
    found = found_in(lambda m, x: x + m.up(torch.relu(m.conv(torch.max_pool2d(x, 2)))), IMAGE)
    assert [rejected.reason for rejected in found.rejected] == ["long-skip"]


@pytest.mark.parametrize("export", [False, True], ids=["symbolic", "export"])
def test_detect_makes_one_join_of_several_branches_when_adds_are_chained(export):
    found = found_in(lambda m, x: (x + branch(m, x)) + m.c(torch.tanh(x)), TOKENS, export)
    (residual,) = found.residuals
    assert len(residual.branches) == len(residual.joins) == 2
    assert residual.joins[-1] == residual.join


def test_detect_keeps_the_inner_sum_as_one_branch_when_it_is_added_first():
    found = found_in(lambda m, x: (branch(m, x) + m.c(torch.tanh(x))) + x)
    (residual,) = found.residuals
    assert len(residual.joins) == 1


def block(m, x):
    x = x + branch(m, m.norm(x))
    return x + m.c(torch.tanh(m.norm2(x)))


@pytest.mark.parametrize("export", [False, True], ids=["symbolic", "export"])
def test_detect_links_earlier_sites_when_joins_follow_on_one_stream(export):
    found = found_in(lambda m, x: block(m, block(m, x)), TOKENS, export)
    residuals = found.residuals
    assert [residual.site for residual in residuals] == ["res1", "res2", "res3", "res4"]
    assert {residual.stream for residual in residuals} == {0}
    assert [residual.index for residual in residuals] == [0, 1, 2, 3]
    assert residuals[3].previous == ("res3", "res2", "res1")
    assert residuals[1].skip == residuals[0].join
    assert residuals[0].shared == residuals[2].shared != ""


@pytest.mark.parametrize("in_place", ["add_", "relu_"])
def test_detect_reads_the_new_value_when_an_operator_writes_in_place(in_place):
    def forward(m, x):
        y = m.a(x)
        torch.relu_(y)
        if in_place == "add_":
            z = m.c(torch.tanh(y))
            z.add_(y)
            return m.norm(z)
        return y + m.c(torch.tanh(y))

    assert len(found_in(forward, TOKENS, export=True).residuals) == 1


def test_detect_reports_blocked_joins_when_the_add_is_fused():
    found = found_in(lambda m, x: torch.addcmul(x, branch(m, x), torch.sigmoid(m.c(x))))
    (residual,) = found.residuals
    assert "addcmul" in residual.blocked


def test_capture_names_the_line_when_nothing_can_trace_the_model():
    class Stubborn(nn.Module):
        def forward(self, x):
            if float(x.detach().numpy().sum()) > 0:
                return x
            return -x

    with pytest.raises(ModelError, match=r"test_detect\.py:\d+"):
        capture(Stubborn(), (TOKENS,))
    with pytest.raises(ModelError, match="example inputs"):
        capture(Stubborn())
    with pytest.raises(ModelError, match=r"nn\.Module"):
        capture("model")
    with pytest.raises(ModelError, match="TorchScript"):
        capture(torch.jit.trace(nn.Linear(D, D), TOKENS), (TOKENS,))


def test_capture_names_the_forward_when_the_error_comes_from_torch_itself():
    class Wrong(nn.Module):
        def forward(self, x, /, *, y):
            return x

    with pytest.raises(ModelError, match=r"test_detect\.py:\d+ \(forward\)"):
        capture(Wrong(), (TOKENS,))


def test_capture_falls_back_to_export_when_symbolic_trace_fails():
    captured = capture(Net(lambda m, x: x + branch(m, x) if x.shape[0] > 1 else x).eval(), (TOKENS,))
    assert any("symbolic_trace stopped" in note for note in captured.notes)
    (residual,) = detect(captured.view).residuals
    nodes = {node.name for node in captured.module.graph.nodes}
    assert {residual.skip, residual.join, *residual.branches} <= nodes
    assert "test_detect.py" in residual.source


def test_select_gives_a_plan_per_site_when_the_config_asks_for_all():
    found = found_in(lambda m, x: block(m, block(m, x)))
    selection = select(found, LaurelConfig(variant="rw+lr+pa", rank=2, previous=2))
    assert [plan.spec.previous for plan in selection.plans] == [0, 1, 2, 2]
    assert selection.plans[3].previous == (found.residuals[2].skip, found.residuals[1].skip)
    assert not selection.skipped


def test_select_skips_with_a_reason_when_sites_or_overrides_leave_them_out():
    found = found_in(lambda m, x: block(m, block(m, x)))
    selection = select(found, LaurelConfig(rank=2, sites=("res[123]",), overrides={"res2": SiteOverride(off=True)}))
    assert [plan.residual.site for plan in selection.plans] == ["res1", "res3"]
    assert dict(selection.skipped) == {"res2": "switched off by an override", "res4": "not selected"}


@pytest.mark.parametrize("field", ["sites", "overrides"])
def test_select_lists_near_names_when_a_glob_matches_nothing(field):
    found = found_in(lambda m, x: block(m, x))
    value = ("ress1",) if field == "sites" else {"ress1": SiteOverride(off=True)}
    with pytest.raises(SelectorError, match="res1"):
        select(found, LaurelConfig(rank=2, **{field: value}))


def test_select_lists_the_nearest_misses_when_nothing_was_found():
    with pytest.raises(NoResidualError, match="gate"):
        select(found_in(REJECTS["gate"]), LaurelConfig())


def test_select_skips_projections_when_they_are_not_included():
    forward, x, _ = MATCHES["projection"]
    with pytest.raises(NoResidualError, match="projection is not included"):
        select(found_in(forward, x), LaurelConfig(include=("identity",)))


def without_gradients(m, x):
    with torch.no_grad():
        y = x + branch(m, x)
    return y + m.c(torch.tanh(y))


NESTED = {
    "cond": (
        lambda m, x: torch.cond(x.sum() > 0, lambda y: y + branch(m, y), lambda y: y + m.c(torch.tanh(y)), (x,)), 2, 2,
    ),
    "cond as a branch": (
        lambda m, x: x + torch.cond(x.sum() > 0, lambda y: branch(m, y), lambda y: m.c(torch.tanh(y)), (x,)), 1, 0,
    ),
    "no_grad": (without_gradients, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_detect_finds_joins_and_says_why_they_stay_when_they_stand_in_a_graph_inside_the_graph(name):
    forward, count, inside = NESTED[name]
    residuals = found_in(forward, export=True).residuals
    assert len(residuals) == count
    assert [bool(residual.blocked) for residual in residuals].count(True) == inside
    assert all("inside a graph" in residual.blocked for residual in residuals if residual.blocked)


def test_detect_finds_the_join_when_a_graph_module_is_a_layer_of_another():
    inner = torch.fx.symbolic_trace(Net(lambda m, x: x + branch(m, x)))
    graph = torch.fx.Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    outer = torch.fx.GraphModule({"inner": inner}, graph)
    (residual,) = detect(capture(outer, (TOKENS,)).view).residuals
    assert "inside a graph" in residual.blocked


@pytest.mark.parametrize("decompose", [False, True], ids=["exported", "decomposed"])
def test_detect_finds_the_joins_when_the_model_is_exported_for_training(decompose):
    def forward(m, x):
        x = x + m.drop(torch.nn.functional.avg_pool2d(m.bn(x), 3, 1, 1))
        return x + m.drop(m.conv2(torch.relu(m.bn(m.conv(x)))))

    program = torch.export.export(Net(forward).train(), (IMAGE,), strict=False)
    found = detect(capture(program.run_decompositions() if decompose else program).view)
    assert [residual.kind for residual in found.residuals] == ["identity", "identity"], found.rejected


def test_detect_knows_shared_weights_when_each_use_transposes_them_anew():
    program = torch.export.export(Net(REJECTS["shared-map"]).eval(), (TOKENS,), strict=False).run_decompositions()
    assert "shared-map" in {rejected.reason for rejected in detect(capture(program).view).rejected}


def _state(module):
    return str(module.graph), module.code, [dict(node.meta) for node in module.graph.nodes], module.training


@pytest.mark.parametrize("export", [False, True])
def test_inspect_leaves_the_callers_graph_alone_when_it_is_given_one(export):
    def writes_in_place(m, x):
        y = branch(m, x)
        y += x
        return torch.tanh(y)

    module = Net(writes_in_place).eval()
    traced = torch.export.export(module, (TOKENS,)).module() if export else torch.fx.symbolic_trace(module)
    before = _state(traced)
    assert len(lg.inspect(traced, TOKENS).residuals) == 1
    assert _state(traced) == before


def test_inspect_tells_the_shapes_of_these_inputs_when_it_saw_others_before():
    traced = torch.fx.symbolic_trace(Net(lambda m, x: x + branch(m, x)))
    assert [lg.inspect(traced, torch.randn(n, D)).residuals[0].shape for n in (2, 5)] == [(2, D), (5, D)]
    changed = lg.transform(traced, LaurelConfig(variant="rw"), torch.randn(2, D)).model
    assert lg.inspect(changed, torch.randn(5, D)).residuals[0].shape == (5, D)


def test_inspect_keeps_the_noted_shapes_and_says_so_when_the_inputs_do_not_run():
    traced = lg.transform(Net(lambda m, x: x + branch(m, x)), LaurelConfig(variant="rw"), torch.randn(2, D)).model
    found = lg.inspect(traced, torch.randn(2, D + 1))
    assert found.residuals[0].shape == (2, D)
    assert any("earlier tracing" in note for note in found.notes)


@pytest.mark.parametrize("export", [False, True])
def test_source_is_a_line_of_the_users_own_however_the_model_is_captured(export):
    import inspect

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            return x + torch.relu(self.a(x))

    model, x = nn.Sequential(Block(), Block()), torch.ones(2, 8)
    found = detect(capture(torch.export.export(model, (x,), strict=False) if export else model, (x,)).view)
    line = inspect.getsourcelines(Block.forward)[1] + 1
    assert [residual.source for residual in found.residuals] == [f"{__file__}:{line}"] * 2
