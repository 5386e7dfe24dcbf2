"""The measuring program of the kernels: what it measures and how it reports, not how fast anything is."""

import json

import numpy as np
import pytest

from laurel_graph import runtime
from laurel_graph.tools import bench_kernels
from laurel_graph.tools.bench_kernels import Point, main, model_of, runner

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


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernel_runs_on_bound_arrays_when_the_dtype_varies(dtype):
    runner(model_of(Point(3, 16, 4, "rw+lr+rmsnorm", "tokens", dtype)), threads=1, fused=True)()


@needs_library
def test_report_has_a_row_for_each_point_when_json_is_asked_for(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_kernels, "copy_bandwidth", lambda threads: 1e4)
    monkeypatch.setattr(bench_kernels, "multiply_add_rate", lambda threads: 1e5)
    plot = tmp_path / "roof.png"
    options = ["--rows", "2", "8", "--widths", "16", "--ranks", "4", "--variants", "rw", "rw+lr", "--seconds", "0"]
    assert main([*options, "--threads", "1", "--json", "--plot", str(plot)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["rows"], row["variant"], row["rank"]) for row in rows] == [
        (2, "rw", 0), (8, "rw", 0), (2, "rw+lr", 4), (8, "rw+lr", 4)
    ]  # fmt: skip
    assert {"fused_us", "body_us", "add_us", "bound_us", "threads", "layout", "dtype", "D"} <= set(rows[0])
    assert plot.stat().st_size > 1000
