"""The fused kernels against the formula in float64."""

import numpy as np
import pytest
from tolerance import assert_close

from kernels.battery import Case, all_operators, make_session, residuals, rounded
from laurel_graph.opset.schema import Operator
from laurel_graph.runtime import library_path

pytestmark = pytest.mark.skipif(library_path() is None, reason="the library of kernels is not built")

DTYPES = ("float32", "float16", "bfloat16")
RANKS, WIDTHS, ROWS = (1, 4, 16, 33, 64), (8, 64, 96, 768, 1000), (0, 1, 7, 64, 1000)
RW_LR = Operator(rw=True, lr=True)


def check(case, threads=1):
    for actual, expected in zip(case.run(threads), case.expected(), strict=True):
        assert_close(actual, expected, case.dtype)


def channel_shape(layout, rows, width, positions=(5, 3, 2)):
    return (rows, width, *positions[: int(layout[0])])


def test_every_operator_of_the_schema_runs_when_the_library_is_registered():
    cases = []
    for i, op in enumerate(all_operators()):
        shape = channel_shape(op.layout, 2, 6) if op.layout else (2, 3, 6)
        cases.append(Case(op, shape, rank=1 + i % 5, per_channel=bool(i % 2), sum_output=bool(i % 3), seed=i))
    session, feeds = make_session(cases, operators="all")
    results = iter(session.run(None, feeds))
    for case in cases:
        for expected in case.expected():
            assert_close(next(results), expected)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_rw_lr_equals_formula_when_rows_vary(rank, width):
    for i, rows in enumerate(ROWS):
        check(Case(RW_LR, (rows, width), rank=rank, per_channel=i % 2 == 0, seed=i))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["", "1d", "2d", "3d"])
def test_every_residual_equals_formula_when_layout_and_dtype_vary(dtype, layout):
    cases = []
    for i, parts in enumerate(residuals()):
        op = Operator(**parts, layout=layout)
        rank, width, rows = RANKS[i % 5], WIDTHS[i // 3 % 4], (1, 7, 13)[i % 3]
        positions = ((49, 1, 1), (5, 7, 1), (14, 3, 2))[i % 3]
        shape = channel_shape(layout, 1 + i % 2, width, positions) if layout else (rows, width)
        cases.append(Case(op, shape, rank=min(rank, width), dtype=dtype, per_channel=bool(i % 2), seed=i))
    session, feeds = make_session(cases)
    results = iter(session.run(None, feeds))
    for case in cases:
        assert_close(next(results), case.expected()[0], dtype)


@pytest.mark.parametrize("dtype", (*DTYPES, "float64"))
def test_epilogues_equal_formula_when_width_has_a_tail(dtype):
    for i, (width, epilogue) in enumerate(
        (width, epilogue) for width in (1, 7, 8, 31, 768, 1000) for epilogue in ("LayerNorm", "RMSNorm", "Relu", "")
    ):
        layout = "2d" if epilogue == "Relu" else ""
        for parts in ({"rw": True}, {"rw": True, "lr": True}, {"lr": True, "previous": 2, "low_rank_previous": True}):
            op = Operator(**parts, bias=not layout, layout=layout, epilogue=epilogue)
            shape = (2, width, 3, 5) if layout else (9, width)
            check(Case(op, shape, rank=min(5, width), dtype=dtype, sum_output=i % 2 == 0, seed=i))


@pytest.mark.parametrize("width", (7, 31, 768))
def test_layer_norm_keeps_its_digits_when_a_row_is_nearly_constant(width):
    case = Case(Operator(rw=True, epilogue="LayerNorm"), (9, width))
    rng = np.random.default_rng(0)
    # Sums that float32 holds exactly, far from zero; an outlier in front for the one-pass variance to trip over.
    case.tensors["x"] = 4096 + rng.integers(-128, 128, (9, width)) / 64
    case.tensors["x"][1::2, 0] = -4096
    case.tensors["f"] *= 0
    case.tensors["alpha"] = case.tensors["beta"] = np.ones(())
    check(case)


@pytest.mark.parametrize("dtype", (*DTYPES, "float64"))
@pytest.mark.parametrize("layout", ["", "2d"])
def test_parameters_from_graph_inputs_give_the_same_when_not_constant(dtype, layout):
    shape = (2, 40, 6, 5) if layout else (3, 5, 40)
    for i, parts in enumerate(({"rw": True, "lr": True}, {"rw": True, "lr": True, "previous": 3}, {"previous": 1},
                               {"lr": True, "previous": 2, "low_rank_previous": True}, {"rw": True})):  # fmt: skip
        op = Operator(**parts, layout=layout, bias=not layout, epilogue="" if layout else "LayerNorm")
        check(Case(op, shape, rank=9, dtype=dtype, per_channel=i % 2 == 0, constant=False, seed=i))


@pytest.mark.parametrize("shape", [(1000, 384), (3, 700, 96), (4096, 64), (1, 2048), (5, 2048)])
@pytest.mark.parametrize("parts", [{"rw": True}, {"rw": True, "lr": True}, {"lr": True, "previous": 2}])
def test_two_threads_give_the_same_when_work_is_shared(shape, parts):
    for epilogue in ("", "RMSNorm"):
        check(Case(Operator(**parts, epilogue=epilogue), shape, rank=64, per_channel=True), threads=2)


@pytest.mark.parametrize(("shape", "rank"), [((1, 1999), 64), ((3, 5, 1001), 77), ((16, 3001), 33), ((2, 10007), 5)])
def test_two_threads_give_the_same_when_the_columns_of_few_rows_are_shared(shape, rank):
    for i, dtype in enumerate(DTYPES):
        check(Case(Operator(rw=True, lr=True, bias=True), shape, rank, dtype=dtype, per_channel=i % 2 == 0), threads=2)
    pal = Operator(rw=True, lr=True, previous=2, low_rank_previous=True)
    check(Case(pal, shape, rank), threads=2)
    check(Case(pal, shape, rank), threads=1)


@pytest.mark.parametrize("shape", [(1, 64, 56, 56), (2, 512, 14, 14), (3, 2048, 7, 7), (1, 1024, 1, 1)])
def test_two_threads_give_the_same_when_channels_are_shared(shape):
    for parts in ({"rw": True}, {"rw": True, "lr": True}):
        check(Case(Operator(**parts, layout="2d", epilogue="Relu"), shape, rank=16, per_channel=True), threads=2)


def test_wide_products_give_the_same_when_scratch_leaves_the_stack():
    pal = {"lr": True, "previous": 8, "low_rank_previous": True}
    check(Case(Operator(**pal, epilogue="LayerNorm"), (13, 440), rank=400))
    check(Case(Operator(**pal, layout="1d"), (2, 240, 5), rank=220))
    check(Case(Operator(rw=True, epilogue="LayerNorm"), (3, 20000), dtype="bfloat16"))


@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (0, 5, 16), (2, 0, 16)])
def test_result_is_empty_when_an_axis_is(shape):
    for op in (RW_LR, Operator(rw=True), Operator(lr=True, epilogue="LayerNorm")):
        outputs = Case(op, shape, rank=0 if shape[-1] == 0 else 4).run()
        assert all(output.shape == shape for output in outputs)


def test_start_keeps_the_bits_of_a_plain_add_when_b_is_zero():
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        case = Case(RW_LR, (50, 100), rank=8, dtype=dtype)
        case.tensors["B"] *= 0
        case.tensors["alpha"] = case.tensors["beta"] = np.ones(())
        case.tensors["x"] *= rng.choice([1e-3, 1, 100], (50, 100)).astype(np.float16)
        case.tensors["x"] = rounded(case.tensors["x"], dtype)
        expected = rounded(case.tensors["x"].astype(np.float32) + case.tensors["f"].astype(np.float32), dtype)
        np.testing.assert_array_equal(case.run()[0], expected)


def test_output_may_take_the_place_of_an_input_when_it_dies_here():
    # Two operators in a chain: the second one's x and f are both values that nobody else needs.
    from onnx import helper

    for layout, shape in (("", (40, 64)), ("2d", (2, 64, 5, 4))):
        case = Case(Operator(rw=True, lr=True, layout=layout), shape, rank=8)
        nodes, initializers, inputs, _, feeds = case.nodes()
        name = case.op.name
        chain = [
            *nodes[:-2],
            helper.make_node("Neg", ["f"], ["g"]),
            helper.make_node(name, ["x", "g", *case.op.inputs[2:]], ["y1"], domain="ai.laurel"),
            helper.make_node("Neg", ["y1"], ["n1"]),
            helper.make_node("Abs", ["y1"], ["a1"]),
            helper.make_node(name, ["n1", "a1", *case.op.inputs[2:]], ["y2"], domain="ai.laurel"),
        ]
        import onnxruntime as ort
        from onnx import TensorProto

        from laurel_graph.formula import residual
        from laurel_graph.runtime import session_options

        out = helper.make_tensor_value_info("y2", TensorProto.FLOAT, None)
        graph = helper.make_graph(chain, "chain", inputs, [out], initializers)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.laurel", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        session = ort.InferenceSession(model.SerializeToString(), session_options(threads=1, operators=[name]))
        t = case.tensors
        parameters = {k: t[k] for k in ("alpha", "beta", "A", "B")}
        y1 = residual(t["x"], -t["f"], parameters, axis=case.op.axis)
        assert_close(session.run(None, feeds)[0], residual(-y1, abs(y1), parameters, axis=case.op.axis))
