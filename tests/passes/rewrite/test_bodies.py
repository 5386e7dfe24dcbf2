"""Residual connections in bodies of If, Loop and Scan, through every command."""

import numpy as np
import onnx
import pytest
from body_models import WEIGHTS, layer, loop_net, merged_decoder, merged_feeds, scan_net
from models import onnx_text, run_onnx
from onnx import helper, numpy_helper

import laurel_graph as lg
from laurel_graph.errors import ModelError, NoResidualError, VerificationError
from laurel_graph.onnx_model.bodies import bodies_of
from laurel_graph.opset.recover import recover
from laurel_graph.passes.pipeline import inspect, remove, transform
from laurel_graph.passes.rewrite.placing import place

RNG = np.random.default_rng(5)
FEEDS = {
    "merged": merged_feeds(True),
    "loop": {"x": RNG.standard_normal((2, 8)).astype(np.float32), "n": np.array(3)},
    "scan": {
        "x": RNG.standard_normal((2, 3, 8)).astype(np.float32),
        "start": RNG.standard_normal((2, 8)).astype(np.float32),
    },
}
NETS = {"merged": merged_decoder, "loop": loop_net, "scan": scan_net}


def rewritten(model, variant="rw+lr", **more):
    """Returns the transformed model, whose tensors have no values that vanish."""
    made = transform(model, lg.LaurelConfig(variant=variant), **more).model
    return drawn(made)


def drawn(model, seed=0):
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(0.7, 1.3)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel."):
            array = numpy_helper.to_array(tensor)
            role = tensor.name.rpartition(".")[2]
            value = {"alpha": alpha, "beta": 2 - alpha}.get(role, rng.standard_normal(array.shape) * 0.3)
            value = np.broadcast_to(np.asarray(value, np.float32), array.shape)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value).reshape(array.shape), tensor.name))
    return model


def inner_nodes(model):
    """Returns path of body to the nodes of ours in it."""
    return {path: [n for n in body.graph.node if n.domain == "ai.laurel"] for path, body in bodies_of(model).items()}


def saved(model, path):
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("variant", ["rw", "rw+lr", "rw+lr+pa"])
@pytest.mark.parametrize("net", NETS)
def test_transform_keeps_the_bits_and_remove_gives_them_back_when_joins_stand_in_bodies(net, variant):
    model = NETS[net]()
    if variant == "rw+lr+pa" and net == "scan":
        variant = "rw+lr"  # one site has nothing earlier
    made = transform(model, lg.LaurelConfig(variant=variant)).model
    assert sum(map(len, inner_nodes(made).values())) == {"merged": 4, "loop": 1, "scan": 1}[net]
    for one, other in zip(run_onnx(made, FEEDS[net]), run_onnx(model, FEEDS[net]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert remove(made).SerializeToString() == model.SerializeToString()


def test_transform_gives_both_bodies_one_set_of_tensors_when_they_hold_one_network():
    made = transform(merged_decoder(), lg.LaurelConfig(variant="rw+lr+pa"))
    assert [plan.spec.site for plan in made.report.plans] == ["res_a", "res_b"]
    then, other = inner_nodes(made.model).values()
    assert [list(node.input[2:6]) for node in then] == [list(node.input[2:6]) for node in other]
    assert then[1].input[-1] == other[1].input[-1] == "start"  # each its own earlier activation
    ours = [tensor.name for tensor in made.model.graph.initializer if tensor.name.startswith("laurel.")]
    assert len(ours) == 4 + 5
    assert made.report.parameters == sum(plan.spec.parameter_count() for plan in made.report.plans)


def test_transform_gives_each_body_tensors_of_its_own_when_their_weights_are_others():
    model = merged_decoder(other=layer("start", "a") + layer("a", "b", "v"))
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(s, np.float32) / 8, n)
                                   for n, s in (("v1", (8, 16)), ("v2", (16, 8))))  # fmt: skip
    found = inspect(model).residuals
    assert [(r.site, len(r.copies)) for r in found] == [("res_a", 1), ("res_b", 0), ("res_b_2", 0)]


def test_transform_pairs_in_order_when_all_layers_of_both_bodies_share_their_weights():
    layers = layer("start", "a") + layer("a", "b")
    model = merged_decoder(other=layers)
    other = next(item.g for item in model.graph.node[0].attribute if item.name == "else_branch")
    for node in other.node:
        for i, name in enumerate(node.input):
            node.input[i] = {"u1": "w1", "u2": "w2"}.get(name, name)
    found = inspect(model).residuals
    assert [(r.joins[0], r.copies[0].joins[0]) for r in found] == [
        ("merged[then_branch]/a", "merged[else_branch]/a"), ("merged[then_branch]/b", "merged[else_branch]/b"),
    ]  # fmt: skip


def test_transform_leaves_a_body_alone_when_it_never_runs():
    model = merged_decoder()
    del model.graph.input[2]
    model.graph.initializer.append(numpy_helper.from_array(np.array([True]), "use"))
    found = {residual.body: residual for residual in inspect(model).residuals}
    assert all("never runs" in copy.blocked for copy in found["merged[then_branch]/"].copies)


def test_transform_is_refused_when_a_body_that_the_sample_does_not_take_computes_something_else():
    model = merged_decoder()
    placed = place(model, "m", lg.LaurelConfig(variant="rw"), None, run=True, keep_fused=False)
    made = transform(model, lg.LaurelConfig(variant="rw")).model
    placed.check(made)
    for nodes in inner_nodes(made).values():
        broken = onnx.ModelProto.FromString(made.SerializeToString())
        node = next(n for ns in inner_nodes(broken).values() for n in ns if n.output == nodes[0].output)
        node.input[0] = node.input[1]
        with pytest.raises(VerificationError, match="differs"):
            placed.check(broken)


@pytest.mark.parametrize("place_of", ["then_branch", "else_branch"])
def test_verify_names_the_site_and_the_body_when_only_one_body_differs(tmp_path, place_of):
    trained = rewritten(merged_decoder())
    other = onnx.ModelProto.FromString(trained.SerializeToString())
    node = inner_nodes(other)[f"merged[{place_of}]/"][1]
    node.input[3] = node.input[2]  # β is α
    report = lg.verify(trained, other)
    assert not report.equal
    assert report.first_difference.output == f"merged[{place_of}]/b"
    assert report.first_difference.site == "res_b"
    assert lg.verify(trained, trained).counts == (2, 2)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_deploy_compares_every_site_when_they_stand_in_bodies(tmp_path, net, portable):
    source = saved(rewritten(NETS[net]()), tmp_path / "trained.onnx")
    report = lg.deploy(source, tmp_path / "served.onnx", portable=portable)
    served = onnx.load(tmp_path / "served.onnx")
    assert portable == (not any(inner_nodes(served).values()))
    compared = {(item.output.rpartition("/")[0], item.site) for item in report.verification.sites if item.site}
    expected = {"merged": 4, "loop": 2, "scan": 1}[net]
    assert len(compared) == expected
    for one, other in zip(run_onnx(served, FEEDS[net]), run_onnx(onnx.load(source), FEEDS[net]), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_deploy_is_refused_when_a_body_changed(tmp_path, monkeypatch):
    from laurel_graph.passes.standard.serving import Mark

    run = Mark.run

    def spoil(self, graph, facts):
        node = inner_nodes(graph)["merged[then_branch]/"][0]
        node.input[3] = node.input[2]
        return run(self, graph, facts)

    source = saved(rewritten(merged_decoder()), tmp_path / "trained.onnx")
    monkeypatch.setattr(Mark, "run", spoil)
    with pytest.raises(VerificationError, match="then_branch"):
        lg.deploy(source, tmp_path / "served.onnx")
    assert not (tmp_path / "served.onnx").exists()


def test_training_moves_both_bodies_when_the_adapter_is_theirs(tmp_path):
    import torch

    base = saved(transform(merged_decoder(), lg.LaurelConfig(variant="rw+lr")).model, tmp_path / "base.onnx")
    module = lg.import_onnx(base)
    assert len(list(lg.trainable_parameters(module))) == 6
    optimizer = torch.optim.SGD(lg.parameter_groups(module), lr=0.5)
    feeds = merged_feeds(False)
    for _ in range(3):
        module(*map(torch.from_numpy, feeds.values())).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    lg.save_adapter(module, tmp_path / "a.safetensors")
    lg.apply_adapter(base, tmp_path / "a.safetensors", tmp_path / "tuned.onnx")
    for use in (True, False):
        feeds = merged_feeds(use, seed=1)
        expected = run_onnx(onnx.load(tmp_path / "tuned.onnx"), feeds)[0]
        found = module(*map(torch.from_numpy, feeds.values())).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected - run_onnx(onnx.load(base), feeds)[0]).max() > 1e-3


def test_an_adapter_of_the_decoder_alone_fits_the_merged_one(tmp_path):
    alone = onnx_text(
        f"""(float[n, s, 8] start) => (float[n, s, 8] logits) {{
        {layer("start", "a")} {layer("a", "b", "u")} logits = MatMul(b, head) }}""",
        WEIGHTS,
    )
    trained = saved(rewritten(alone), tmp_path / "alone.onnx")
    lg.save_adapter(trained, tmp_path / "a.safetensors")
    merged = saved(transform(merged_decoder(), lg.LaurelConfig(variant="rw+lr")).model, tmp_path / "merged.onnx")
    lg.apply_adapter(merged, tmp_path / "a.safetensors", tmp_path / "tuned.onnx")
    feeds = merged_feeds(False)
    tuned = run_onnx(onnx.load(tmp_path / "tuned.onnx"), feeds)[0]
    np.testing.assert_allclose(tuned, run_onnx(onnx.load(trained), {"start": feeds["x"]})[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_staged_and_portable_forms_agree_when_joins_stand_in_bodies(net):
    model = NETS[net]()
    config = lg.LaurelConfig(variant="rw+lr")
    once = transform(model, config).model
    sites = [residual.site for residual in inspect(model).residuals]
    staged = transform(model, lg.LaurelConfig(variant="rw+lr", sites=tuple(sites[:1]))).model
    if sites[1:]:
        staged = transform(staged, config).model
    assert inner_nodes(staged) == inner_nodes(once)
    assert remove(staged).SerializeToString() == model.SerializeToString()
    plain = transform(model, config, portable=True).model
    assert not any(inner_nodes(plain).values())
    assert inner_nodes(lg.outline(plain)) == inner_nodes(once)
    assert remove(plain).SerializeToString() == model.SerializeToString()


def test_remove_is_refused_when_the_record_names_another_body():
    import json

    made = transform(merged_decoder(), lg.LaurelConfig(variant="rw")).model
    entry = next(prop for prop in made.metadata_props if prop.key == "laurel.undo")
    undo = json.loads(entry.value)
    for record in undo["nodes"]:
        record["body"] = "merged[else_branch]/"
    entry.value = json.dumps(undo)
    with pytest.raises(ModelError):
        remove(made)


def test_records_are_rebuilt_when_a_tool_drops_them_and_both_bodies_read_one_site():
    made = transform(merged_decoder(), lg.LaurelConfig(variant="rw+lr")).model
    del made.metadata_props[:]
    found = recover(made)
    assert found.sites == ["res_a", "res_b"]
    assert not any("several operands" in line for line in found.lost)
    back = remove(made)
    assert not any(inner_nodes(back).values())
    for use in (True, False):
        feeds = merged_feeds(use)
        np.testing.assert_array_equal(run_onnx(back, feeds)[0], run_onnx(merged_decoder(), feeds)[0])


def test_adds_hidden_in_bodies_come_apart_and_come_back():
    norm = "SkipSimplifiedLayerNormalization"
    inner = (
        f"{{0}}_h = MatMul(x, w1) {{0}}_r = Relu({{0}}_h) {{0}}_f = MatMul({{0}}_r, w2) "
        f'{{0}}_n, "", "", {{0}}_t = com.microsoft.{norm}(x, {{0}}_f, g) {{0}} = Add({{0}}_n, {{0}}_t)'
    )
    text = f"""(float[n, s, 8] x, bool use) => (float[n, s, 8] y) {{
        y = If (use) <
          then_branch = one () => (float[n, s, 8] p) {{ {inner.format("p")} }},
          else_branch = two () => (float[n, s, 8] q) {{ {inner.format("q")} }}
        > }}"""
    model = onnx_text(text, {"w1": (8, 16), "w2": (16, 8), "g": np.ones(8, np.float32)}, opset=17)
    made = transform(model, lg.LaurelConfig(variant="rw+lr"))
    assert [len(plan.residual.copies) for plan in made.report.plans] == [1]
    assert any("came apart" in line for line in made.report.notes)
    assert remove(made.model).SerializeToString() == model.SerializeToString()
    with pytest.raises(NoResidualError, match="is to be kept"):
        transform(model, lg.LaurelConfig(variant="rw+lr"), keep_fused=True)


def test_a_body_in_a_body_is_rewritten_as_the_outer_one_is():
    inside = f"""then_branch = deep () => (float[n, 8] d) {{ {layer("a", "d", "u")} }},
        else_branch = flat () => (float[n, 8] e) {{ e = Neg(a) }}"""
    text = f"""(float[n, 8] x, bool one, bool two) => (float[n, 8] y) {{
        y = If (one) <
          then_branch = some () => (float[n, 8] p) {{ {layer("x", "a")} p = If (two) <{inside}> }},
          else_branch = none () => (float[n, 8] q) {{ q = Identity(x) }}
        > }}"""
    model = onnx_text(text, WEIGHTS)
    made = transform(model, lg.LaurelConfig(variant="rw+lr+pa")).model
    assert [len(nodes) for nodes in inner_nodes(made).values()] == [1, 1, 0, 0]
    assert remove(made).SerializeToString() == model.SerializeToString()
    trained = drawn(made)
    report = lg.verify(trained, trained)
    assert report.counts == (2, 2)
    deep = [item.output for item in report.sites if item.site == "res_d"]
    assert deep == ["y[then_branch]/p[then_branch]/d"]


def test_names_in_bodies_stay_apart_when_one_of_them_is_that_of_a_tensor_of_ours():
    model = merged_decoder(tail="extra = Identity(logits)")
    name = "laurel.res_a.A"
    other = next(item.g for item in model.graph.node[0].attribute if item.name == "else_branch")
    other.node.insert(0, helper.make_node("Identity", ["x"], [name]))
    with pytest.raises(lg.LaurelError, match="already"):
        transform(model, lg.LaurelConfig(variant="rw+lr"))
