"""Every instruction set of this machine computes the same."""

import numpy as np
import pytest
from tolerance import relative_difference

from kernels.battery import Case
from laurel_graph import runtime
from laurel_graph.errors import KernelLibraryError
from laurel_graph.opset.schema import Operator

pytestmark = pytest.mark.skipif(runtime.library_path() is None, reason="the library of kernels is not built")

CASES = [
    Case(Operator(rw=True), (31, 33), per_channel=True),
    Case(Operator(rw=True, lr=True), (13, 1000), rank=33),
    Case(Operator(rw=True, lr=True), (64, 768), rank=4),
    Case(Operator(lr=True, previous=2, low_rank_previous=True, bias=True, epilogue="LayerNorm"), (7, 96), rank=16),
    Case(Operator(rw=True, lr=True, previous=3, epilogue="RMSNorm"), (9, 131), rank=5),
    Case(Operator(rw=True, lr=True, layout="2d", epilogue="Relu"), (2, 70, 7, 7), rank=16, per_channel=True),
    Case(Operator(previous=2, layout="1d"), (2, 30, 41)),
]


@pytest.mark.parametrize("name", runtime.available_isas()[1:])
def test_paths_agree_within_1e_6_of_scale_when_one_is_forced(name, monkeypatch):
    assert runtime.isa() == runtime.available_isas()[0]
    best = [case.run() for case in CASES]
    monkeypatch.setenv("LAUREL_ISA", name)
    assert runtime.isa() == name
    for case, expected in zip(CASES, best, strict=True):
        for a, b in zip(case.run(), expected, strict=True):
            assert relative_difference(a, b) <= 1e-6


@pytest.mark.parametrize("name", runtime.available_isas())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_conversions_of_16_bit_floats_are_exact_when_values_are_extreme(name, dtype, monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", name)
    # y = f + x with x = 0 (but -0 where f is -0) gives f back in all bits; halves and ties come from two addends.
    from kernels.battery import rounded

    values = np.array([0.0, 1e-8, 6e-8, 6.1e-5, 1e-4, 1.0, 65504.0, 3.3e4, np.inf, 2049.0, 0.1, 5.96e-8, 1e-40])
    values = np.concatenate([values, -values[1:]])
    case = Case(Operator(rw=True), (values.size, 9), dtype=dtype)
    case.tensors["f"] = rounded(np.repeat(values[:, None], 9, 1), dtype)
    case.tensors["x"] = rounded(np.where(np.isfinite(values), values, 0.0)[:, None] * np.full((1, 9), 2.0**-11), dtype)
    case.tensors["alpha"] = case.tensors["beta"] = np.ones(())
    expected = rounded(case.tensors["f"].astype(np.float32) + case.tensors["x"].astype(np.float32), dtype)
    np.testing.assert_array_equal(case.run()[0], expected)


def test_error_lists_the_paths_when_the_forced_one_is_unknown(monkeypatch):
    monkeypatch.setenv("LAUREL_ISA", "mmx")
    with pytest.raises(KernelLibraryError, match=r"LAUREL_ISA = 'mmx'.*expected one of"):
        runtime.isa()
