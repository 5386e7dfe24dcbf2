"""The measuring program of the kernels: what it measures and how it reports, not how fast anything is."""

import json

import numpy as np
import pytest
from tolerance import assert_close

from laurel_graph import runtime
from laurel_graph.tools.benchmarks.kernels import timing as kernel_timing
from laurel_graph.tools.benchmarks.kernels.__main__ import main
from laurel_graph.tools.benchmarks.kernels.points import (
    RESNET50_JOINS,
    Point,
    model_of,
    repeated,
    separate_model_of,
    skip_norm_model_of,
)
from laurel_graph.tools.benchmarks.kernels.report import summary
from laurel_graph.tools.benchmarks.kernels.timing import Machine, Rates, Row, runner

needs_library = pytest.mark.skipif(runtime.library_path() is None, reason="the library of kernels is not built")


@pytest.mark.parametrize(
    ("variant", "layout", "name"),
    [
        ("rw", "tokens", "Laurel_RW"),
        ("rw+lr+pa3", "tokens", "Laurel_RW_LR_PA3"),
        ("lr+pal2+bias+layernorm", "tokens", "Laurel_LR_PAL2_Bias_LayerNorm"),
        ("rw+lr+relu", "2d", "Laurel_RW_LR_2d_Relu"),
    ],
)
def test_operator_follows_the_variant_when_it_has_many_parts(variant, layout, name):
    assert Point(8, 16, 4, variant, layout, "float32").operator.name == name


def test_positions_are_spread_over_the_axes_when_the_layout_has_them():
    assert Point(49, 8, 4, "rw", "2d", "float32").shape == (1, 8, 7, 7)
    assert np.prod(Point(24, 8, 4, "rw", "3d", "float32").shape) == 24 * 8


def test_bound_is_the_larger_of_memory_and_arithmetic_when_either_dominates():
    point = Point(10, 100, 4, "rw+lr", "tokens", "float32")
    assert point.floor(bytes_per_us=1.0, flops_per_us=1e9) == 10 * 100 * 3 * 4
    assert point.floor(bytes_per_us=1e9, flops_per_us=1.0) == 4 * 10 * 100 * 4


@pytest.fixture
def quick_probes(monkeypatch):
    """Rates from so little work that they mean nothing."""
    monkeypatch.setattr(kernel_timing, "_COPIED", 1 << 16)
    monkeypatch.setattr(kernel_timing, "_ROUNDS", 100)


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
def test_highest_rates_count_when_some_measurements_are_slower(quick_probes, monkeypatch, threads):
    seconds = iter([1e-3, 2e-3, 4e-3, 1e-3, 2e-3, 2e-3])
    monkeypatch.setattr(
        kernel_timing, "_in_threads", lambda work, threads: [work(i) for i in range(threads)] and next(seconds)
    )
    rates = Machine(threads).rates()
    assert rates.copy_gb_s == pytest.approx(2 * (1 << 16) * threads / 1e-3 / 1e9)
    assert rates.gflop_s == pytest.approx(threads * runtime.multiply_adds(100) / 1e-3 / 1e9)
    assert rates.higher(Rates(1e6, 0)) == Rates(1e6, rates.gflop_s)
    point = Point(10, 100, 4, "lr", "tokens", "float32")
    assert Rates(1e-3, 1e6).bound_us(point) == point.floor(1.0, 1e9)


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernel_runs_on_bound_arrays_when_the_dtype_varies(dtype):
    runner(model_of(Point(3, 16, 4, "rw+lr+rmsnorm", "tokens", dtype)), threads=1, fused=True)()


@needs_library
def test_report_has_a_row_for_each_point_when_json_is_asked_for(capsys, quick_probes, tmp_path):
    plot = tmp_path / "roof.png"
    options = ["--rows", "2", "8", "--widths", "16", "--ranks", "4", "--variants", "rw", "rw+lr", "--seconds", "0"]
    assert main([*options, "--threads", "1", "--json", "--plot", str(plot)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["rows"], row["variant"], row["rank"]) for row in rows] == [
        (2, "rw", 0), (8, "rw", 0), (2, "rw+lr", 4), (8, "rw+lr", 4)
    ]  # fmt: skip
    assert {"fused_us", "body_us", "add_us", "bound_us", "threads", "layout", "dtype", "D"} <= set(rows[0])
    assert min(rows[0]["copy_gb_s"], rows[0]["gflop_s"]) > 0
    assert rows[0]["one_thread_us"] is None
    assert plot.stat().st_size > 1000


@needs_library
def test_other_forms_are_measured_when_there_are_two_threads_and_a_norm(capsys, quick_probes):
    variants = ["lr+layernorm", "rw+rmsnorm"]
    options = ["--rows", "64", "--widths", "16", "--ranks", "4", "--variants", *variants, "--seconds", "0"]
    assert main([*options, "--threads", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        assert min(row["one_thread_us"], row["separate_us"], row["skip_norm_us"]) > 0
        assert min(row["one_thread_over_fused"], row["separate_over_fused"], row["fused_over_skip_norm"]) > 0
    assert sum("ONNX Runtime's norm over norm-fused" in line for line in found["summary"]) == 2


@needs_library
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_separate_norm_computes_the_same_when_compared_with_the_fused_one(norm):
    import onnxruntime as ort

    point = Point(6, 32, 4, f"rw+lr+{norm}", "tokens", "float32")
    rng = np.random.default_rng(1)
    feeds = {name: rng.standard_normal(point.shape).astype(np.float32) for name in "xf"}
    outputs = []
    for model in (model_of(point), separate_model_of(point)):
        names = [node.op_type for node in model.graph.node if node.domain == "ai.laurel"]
        options = runtime.session_options(threads=1, operators=names)
        outputs.append(ort.InferenceSession(model.SerializeToString(), options).run(["y"], feeds)[0])
    assert_close(outputs[0], outputs[1].astype(np.float64))


def test_repeated_nodes_have_parameters_and_outputs_of_their_own_when_they_share_inputs():
    import onnx

    model = separate_model_of(Point(6, 32, 4, "lr+layernorm", "tokens", "float32"))
    three = repeated(model, 3)
    onnx.checker.check_model(three)
    assert [value.name for value in three.graph.output] == ["y", "y_1", "y_2"]
    assert [list(node.input)[:2] for node in three.graph.node if node.domain == "ai.laurel"] == [["x", "f"]] * 3
    assert [node.input[0] for node in three.graph.node if not node.domain] == ["sum", "sum_1", "sum_2"]
    weights = {tensor.raw_data or tuple(tensor.float_data) for tensor in three.graph.initializer if "A" in tensor.name}
    assert len(weights) == 3
    runner(three, threads=1, fused=True)()


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_skip_norm_is_onnx_runtimes_own_when_the_kind_varies(norm):
    model = skip_norm_model_of(Point(6, 32, 4, f"lr+{norm}", "tokens", "float32"))
    assert [node.domain for node in model.graph.node] == ["com.microsoft"]
    runner(model, threads=1, fused=False)()


def row(rows, width, rank=16, variant="rw+lr", layout="tokens", **values):
    measured = {"fused_us": 10.0, "body_us": 20.0, "add_us": 8.0, "bound_us": 5.0}
    ratios = {"body_over_fused": 2.0, "fused_over_add": 1.25}
    return Row(rows, width, rank, variant, layout, "float32", 2, 40.0, 300.0, **{**measured, **ratios, **values})


def test_summary_counts_each_join_of_resnet50_when_all_four_shapes_are_there():
    ratios = (2.0, 1.0, 1.0, 4.0)
    rows = [
        row(positions, channels, layout="2d", body_over_fused=ratio)
        for (positions, channels, _), ratio in zip(RESNET50_JOINS, ratios, strict=True)
    ]
    expected = 2 ** ((3 * 1 + 3 * 2) / 16)
    assert any(line.endswith(f"16 joins, body/fused geometric mean {expected:.2f}") for line in summary(rows))
    assert not any("joins" in line for line in summary(rows[:3]))


def test_summary_states_the_least_share_of_the_bound_when_rows_are_many():
    lines = summary([row(256, 384, bound_us=9.0), row(4096, 768, bound_us=4.0), row(64, 768, bound_us=1.0)])
    assert (
        "rw+lr tokens float32, rows >= 256: share of the bound geometric mean 0.60, least 0.40 (4096x768 r = 16)"
        in lines
    )


def test_summary_compares_with_add_when_nothing_is_low_rank():
    small = row(8, 384, 0, "rw", fused_us=9.5, fused_over_add=1.2)
    large = row(1024, 384, 0, "rw", fused_over_add=1.1)
    lines = summary([small, large])
    assert "rw tokens float32, rows x D >= 64 k: fused/Add geometric mean 1.10, at most 1.10" in lines
    assert "rw tokens float32, rows x D < 64 k: fused - Add median 1.50 µs, at most 1.50 µs" in lines


def test_summary_keeps_variants_apart_when_there_are_several():
    norm = {"separate_over_fused": 1.5, "fused_over_skip_norm": 0.9, "one_thread_over_fused": 1.8}
    lines = summary([row(1024, 384), row(1024, 384, 4, "lr+layernorm", **norm)])
    assert not any("norm" in line for line in lines if line.startswith("rw+lr "))
    own = [line for line in lines if line.startswith("lr+layernorm ")]
    assert any(line.endswith("skip norm at most 0.90") for line in own)
    assert any("norm-fused geometric mean 1.50, least 1.50" in line for line in own)
    assert any("one thread over 2 geometric mean 1.80" in line for line in own)
