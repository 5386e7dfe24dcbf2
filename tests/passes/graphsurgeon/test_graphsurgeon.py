"""A gs.Graph of a model and back: what nobody changed is the same to the byte, and records go on working."""

import warnings

import numpy as np
import onnx
import pytest
from models import run_onnx
from onnx import TensorProto, helper, numpy_helper

from laurel_graph import LaurelConfig, deploy, inspect, load_adapter, remove, save_adapter, session, transform, verify
from laurel_graph.errors import ConfigError, ModelError, OutputError, RewriteError
from laurel_graph.importer import import_onnx
from laurel_graph.opset.recover import needs_recovery, recover
from laurel_graph.opset.schema import laurel_nodes, read_specs
from laurel_graph.passes import FunctionPass, Pipeline, parse_pass
from laurel_graph.passes.graphsurgeon import is_graph, to_graph, to_model

gs = pytest.importorskip("onnx_graphsurgeon")

WIDTH = 8


def network(blocks=2, opset=17):
    lines = ["h0 = MatMul(x, first)"]
    for i in range(blocks):
        lines += [f"p{i} = MatMul(h{i}, w{i})", f"f{i} = Tanh(p{i})", f"h{i + 1} = Add(h{i}, f{i})"]
    lines.append(f"y = MatMul(h{blocks}, last)")
    rng = np.random.default_rng(0)
    names = ["first", *(f"w{i}" for i in range(blocks)), "last"]
    weights = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3 for name in names}
    nodes = []
    for line in lines:
        out, call = line.split(" = ")
        op, inputs = call.rstrip(")").split("(")
        nodes.append(helper.make_node(op, inputs.split(", "), [out], name=f"/{out}/{op}"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in "xy")
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "network", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def decorated():
    """A model with everything that graphsurgeon does not carry."""
    model = network()
    model.doc_string, model.domain, model.model_version = "a model", "org.example", 3
    model.metadata_props.add(key="author", value="somebody")
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="scale", value="1")
    graph.node[1].doc_string = "a product"
    graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layer0']")
    graph.input[0].doc_string = "features"
    graph.output[0].metadata_props.add(key="unit", value="logits")
    graph.value_info.append(helper.make_tensor_value_info("h1", TensorProto.FLOAT, ["N", WIDTH]))
    graph.value_info[0].doc_string = "the stream"
    graph.value_info.append(onnx.ValueInfoProto(name="f0"))
    graph.initializer.append(numpy_helper.from_array(np.arange(3), "unused"))
    graph.initializer[0].doc_string = "a weight"
    graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [WIDTH, WIDTH]))
    graph.quantization_annotation.add(tensor_name="h1").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w0")
    return model


def branching():
    model = network()
    then = helper.make_graph(
        [helper.make_node("Mul", ["h2", "outside"], ["a"], doc_string="inner")],
        "then",
        [],
        [onnx.ValueInfoProto(name="a")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h2"], ["b"])], "else", [], [onnx.ValueInfoProto(name="b")]
    )
    graph = model.graph
    del graph.node[-1]
    graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    graph.initializer.append(numpy_helper.from_array(np.full(WIDTH, 2, np.float32), "outside"))
    graph.node.append(helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other))
    del graph.initializer[3]
    return model


@pytest.mark.parametrize("make", [network, decorated, branching])
def test_a_model_that_nobody_changed_comes_back_to_the_byte(make):
    model = make()
    before = model.SerializeToString(deterministic=True)
    made = to_model(to_graph(model))
    assert made.SerializeToString(deterministic=True) == before == model.SerializeToString(deterministic=True)


def test_a_transformed_model_comes_back_and_remove_gives_the_original():
    model = decorated()
    before = model.SerializeToString(deterministic=True)
    changed = transform(model, LaurelConfig(variant="rw+lr+pa", rank=2)).model
    made = to_model(to_graph(changed))
    assert made == changed
    assert remove(made).SerializeToString(deterministic=True) == before


def test_what_is_changed_changes_and_keeps_its_notes_and_the_rest_stays():
    model = decorated()
    graph = to_graph(model)
    node = next(node for node in graph.nodes if node.name == "/p0/MatMul")
    doubled = gs.Variable("doubled", dtype=np.float32)
    graph.nodes.append(gs.Node("Add", "twice", inputs=[node.inputs[0], node.inputs[0]], outputs=[doubled]))
    node.inputs[0] = doubled
    made = to_model(graph)
    changed = {n.name: n for n in made.graph.node}
    assert list(changed["/p0/MatMul"].input) == ["doubled", "w0"]
    assert changed["/p0/MatMul"].doc_string == "a product"
    assert [n for n in made.graph.node if n.name not in ("/p0/MatMul", "twice")] == [
        n for n in model.graph.node if n.name != "/p0/MatMul"
    ]
    assert made.metadata_props == model.metadata_props
    assert list(made.graph.value_info)[:2] == list(model.graph.value_info)
    x = np.ones((2, WIDTH), np.float32)
    assert not np.allclose(run_onnx(made, {"x": x})[0], run_onnx(model, {"x": x})[0])


def test_weights_that_lose_their_reader_go_and_values_that_are_set_are_written():
    graph = to_graph(decorated())
    last = graph.nodes[-1]
    last.inputs[1] = gs.Constant("new", np.zeros((WIDTH, WIDTH), np.float32))
    first = next(t for t in graph.tensors().values() if t.name == "first")
    first.values = first.values * 2
    made = to_model(graph)
    names = [tensor.name for tensor in made.graph.initializer]
    assert "last" not in names and "new" in names and "unused" in names
    stored = next(t for t in made.graph.initializer if t.name == "first")
    assert np.allclose(numpy_helper.to_array(stored), 2 * numpy_helper.to_array(decorated().graph.initializer[0]))


def test_a_weight_that_a_body_alone_reads_can_be_set():
    model = branching()
    graph = to_graph(model)
    body = next(node for node in graph.nodes if node.op == "If").attrs["then_branch"]
    weight = next(t for node in body.nodes for t in node.inputs if t.name == "outside")
    weight.values = weight.values * 3
    made = to_model(graph)
    assert [t.name for t in made.graph.initializer] == [t.name for t in model.graph.initializer]
    x = np.ones((2, WIDTH), np.float32)
    assert np.allclose(run_onnx(made, {"x": x})[0], 3 * run_onnx(model, {"x": x})[0])


def test_weights_in_another_file_stay_there_when_they_are_read_and_not_changed(tmp_path):
    model = network()
    onnx.save(network(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    light = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    graph = to_graph(light, tmp_path)
    tensors = graph.tensors()
    assert np.allclose(tensors["w0"].values, numpy_helper.to_array(model.graph.initializer[1]))
    assert to_model(graph) == light
    tensors["w0"].values = tensors["w0"].values + 1
    made = to_model(graph)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    assert held["first"].data_location == TensorProto.EXTERNAL
    assert np.allclose(numpy_helper.to_array(held["w0"]), numpy_helper.to_array(model.graph.initializer[1]) + 1)


def test_a_residual_put_in_by_hand_is_one_of_ours(tmp_path):
    model = network(blocks=1)
    graph = to_graph(model)
    add = next(node for node in graph.nodes if node.op == "Add")
    out = graph.laurel(add.inputs[0], add.inputs[1], variant="rw+lr", rank=2, width=WIDTH)
    reader = graph.nodes[[n.op for n in graph.nodes].index("MatMul", 2)]
    reader.inputs[0] = out
    graph.cleanup()
    made = to_model(graph)
    assert [spec.variant for spec in read_specs(made).values()] == ["rw+lr"]
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    assert np.array_equal(run_onnx(made, {"x": x})[0], run_onnx(model, {"x": x})[0])
    onnx.save(made, tmp_path / "m.onnx")
    assert len(list(import_onnx(tmp_path / "m.onnx").parameters())) > 0
    back = remove(made)
    assert not laurel_nodes(back.graph)
    assert np.array_equal(run_onnx(back, {"x": x})[0], run_onnx(model, {"x": x})[0])


def test_a_residual_by_hand_says_what_is_missing():
    graph = to_graph(network(blocks=1))
    add = next(node for node in graph.nodes if node.op == "Add")
    with pytest.raises(ConfigError, match="width"):
        graph.laurel(*add.inputs)
    graph.laurel(*add.inputs, width=WIDTH, site="mine")
    with pytest.raises(RewriteError, match="mine"):
        graph.laurel(*add.inputs, width=WIDTH, site="mine")
    with pytest.raises(ConfigError, match="previous"):
        graph.laurel(*add.inputs, width=WIDTH, variant="pa")


@pytest.mark.parametrize("variant", ["rw", "lr", "pa", "rw+lr", "rw+lr+pa"])
def test_records_are_rebuilt_when_a_model_went_through_graphsurgeon_by_hand(variant, tmp_path):
    model = network(blocks=3)
    changed = transform(model, LaurelConfig(variant=variant, rank=2, per_channel=variant == "rw")).model
    by_hand = gs.export_onnx(gs.import_onnx(changed))
    assert needs_recovery(by_hand)
    found = recover(by_hand)
    expected = read_specs(changed)
    assert found.sites == list(expected)
    assert {s: (p.variant, p.rank, p.width, p.previous, p.weights) for s, p in read_specs(by_hand).items()} == {
        s: (p.variant, p.rank, p.width, p.previous, p.weights) for s, p in expected.items()
    }
    assert any("order" in line or "first" in line for line in found.lost)
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    back = remove(by_hand)
    assert np.array_equal(run_onnx(back, {"x": x})[0], run_onnx(model, {"x": x})[0])
    assert [node.op_type for node in back.graph.node] == [node.op_type for node in model.graph.node]


def test_a_graph_that_was_not_made_here_warns_of_what_is_lost():
    changed = transform(network(), LaurelConfig(variant="rw+lr", rank=2)).model
    with pytest.warns(UserWarning, match="records of 2 sites"):
        made = to_model(gs.import_onnx(changed))
    assert len(read_specs(made)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_model(to_graph(changed))


def test_nodes_whose_tensors_are_not_of_one_site_are_not_guessed_at():
    changed = gs.export_onnx(gs.import_onnx(transform(network(), LaurelConfig(variant="lr", rank=2)).model))
    node = laurel_nodes(changed.graph)[0]
    for tensor in changed.graph.initializer:
        if tensor.name == node.input[2]:
            tensor.name = "renamed"
    node.input[2] = "renamed"
    before = changed.SerializeToString()
    with pytest.raises(ModelError, match=r"not the weights of one site|other names"):
        recover(changed)
    assert changed.SerializeToString() == before


def test_a_graph_is_known_by_its_type():
    assert is_graph(to_graph(network()))
    assert not is_graph(network())


def test_inspect_transform_and_remove_take_and_return_graphs(tmp_path):
    model = decorated()
    found = inspect(to_graph(model))
    assert [residual.site for residual in found.residuals] == [r.site for r in inspect(model).residuals]
    result = transform(to_graph(model), "rw+lr")
    assert is_graph(result.model)
    assert any(node.domain == "ai.laurel" for node in result.model.nodes)
    back = remove(result.model)
    assert is_graph(back)
    assert to_model(back).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    written = transform(to_graph(model), "rw+lr", output=tmp_path / "m.onnx").model
    assert read_specs(onnx.load(written))


def rename_tanh(graph: "gs.Graph") -> None:
    """A user's pass, by its annotation one of a gs.Graph."""
    for node in graph.nodes:
        if node.op == "Tanh":
            node.op = "Sigmoid"


def test_a_users_pass_of_a_graph_stands_between_insert_and_fold():
    model = network()
    passes = (parse_pass("insert:variant=rw+lr,rank=2"), FunctionPass(rename_tanh), parse_pass("fold"))
    result = Pipeline(passes, check=True).run(model)
    assert [step.changed for step in result.steps if step.ran.name == "rename_tanh"] == [True]
    assert not any(node.op_type == "Tanh" for node in result.graph.graph.node)
    assert result.graph.metadata_props


def test_a_users_pass_that_returns_something_else_is_told():
    def wrong(graph: "gs.Graph"):
        return 3

    with pytest.raises(ModelError, match=r"gs\.Graph"):
        Pipeline((FunctionPass(wrong),)).run(network())


def test_deploy_and_verify_take_graphs():
    graph = transform(to_graph(network()), "rw+lr").model
    report = deploy(graph)
    assert report.verification
    assert is_graph(report.model)
    assert verify(graph, report.model)
    proto = deploy(to_model(graph), portable=True).model
    assert not any(node.domain for node in proto.graph.node)
    with pytest.raises(ModelError):
        remove(report.model)


def test_a_deployed_file_that_lost_its_marks_is_not_taken_for_a_trained_one():
    model = transform(network(), LaurelConfig(variant="lr", rank=2)).model
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".A", ".B")):
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 0.1, np.float32), tensor.name))
    deployed = deploy(model).model
    by_hand = gs.export_onnx(gs.import_onnx(deployed))
    assert not needs_recovery(by_hand)
    with pytest.raises(ModelError):
        remove(by_hand)


def test_graphsurgeon_prints_nothing_where_results_go(capsys):
    model = network()
    for node in model.graph.node:
        node.name = "same"
    to_model(to_graph(model))
    assert capsys.readouterr().out == ""


def external(folder):
    """A graph whose weights lie in a file of *folder*."""
    folder.mkdir(exist_ok=True)
    onnx.save(network(), folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    return to_graph(onnx.load(folder / "m.onnx", load_external_data=False), folder)


@pytest.mark.parametrize("copied", [False, True])
def test_weights_in_files_follow_a_graph_when_it_is_written_elsewhere(copied, tmp_path):
    graph, out = external(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    graph = graph.copy() if copied else graph
    transform(graph, LaurelConfig(rank=2), output=out / "t.onnx")
    deploy(to_graph(onnx.load(out / "t.onnx", load_external_data=False), out), out / "d.onnx")
    remove(to_graph(onnx.load(out / "t.onnx", load_external_data=False), out), out / "r.onnx")
    for name in ("t.onnx", "d.onnx", "r.onnx"):
        assert verify(tmp_path / "in/m.onnx", out / name)
    assert copied or onnx.load(out / "r.onnx") == onnx.load(tmp_path / "in/m.onnx")  # copies drop the origin
    with pytest.raises(OutputError, match="is the input"):
        transform(graph, LaurelConfig(rank=2), output=tmp_path / "in" / "m.bin")


@pytest.mark.parametrize("kind", ["proto", "graph"])
def test_weights_are_not_taken_from_whatever_lies_beside_the_output(kind, tmp_path, monkeypatch):
    external(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.bin").write_bytes(bytes(10_000))  # of another model
    monkeypatch.chdir(tmp_path / "out")
    model = onnx.load(tmp_path / "in/m.onnx", load_external_data=False)
    given = model if kind == "proto" else gs.import_onnx(model)
    with pytest.raises(ModelError, match=r"'m\.bin' of a folder that it does not know"):
        transform(given, LaurelConfig(rank=2), output="t.onnx")
    if kind == "proto":
        with pytest.raises(ModelError, match=r"'m\.bin' of a folder that it does not know"):
            import_onnx(model)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.bin"]


def test_constants_that_a_file_cannot_tell_apart_are_refused(tmp_path):
    graph = to_graph(network())
    graph.tensors()["w0"].name = "w1"
    with pytest.raises(ModelError, match="two different constants of the graph are called 'w1'"):
        inspect(graph)
    graph, other = external(tmp_path / "a"), external(tmp_path / "b")
    graph.nodes[1].inputs[1] = other.tensors()["w1"]
    with pytest.raises(ModelError, match="'w1' lie in a file of the folder"):
        to_model(graph)
    graph.nodes[1].inputs[1].values
    held = {tensor.name: tensor for tensor in to_model(graph).graph.initializer}
    assert "w0" not in held


@pytest.mark.parametrize("use", [import_onnx, session, lambda g: save_adapter(g, "a"), lambda g: load_adapter(g, "a")])
def test_functions_of_files_and_modules_say_so_when_they_are_given_a_graph(use, capsys):
    with pytest.raises(ModelError, match=r"expected .* found Graph"):
        use(to_graph(network()))
    assert capsys.readouterr().out == ""
