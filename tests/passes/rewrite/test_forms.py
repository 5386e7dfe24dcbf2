"""A transformed model in plain nodes: it computes the same, and everything takes it for what it is."""

import base64
import json
import warnings

import numpy as np
import onnx
import pytest
from deploy_models import feeds_of
from models import image_net, run_onnx, token_net
from onnx import NodeProto, helper, numpy_helper

import laurel_graph as lg
from laurel_graph import onnx_file
from laurel_graph.errors import ModelError
from laurel_graph.onnx_model.tensors import set_tensors
from laurel_graph.opset import plain
from laurel_graph.opset.schema import DOMAIN, METADATA_PLAIN, METADATA_UNDO
from laurel_graph.passes.rewrite.forms import inline, outline

VARIANTS = ("rw", "lr", "rw+lr", "rw+lr+pa")
NETS = {"tokens": token_net, "image": image_net}


def trained(model, seed=5):
    """Gives every tensor of ours other values, in place."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel."):
            old = numpy_helper.to_array(tensor)
            new = (old + 0.3 * rng.standard_normal(old.shape)).astype(old.dtype)
            if tensor.name.endswith((".alpha", ".beta")):
                new = np.abs(new) / (1 + np.abs(new)) * 2
                new = new.astype(old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return model


def domains(model):
    return {node.domain for node in model.graph.node}


@pytest.fixture
def files(tmp_path):
    """The original, a transformed file in plain form and the same one in nodes of ours, trained alike."""
    onnx.save(token_net(), tmp_path / "base.onnx")
    config = lg.LaurelConfig("rw+lr+pa", rank=2, weights="free")
    lg.transform(tmp_path / "base.onnx", config, output=tmp_path / "start.onnx")
    onnx.save(trained(onnx.load(tmp_path / "start.onnx")), tmp_path / "ours.onnx")
    inline(tmp_path / "ours.onnx", tmp_path / "plain.onnx")
    return tmp_path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("opset", [9, 13, 21])
def test_plain_form_computes_the_same_and_comes_back_when_outlined(net, variant, opset):
    model = trained(lg.transform(NETS[net](opset), lg.LaurelConfig(variant, rank=2, weights="free")).model)
    written = inline(model)
    assert domains(written) == {""} and not written.functions
    assert DOMAIN not in {entry.domain for entry in written.opset_import}
    onnx.checker.check_model(written, full_check=True)
    feeds = feeds_of(model)
    for mine, theirs in zip(run_onnx(written, feeds), run_onnx(model, feeds), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert outline(written) == model


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_plain_form_comes_back_when_the_type_is_another(dtype):
    model = lg.transform(token_net(17, dtype), lg.LaurelConfig("rw+lr+pa", rank=2)).model
    assert outline(inline(model)) == model


def test_transform_writes_the_form_that_is_asked_for_and_starts_with_the_same_bits(tmp_path):
    base = image_net()
    onnx.save(base, tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig("rw+lr+pa", rank=2), output=tmp_path / "p.onnx", portable=True)
    written = onnx.load(tmp_path / "p.onnx")
    assert domains(written) == {""}
    feeds = feeds_of(base)
    assert run_onnx(written, feeds)[0].tobytes() == run_onnx(base, feeds)[0].tobytes()
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig("rw+lr+pa", rank=2), output=tmp_path / "o.onnx")
    outline(tmp_path / "p.onnx", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()
    in_memory = lg.transform(base, lg.LaurelConfig("rw+lr+pa", rank=2), portable=True).model
    assert in_memory.graph.node == written.graph.node


def test_inspect_and_remove_know_what_a_plain_file_is(files):
    found = lg.inspect(files / "plain.onnx")
    assert [(r.site, r.kind) for r in found.residuals] == [
        (r.site, r.kind) for r in lg.inspect(files / "ours.onnx").residuals
    ]
    lg.remove(files / "plain.onnx", files / "back.onnx")
    assert (files / "back.onnx").read_bytes() == (files / "base.onnx").read_bytes()


def test_an_adapter_fits_both_forms_and_the_form_stays(files):
    lg.save_adapter(files / "plain.onnx", files / "a.safetensors")
    lg.save_adapter(files / "ours.onnx", files / "b.safetensors")
    assert (files / "a.safetensors").read_bytes() == (files / "b.safetensors").read_bytes()
    inline(files / "start.onnx", files / "start-plain.onnx")
    lg.apply_adapter(files / "start-plain.onnx", files / "b.safetensors", files / "applied.onnx")
    assert onnx.load(files / "applied.onnx") == onnx.load(files / "plain.onnx")


def test_the_importer_trains_a_plain_file_as_the_other(files):
    module, other = lg.import_onnx(files / "plain.onnx"), lg.import_onnx(files / "ours.onnx")
    names = [name for name, _ in module.named_parameters()]
    assert names == [name for name, _ in other.named_parameters()] and names
    assert [n for n, _ in lg.import_onnx(onnx.load(files / "plain.onnx")).named_parameters()] == names
    from laurel_graph.importer import write_back

    write_back(module, files / "plain.onnx", files / "written.onnx")
    written = onnx.load(files / "written.onnx")
    assert domains(written) == {""}
    assert outline(written).graph.node == onnx.load(files / "ours.onnx").graph.node


@pytest.mark.parametrize("portable", [False, True])
def test_deploy_makes_the_same_file_of_both_forms(files, portable):
    lg.deploy(files / "ours.onnx", files / "a.onnx", portable=portable)
    report = lg.deploy(files / "plain.onnx", files / "b.onnx", portable=portable)
    assert (files / "a.onnx").read_bytes() == (files / "b.onnx").read_bytes()
    assert any("in plain form" in note for note in report.notes) is not portable
    assert {item.site for item in report.verification.sites} >= {"res_y1", "res_y2", "res_y3"}
    assert METADATA_PLAIN not in {prop.key for prop in onnx.load(files / "b.onnx").metadata_props}
    in_memory = lg.deploy(onnx.load(files / "plain.onnx"), portable=portable).model
    assert in_memory.graph.node == onnx.load(files / "a.onnx").graph.node


def test_verify_compares_the_sites_of_plain_files(files):
    report = lg.verify(files / "ours.onnx", files / "plain.onnx")
    assert report and len(report.sites) == 3
    lg.deploy(files / "ours.onnx", files / "served.onnx")
    assert lg.verify(files / "plain.onnx", files / "served.onnx")
    other = onnx.load(files / "plain.onnx")
    name = next(t.name for t in other.graph.initializer if t.name.endswith(".B"))
    set_tensors(other, {name: np.ones((2, 8), np.float32)})
    onnx.save(other, files / "other.onnx")
    assert not lg.verify(files / "ours.onnx", files / "other.onnx")


def test_a_second_transformation_keeps_the_form(files):
    some = lg.LaurelConfig("rw", sites=("*y1", "*y2"))
    lg.transform(files / "base.onnx", some, output=files / "a.onnx", portable=True)
    first = lg.inspect(files / "a.onnx").residuals
    lg.transform(files / "a.onnx", lg.LaurelConfig("lr", rank=2), output=files / "b.onnx")
    assert domains(onnx.load(files / "b.onnx")) == {""}
    assert len({r.site for r in lg.inspect(files / "b.onnx").residuals if r.kind == "laurel"}) == len(first)
    lg.remove(files / "b.onnx", files / "c.onnx")
    assert (files / "c.onnx").read_bytes() == (files / "base.onnx").read_bytes()


def rows(model):
    return json.loads(next(prop.value for prop in model.metadata_props if prop.key == METADATA_PLAIN))


def with_rows(model, edit):
    prop = next(prop for prop in model.metadata_props if prop.key == METADATA_PLAIN)
    found = json.loads(prop.value)
    edit(found)
    prop.value = json.dumps(found)


def change_node(found, edit):
    node = NodeProto.FromString(base64.b64decode(found[0]["node"]))
    edit(node)
    found[0]["node"] = base64.b64encode(node.SerializeToString()).decode()


def swap_inputs(found):
    def edit(node):
        node.input[0], node.input[1] = node.input[1], node.input[0]

    change_node(found, edit)


def other_operator(found):
    node = helper.make_node("Laurel_RW", ["x", "h1", "a", "b"], ["y1"], domain=DOMAIN)
    found[0]["node"] = base64.b64encode(node.SerializeToString()).decode()


RECORDS = {
    "twice": lambda found: found.append(found[0]),
    "swapped": swap_inputs,
    "another operator": other_operator,
    "of ai.onnx": lambda found: found[0].update(
        node=base64.b64encode(helper.make_node("Add", ["x", "h1"], ["y1"]).SerializeToString()).decode()
    ),
    "two outputs": lambda found: change_node(found, lambda node: node.output.append("other")),
    "no output": lambda found: change_node(found, lambda node: node.output.__setitem__(0, "")),
    "an attribute": lambda found: change_node(
        found, lambda node: node.attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))
    ),
    "no base64": lambda found: found[0].update(node="%%"),
    "no names": lambda found: found[0].update(made=[]),
    "names of no values": lambda found: found[0].update(made=["nothing"]),
    "numbers": lambda found: found[0].update(made=[1]),
    "a name short": lambda found: found[0]["made"].pop(0),
    "a name more": lambda found: found[0]["made"].insert(0, "m2"),
    "no list": lambda found: found.__setitem__(0, 7),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_lies_is_refused_in_one_sentence(files, kind):
    model = onnx.load(files / "plain.onnx")
    with_rows(model, RECORDS[kind])
    before = model.SerializeToString()
    with pytest.raises(
        ModelError, match=r"are not the ones that were written there|'laurel.plain' of the model is dam"
    ):
        outline(model)
    assert model.SerializeToString() == before
    onnx.save(model, files / "lies.onnx")
    with pytest.warns(UserWarning, match=r"lies.onnx"):
        assert lg.inspect(files / "lies.onnx").residuals
    for read in (lg.import_onnx, lambda path: lg.deploy(path, files / "never.onnx")):
        with pytest.raises(ModelError, match=r"lies.onnx"):
            read(files / "lies.onnx")
    assert not (files / "never.onnx").exists()


def change_constant(model):
    node = next(node for node in model.graph.node if node.op_type == "Mul")
    node.op_type = "Sub"


def read_inside(model):
    inner = rows(model)[0]["made"][0]
    model.graph.output.append(helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))


def drop_a_node(model):
    """As a tool does that finds a node to be of no use: what read it reads what it read."""
    made = rows(model)[0]["made"]
    index = next(i for i, node in enumerate(model.graph.node) if node.output[0] == made[0])
    dropped = model.graph.node.pop(index)
    for node in model.graph.node:
        node.input[:] = [dropped.input[0] if name == made[0] else name for name in node.input]


def other_tensor(model):
    names = [t.name for t in model.graph.initializer if t.name.endswith(".A")]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == names[0]:
                node.input[i] = names[1]


@pytest.mark.parametrize("change", [change_constant, read_inside, drop_a_node, other_tensor])
def test_nodes_that_were_changed_are_refused(files, change):
    model = onnx.load(files / "plain.onnx")
    change(model)
    with pytest.raises(ModelError, match="another tool changed them"):
        outline(model)


def test_plain_form_survives_other_names_inside_and_another_order(files):
    model = onnx.load(files / "plain.onnx")
    inner = {name for row in rows(model) for name in row["made"][:-1]}
    for node in model.graph.node:
        node.name = "n"
    assert inner
    first = next(i for i, node in enumerate(model.graph.node) if node.output[0] in inner and not node.input)
    node = model.graph.node.pop(first)
    model.graph.node.insert(0, node)  # what needs nothing may stand in front
    back = outline(model)
    assert [n.op_type for n in back.graph.node] == [n.op_type for n in onnx.load(files / "ours.onnx").graph.node]


def test_nothing_to_inline_or_outline_is_one_sentence(files):
    with pytest.raises(ModelError, match="holds no LAuReL residual that could be inlined"):
        inline(files / "base.onnx", files / "never.onnx")
    with pytest.raises(ModelError, match="nothing to outline"):
        outline(files / "ours.onnx", files / "never.onnx")
    assert not (files / "never.onnx").exists()


def test_a_deployed_file_is_inlined_too(files):
    lg.deploy(files / "ours.onnx", files / "served.onnx")
    served = onnx.load(files / "served.onnx")
    if DOMAIN not in domains(served):
        pytest.fail("expected a fused site")
    written = inline(served)
    feeds = feeds_of(served)
    assert domains(written) <= {"", "com.microsoft"}
    assert run_onnx(written, feeds)[0].tobytes() == run_onnx(served, feeds)[0].tobytes()


def test_the_door_leaves_other_files_alone(files):
    ours = onnx.load(files / "ours.onnx")
    assert plain.with_nodes_put_back(ours) is ours
    assert METADATA_UNDO in {prop.key for prop in onnx_file.read(files / "plain.onnx").metadata_props}


def test_a_plain_file_without_its_records_is_taken_for_any_other_with_a_warning(files):
    model = onnx.load(files / "plain.onnx")
    del model.metadata_props[:]
    onnx.save(model, files / "bare.onnx")
    with pytest.warns(UserWarning, match=r"bare.onnx: it holds tensors of LAuReL \(laurel.res_y1.\w+\) and neither"):
        lg.inspect(files / "bare.onnx")
    lg.deploy(files / "ours.onnx", files / "served.onnx", portable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lg.inspect(files / "served.onnx")  # says of itself what it is
