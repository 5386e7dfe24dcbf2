"""No name of a file runs, breaks or hides anything when the file is imported."""

import copy
import io
import itertools
import pickle
import re

import numpy as np
import onnx
import pytest
import torch
from hostile import NAMES, PAYLOADS, RUN, executed
from hypothesis import given, settings
from hypothesis import strategies as st
from models import run_onnx
from onnx import TensorProto, helper, numpy_helper
from tolerance import assert_close

from laurel_graph import LaurelConfig, LaurelError, export_onnx, import_onnx, trainable_parameters, transform
from laurel_graph.importer import META
from laurel_graph.importer.writing import patch
from laurel_graph.onnx_model.tensors import tensor_array

FLOAT, WIDTH = TensorProto.FLOAT, 4
RNG = np.random.default_rng(0)


def info(name, shape=("N", WIDTH), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def hostile_model(names, opset=17):
    """A model with a name of *names* (an iterator of distinct ones) wherever a name can stand."""
    take = lambda: next(names)  # noqa: E731
    x, cond, w, b, sparse, y, z = (take() for _ in range(7))
    f, s, a, c, called, t, e, inner_w, m = (take() for _ in range(9))
    domain, function, p, q, attribute, local = (take() for _ in range(6))
    body = helper.make_function(
        domain,
        function,
        [p, q],
        [local],
        [
            helper.make_node("Gemm", [p, q], [local], name=take()),
        ],
        [helper.make_opsetid("", opset)],
        [attribute],
    )
    body.node[0].attribute.append(
        onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name=attribute)
    )
    body.doc_string = take()
    then = helper.make_graph(
        [helper.make_node("MatMul", [called, inner_w], [t], name=take())],
        take(),
        [],
        [info(t)],
        [tensor(inner_w, WIDTH, WIDTH)],
    )
    other = helper.make_graph([helper.make_node("Neg", [called], [e], name=take())], take(), [], [info(e)])
    nodes = [
        helper.make_node("MatMul", [x, w], [f], name=take(), doc_string=take()),
        helper.make_node("Add", [f, b], [s], name=take()),
        helper.make_node("Add", [x, s], [a], name=take()),
        helper.make_node("Mul", [a, sparse], [c], name=take()),
        helper.make_node(function, [c, w], [called], name=take(), domain=domain),
        helper.make_node("If", [cond], [m], name=take(), then_branch=then, else_branch=other),
        helper.make_node("Relu", [m], [y], name=take()),
        helper.make_node("Identity", [a], [z], name=take()),
    ]
    nodes[4].attribute.append(helper.make_attribute(attribute, 0.5))
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), sparse)
    indices = numpy_helper.from_array(np.array([0, 2], np.int64), take())
    batch = take()
    graph = helper.make_graph(
        nodes,
        take(),
        [info(x, (batch, WIDTH)), info(cond, (), TensorProto.BOOL)],
        [info(y, (batch, WIDTH)), info(z, (batch, WIDTH))],
        [tensor(w, WIDTH, WIDTH), tensor(b, WIDTH)],
        doc_string=take(),
        sparse_initializer=[helper.make_sparse_tensor(values, indices, [WIDTH])],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    model = helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=8,
        functions=[body],
        doc_string=take(),
        producer_name=take(),
        domain=take(),
    )
    helper.set_model_props(model, {take(): take()})
    return model, {x: RNG.standard_normal((3, WIDTH)).astype(np.float32), cond: np.array(True)}, (w, b, inner_w)


def expected_of(model, feeds):
    """What the model computes: by ONNX Runtime, or by ONNX's reference where the runtime refuses the names."""
    try:
        return run_onnx(model, feeds)
    except Exception:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, feeds)


DISTINCT = [name for name in NAMES if not name.startswith("laurel")]


@pytest.mark.parametrize("start", range(0, len(DISTINCT), 7))
def test_module_computes_what_the_file_does_when_hostile_names_stand_everywhere(start):
    model, feeds, weights = hostile_model(itertools.cycle([*DISTINCT[start:], *DISTINCT[:start]]))
    module = import_onnx(model, trainable=[re.sub(r"([*?[])", r"[\1]", name) for name in weights])
    expected = expected_of(model, feeds)
    for one in (module, copy.deepcopy(module)):
        actual = one(*map(torch.from_numpy, feeds.values()))
        for found, wanted in zip(actual, expected, strict=True):
            assert_close(found.detach().numpy(), wanted)
    assert set(trainable_parameters(module)) == set(weights)
    assert {module.meta[META].tensors[path] for path, _ in module.named_parameters()} == set(weights)
    for node in module.graph.nodes:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", node.name), node.name
        if isinstance(node.target, str):
            assert re.fullmatch(r"[A-Za-z0-9_.]+", node.target), node.target
    assert not any(payload in module.code for payload in PAYLOADS) and not executed()


@pytest.mark.parametrize("start", range(0, len(DISTINCT), 23))
def test_trained_tensors_come_back_under_their_names_when_names_are_hostile(start):
    model, _, weights = hostile_model(itertools.cycle([*DISTINCT[start:], *DISTINCT[:start]]))
    module = import_onnx(model, trainable=[re.sub(r"([*?[])", r"[\1]", name) for name in weights])
    wanted = {}
    for name, parameter in trainable_parameters(module).items():
        torch.nn.init.normal_(parameter)
        wanted[name] = parameter.detach().numpy()
    assert set(patch(module, model)) == set(weights)
    for name, value in wanted.items():
        np.testing.assert_array_equal(tensor_array(model, name), value)
    assert not executed()


def linear_of(names, width=WIDTH):
    """x + x W with the four names given: input, weight, product, sum."""
    x, w, f, y = names
    nodes = [helper.make_node("MatMul", [x, w], [f], name=f), helper.make_node("Add", [x, f], [y], name=y)]
    graph = helper.make_graph(nodes, "g", [info(x)], [info(y)], [tensor(w, width, width)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20), min_size=4, max_size=4, unique=True
    )
)
@settings(max_examples=40, deadline=None)
def test_module_computes_what_the_file_does_when_names_are_any_text(names):
    model = linear_of(names)
    x = RNG.standard_normal((2, WIDTH)).astype(np.float32)
    assert_close(import_onnx(model)(torch.from_numpy(x)).numpy(), x + x @ tensor_array(model, names[1]))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:24]))
def test_one_name_is_no_danger_when_it_is_input_weight_or_value(name):
    for place in range(4):
        names = [f"v{i}" for i in range(4)]
        names[place] = name
        model = linear_of(names)
        module = import_onnx(model)
        x = RNG.standard_normal((2, WIDTH)).astype(np.float32)
        for one in (module, pickle.loads(pickle.dumps(module))):
            assert_close(one(torch.from_numpy(x)).detach().numpy(), x + x @ tensor_array(model, names[1]))
        assert module.meta[META].inputs == (names[0],) and not executed()


def test_integers_stay_frozen_when_their_names_are_selected():
    graph = helper.make_graph(
        [helper.make_node("Gather", ["laurel.w", "laurel.i"], ["y"])],
        "g",
        [],
        [info("y", None)],
        [tensor("laurel.w", 3, 2), numpy_helper.from_array(np.array([2, 0]), "laurel.i")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert set(trainable_parameters(import_onnx(model, trainable="*"))) == {"laurel.w"}
    assert not trainable_parameters(import_onnx(model))  # it is called like a tensor of ours, and belongs to no site


def test_inputs_are_given_by_keyword_when_their_names_are_identifiers_or_meet_in_one():
    x = {name: torch.full((1,), float(i)) for i, name in enumerate(("input", "a_b", "a_b_1", "_class", "self_1"))}
    names = ["input", "a/b", "a.b", "class", "self"]
    graph = helper.make_graph(
        [helper.make_node("Concat", names, ["y"], axis=0)], "g", [info(n, ("N",)) for n in names], [info("y", ("N",))]
    )
    module = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert module(**x).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("name", [f'"""+{RUN}+"""', *PAYLOADS], ids=lambda name: ascii(name[:24]))
def test_no_name_runs_when_torch_writes_the_origin_of_nodes_into_its_code(name, monkeypatch):
    monkeypatch.setenv("FX_GRAPH_SHOW_META", "1")
    module = import_onnx(linear_of(["x", "w", f"{name}f", name]))
    module(torch.zeros(1, WIDTH))
    assert "onnx_value" in module.code and not executed()


@pytest.mark.parametrize("op", ["Softmax", "Concat", "Cast", "Transpose", "Gemm", "Resize", "Einsum"])
@pytest.mark.parametrize("kind", ["text", "graph", "tensor", "type", "floats"])
def test_attribute_of_a_wrong_type_is_refused_or_harmless_when_an_operator_reads_it(op, kind):
    value = {
        "text": PAYLOADS[0],
        "graph": helper.make_graph([], PAYLOADS[1], [], []),
        "tensor": tensor(PAYLOADS[2], 2),
        "type": helper.make_tensor_type_proto(FLOAT, [PAYLOADS[0]]),
        "floats": [float("nan"), float("inf")],
    }[kind]
    names = {"Softmax": "axis", "Concat": "axis", "Cast": "to", "Transpose": "perm", "Gemm": "alpha", "Resize": "mode"}
    node = helper.make_node(op, ["x", "x"][: 1 + (op in ("Concat", "Gemm", "Einsum"))], ["y"])
    node.attribute.append(helper.make_attribute(names.get(op, "equation"), value))
    graph = helper.make_graph([node], "g", [info("x")], [info("y", None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        module = import_onnx(model)
    except LaurelError as error:
        assert str(error)
    else:
        try:
            module(torch.zeros(WIDTH, WIDTH))
        except SyntaxError:
            pytest.fail("generated code does not compile")
        except Exception as error:
            assert not isinstance(error, NameError), error  # whatever torch says about a wrong argument
    assert not executed()


@pytest.mark.parametrize("start", range(0, len(DISTINCT) - 12, 11))
def test_loops_compute_what_the_file_does_when_their_bodies_have_hostile_names(start):
    x, count, w, step, going, state, on, following, row, out, rows, scanned = DISTINCT[start : start + 12]
    nodes = [
        helper.make_node("MatMul", [state, w], [following], name=row),
        helper.make_node("Identity", [going], [on]),
        helper.make_node("Add", [following, x], [row]),
    ]
    boolean, scalar = TensorProto.BOOL, (TensorProto.INT64, ())
    body = helper.make_graph(
        nodes,
        out,
        [helper.make_tensor_value_info(step, *scalar), info(going, (), boolean), info(state)],
        [info(on, (), boolean), info(following), info(row)],
    )
    scan = helper.make_graph(
        [helper.make_node("Add", [following, step], [row]), helper.make_node("Identity", [row], [state])],
        out,
        [info(following), info(step)],
        [info(row), info(state)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", [count, "", x], [out, rows], body=body),
            helper.make_node("Scan", [out, rows], ["last", scanned], body=scan, num_scan_inputs=1),
        ],
        "g",
        [info(x), helper.make_tensor_value_info(count, *scalar)],
        [info(out), info("last"), info(scanned, None)],
        [tensor(w, WIDTH, WIDTH)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {x: RNG.standard_normal((2, WIDTH)).astype(np.float32), count: np.array(3)}
    actual = import_onnx(model)(*map(torch.from_numpy, feeds.values()))
    for found, wanted in zip(actual, expected_of(model, feeds), strict=True):
        assert_close(found.numpy(), wanted)
    assert not executed()


@pytest.mark.parametrize("op, attribute", [("Resize", "mode"), ("Einsum", "equation"), ("Pad", "mode")])
def test_text_that_is_no_unicode_is_refused_in_words_when_an_operator_reads_it(op, attribute):
    node = helper.make_node(op, ["x", "", "s"] if op == "Resize" else ["x", "s"] if op == "Pad" else ["x"], ["y"])
    node.attribute.append(helper.make_attribute(attribute, b"\xff\x1b[31m"))
    graph = helper.make_graph([node], "g", [info("x"), info("s", (2,))], [info("y", None)])
    with pytest.raises(LaurelError) as caught:
        import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))


@pytest.mark.parametrize("name", PAYLOADS, ids=lambda name: repr(name[:24]))
def test_unknown_operator_is_refused_in_words_when_its_names_are_payloads(name):
    node = helper.make_node(name, ["x"], ["y"], name=name, domain=name)
    graph = helper.make_graph([node], "g", [info("x")], [info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(name, 1)])
    with pytest.raises(LaurelError, match="no differentiable counterpart"):
        import_onnx(model)
    assert not executed()


def test_weights_have_their_names_again_when_an_imported_module_is_exported(tmp_path):
    names = DISTINCT[:4]
    model = linear_of(names, 16)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16
    example = (torch.randn(2, 16),)
    result = transform(import_onnx(model), LaurelConfig(variant="rw+lr", rank=2), example).model
    export_onnx(result, example, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert names[1] in {t.name for t in again.graph.initializer}
    found = import_onnx(tmp_path / "again.onnx")(*example)
    assert_close(found.detach().numpy(), result(*example).detach().numpy())
    assert not executed()


def test_state_of_a_module_loads_into_another_when_names_are_hostile():
    model, feeds, _ = hostile_model(iter(itertools.cycle(DISTINCT)))
    one, other = import_onnx(model), import_onnx(model)
    saved = io.BytesIO()
    torch.save(one.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    args = [torch.from_numpy(value) for value in feeds.values()]
    assert all(torch.equal(a, b) for a, b in zip(one(*args), other(*args), strict=True))
