"""Joins between quantised tensors stay in bytes."""

import numpy as np
import pytest
from deploy_models import copy, feeds_of, laurel_model, operators, refresh
from models import run_onnx

from laurel_graph.passes.deploy.choose import fuse
from laurel_graph.passes.deploy.costs import default_costs
from laurel_graph.passes.fold.fold import fold

SCALES = {"sx": np.float32(0.02), "sf": np.float32(0.03), "sy": np.float32(0.04)}
LOW_RANK = "A[8,2], B[2,8]"
SCALED = f"alpha[], beta[], {LOW_RANK}"


def island(
    join=f"Laurel_LR_2d(x, f, {LOW_RANK})",
    types="float[N,8,6,6]",
    outputs="",
    relu="r = Relu(j)",
    last="r",
    zero="z",
    extra="",
):
    """Text of a quantised residual block with the join in its middle."""
    return f"""({types} x0) => ({types} y{outputs})
    xq = QuantizeLinear(x0, sx[], z[])
    x = DequantizeLinear(xq, sx, z)
    h = Sin(x)
    fq = QuantizeLinear(h, sf[], {zero})
    f = DequantizeLinear(fq, sf, {zero})
    j = ai.laurel.{join}
    {relu}
    yq = QuantizeLinear({last}, sy[], z)
    yd = DequantizeLinear(yq, sy, z)
    y = Sigmoid(yd)
    {extra}
    """


def deployed(text, portable=False, zero=128, dtype=np.uint8, **weights):
    model = laurel_model(text, weights={**SCALES, "z": np.asarray(zero, dtype), **weights})
    after = copy(model)
    fold(after)
    sites = fuse(after, default_costs(), portable=portable)
    refresh(after)
    return model, after, sites[0]


def assert_same_but_for_rounding(before, after):
    """One step of the last quantiser at a few places at most, where a last bit decides between two integers."""
    feeds = feeds_of(before, batch=5)
    for optimize in (False, True):
        for a, b in zip(run_onnx(after, feeds, optimize), run_onnx(before, feeds), strict=True):
            off = np.abs(np.float64(a) - b)
            assert off.max() <= SCALES["sy"] / 4 + 1e-6  # a sigmoid's slope is at most 1/4
            assert np.mean(off > 1e-6) < 0.01


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 0), (np.uint8, 131), (np.int8, 0), (np.int8, -5)])
@pytest.mark.parametrize("parts", ["LR", "RW_LR"])
@pytest.mark.parametrize("relu", ["r = Relu(j)", ""])
def test_join_becomes_one_operator_when_channels_are_on_axis_one(parts, relu, dtype, zero):
    join = f"Laurel_{parts}_2d(x, f, {SCALED if 'RW' in parts else LOW_RANK})"
    before, after, site = deployed(island(join, relu=relu, last="r" if relu else "j"), dtype=dtype, zero=zero)
    assert site.form == "quantized"
    assert site.operator.endswith("_Relu_Quantized" if relu else "LR_Quantized")
    assert operators(after).count("Transpose") == 3
    assert "Relu" not in operators(after)
    assert_same_but_for_rounding(before, after)


@pytest.mark.parametrize("types", ["float[N,8]", "float[N,5,8]"])
def test_join_becomes_one_operator_when_features_are_last(types):
    before, after, site = deployed(island(f"Laurel_LR(x, f, {LOW_RANK})", types))
    assert site.operator == "Laurel_LR_Relu_Quantized"
    assert "Transpose" not in operators(after)
    assert_same_but_for_rounding(before, after)


def test_join_keeps_its_floats_when_the_file_is_to_be_portable():
    before, after, site = deployed(island(), portable=True)
    assert site.form in ("chained", "widened")
    assert not any(node.domain for node in after.graph.node)
    assert_same_but_for_rounding(before, after)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": ", float[N,8,6,6] other", "extra": "other = Sigmoid(j)"},
        {"outputs": ", float[N,8,6,6] r"},
        {"zero": "z2[]"},
        {"relu": "r = Tanh(j)"},
        {"join": "Laurel_LR_PA1_2d(x, f, A[8,2], B[2,8], gamma[1], h)"},
        {"join": f"Laurel_LR_2d(x0, f, {LOW_RANK})"},
    ],
    ids=["join is read twice", "relu is an output", "types differ", "no relu", "earlier activation", "x is float"],
)
def test_join_keeps_its_floats_when_something_else_needs_them(changes):
    before, after, site = deployed(island(**changes), z2=np.int8(3))
    assert site.form != "quantized"
    assert_same_but_for_rounding(before, after)


def test_join_keeps_its_floats_when_a_quantiser_is_per_channel():
    text = island().replace("QuantizeLinear(h, sf[], z)", "QuantizeLinear<axis = 1>(h, sf[8], z8[8])")
    text = text.replace("DequantizeLinear(fq, sf, z)", "DequantizeLinear<axis = 1>(fq, sf, z8)")
    weights = {"sf": np.linspace(0.02, 0.04, 8, dtype=np.float32), "z8": np.full(8, 128, np.uint8)}
    before, after, site = deployed(text, **weights)
    assert site.form != "quantized"
    assert_same_but_for_rounding(before, after)
