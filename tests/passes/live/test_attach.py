import copy
import io

import pytest
import torch
from live_models import FORMS, Base, Loop, Plain, Recurrence, Stack, branch, inputs
from torch import nn

import laurel_graph as lg


def noise(model, std=0.3):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, std, generator=generator)


def run(model, *args):
    with torch.no_grad():
        return model(*args)


def same_state(model, names, classes, trains):
    return (
        list(model.state_dict()) == names
        and [type(m) for m in model.modules()] == classes
        and [p.requires_grad for p in model.parameters()] == trains
    )


@pytest.mark.parametrize("form", FORMS)
def test_model_is_the_same_and_then_learns_when_attached(form):
    make, joins = FORMS[form]
    torch.manual_seed(0)
    model, x = make().eval(), inputs()
    frozen = copy.deepcopy(model).requires_grad_(False)
    before, names = run(frozen, x), list(model.state_dict())
    attributes = {name: dict(vars(m)) for name, m in model.named_modules()}
    classes, trains = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]

    report = lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), x)
    assert len(report.plans) == joins, report
    if form != "encoder":  # whose fused layers round otherwise
        assert torch.equal(run(model, x), before)
    assert [type(m).__name__ for m in model.modules() if not isinstance(m, lg.LaurelResidual)] == [
        kind.__name__ for kind in classes
    ]
    assert all(isinstance(m, kind) for m, kind in zip(frozen.modules(), classes, strict=True))
    new = set(model.state_dict()) - set(names)
    assert new and all("laurel" in name for name in new)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == new

    noise(model)
    moved = run(model, x)
    assert not torch.allclose(moved, before, atol=1e-3)
    model(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with lg.disabled(model):
        torch.testing.assert_close(run(model, x), before, rtol=0, atol=0 if form != "encoder" else 1e-6)
    assert torch.equal(run(model, x), moved)
    assert torch.equal(run(copy.deepcopy(model), x), moved)

    assert lg.detach(model) is model
    assert same_state(model, names, classes, trains)
    assert {name: dict(vars(m)) for name, m in model.named_modules()}.keys() == attributes.keys()
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert module._forward_hooks == {} and module._forward_pre_hooks == {}
    assert torch.equal(run(model.requires_grad_(False), x), before)


@pytest.mark.parametrize("variant", ["rw", "lr", "pa", "rw+lr", "rw+pa", "lr+pa", "rw+lr+pa"])
@pytest.mark.parametrize("more", [{}, {"per_channel": True, "previous_map": "low-rank", "weights": "free"}])
def test_live_and_traced_model_agree_when_they_hold_the_same_adapter(variant, more, tmp_path):
    torch.manual_seed(0)
    model, x = Stack(3).eval(), inputs()
    config = lg.LaurelConfig(variant=variant, rank=3, previous=2, **more)
    traced = lg.transform(model, config, x).model
    report = lg.attach(model, config, x)
    assert set(report.ways.values()) == {"rewritten"}
    noise(model)
    lg.save_adapter(model, tmp_path / "a.safetensors")
    lg.load_adapter(traced, tmp_path / "a.safetensors")
    torch.testing.assert_close(run(model, x), run(traced, x), rtol=1e-4, atol=1e-5)
    y = torch.cat([x, x], 1)
    assert run(model, y).shape == y.shape  # the live one takes other sizes


def test_earlier_activations_are_those_of_this_pass_when_blocks_are_checkpointed():
    class Checkpointed(Stack):
        use = True

        def forward(self, x):
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.use else block(x)
            return x

    torch.manual_seed(0)
    model, x = Checkpointed().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), x)
    noise(model)
    gradients = []
    for model.use in (False, True):
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)

    first, second = model(x), model(2 * x)
    second.mean().backward()
    with pytest.raises(lg.LaurelError, match="run backward after each forward"):
        first.mean().backward()


def test_pa_asks_for_the_whole_model_when_a_block_runs_alone():
    model, x = Stack().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="pa"), x)
    run(model, x)
    with pytest.raises(lg.LaurelError, match="run the whole model"):
        model.blocks[2](x)


def test_loop_says_so_when_it_runs_longer_than_in_the_example():
    model, x = Loop().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw"), x)
    with pytest.raises(lg.LaurelError, match="ran 4 times in one call, 3 times with the example"):
        model(x, times=2)


def test_recurrence_runs_as_long_as_it_likes_when_one_residual_serves_all_steps():
    model, x = Recurrence().eval(), inputs()
    report = lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), x)
    assert [reason for _, reason in report.skipped] == [
        "its code is that of res1, whose residual serves both",
        "its code is that of res1, whose residual serves both",
    ]
    noise(model)
    longer = run(model, x, 4)
    step = x
    for _ in range(4):
        step = run(model, step, 1)
    torch.testing.assert_close(longer, step)


def test_memory_is_written_when_something_else_reads_it():
    class Alias(Base):
        def forward(self, x):
            x = x * 1.0
            kept = x
            x += self.f(x.clone())
            return self.g(kept) + kept + x

    torch.manual_seed(0)
    model, x = Alias().eval().requires_grad_(False), inputs()
    before = run(model, x)
    report = lg.attach(model, lg.LaurelConfig(variant="rw"), x)
    assert report.plans
    assert torch.equal(run(model, x), before)
    noise(model)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_report_names_the_sites_that_training_passes_by_when_the_code_branches():
    class Branches(Base):
        def forward(self, x):
            if self.training:
                return x + nn.functional.dropout(self.f(x))
            return x + self.f(x)

    report = lg.attach(Branches().eval(), lg.LaurelConfig(variant="rw"), inputs())
    assert "in training mode the code takes another way and passes by res1." in report.notes


def test_nothing_without_values_stays_behind_when_a_model_keeps_what_it_computes():
    class Keeps(Base):
        def __init__(self):
            super().__init__()
            self.table, self.last = {}, None

        def forward(self, x):
            if x.shape[1] not in self.table:
                self.table[x.shape[1]] = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            self.last = x
            return x + self.f(x + self.table[x.shape[1]])

    torch.manual_seed(0)
    model, x = Keeps().eval().requires_grad_(False), inputs()
    other = copy.deepcopy(model)
    lg.attach(model, lg.LaurelConfig(variant="rw"), x)
    assert model.table == {} and model.last is None
    assert torch.equal(run(model, x), run(other, x))


def test_watched_block_says_why_when_its_code_is_not_rewritten():
    make, _ = FORMS["comprehension"]
    report = lg.attach(make().eval(), lg.LaurelConfig(variant="rw"), inputs())
    assert report.ways == {"res1": "watched: the add stands in a comprehension"}
    assert "watched: the add stands in a comprehension" in str(report)


def test_base_is_left_alone_when_attaching_fails():
    model, x = Plain().eval(), inputs()
    names, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    trains = [p.requires_grad for p in model.parameters()]
    for error, call in (
        ("matches none of the 2 sites", lambda: lg.attach(model, lg.LaurelConfig(sites=("nothing",)), x)),
        ("at most the width", lambda: lg.attach(model, lg.LaurelConfig(rank=99), x)),
        ("could not be looked at", lambda: lg.attach(model, lg.LaurelConfig(), torch.zeros(2, 3))),
        ("matches no module", lambda: lg.attach(model, lg.LaurelConfig(), x, modules_to_save=["head"])),
    ):
        with pytest.raises(lg.LaurelError, match=error):
            call()
        assert same_state(model, names, classes, trains)


def test_errors_name_the_cure_when_there_is_nothing_to_do():
    model, x = Plain().eval(), inputs()
    with pytest.raises(lg.LaurelError, match="attach first"):
        lg.detach(model)
    with pytest.raises(lg.LaurelError, match="no residual connection"):
        lg.attach(nn.Sequential(nn.Linear(12, 12)), lg.LaurelConfig(), x)
    with pytest.raises(lg.LaurelError, match="expected a live"):
        lg.attach("model.onnx")
    with pytest.raises(lg.LaurelError, match="compiled or traced already"):
        lg.attach(torch.fx.symbolic_trace(model), lg.LaurelConfig(), x)
    lg.attach(model, lg.LaurelConfig(), x)
    with pytest.raises(lg.LaurelError, match="holds LAuReL residuals already"):
        lg.attach(model, lg.LaurelConfig(), x)


def test_model_without_inputs_is_traced_symbolically_when_shapes_are_not_needed():
    model = Plain().eval()
    with pytest.raises(lg.LaurelError, match="Give them: args="):
        lg.attach(_Untraceable().eval(), lg.LaurelConfig())
    report = lg.attach(model, lg.LaurelConfig(variant="rw"))
    assert len(report.plans) == 2
    assert any("not checked" in note for note in report.notes)
    noise(model)
    assert not torch.allclose(run(model, inputs()), run(lg.detach(model), inputs()))


class _Untraceable(Base):
    def forward(self, x):
        return x + self.f(x) if x.sum() > 0 else x


def test_weights_may_be_absent_when_attaching():
    with torch.device("meta"):
        model = Stack()
    report = lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), inputs())
    assert len(report.plans) == 8
    assert {p.device.type for p in model.parameters() if p.requires_grad} == {"cpu"}


def test_types_and_devices_follow_the_base_when_it_is_half():
    model = Stack().eval().bfloat16()
    x = inputs().bfloat16()
    before = run(model.requires_grad_(False), x)
    lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), x)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(run(model, x), before)


def test_whole_model_is_pickled_when_torch_saves_it():
    torch.manual_seed(0)
    model, x = Stack().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), x)
    noise(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(run(loaded, x), run(model, x))
    assert type(loaded.blocks[0]) is type(model.blocks[0])
    lg.detach(loaded)
    assert type(loaded.blocks[0]) is Plain


@pytest.mark.parametrize("form", ["plain", "helpers", "super", "own method", "checkpointed", "encoder", "loop"])
def test_graph_is_whole_when_compiled(form):
    make, _ = FORMS[form]
    torch.manual_seed(0)
    model, x = make().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa" if form == "loop" else "rw+lr", rank=3), x)
    noise(model, 0.1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_live_model_is_exported_when_it_holds_earlier_activations():
    torch.manual_seed(0)
    model, x = Stack().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), x)
    noise(model, 0.1)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), run(model, x), rtol=1e-4, atol=1e-5)


def test_onnx_file_computes_the_live_model_when_exported(tmp_path):
    torch.manual_seed(0)
    model, x = Stack(2).eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), x)
    noise(model, 0.1)
    path = lg.export_onnx(model, x, tmp_path / "m.onnx")
    lg.deploy(path, tmp_path / "s.onnx")
    for file in (path, tmp_path / "s.onnx"):
        session = lg.session(file)
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        torch.testing.assert_close(found, run(model, x), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_autograd_when_nothing_is_quick():
    torch.manual_seed(0)
    model, x = Plain().eval().double(), inputs().double()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), x)
    noise(model)
    with torch.no_grad():
        quick = model(x)
    torch.testing.assert_close(model(x), quick, rtol=1e-12, atol=1e-12)


def test_hooks_of_a_residual_run_when_nobody_trains():
    model, x = Plain().eval(), inputs()
    lg.attach(model, lg.LaurelConfig(variant="rw"), x)
    seen = []
    model.laurel_0.register_forward_hook(lambda *_: seen.append(1))
    run(model, x)
    assert seen == [1]


def test_traced_route_finds_the_joins_of_torch_layers_when_they_have_a_fused_form():
    make, joins = FORMS["encoder"]
    model, x = make().eval(), inputs()
    assert len(lg.inspect(model, x).residuals) == joins
    assert len(lg.transform(model, lg.LaurelConfig(variant="rw"), x).report.plans) == joins


def test_branches_of_one_name_stay_apart_when_their_blocks_differ():
    torch.manual_seed(0)
    model, x = nn.Sequential(Plain(), branch(), Plain()).eval(), inputs()
    report = lg.attach(model, lg.LaurelConfig(variant="lr", rank=2, overrides={"2.res1": {"off": True}}), x)
    assert [plan.spec.site for plan in report.plans] == ["0.res1", "0.res2", "2.res2"]
    assert report.skipped == (("2.res1", "switched off by an override"),)
    assert "laurel_1" not in model[2]._modules
