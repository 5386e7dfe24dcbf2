"""The metadata of ours is read, not trusted: damage is one sentence, and the input stays as it is."""

import base64
import json

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper, parser

import laurel_graph as lg
from laurel_graph.errors import ModelError
from laurel_graph.opset.schema import METADATA_SITES, METADATA_UNDO, read_specs
from laurel_graph.opset.undo import digests_of, old_node

MLP = """<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 8] x) => (float[N, 8] y) { h = MatMul (x, w)  r = Relu (h)  f = MatMul (r, w)  y = Add (x, f) }"""


@pytest.fixture
def base():
    model = parser.parse_model(MLP)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    return model


@pytest.fixture
def transformed(base):
    return lg.transform(base, lg.LaurelConfig(rank=2)).model


def change(model, key, edit):
    prop = next(prop for prop in model.metadata_props if prop.key == key)
    held = json.loads(prop.value)
    result = edit(held)
    prop.value = result if isinstance(result, str) else json.dumps(held if result is None else result)


def with_node(undo, node):
    undo["nodes"][0]["old"] = base64.b64encode(node.SerializeToString()).decode()


UNDO = {
    "no JSON": lambda undo: json.dumps(undo)[:-3],
    "null": lambda undo: "null",
    "a list": lambda undo: "[]",
    "deep": lambda undo: "[" * 100_000,
    "a number of 5000 digits": lambda undo: "9" * 5000,
    "no nodes": lambda undo: undo.pop("nodes") and None,
    "no IR version": lambda undo: undo.pop("ir_version") and None,
    "no domain": lambda undo: undo.pop("domain") and None,
    "no tensors": lambda undo: undo.pop("tensors") and None,
    "nodes of another kind": lambda undo: undo.update(nodes=[1]),
    "no base64": lambda undo: undo["nodes"][0].update(old="%%%"),
    "no node in it": lambda undo: undo["nodes"][0].update(old=base64.b64encode(b"\xff\xff").decode()),
    "old is a number": lambda undo: undo["nodes"][0].update(old=3),
    "new is empty": lambda undo: undo["nodes"][0].update(new=[]),
    "NaN for a version": lambda undo: undo.update(ir_version=float("nan")),
    "a vast version": lambda undo: undo.update(ir_version=2**70),
    "domain is no truth value": lambda undo: undo.update(domain="yes"),
    "tensors of the base": lambda undo: undo.update(tensors=["w"]),
    "inputs of the base": lambda undo: undo.update(inputs=["x"]),
    "metadata of another kind": lambda undo: undo.update(metadata=[["a"]]),
    "a node that reads nothing known": lambda undo: with_node(undo, helper.make_node("Add", ["x", "q"], ["y"])),
    "a node that reads itself": lambda undo: with_node(undo, helper.make_node("Add", ["x", "y"], ["y"])),
    "a node without inputs": lambda undo: with_node(undo, helper.make_node("Add", [], ["y"])),
    "a node of another value": lambda undo: with_node(undo, helper.make_node("Relu", ["x"], ["h"])),
}


@pytest.mark.parametrize("case", UNDO)
def test_remove_refuses_the_record_when_it_is_damaged(case, transformed, tmp_path):
    change(transformed, METADATA_UNDO, UNDO[case])
    before = transformed.SerializeToString()
    with pytest.raises(ModelError) as caught:
        lg.remove(transformed)
    assert "\n" not in str(caught.value)
    assert transformed.SerializeToString() == before
    (tmp_path / "t.onnx").write_bytes(before)
    with pytest.raises(ModelError):
        lg.remove(tmp_path / "t.onnx", output=tmp_path / "r.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["t.onnx"]
    assert (tmp_path / "t.onnx").read_bytes() == before


def test_deploy_refuses_the_record_when_it_is_damaged(transformed, tmp_path):
    change(transformed, METADATA_UNDO, lambda undo: json.dumps(undo)[:-3])
    onnx.save(transformed, tmp_path / "t.onnx")
    with pytest.raises(ModelError, match=r"metadata 'laurel.undo' of the model is damaged"):
        lg.deploy(tmp_path / "t.onnx", tmp_path / "d.onnx")


@pytest.mark.parametrize(
    "edit",
    [
        lambda sites: json.dumps(sites)[:-3],
        lambda sites: "null" if sites is None else "3",
        lambda sites: "[" * 100_000,
        lambda sites: sites.append(sites[0]),
        lambda sites: sites.append(3),
        lambda sites: sites[0].pop("width") and None,
        lambda sites: sites[0].update(width=float("nan")),
        lambda sites: sites[0].update(width=10**12),
        lambda sites: sites[0].update(width=[8]),
        lambda sites: sites[0].update(rank=4),
        lambda sites: sites[0].update(site=["res"]),
        lambda sites: sites[0].update(site=""),
        lambda sites: sites[0].update(axis=[1]),
        lambda sites: sites[0].update(axis=True),
        lambda sites: sites[0].update(ndim="2"),
        lambda sites: sites[0].update(dtype="float31"),
        lambda sites: sites[0].update(per_channel=1),
        lambda sites: sites[0].update(seed=-1),
        lambda sites: sites[0].update(variant={}),
        lambda sites: sites[0].update(further=1),
        lambda sites: sites[0].update(format=99),
    ],
)
def test_sites_are_refused_when_their_metadata_is_damaged_or_does_not_fit(edit, transformed, tmp_path):
    change(transformed, METADATA_SITES, edit)
    for use in (read_specs, lg.import_onnx):
        with pytest.raises(ModelError, match=r"metadata 'laurel.sites' of the model is damaged"):
            use(transformed)


def test_remove_gives_the_original_back_when_the_record_is_whole(base, transformed):
    assert lg.remove(transformed).SerializeToString() == base.SerializeToString()


def operand(undo, *names, op="Add"):
    with_node(undo, helper.make_node(op, names, undo["nodes"][0]["new"]))


LIES = {
    "another operator": lambda undo: operand(undo, "x", "f", op="Mul"),
    "another operand": lambda undo: operand(undo, "x", "x"),
    "a further operand": lambda undo: operand(undo, "x", "f", "x", op="Sum"),
    "no addition": lambda undo: operand(undo, "x", op="Identity"),
    "fewer nodes": lambda undo: undo["nodes"].clear(),
    "fewer tensors": lambda undo: undo["tensors"].pop() and None,
    "a later version": lambda undo: undo.update(ir_version=60),
}


@pytest.mark.parametrize("case", LIES)
def test_remove_refuses_the_record_when_it_is_of_another_model(case, transformed):
    add = next(node for node in transformed.graph.node if node.domain)
    names = dict(zip(("x", "f"), add.input, strict=False))

    def lie(undo):
        LIES[case](undo)
        node = old_node(undo["nodes"][0]) if undo["nodes"] else NodeProto()
        if case != "a later version" and node.input:
            node.input[:] = [names.get(name, name) for name in node.input]
            with_node(undo, node)

    change(transformed, METADATA_UNDO, lie)
    with pytest.raises(ModelError, match=r"cannot be given back|is damaged"):
        lg.remove(transformed)


def test_remove_refuses_when_a_later_edit_stands_between_branch_and_join(transformed):
    """The recorded addition would leave the edit out."""
    index, node = next((i, n) for i, n in enumerate(transformed.graph.node) if n.domain)
    transformed.graph.node.insert(index, helper.make_node("Tanh", [node.input[1]], ["edited"]))
    transformed.graph.node[index + 1].input[1] = "edited"
    with pytest.raises(ModelError, match="the original cannot be given back"):
        lg.remove(transformed)


CHANGES = {
    "weights": lambda model: model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((8, 8), "f4"), "w")),
    "inputs and outputs": lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[0], "dim_param", "M"),
    "versions": lambda model: setattr(model.opset_import[0], "version", 18),
    "notes": lambda model: model.metadata_props.add(key="author", value="somebody"),
    "nodes": lambda model: setattr(model.graph.node[0], "name", "renamed"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_remove_says_what_is_not_as_it_was_when_the_rest_was_changed(part, transformed):
    CHANGES[part](transformed)
    with pytest.warns(UserWarning, match=rf"not the original to the bit: .* \({part}\)"):
        lg.remove(transformed)


def test_remove_says_that_it_cannot_tell_when_the_record_is_of_an_older_version(transformed):
    change(transformed, METADATA_UNDO, lambda undo: undo.pop("digests") and None)
    with pytest.warns(UserWarning, match="whether the rest is what was transformed cannot be told"):
        lg.remove(transformed)


def test_remove_says_nothing_when_the_original_comes_back(base, transformed, recwarn):
    for tensor in transformed.graph.initializer:
        if tensor.name.startswith("laurel."):
            tensor.raw_data = bytes(len(tensor.raw_data))  # trained
    assert lg.remove(transformed) == base
    assert not recwarn.list


@pytest.fixture
def with_weight_file(base, tmp_path):
    """A model with weights in a file beside it, in itself (large enough to move there), and in a node."""
    base.graph.node[0].input[1] = "constant"
    value = numpy_helper.from_array(np.eye(8, dtype=np.float32), "value")
    base.graph.node.insert(0, helper.make_node("Constant", [], ["constant"], value=value))
    base.graph.initializer.append(numpy_helper.from_array(np.ones((32, 32), np.float32), "unused"))
    onnx.save_model(
        base,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    large = next(tensor for tensor in model.graph.initializer if tensor.name == "unused")
    large.CopyFrom(numpy_helper.from_array(np.ones((32, 32), np.float32), "unused"))
    onnx.save(model, tmp_path / "m.onnx")
    lg.transform(tmp_path / "m.onnx", lg.LaurelConfig(rank=2), output=tmp_path / "t.onnx")
    return tmp_path


def test_remove_says_nothing_when_weights_lie_in_files_and_are_as_they_were(with_weight_file, recwarn):
    lg.remove(with_weight_file / "t.onnx", with_weight_file / "back.onnx")
    assert not [str(one.message) for one in recwarn.list]
    assert onnx.load(with_weight_file / "back.onnx").graph == onnx.load(with_weight_file / "m.onnx").graph


@pytest.mark.parametrize(("name", "part"), [("w", "weights"), ("value", "nodes")])
def test_remove_says_so_when_a_number_in_a_weight_file_was_changed(name, part, with_weight_file):
    model = onnx.load(with_weight_file / "t.onnx", load_external_data=False)
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
    entries = {e.key: e.value for e in next(t for t in tensors if t.name == name).external_data}
    path = with_weight_file / entries["location"]
    data = bytearray(path.read_bytes())
    data[int(entries["offset"]) + 3] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"not the original to the bit: .* \({part}\)"):
        lg.remove(with_weight_file / "t.onnx", with_weight_file / "back.onnx")


def test_remove_says_that_numbers_in_files_were_not_compared_when_the_record_does_not_cover_them(with_weight_file):
    model = onnx.load(with_weight_file / "t.onnx", load_external_data=False)
    original = onnx.load(with_weight_file / "m.onnx", load_external_data=False)

    def as_older_versions_wrote_it(undo):
        del undo["files"]
        undo["digests"] = digests_of(original)

    change(model, METADATA_UNDO, as_older_versions_wrote_it)
    large = next(tensor for tensor in model.graph.initializer if tensor.name == "unused")
    large.CopyFrom(next(tensor for tensor in original.graph.initializer if tensor.name == "unused"))
    for node, old in zip(model.graph.node, original.graph.node, strict=True):
        if old.op_type == "Constant":
            node.CopyFrom(old)
    onnx.save(model, with_weight_file / "t.onnx")
    with pytest.warns(UserWarning, match="the numbers in its weight files are cannot be told"):
        lg.remove(with_weight_file / "t.onnx", with_weight_file / "back.onnx")
