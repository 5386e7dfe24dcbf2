"""What a person may teach the passes: roles, handlers, rules, costs, kernels of operators of their own."""

import numpy as np
import onnxruntime
import pytest
import torch
from models import onnx_text, run_onnx
from onnx import helper
from tolerance import assert_close

import laurel_graph as lg
from laurel_graph import runtime
from laurel_graph.errors import ConfigError, KernelLibraryError
from laurel_graph.graph_view import Role
from laurel_graph.importer import registry
from laurel_graph.passes import extend
from laurel_graph.passes.deploy import costs
from laurel_graph.passes.deploy.deploy import deploy
from laurel_graph.passes.fold import context
from laurel_graph.passes.fold.fold import fold
from laurel_graph.passes.fold.rules import Homogeneous
from laurel_graph.passes.read_fx import roles as fx_roles
from laurel_graph.passes.read_onnx import roles as onnx_roles
from laurel_graph.variants import TERMS, Term

MINE = "my.domain"


@pytest.fixture(autouse=True)
def nothing_added(monkeypatch):
    """What a test adds is gone afterwards."""
    monkeypatch.setattr(onnx_roles, "_ADDED", {})
    monkeypatch.setattr(registry.ADDED, "_handlers", {})
    monkeypatch.setattr(context, "_ADDED", {})
    monkeypatch.setattr(costs, "_ADDED", [])
    monkeypatch.setattr(runtime, "_added", [])
    known = dict(fx_roles.ROLE_OF)
    yield
    fx_roles.ROLE_OF.clear()
    fx_roles.ROLE_OF.update(known)


def network(middle="m = Relu(y1)"):
    """x -> y1 = x + x W1 -> m -> y2 = m + m W2, m made by an operator of one's own."""
    text = (
        "(float[n, 8] x) => (float[n, 8] z) { a = MatMul(x, v) f = Relu(a) y1 = Add(x, f) "
        f"{middle} g = MatMul(m, w) y2 = Add(m, g) z = LayerNormalization <axis = -1> (y2, scale) }}"
    )
    return onnx_text(text, {"v": (8, 8), "w": (8, 8), "scale": np.ones(8)}, opset=17)


def with_own(model, op_type, body):
    """The same with the Relu in the middle as an operator of one's own that has a function body."""
    node = next(node for node in model.graph.node if node.output[0] == "m")
    node.op_type, node.domain = op_type, MINE
    nodes = [helper.make_node(*item[:2], [item[2]]) for item in body]
    inputs = [f"i{k}" for k in range(len(node.input))]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function(MINE, op_type, inputs, ["o"], nodes, opset))
    model.opset_import.append(helper.make_opsetid(MINE, 1))
    model.ir_version = 8
    return model


def own_relu():
    return with_own(network(), "MyRelu", [("Relu", ["i0"], "o")])


def own_linear():
    """A branch that ends in an operator of one's own, a matrix product that no function body shows."""
    text = "(float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) m = Relu(x) y = Add(x, m) }"
    model = onnx_text(text, {"w": (8, 8)}, opset=17)
    node = model.graph.node[1]
    node.op_type, node.domain = "MyLinear", MINE
    node.input.append("w")
    del model.graph.node[0]
    model.opset_import.append(helper.make_opsetid(MINE, 1))
    return model


def test_layer_of_ones_own_makes_a_residual_connection_when_its_role_is_added():
    assert lg.inspect(own_linear()).residuals == ()
    extend.add_role("MyLinear", Role.LINEAR, domain=MINE, operands=(0, 1))
    (residual,) = lg.inspect(own_linear()).residuals
    assert (residual.join, residual.width) == ("y", 8)
    assert lg.inspect(network()).residuals  # the domain of ONNX is as it was


def test_role_stands_before_the_function_body_of_a_file_when_it_is_added():
    assert len(lg.inspect(own_relu()).residuals) == 2
    extend.add_role("MyRelu", Role.META, domain=MINE)
    assert lg.inspect(own_relu()).residuals == ()  # what follows depends on no data


def own_product(x, w):
    return x @ w


torch.fx.wrap("own_product")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.eye(8))

    def forward(self, x):
        return x + own_product(x, self.w)


def test_function_of_ones_own_makes_a_residual_connection_when_its_role_is_added():
    net = torch.fx.symbolic_trace(Net())  # torch.export, the other way in, would look into the function
    assert lg.inspect(net, torch.zeros(2, 8)).residuals == ()
    extend.add_torch_role("own_product", Role.LINEAR)
    assert len(lg.inspect(net, torch.zeros(2, 8)).residuals) == 1


def test_handler_translates_an_operator_of_ones_own_when_it_is_added():
    model, x = own_relu(), np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    before = registry.default_registry()
    called = []

    def handler(node):
        called.append(node.op)
        return node.emit(torch.relu, node[0])

    extend.add_handler("MyRelu", handler, domain=MINE)
    assert_close(lg.import_onnx(model)(torch.from_numpy(x)).detach().numpy(), run_onnx(model, {"x": x})[0])
    assert called == ["MyRelu"]
    assert registry.default_registry() is before and before.find(MINE, "MyRelu", 1) is None


RW = lg.LaurelConfig(variant="rw", weights="free")


def trained(model, config=RW):
    """The transformed model with α and β away from 1."""
    model = lg.transform(model, config).model
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".alpha", ".beta", ".c")):
            value = 1.25 if tensor.name.endswith("beta") else 0.75
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, [value]))
    return model


def test_scale_is_folded_through_an_operator_of_ones_own_when_its_rule_is_added():
    def kept(model):
        return [(site.alpha, site.beta) for site in fold(model).sites].count(("folded", "folded"))

    plain, own = kept(trained(network())), kept(trained(own_relu()))
    assert plain == 2 and own < plain
    extend.add_fold_rule("MyRelu", Homogeneous(positive=True), domain=MINE)
    model, x = trained(own_relu()), np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    expected = run_onnx(model, {"x": x})[0]
    assert kept(model) == plain
    assert_close(run_onnx(model, {"x": x})[0], expected)


class Stronger(Term):
    """branch + c·branch, c = 0 at the start."""

    name = "stronger"
    tensors = {"c": ()}

    def formula(self, skip, branch, at):
        return skip, branch + at["c"] * branch

    def body(self, nodes, skip, branch, at):
        return skip, nodes.add("Add", branch, nodes.add("Mul", branch, at["c"]))


def test_scale_is_folded_through_a_variant_of_ones_own_when_its_rule_is_added(monkeypatch):
    monkeypatch.setitem(TERMS, "stronger", Stronger())
    last = lg.inspect(network()).residuals[-1].site
    config = lg.LaurelConfig(variant="rw", weights="free", overrides={last: lg.SiteOverride(variant="stronger")})

    def folded():
        model = trained(network(), config)
        x = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
        expected = run_onnx(model, x)[0]
        report = fold(model)
        assert_close(run_onnx(model, x)[0], expected)
        return report.sites

    first, second = folded()
    assert first.beta == "kept" and "no rule to fold by" in second.reason
    extend.add_fold_rule("stronger", Homogeneous(data=(0, 1)), domain="ai.laurel")
    first, second = folded()
    assert first.beta == "folded" and second.reason == ""


def test_form_is_chosen_by_ones_own_costs_when_they_are_added():
    def form():
        model = lg.transform(network(), lg.LaurelConfig(variant="lr", rank=2)).model
        return {site.form for site in deploy(model).forms}

    place = {"channels": False, "rows": 1, "width": 8, "rank": 2}
    for wanted, other in (("operator", "chained"), ("chained", "operator")):
        us = {wanted: 0.0, other: 50.0, "widened": 60.0, "absorbed": 70.0}
        extend.add_costs([{**place, "norm": norm, "branch": branch, "us": us} for norm in (0, 1) for branch in (0, 8)])
        assert form() == {wanted}
    with pytest.raises(ConfigError, match="row of costs"):
        extend.add_costs([{"rows": 1}])


def test_library_is_refused_when_it_is_none(tmp_path):
    with pytest.raises(KernelLibraryError, match="no library"):
        extend.add_kernels(tmp_path / "none.so")
    (tmp_path / "bad.so").write_bytes(b"no library")
    extend.add_kernels(tmp_path / "bad.so")
    with pytest.raises(KernelLibraryError, match="does not load"):
        lg.session_options()


def test_library_is_registered_with_sessions_when_it_is_added(monkeypatch):
    library = lg.library_path()
    if library is None:
        pytest.skip("there is no library")
    monkeypatch.setattr(runtime, "kernel_library", lambda: None)  # so that it is a library of one's own
    model = trained(network())
    del model.functions[:]
    with pytest.raises(Exception, match="Laurel_RW"):
        onnxruntime.InferenceSession(model.SerializeToString(), lg.session_options(operators=()))
    extend.add_kernels(library)
    onnxruntime.InferenceSession(model.SerializeToString(), lg.session_options(operators=()))
