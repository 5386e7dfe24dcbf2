"""What weights and schemas say of values at which ONNX's shape inference stops."""

import onnx
import pytest
from models import onnx_text
from onnx import TensorProto, helper

from laurel_graph.onnx_model.shape_rules import merged
from laurel_graph.onnx_model.shapes import tensor_types

UNKNOWN = "(float[n] i, int64[k] s) => (float[] y)"


def types_of(text, weights, *, custom=(), dtype="float32", opset=17):
    """Types of a model whose node outputs *custom* are made by an operator that nobody knows."""
    model = onnx_text(text, weights, opset, dtype=dtype)
    for node in model.graph.node:
        if node.output[0] in custom:
            node.op_type, node.domain = "Unheard", "some.one"
    model.opset_import.append(helper.make_opsetid("some.one", 1))
    return tensor_types(model)[0]


@pytest.mark.parametrize("kernel", [(8, 4, 3), (8, 4, 3, 3), (8, 4, 3, 3, 3)])
def test_a_kernel_tells_the_rank_of_both_sides_when_the_input_is_of_unknown_rank(kernel):
    types = types_of(f"{UNKNOWN} {{ r = Reshape(i, s) c = Conv<group = 2>(r, w) y = Relu(c) }}", {"w": kernel})
    assert len(types["r"][0]) == len(types["c"][0]) == len(types["y"][0]) == len(kernel)
    assert (types["r"][0][1], types["c"][0][1], types["y"][0][1]) == (8, 8, 8)


def test_a_kernel_tells_the_rank_when_it_is_of_integers():
    model = onnx_text(f"{UNKNOWN} {{ r = Reshape(i, s) q, a, z = DynamicQuantizeLinear(r) c = ConvInteger(q, w, z) "
                      "y = Cast<to = 1>(c) }", {}, 17)  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.UINT8, [6, 5, 3], bytes(90), raw=True))
    types = tensor_types(model)[0]
    assert types["y"] == ((None, 6, None), "float32")
    assert types["r"][0][1] == 5


def test_a_matrix_tells_the_width_that_a_computed_slice_leaves_open():
    text = """(float[n, 32] i, int64[1] a, int64[1] b) => (float[] y) {
        x = Slice(i, a, b, axes) f = Gemm<transB = 1>(x, w) y = Relu(f) }"""
    model = onnx_text(text, {"w": (24, 16)}, 17)
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    types = tensor_types(model)[0]
    assert types["x"][0] == (None, 16)
    assert types["y"][0] == (None, 24)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_weight_tells_the_type_behind_an_operator_that_nobody_knows(dtype):
    kind = {"float64": "double"}.get(dtype, dtype)
    text = f"({kind}[n, s, 8] i) => ({kind}[] y) {{ u = Relu(i) m = MatMul(u, w) y = Add(u, m) }}"
    types = types_of(text, {"w": (8, 8)}, custom=["u"], dtype=dtype)
    assert types["u"][1] == types["m"][1] == types["y"][1] == dtype


def test_packed_weights_tell_shape_and_type():
    tensors = [
        helper.make_tensor("q", TensorProto.UINT8, [24, 1, 16], bytes(24 * 16), raw=True),
        helper.make_tensor("s", TensorProto.FLOAT16, [24], bytes(48), raw=True),
    ]
    node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["m"], domain="com.microsoft", K=32, N=24, bits=4)
    after = helper.make_node("Neg", ["m"], ["y"])
    graph = helper.make_graph(
        [node, after],
        "packed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", "s", 32])],
        [onnx.ValueInfoProto(name="y")],
        tensors,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    types = tensor_types(helper.make_model(graph, opset_imports=imports))[0]
    assert types["m"] == types["y"] == (("n", "s", 24), "float16")


def test_inference_goes_on_behind_what_was_learned():
    text = f"{UNKNOWN} {{ r = Reshape(i, s) c = Conv(r, w) t = Transpose<perm = [0, 2, 1]>(c) y = Squeeze(t, o) }}"
    model = onnx_text(text, {"w": (8, 4, 1)}, 17)
    model.graph.initializer.append(helper.make_tensor("o", TensorProto.INT64, [1], [0]))
    assert tensor_types(model)[0]["y"] == ((None, 8), "float32")


def test_the_name_that_an_output_gives_a_size_does_not_climb():
    text = "(float[n, s, 8] i) => (float[rows, places, 8] y) { u = Relu(i) v = Neg(u) y = Relu(v) }"
    types = types_of(text, {}, custom=["u"])
    assert types["v"][0] == (None, None, 8)


def test_nothing_is_made_up_where_nothing_is_known():
    types = types_of(f"{UNKNOWN} {{ u = Relu(i) y = Relu(u) }}", {}, custom=["u"])
    assert types.get("u", (None, None))[0] is None


@pytest.mark.parametrize(
    ("known", "said", "expected"),
    [
        (None, (1, None), (1, None)),
        ((1, None), None, (1, None)),
        (("n", None, 4), (2, 3, 5), (2, 3, 4)),
        ((1, 2), (1, 2, 3), (1, 2)),
    ],
)
def test_what_is_known_stays_when_shapes_are_merged(known, said, expected):
    assert merged(known, said) == expected


def test_fused_attention_tells_rank_and_width():
    text = """(int32[b, s] ids) => (float[] y) { e = com.microsoft.EmbedLayerNormalization(ids, , t, t, , g, g)
        a = com.microsoft.Attention<num_heads = 2>(e, w, c)
        y = com.microsoft.SkipLayerNormalization(a, e, g, g) }"""
    types = types_of(text, {"t": (50, 8), "g": (8,), "w": (8, 24), "c": (24,)})
    assert types["e"] == types["a"] == types["y"] == (("b", "s", 8), "float32")
