import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from models import operator_model, run_onnx
from onnx import TensorProto, helper, numpy_helper
from tolerance import assert_close

import laurel_graph as lg
from laurel_graph.config import VARIANTS, SiteSpec
from laurel_graph.errors import ModelError
from laurel_graph.formula import initial_parameters, residual, resolve
from laurel_graph.opset.functions import attach, detach, function
from laurel_graph.opset.schema import DOMAIN, Operator

OPSETS = (9, 11, 12, 13, 15, 17, 18, 21, 23)
SHAPES = {"": "{rows},{d}", "1d": "{rows},{d},3", "2d": "{rows},{d},3,2", "3d": "{rows},{d},2,1,3"}


def tensors_of(op, d, r, rng, per_channel=False):
    vector = (d,) if per_channel else ()
    k = op.previous
    shapes = {
        "alpha": vector,
        "beta": vector,
        "A": (d, r),
        "B": (r, d),
        "gamma": (k,),
        "previous_A": (k, d, r),
        "previous_B": (k, r, d),
        "bias": (d,),
        "scale": (d,),
        "offset": (d,),
    }
    scale = {"A": d**-0.5, "B": r**-0.5, "previous_A": d**-0.5, "previous_B": r**-0.5}
    return {n: rng.standard_normal(s) * scale.get(n, 1) for n, s in shapes.items() if n in op.inputs}


def shape_of(op, rows, d):
    return tuple(int(part) for part in SHAPES[op.layout].format(rows=rows, d=d).split(","))


def activations_of(op, shape, rng, dtype="float32"):
    names = [name for name in op.inputs if name in ("x", "f") or (name.startswith("previous_") and name[-1].isdigit())]
    kind = np.float32 if dtype == "bfloat16" else dtype
    values = {name: rng.standard_normal(shape).astype(kind) for name in names}
    return {name: round_to(value, dtype) for name, value in values.items()}


def round_to(value, dtype):
    """Rounds float32 values to what bfloat16 can hold."""
    if dtype != "bfloat16":
        return np.asarray(value, dtype)
    bits = np.asarray(value, np.float32).view(np.uint32)
    return (bits + 0x7FFF + ((bits >> 16) & 1) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def expected_of(op, values, tensors, epsilon=1e-5):
    values = {n: np.asarray(v, np.float64) for n, v in values.items()}
    tensors = {n: np.asarray(v, np.float64) for n, v in tensors.items()}
    f = values["f"] + tensors["bias"] if op.bias else values["f"]
    previous = [values[f"previous_{j + 1}"] for j in range(op.previous)]
    total = residual(values["x"], f, tensors, previous, op.axis)
    if op.epilogue == "Relu":
        return [np.maximum(total, 0)]
    if op.epilogue == "LayerNorm":
        centred = total - total.mean(-1, keepdims=True)
        return [
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * tensors["scale"] + tensors["offset"],
            total,
        ]
    if op.epilogue == "RMSNorm":
        return [total / np.sqrt((total**2).mean(-1, keepdims=True) + epsilon) * tensors["scale"], total]
    return [total]


def all_operators():
    """Every operator, with k of PA in 1 and 3 (and 8 in one layout)."""
    for rw, lr, (k, low), bias, layout in itertools.product(
        (0, 1), (0, 1), ((0, 0), (1, 0), (3, 0), (1, 1), (3, 1), (8, 1)), (0, 1), ("", "1d", "2d", "3d")
    ):
        if (rw or lr or k) and not (bias and layout):
            for epilogue in ("", "Relu") if layout else ("", "LayerNorm", "RMSNorm"):
                yield Operator(bool(rw), bool(lr), k, bool(low), bool(bias), layout, epilogue)


def check(op, rows=2, d=8, r=3, opset=17, dtype="float32", per_channel=False, optimize=False, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {n: round_to(v, dtype) for n, v in tensors_of(op, d, r, rng, per_channel).items()}
    shape = shape_of(op, rows, d)
    values = activations_of(op, shape, rng, dtype)
    attributes = {"epsilon": 2**-10} if "sum" in op.outputs else None
    model = operator_model(op, tensors, opset, dtype, len(shape), attributes)
    actual = run_onnx(model, values, optimize)
    for one, other in zip(actual, expected_of(op, values, tensors, 2**-10), strict=True):
        assert_close(one, other, dtype)


OPERATORS = {op.name: op for op in all_operators()}


def test_function_matches_formula_when_operator_is_any_of_the_set():
    for i, op in enumerate(OPERATORS.values()):
        check(op, opset=OPSETS[i % len(OPSETS)], per_channel=bool(i // 2 % 2), optimize=bool(i // 3 % 2), seed=i)


def spec_of(variant, layout, dtype="float32", previous_map="identity", per_channel=False, d=8, r=3):
    return SiteSpec(
        site="a",
        variant=variant,
        axis=1 if layout else -1,
        width=d,
        ndim=int(layout[0]) + 2 if layout else 3,
        dtype=dtype,
        rank=r if "lr" in variant or previous_map == "low-rank" else 0,
        per_channel=per_channel,
        previous=2 if "pa" in variant else 0,
        previous_map=previous_map,
    )


# Any pair of (rank, width, rows) below, and every single value of the full grid, appears.
@pytest.mark.parametrize(
    ("rank", "width", "rows"),
    [(1, 8, 0), (4, 8, 1), (16, 64, 7), (33, 96, 64), (64, 768, 7), (16, 768, 0), (33, 1000, 1), (4, 96, 1000)],
)
@pytest.mark.parametrize("layout", ["", "2d"])
def test_function_matches_formula_when_sizes_vary(rank, width, rows, layout):
    for i, variant in enumerate(VARIANTS):
        op = Operator.of(spec_of(variant, layout))
        check(op, rows, width, rank, optimize=bool(i % 2), per_channel=bool(i % 3), seed=i)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_function_matches_formula_when_dtype_is_not_float32(dtype, opset):
    if dtype == "bfloat16" and opset < 13:
        pytest.skip("ONNX has no bfloat16 arithmetic before opset 13")
    rng = np.random.default_rng(0)
    for op in rng.choice(list(OPERATORS.values()), 8):
        check(op, d=16, r=4, opset=opset, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["", "1d", "2d", "3d"])
def test_function_gives_the_bits_of_the_sum_when_parameters_are_at_the_start(dtype, layout):
    rng = np.random.default_rng(1)
    for variant, previous_map, per_channel in itertools.product(VARIANTS, ("identity", "low-rank"), (False, True)):
        spec = spec_of(variant, layout, dtype, previous_map, per_channel)
        op = Operator.of(spec)
        values = activations_of(op, shape_of(op, 3, 8), rng, dtype)
        tensors = {n: round_to(v, dtype) for n, v in resolve(spec, initial_parameters(spec)).items()}
        opset = 9 if dtype != "bfloat16" else 13
        model = operator_model(op, tensors, opset, dtype, values["x"].ndim)
        (actual,) = run_onnx(model, values)
        np.testing.assert_array_equal(actual, round_to(values["x"] + values["f"], dtype), op.name)


def test_function_takes_rows_of_any_rank_when_features_are_last():
    op, rng = Operator(rw=True, lr=True), np.random.default_rng(2)
    tensors = tensors_of(op, 8, 2, rng)
    for shape in [(8,), (3, 8), (2, 3, 8), (2, 0, 8), (2, 1, 3, 8)]:
        values = activations_of(op, shape, rng)
        (actual,) = run_onnx(operator_model(op, tensors, rank=len(shape)), values)
        assert_close(actual, expected_of(op, values, tensors)[0])


def test_function_keeps_static_and_symbolic_dims_when_shapes_are_inferred():
    rng = np.random.default_rng(3)
    for layout, dims in (("", ["batch", "seq", 8]), ("2d", ["batch", 8, 3, 2])):
        op = Operator(rw=True, lr=True, layout=layout)
        model = operator_model(op, tensors_of(op, 8, 2, rng), dims=dims)
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
        assert [d.dim_param or d.dim_value for d in inferred.type.tensor_type.shape.dim] == dims


def test_function_is_refused_when_opset_is_too_old():
    with pytest.raises(ModelError, match="opset 6 is too old"):
        function(Operator(rw=True), 6)


def two_operators():
    rng = np.random.default_rng(4)
    model = operator_model(Operator(rw=True), tensors_of(Operator(rw=True), 8, 2, rng))
    node = helper.make_node("Laurel_RW_LR", ["y", "x", "alpha", "beta", "A", "B"], ["z"], domain=DOMAIN)
    model.graph.node.append(node)
    model.graph.output[0].name = "z"
    return model


def test_attach_adds_exactly_the_functions_that_nodes_use_when_called_again():
    model = two_operators()
    attach(model)
    assert [f.name for f in model.functions] == ["Laurel_RW", "Laurel_RW_LR"]
    first = model.SerializeToString(deterministic=True)
    attach(model)
    assert model.SerializeToString(deterministic=True) == first
    del model.graph.node[1]
    attach(model)
    assert [f.name for f in model.functions] == ["Laurel_RW"]


def test_attach_sees_nodes_in_subgraphs_and_leaves_other_functions_alone():
    inner = helper.make_graph([helper.make_node("Laurel_LR", ["x", "x", "A", "B"], ["t"], domain=DOMAIN)], "t", [], [])
    node = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([node], "g", [], []), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 4
    other = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    model.functions.append(other)
    attach(model)
    assert [f.name for f in model.functions] == ["F", "Laurel_LR"]
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13), (DOMAIN, 1)]
    del model.graph.node[:]
    detach(model)
    assert [f.name for f in model.functions] == ["F"] and len(model.opset_import) == 1


def test_attach_is_refused_when_a_node_is_no_operator_of_the_set():
    model = two_operators()
    model.graph.node[0].op_type = "Laurel_RX"
    with pytest.raises(ModelError, match="no operator 'Laurel_RX'"):
        attach(model)


@pytest.mark.parametrize("opset", [13, 17])
def test_attach_gives_one_body_for_all_when_dtypes_are_mixed(opset):
    op, rng = Operator(rw=True, lr=True), np.random.default_rng(5)
    nodes, tensors, inputs, outputs, feeds, expected = [], [], [], [], {}, []
    for dtype, number in (("float32", TensorProto.FLOAT), ("float16", TensorProto.FLOAT16)):
        own = tensors_of(op, 8, 2, rng)
        values = activations_of(op, (3, 8), rng, dtype)
        nodes.append(helper.make_node(op.name, [f"{dtype}.{n}" for n in op.inputs], [dtype], domain=DOMAIN))
        tensors += [onnx.numpy_helper.from_array(v.astype(dtype), f"{dtype}.{n}") for n, v in own.items()]
        inputs += [helper.make_tensor_value_info(f"{dtype}.{n}", number, ["n", 8]) for n in values]
        outputs.append(helper.make_tensor_value_info(dtype, number, ["n", 8]))
        feeds.update({f"{dtype}.{n}": v for n, v in values.items()})
        expected.append(expected_of(op, values, own)[0])
    graph = helper.make_graph(nodes, "mixed", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    attach(model)
    for actual, wanted, dtype in zip(run_onnx(model, feeds), expected, ("float32", "float16"), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, dtype)


def test_apply_puts_bodies_back_when_a_tool_dropped_them(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,8] x) => (float[N,8] y) '
        "{ h = MatMul(x, W)\n r = Relu(h)\n y = Add(x, r) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(8, dtype=np.float32), "W"))
    onnx.save(model, tmp_path / "m.onnx")
    lg.transform(tmp_path / "m.onnx", lg.LaurelConfig(variant="rw"), output=tmp_path / "t.onnx")
    lg.save_adapter(tmp_path / "t.onnx", tmp_path / "a.safetensors")
    converted = onnx.version_converter.convert_version(onnx.load(tmp_path / "t.onnx"), 18)
    assert not converted.functions
    onnx.save(converted, tmp_path / "c.onnx")
    lg.apply_adapter(tmp_path / "c.onnx", tmp_path / "a.safetensors", output=tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    x = np.arange(-8, 8, dtype=np.float32).reshape(2, 8)
    assert_close(session.run(None, {"x": x})[0], x + np.maximum(x, 0))
