"""Transformed files: modules at the sites, parameter names, gradients, writing back."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from importer_graphs import assert_runs_like_runtime, floats, graph_of, worst_gradient_error
from onnx import helper, numpy_helper

from laurel_graph import import_onnx
from laurel_graph.config import SiteSpec
from laurel_graph.errors import ModelError, OutputError, VerificationError
from laurel_graph.formula import initial_parameters, resolve
from laurel_graph.importer import check, write_back
from laurel_graph.opset.functions import attach
from laurel_graph.opset.schema import DOMAIN, METADATA_SITES, Operator, tensor_name
from laurel_graph.torch_residual.module import laurel_modules

SPECS = {
    "tokens": SiteSpec(site="block.0.res1", variant="rw+lr", axis=-1, width=8, ndim=3, rank=2),
    "previous": SiteSpec(site="block.0.res1", variant="rw+lr+pa", axis=-1, width=8, ndim=3, rank=2, previous=2),
    "low_rank_previous": SiteSpec(
        site="block.0.res1", variant="pa", axis=-1, width=8, ndim=3, rank=2, previous=1, previous_map="low-rank"
    ),
    "channels": SiteSpec(
        site="block.0.res1", variant="rw+lr", axis=1, width=4, ndim=4, rank=2, per_channel=True, init="xavier"
    ),
    "free": SiteSpec(site="block.0.res1", variant="rw", axis=-1, width=8, ndim=3, weights="free"),
}


def random_parameters(spec, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (value + 0.3 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in initial_parameters(spec).items()
    }


def transformed(spec, outer=False):
    """Returns y = site(x, relu(x @ w), previous ...) with random trained tensors, and sample inputs."""
    op = Operator.of(spec)
    shape = (2, 5, 8) if spec.axis == -1 else (2, 4, 3, 3)
    feeds = {name: floats(*shape, seed=i) for i, name in enumerate(("x", *op.inputs[len(op.inputs) - spec.previous :]))}
    tensors = {
        tensor_name(spec.site, k): np.asarray(v, np.float32) for k, v in resolve(spec, random_parameters(spec)).items()
    }
    names = [tensor_name(spec.site, name) if name in spec.tensor_shapes() else name for name in op.inputs]
    nodes = [helper.make_node("Tanh", ["x"], ["f"]), helper.make_node(op.name, names, ["y"], "site", domain=DOMAIN)]
    if outer:
        nodes[1].output[0] = "inner"
        tensors[tensor_name(spec.site, "one")] = np.ones(tensors[tensor_name(spec.site, "beta")].shape, np.float32)
        rest = [tensor_name(spec.site, "alpha"), tensor_name(spec.site, "one")]
        layout = f"_{op.layout}" if op.layout else ""
        nodes.append(helper.make_node("Sigmoid", ["x"], ["g"]))
        nodes.append(helper.make_node(f"Laurel_RW{layout}", ["inner", "g", *rest], ["y"], "outer", domain=DOMAIN))
    model = graph_of(nodes, feeds, {"y": "float32"}, tensors, domain=DOMAIN)
    model.metadata_props.add(key=METADATA_SITES, value=json.dumps([spec.to_dict()]))
    attach(model)
    return model, feeds


@pytest.mark.parametrize("name", SPECS)
def test_site_becomes_module_with_trained_tensors_when_file_is_transformed(name):
    spec = SPECS[name]
    model, feeds = transformed(spec)
    module = assert_runs_like_runtime(model, feeds)
    assert list(laurel_modules(module)) == [spec.site]
    assert {n for n, _ in module.named_parameters()} == {tensor_name(spec.site, n) for n in spec.parameter_shapes()}


@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
def test_site_is_refused_when_its_weights_are_a_little_beyond_what_their_bound_can_express(weights):
    spec = replace(SPECS["tokens"], weights=weights)
    model, _ = transformed(spec)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(("alpha", "beta")):
            value = {"softmax": numpy_helper.to_array(tensor) + np.float32(1e-4), "sigmoid": np.float32([2.0001])}
            tensor.CopyFrom(numpy_helper.from_array(value[weights].reshape(tuple(tensor.dims)), tensor.name))
    with pytest.raises(ModelError, match="weights='free'"):
        import_onnx(model)


def test_outer_add_shares_the_module_of_its_site_when_join_is_n_ary():
    model, feeds = transformed(SPECS["tokens"], outer=True)
    module = assert_runs_like_runtime(model, feeds)
    assert len(laurel_modules(module)) == 1
    assert sum(node.op == "call_module" for node in module.graph.nodes) == 2


def relu_behind(outer=False):
    """Returns a transformed model with a Relu behind its last node of a site, and sample inputs."""
    model, feeds = transformed(SPECS["channels"], outer)
    model.graph.node[-1].output[0] = "sum"
    model.graph.node.append(helper.make_node("Relu", ["sum"], ["y"]))
    return model, feeds


@pytest.mark.parametrize("outer", [False, True])
def test_relu_is_part_of_the_residual_when_it_alone_reads_it(outer):
    model, feeds = relu_behind(outer)
    module = assert_runs_like_runtime(model, feeds)
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    assert [call.kwargs for call in calls] == ([{}, {"outer": True, "relu": True}] if outer else [{"relu": True}])
    assert torch.relu not in {node.target for node in module.graph.nodes}
    assert worst_gradient_error(module, feeds, [name for name, _ in module.named_parameters()]) < 1e-3
    (difference,) = check(import_onnx(model), feeds, model)
    assert difference.relative <= 1e-5


@pytest.mark.parametrize("reader", ["node", "output"])
def test_relu_stays_when_somebody_else_reads_the_residual(reader):
    model, feeds = relu_behind()
    if reader == "output":
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[1].name = "sum"
    else:
        model.graph.node[-1].output[0] = "positive"
        model.graph.node.append(helper.make_node("Add", ["positive", "sum"], ["y"]))
    module = assert_runs_like_runtime(model, feeds)
    assert torch.relu in {node.target for node in module.graph.nodes}


def test_first_difference_names_the_relu_when_it_is_part_of_the_residual():
    model, feeds = relu_behind()
    module = import_onnx(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1.5
    with pytest.raises(VerificationError, match=r"\(Relu\), output 'y'"):
        check(module, feeds, model, tolerance=1e-6)


def test_function_bodies_are_expanded_when_metadata_is_gone():
    model, feeds = transformed(SPECS["tokens"])
    del model.metadata_props[:]
    module = assert_runs_like_runtime(model, feeds)
    assert {n.rsplit(".", 1)[1] for n, _ in module.named_parameters()} == {"alpha", "beta", "A", "B"}


@pytest.mark.parametrize("name", SPECS)
def test_gradients_equal_finite_differences_when_parameters_are_random(name):
    model, feeds = transformed(SPECS[name])
    module = import_onnx(model)
    names = [n for n, _ in module.named_parameters()]
    assert worst_gradient_error(module, feeds, names) < 1e-3


def test_write_back_changes_only_the_trained_tensors_when_file_has_external_data(tmp_path):
    model, feeds = transformed(SPECS["tokens"])
    model.graph.initializer.append(numpy_helper.from_array(floats(64, 64), "frozen"))
    source = tmp_path / "in.onnx"
    onnx.save_model(model, source, save_as_external_data=True, location="in.data", size_threshold=0)
    digest = hashlib.sha256((tmp_path / "in.data").read_bytes()).hexdigest()
    module = import_onnx(source)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    written = write_back(module, source, tmp_path / "out.onnx")
    before, after = (onnx.load(tmp_path / n, load_external_data=False) for n in ("in.onnx", "out.onnx"))
    changed = {a.name for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True) if a != b}
    assert changed == set(written)
    assert before.graph.node == after.graph.node
    assert hashlib.sha256((tmp_path / "in.data").read_bytes()).hexdigest() == digest
    assert_runs_like_runtime(onnx.load(tmp_path / "out.onnx"), feeds, module)


def test_write_back_refuses_when_output_is_the_source(tmp_path):
    model, _ = transformed(SPECS["tokens"])
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(OutputError):
        write_back(import_onnx(tmp_path / "in.onnx"), tmp_path / "in.onnx", tmp_path / "in.onnx")


def test_write_back_rounds_to_the_files_type_when_file_is_half_precision(tmp_path):
    model, feeds = transformed(SPECS["tokens"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in [*model.graph.input, *model.graph.output]:
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model.functions.clear() if hasattr(model.functions, "clear") else model.ClearField("functions")
    attach(model)
    onnx.save(model, tmp_path / "in.onnx")
    module = import_onnx(tmp_path / "in.onnx")
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    halves = {name: value.astype(np.float16) for name, value in feeds.items()}
    assert_runs_like_runtime(model, halves, module, "float16")
    write_back(module, tmp_path / "in.onnx", tmp_path / "out.onnx")
    stored = {t.data_type for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert stored == {onnx.TensorProto.FLOAT16}


def test_check_reports_each_output_when_module_is_faithful():
    model, feeds = transformed(SPECS["tokens"])
    (difference,) = check(import_onnx(model), feeds, model)
    assert difference.output == "y"
    assert difference.relative <= 1e-5


@pytest.mark.parametrize("external", [False, True])
def test_check_names_the_first_node_when_a_weight_is_changed(external, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "second"),
    ]
    weights = {"w1": floats(4, 4), "w2": floats(4, 4, seed=1)}
    model = graph_of(nodes, {"x": floats(2, 4)}, {"y": "float32"}, weights)
    if external:
        onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        model = tmp_path / "m.onnx"
    module = import_onnx(model)
    with torch.no_grad():
        module.w2 = module.get_buffer("w2") + 1
    with pytest.raises(VerificationError, match="'second'"):
        check(module, [floats(2, 4)], model)
